"""Which data sets are here, without hashing or opening anything."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.data.gather import SUFFIXES
from bench.data.prepare import read_record, staging_folder
from bench.errors import BenchError, MissingError
from bench.paths import bench_home
from bench.protocol.card import DatasetCard, card_names, data_root, load_card

MOST_COUNTED = 200_000


@dataclass(frozen=True)
class Listed:
    """One line of `bench data ls`.

    Attributes:
        name: Name of the card.
        title: Full name.
        state: `present`, `incomplete`, `absent`, or `broken card`.
        note: Why it is incomplete, or what is wrong with the card.
        root: Where it lies, or None.
        pictures: How many pictures are there; None where it is absent.
        expected: How many the card promises; None where it does not say.
        licence: Licence, as the card words it.
        public: Whether anyone can get it.
    """

    name: str
    title: str
    state: str
    note: str
    root: str | None
    pictures: int | None
    expected: int | None
    licence: str
    public: bool

    def as_dict(self) -> dict[str, Any]:
        """The line as built-in types."""
        return asdict(self)


def list_data() -> list[Listed]:
    """State of every card's data set."""
    return [_listed(name) for name in card_names()]


def _listed(name: str) -> Listed:
    try:
        card = load_card(name)
    except BenchError as error:
        return Listed(name, "", "broken card", str(error), None, None, None, "", False)
    state, note, root, pictures = _state(card)
    return Listed(name, card.title, state, note, root, pictures, _expected(card), card.licence, card.public)


def _expected(card: DatasetCard) -> int | None:
    images = card.statistics.get("images")
    return images if isinstance(images, int) else None


def _state(card: DatasetCard) -> tuple[str, str, str | None, int | None]:
    try:
        root = data_root(card)
    except MissingError:
        staging = staging_folder(bench_home() / "data" / card.name)
        if staging.is_dir():
            return "incomplete", "preparation not finished: give the same prepare command again", str(staging), None
        return "absent", "" if card.public else "not public", None, None
    record = read_record(root)
    pictures = record["pictures"] if record else _count(root, card.photo_pattern)
    left_out = len(record["skipped"]) if record else 0
    expected = _expected(card)
    if pictures == 0 or (expected is not None and pictures + left_out < min(expected, MOST_COUNTED)):
        return (
            "incomplete",
            f"{pictures} of {expected if expected is not None else 'some'} pictures",
            str(root),
            pictures,
        )
    return "present", f"{left_out} left out when prepared" if left_out else "", str(root), pictures


def _count(root: Path, photo_pattern: str) -> int:
    """Pictures below a folder by their names; stops at `MOST_COUNTED`."""
    count, pattern = 0, re.compile(photo_pattern)
    for _, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        count += sum(pattern.fullmatch(name) is not None for name in pictures)
        if count >= MOST_COUNTED:
            break
    return count
