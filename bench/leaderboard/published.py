"""Numbers as the papers print them: shown beside measured ones, never ranked against them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.leaderboard.schema import COUNT, MAPPING, NAME, NUMBER, TEXT, Check, check_fields, or_none
from bench.paths import resource_root

PUBLISHED_SCHEMA = 1
FOLDER = "published"
OTHER_PROTOCOL = "as published, other protocol"
SAME_PROTOCOL = "as published, this protocol"

PAPER: dict[str, Check] = {
    "schema": (str(PUBLISHED_SCHEMA), lambda value: value == PUBLISHED_SCHEMA),
    "paper": NAME,
    "title": NAME,
    "venue": NAME,
    "citation": NAME,
    "transcribed_from": NAME,
    "protocol_id": or_none(NAME),
    "tables": MAPPING,
    "metrics": MAPPING,
    "rows": ("a list, not empty", lambda value: isinstance(value, list) and bool(value)),
}
METRIC: dict[str, Check] = {"better": ("higher or lower", lambda value: value in ("higher", "lower")), "unit": TEXT}
ROW: dict[str, Check] = {
    "paper": NAME,
    "table": NAME,
    "dataset": or_none(NAME),
    "degradation": NAME,
    "method": NAME,
    "references": or_none(COUNT),
    "metrics": MAPPING,
}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table.

    Attributes:
        paper: Name of the paper, such as "refine".
        table: Number of the table.
        dataset: Data set as we call it, or None where the table is of none.
        degradation: Degradation as the table names it.
        method: Method of the row.
        references: References the method was given; None where it is not stated.
        metrics: Values as printed; None where the print is no finite number.
        note: What a reader must know, or "".
        protocol_id: Frozen protocol the numbers belong to; None for a paper's own.
    """

    paper: str
    table: str
    dataset: str | None
    degradation: str
    method: str
    references: int | None
    metrics: dict[str, float | None]
    note: str
    protocol_id: str | None

    @property
    def where(self) -> str:
        """Data set and degradation, such as `celebref/heavy`."""
        return f"{self.dataset or 'none'}/{self.degradation}"

    def mark(self, protocol_id: str) -> str:
        """What stands beside the row on the board of a protocol."""
        return SAME_PROTOCOL if self.protocol_id == protocol_id else OTHER_PROTOCOL


@dataclass(frozen=True)
class PublishedPaper:
    """The tables of one paper.

    Attributes:
        name: Short name, also the citation key.
        title: Title.
        venue: Where and when it appeared.
        source: What was transcribed.
        tables: Number and subject of each table.
        better: For each metric "higher" or "lower".
        units: For each metric its unit as printed, or "".
        rows: All rows in the order of the paper.
    """

    name: str
    title: str
    venue: str
    source: str
    tables: dict[str, str]
    better: dict[str, str]
    units: dict[str, str]
    rows: list[PublishedRow]

    def metrics(self, rows: list[PublishedRow]) -> list[str]:
        """Metrics that some of the rows have, in the paper's order."""
        return [name for name in self.better if any(name in row.metrics for row in rows)]

    def heading(self, metric: str, arrows: tuple[str, str] = ("↑", "↓")) -> str:
        """Heading of a metric with its direction, such as "PSNR ↑"."""
        return f"{metric.replace('_', ' ').upper()} {arrows[self.better[metric] == 'lower']}"


def published_folder() -> Path:
    """Folder of the transcribed numbers."""
    return resource_root() / "leaderboards" / FOLDER


def read_published(folder: Path | None = None) -> dict[str, PublishedPaper]:
    """Reads and checks the transcribed tables, by paper.

    Raises:
        UsageError: A file is unreadable or not what it must be; the message names file and field.
    """
    return {path.stem: read_paper(path) for path in sorted((folder or published_folder()).glob("*.json"))}


def read_paper(path: Path) -> PublishedPaper:
    """Reads and checks the tables of one paper.

    Raises:
        UsageError: The file is unreadable or not what it must be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the published numbers {path}: {error}") from error
    validate_paper(content, str(path))
    if content["paper"] != path.stem:
        raise UsageError(f"{path} holds the paper {content['paper']!r}: rename it.")
    rows = [PublishedRow(**{"note": "", **row, "protocol_id": content["protocol_id"]}) for row in content["rows"]]
    metrics = content["metrics"]
    return PublishedPaper(
        name=content["paper"],
        title=content["title"],
        venue=content["venue"],
        source=content["transcribed_from"],
        tables=content["tables"],
        better={name: metric["better"] for name, metric in metrics.items()},
        units={name: metric["unit"] for name, metric in metrics.items()},
        rows=rows,
    )


def validate_paper(content: Any, where: str) -> None:
    """Checks the tables of a paper strictly.

    Raises:
        UsageError: The first thing that is wrong.
    """
    check_fields(content, PAPER, where, "")
    for name, metric in content["metrics"].items():
        check_fields(metric, METRIC, where, f"metrics.{name}.")
    for index, row in enumerate(content["rows"]):
        field = f"rows[{index}]"
        check_fields(row, ROW, where, f"{field}.", {"note": TEXT})
        if row["paper"] != content["paper"] or row["table"] not in content["tables"]:
            raise UsageError(
                f"{where}: {field} is of {row['paper']} table {row['table']}, which the file does not hold."
            )
        if not row["metrics"] or (unknown := sorted(set(row["metrics"]) - set(content["metrics"]))):
            raise UsageError(f"{where}: {field}.metrics is empty or has unknown {', '.join(unknown)}.")
        for name, value in row["metrics"].items():
            if value is not None and not NUMBER[1](value):
                raise UsageError(f"{where}: {field}.metrics.{name} must be a finite number or null, got {value!r:.80}.")


@cache
def references() -> dict[str, str]:
    """BibTeX entries of papers and methods by key, each as its text without a closing newline."""
    path = published_folder() / "references.bib"
    if not path.is_file():
        return {}
    found = re.findall(r"^@\w+\{([^,]+),.*?^\}", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^@\w+\{[^,]+,.*?^\}", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return dict(zip(found, blocks, strict=True))


def citation_keys(method: str) -> list[str]:
    """Keys of the papers behind a row's label: `codeformer`, `refine+blind@demo`, `pfstorer_base+vico`."""
    known = references()
    keys = []
    for part in re.split(r"[+@ ]", method):
        words = part.split("_")
        key = next((found for n in range(len(words), 0, -1) if (found := "_".join(words[:n])) in known), None)
        if key and key not in keys:
            keys.append(key)
    return keys


def format_published(value: float | None) -> str:
    """A value with the digits it was transcribed with; "-" where the table prints none."""
    return "-" if value is None else str(value)
