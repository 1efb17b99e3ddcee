"""Cards of restoration systems, ours and others': how each runs here, where it is, and what folder it reads.

One YAML file each, `configs/system/NAME.yaml`; NAME is the one that the papers' tables have, and that
`method.system=NAME` gives a row of pictures. A link, a licence or a fact is there with where it was read (`sources`);
what is not known is null, with why (`unverified`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from bench.errors import UsageError, unknown_name
from bench.paths import resource_root

RUNS = ("native", "spandrel", "precomputed")
REFERENCES = ("none", "one", "several")
TUNING = ("none", "per_identity")
LAYOUTS = {
    "flat": "the LQ pictures in one folder",
    "same_name": "the LQ pictures, and for each its first reference under the same name",
    "identity_folders": "the LQ pictures, and a folder of references for each person",
    "image_folders": "the LQ pictures, and a folder of references for each of them",
    "list": "the LQ pictures, folders of references, and list.txt: LQ, folder of references, folder of landmarks",
}
#: Fields that are null where nothing is known, and otherwise have their source.
SOURCED = ("repository", "weights", "licence", "training_code", "layout", "program", "gives", "results")


@dataclass(frozen=True)
class SystemCard:
    """What is known of one system.

    Attributes:
        name: Name of the file.
        title: Name in texts.
        paper: Citation in one line.
        runs: "native" (a method here), "spandrel" (its released file through `method=spandrel`) or "precomputed" (its
            program runs elsewhere, its pictures are read).
        words: Words of `bench run` behind its row.
        references: How many references it reads.
        tuning: Whether it is tuned for each person.
        repository: `owner/name` on GitHub of its code.
        weights: Where they are, in words.
        licence: Of code and weights.
        training_code: Whether its repository holds any, in words that begin with yes, no or partly.
        layout: What its program reads; a key of `LAYOUTS`.
        program: Its command for the folder that `bench data export` writes, FOLDER, into a folder OUT.
        gives: What it writes, where that needs a word.
        results: Words of `bench run` that find what it writes: `method.root`, and `method.suffix` where it adds one.
        traps: What goes wrong, a sentence each.
        catalogue: Names in the weights catalogue that a method of this name takes its weights from.
        sources: For each of `SOURCED` that is known, where it was read.
        unverified: For each that is not, why.
    """

    name: str
    title: str
    paper: str
    runs: str
    words: list[str]
    references: str
    tuning: str
    repository: str | None
    weights: str | None
    licence: str | None
    training_code: str | None
    layout: str | None
    program: str | None
    gives: str | None
    results: list[str] | None
    traps: list[str]
    catalogue: list[str]
    sources: dict[str, str]
    unverified: dict[str, str]

    @property
    def command(self) -> str:
        """The words of `bench run` in one line."""
        return f"bench run {' '.join(self.words)} data=NAME"

    @property
    def reading(self) -> list[str]:
        """The words of `bench run` that read the pictures its own program wrote, without those of the data."""
        return ["method=precomputed", f"method.system={self.name}", *(self.results or ["method.root=OUT"])]


def cards_folder() -> Path:
    """Folder of the cards."""
    return resource_root() / "configs" / "system"


@cache
def cards() -> dict[str, SystemCard]:
    """Every card by name.

    Raises:
        UsageError: A card is not what it must be; the message names file and field.
    """
    return {path.stem: read_card(path) for path in sorted(cards_folder().glob("*.yaml"))}


def read_card(path: Path) -> SystemCard:
    """Reads and checks a card.

    Raises:
        UsageError: It is not what it must be.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader=loader) or {}  # noqa: S506
    wanted = {field.name for field in fields(SystemCard)} - {"name"}
    if found := sorted(wanted ^ set(content)):
        raise UsageError(f"{path}: missing or unknown {', '.join(found)}.")
    choices = {"runs": RUNS, "references": REFERENCES, "tuning": TUNING, "layout": (None, *LAYOUTS)}
    for key, choice in choices.items():
        if content[key] not in choice:
            raise UsageError(f"{path}: {key} is {content[key]!r}, which is none of {', '.join(map(str, choice))}.")
    known = {key for key in SOURCED if content[key] is not None}
    if set(content["sources"]) != known or set(content["unverified"]) != set(SOURCED) - known:
        raise UsageError(f"{path}: sources must name what is known, unverified what is null, of {', '.join(SOURCED)}.")
    return SystemCard(name=path.stem, **content)


def card(name: str) -> SystemCard:
    """The card of a system.

    Raises:
        UsageError: There is none.
    """
    if name not in cards():
        raise unknown_name("system", name, cards())
    return cards()[name]


def systems_of(row: str) -> list[str]:
    """Names of the cards behind a row of a paper's table, such as pfstorer and vico behind `pfstorer_base+vico`."""
    known, found = cards(), []
    for part in re.split(r"[+@ ]", row):
        words = part.split("_")
        name = next((own for n in range(len(words), 0, -1) if (own := "_".join(words[:n])) in known), None)
        if name and name not in found:
            found.append(name)
    return found
