"""Data cards: what a data set is, where it comes from, how its folder looks, who is in which split."""

from __future__ import annotations

import hashlib
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


@dataclass(frozen=True)
class Photo:
    """One photograph of a data set.

    Attributes:
        identity: Who is shown.
        path: Path inside the data set's folder, with "/" between its parts.
    """

    identity: str
    path: str


@dataclass(frozen=True)
class DatasetCard:
    """A data card (`datasets/<name>.yaml`).

    Attributes:
        name: Name of the card.
        title: Full name.
        licence: Licence, as its authors word it.
        terms: What its users must know before using it.
        citation: How to cite it.
        layout: Shape of the folder: `identity_folders` (one folder of photographs per person).
        identity_pattern: Regular expression that a person's folder matches.
        photo_pattern: Regular expression that a photograph's file name matches.
        size: Side of the aligned pictures in pixels.
        splits: Identity lists, or `{rule: hashed, seed, test, validation}`.
        package: `{distribution, version, path}` where an installable package ships the pictures.
        alignment: Committed alignment file, relative to `datasets/`; None where the pictures are
            aligned already.
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
    package: dict[str, str] | None = None
    alignment: str | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    traps: list[str] = field(default_factory=list)


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
        return DatasetCard(**yaml.safe_load(path.read_text("utf-8")))
    except TypeError as error:
        raise UsageError(f"The data card {path} is not valid: {error}.") from error


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
            raise MissingError(f"data.root={given} is not a folder. {_how_to_get(card)}")
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
    raise MissingError(
        f"The data set {card.name!r} ({card.title}) is not here. Looked in {looked}. {_how_to_get(card)}"
    )


def _how_to_get(card: DatasetCard) -> str:
    return (
        f"To get it: {card.obtain} Licence: {card.licence}. If you have it elsewhere, add data.root=FOLDER. "
        "Offline alternative: data=orl_heavy (ships with the demo extra)."
    )


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts s2 before s10."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text) if part]


def list_photos(card: DatasetCard, root: Path) -> list[Photo]:
    """Lists the photographs of a data set in natural order.

    Raises:
        UsageError: The card's layout is unknown.
        MissingError: The folder holds no photographs in this layout.
    """
    from bench.image import is_picture

    if card.layout != "identity_folders":
        raise unknown_name(f"layout in the data card {card.name}", card.layout, ["identity_folders"])
    pattern, photo_pattern = re.compile(card.identity_pattern), re.compile(card.photo_pattern)
    folders = [path for path in root.iterdir() if path.is_dir() and pattern.fullmatch(path.name)]
    photos = [
        Photo(folder.name, f"{folder.name}/{path.name}")
        for folder in sorted(folders, key=lambda path: natural_key(path.name))
        for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        if photo_pattern.fullmatch(path.name) and is_picture(path)
    ]
    if not photos:
        raise MissingError(
            f"{root} holds no photographs in the layout of {card.name}: one folder per person whose name matches "
            f"{card.identity_pattern!r}, with pictures inside. {_how_to_get(card)}"
        )
    return photos


def split_identities(card: DatasetCard, identities: list[str]) -> dict[str, list[str]]:
    """Who belongs to which split.

    A card either lists its identities, or names the rule `hashed`: identities are ordered by the
    SHA-256 of "<card>/<seed>/<identity>"; the first `test` of them are tested, the next
    `validation` validated, the rest trained on. The rule needs no list of a data set that cannot be
    shipped and gives everyone who has it the same split.

    Args:
        card: Data card.
        identities: Everyone who is present.

    Raises:
        UsageError: Unknown rule, or a listed identity stands in two splits.
    """
    splits = card.splits
    if "rule" in splits:
        if splits["rule"] != "hashed":
            raise unknown_name(f"split rule in the data card {card.name}", splits["rule"], ["hashed"])

        def rank(identity: str) -> str:
            return hashlib.sha256(f"{card.name}/{splits['seed']}/{identity}".encode()).hexdigest()

        ordered = sorted(identities, key=rank)
        first, second = splits["test"], splits["test"] + splits["validation"]
        parts = {"test": ordered[:first], "validation": ordered[first:second], "train": ordered[second:]}
    else:
        parts = {name: [str(identity) for identity in splits.get(name, [])] for name in SPLITS}
        listed = [identity for part in parts.values() for identity in part]
        if len(listed) != len(set(listed)):
            raise UsageError(f"The data card {card.name} lists an identity in two splits.")
        present = set(identities)
        parts = {name: [identity for identity in part if identity in present] for name, part in parts.items()}
    return {name: sorted(parts[name], key=natural_key) for name in SPLITS}
