"""Data cards: what a data set is, where it comes from, how its folder looks, who is in which split."""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.errors import MissingError, UsageError, unknown_name
from bench.paths import bench_home, resource_root

SPLITS = ("train", "validation", "test")
LAYOUTS = ("identity_folders", "flat", "paired", "auto")
CONTENTS = ("ground_truth", "lq")


@dataclass(frozen=True)
class DatasetCard:
    """A data card (`datasets/<name>.yaml`).

    Attributes:
        name: Name of the card.
        title: Full name.
        licence: Licence, as its authors word it.
        terms: What its users must know before using it.
        citation: How to cite it.
        layout: Shape of the folder, one of `LAYOUTS`; see `bench/protocol/layout.py`.
        contents: What its pictures are, one of `CONTENTS`: `ground_truth`, or `lq` for real degraded
            pictures that have no ground truth.
        folders: Names of the `paired` layout's folders: `{ground_truth, lq, reference}`.
        identity_pattern: Regular expression that a person's folder matches.
        photo_pattern: Regular expression that a photograph's file name matches.
        identities_from: Who is shown, where folders do not say so: `{pattern}` (one group, on the
            file's stem) or `{file}` (lines of file name and identity); None: everyone is alone.
        references_from: Which references a picture has, where somebody fixed that:
            `{file, image, references}` (a CSV file and two of its columns).
        size: Side of the aligned pictures in pixels.
        align: Template that `bench data prepare` aligns the pictures with; None where they are aligned.
        splits: Identity lists, `{rule: hashed, seed, test, validation}`, `{rule: all_test}` or
            `{rule: all_train}`.
        files: Archives: `{name, url, sha256, bytes, verified}` each.
        public: Whether anyone can get it.
        package: `{distribution, version, path}` where an installable package ships the pictures.
        alignment: Committed alignment file, relative to `datasets/`; None where the pictures are
            aligned already.
        class_words: What a person is called where a method is told by text: identity -> `man`, `woman`, and `default`
            for all others; `person` where nothing is said.
        obtain: How to get the data, one or two sentences.
        traps: Known pitfalls.
    """

    name: str
    title: str
    licence: str
    terms: str
    citation: str
    layout: str
    size: int
    splits: dict[str, Any]
    obtain: str
    source: str
    identity_pattern: str = r".+"
    photo_pattern: str = r".+"
    contents: str = "ground_truth"
    folders: dict[str, str | None] = field(default_factory=dict)
    identities_from: dict[str, str] | None = None
    references_from: dict[str, str] | None = None
    package: dict[str, str] | None = None
    alignment: str | None = None
    align: str | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    public: bool = True
    statistics: dict[str, Any] = field(default_factory=dict)
    traps: list[str] = field(default_factory=list)
    class_words: dict[str, str] = field(default_factory=dict)

    def class_word(self, identity: str) -> str:
        """What a person is called, see `class_words`."""
        return self.class_words.get(identity, self.class_words.get("default", "person"))


def card_names() -> list[str]:
    """Names of all data cards."""
    return sorted(path.stem for path in (resource_root() / "datasets").glob("*.yaml"))


def load_card(name: str) -> DatasetCard:
    """Reads a data card.

    Raises:
        UsageError: There is no such card, or it has unknown or missing fields.
    """
    path = resource_root() / "datasets" / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("data card", name, card_names())
    try:
        card = DatasetCard(**yaml.safe_load(path.read_text("utf-8")))
    except TypeError as error:
        raise UsageError(f"The data card {path} is not valid: {error}.") from error
    if card.layout not in LAYOUTS:
        raise unknown_name(f"layout in the data card {name}", card.layout, LAYOUTS)
    if card.contents not in CONTENTS:
        raise unknown_name(f"contents in the data card {name}", card.contents, CONTENTS)
    return card


def data_root(card: DatasetCard, root: str | None = None) -> Path:
    """Finds the folder of a data set.

    Looked up in this order: `root` (the key `data.root`), `$BENCH_DATA/<card>`,
    `<bench home>/data/<card>`, the package that ships it.

    Raises:
        MissingError: It is nowhere; the message says where it was looked for and how to get it.
    """
    if root is not None:
        given = Path(root).expanduser()
        if not given.is_dir():
            raise MissingError(f"data.root={given} is not a folder. {how_to_get(card)}")
        return given
    places = [bench_home() / "data" / card.name]
    if configured := os.environ.get("BENCH_DATA"):
        places.insert(0, Path(configured).expanduser() / card.name)
    for place in places:
        if place.is_dir():
            return place
    if card.package:
        try:
            distribution = importlib.metadata.distribution(card.package["distribution"])
            packaged = Path(str(distribution.locate_file(card.package["path"])))
            if packaged.is_dir():
                return packaged
        except importlib.metadata.PackageNotFoundError:
            pass
    looked = ", ".join(str(place) for place in places)
    raise MissingError(f"The data set {card.name!r} ({card.title}) is not here. Looked in {looked}. {how_to_get(card)}")


def how_to_get(card: DatasetCard) -> str:
    """How to get a data set, its licence, and what to run without it."""
    return (
        f"To get it: {card.obtain} Licence: {card.licence}. If you have it elsewhere, add data.root=FOLDER. "
        "Offline alternative: data=orl_heavy (ships with the demo extra)."
    )


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts s2 before s10, and orders names of equal numbers (1, 01) by their letters."""
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts], text
