"""Captions of portraits, from files beside the pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.errors import MissingError, UsageError

#: Endings of caption files beside `X.png`, the preferred one first. AuthFace-HQ has `X_qwen.json`.
ENDINGS = (".txt", "_qwen.json", ".json")
SHOWN = 3


def read_captions(root: Path, pictures: Iterable[str]) -> dict[str, str]:
    """Captions of pictures.

    Args:
        root: Folder of the data set.
        pictures: Paths of the pictures below it.

    Returns:
        By the picture's path; tags stand one after the other, between commas.

    Raises:
        MissingError: Pictures have no caption.
        UsageError: A caption file cannot be read, or is empty.
    """
    found: dict[str, str] = {}
    without = []
    for picture in dict.fromkeys(pictures):
        file = caption_file(root / picture)
        if file is None:
            without.append(picture)
        else:
            found[picture] = read_caption(file)
    if without:
        first = ", ".join(without[:SHOWN]) + (", …" if len(without) > SHOWN else "")
        raise MissingError(
            f"{len(without)} of {len(found) + len(without)} pictures in {root} have no caption ({first}). Stage prior "
            f"learns portraits with their tags: write them beside each picture as X{ENDINGS[0]}, make them with: "
            f"python -m methods.authface.captioner {root}, or train without: method.captions=none."
        )
    return found


def caption_file(picture: Path) -> Path | None:
    """The caption file beside a picture, or None."""
    for ending in ENDINGS:
        if (file := picture.with_name(picture.stem + ending)).is_file():
            return file
    return None


def read_caption(file: Path) -> str:
    """The caption that a file holds.

    A text file is its caption. What AuthFace-HQ's JSON files look like inside was not published: every text in them is
    taken, in the order of the file.

    Raises:
        UsageError: It cannot be read, or holds no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
        parts = list(_texts(json.loads(content))) if file.suffix == ".json" else content.splitlines()
    except (ValueError, OSError) as error:
        raise UsageError(f"{file} is no caption: {error}. Mend it or take it away.") from error
    caption = ", ".join(part.strip().strip(",").strip() for part in parts if part.strip().strip(","))
    if not caption:
        raise UsageError(f"{file} holds no caption. Mend it or take it away.")
    return caption


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _texts(part)
