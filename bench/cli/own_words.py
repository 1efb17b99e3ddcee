"""What `bench personalise` and `bench restore` share: files and key=value words in any order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import UsageError

SETTING = re.compile(r"[+~]{0,2}([A-Za-z_]\w*)(\.[\w-]+)*=")
KEYS = ("method", "size", "seed", "trainer")


def separated(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files, and `key=value` words that stand among them; a file of that name is a file."""
    settings = [word for word in words if SETTING.match(word) and not _exists(word)]
    return [Path(word).expanduser() for word in words if word not in settings], settings


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # too long for the name of a file
        return False


def own_config(arguments: argparse.Namespace, words: Sequence[str], verb: str) -> dict[str, Any]:
    """The composed configuration; `--method` and `--seed` stand for the keys of that name.

    Args:
        arguments: Parsed arguments, with `overrides`.
        words: `key=value` words found among the files.
        verb: For messages.

    Raises:
        UsageError: A key that means nothing here, or one that is given twice.
    """
    from bench.config import compose

    words = [*words, *arguments.overrides]
    given = {word.partition("=")[0].lstrip("+~") for word in words}
    for word in words:
        if SETTING.match(word) and (key := word.partition("=")[0].lstrip("+~")).partition(".")[0] not in KEYS:
            raise UsageError(f"bench {verb} takes no {key}=…. Its keys: {', '.join(KEYS)}.")
    for option in ("method", "seed"):
        value = getattr(arguments, option, None)
        if value is None:
            continue
        if option in given:
            raise UsageError(f"--{option} and {option}=… are both given. Leave one out.")
        words.append(f"{option}={value}")
    return compose("run", words)
