"""What a board says, before it is drawn: columns, order of rows, and who is tied with the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from bench.scores.statistics import ALPHA, Comparison, compare_identity_means, holm_comparisons

Mark = Literal["best", "tied", "untested"]

INPUT = "input"
COPY = "copy_reference"
ORDER_BY = ("id", "haarpsi", "psnr_y")


@dataclass(frozen=True)
class Column:
    """A metric of the board.

    Attributes:
        name: Name of the metric.
        title: Heading.
        unit: Unit, or "".
        higher_is_better: Direction; None where it is not ranked.
        identity: Identity string.
        reason: Why no row has a value, or None where one has.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    identity: str
    reason: str | None

    @property
    def heading(self) -> str:
        """Title with direction and unit, such as "PSNR (dB) ↑"."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.title}{f' ({self.unit})' if self.unit else ''}{arrow}"


@dataclass(frozen=True)
class Board:
    """One protocol's entries, ready to be drawn.

    Attributes:
        protocol: Name of the protocol.
        protocol_id: Its frozen id.
        columns: Metrics with at least one value.
        absent: Metrics without any.
        entries: Entries in the order of rows: methods by the first metric of `ORDER_BY` that has
            values, then the comparison rows `copy_reference` and `input`.
        marks: For (index of the row, metric): "best", or "tied" where the paired test shows no
            difference from the best, or "untested" where the two have nothing complete in common.
        comparisons: The tests behind the ties: best minus row, Holm-adjusted over all of them.
    """

    protocol: str
    protocol_id: str
    columns: list[Column]
    absent: list[Column]
    entries: list[dict[str, Any]]
    marks: dict[tuple[int, str], Mark]
    comparisons: dict[tuple[int, str], Comparison]


def build_board(entries: list[dict[str, Any]]) -> Board:
    """Orders and compares the entries of one protocol.

    Every row is tested against the best row of each ranked metric by the exact sign-flip test on
    identity means, over the identities of which both have scored every image.
    `copy_reference` is never the best: it shows what copying scores.
    """
    columns, absent = _columns(entries)
    rows = _ordered(entries, columns)
    pairs: dict[tuple[int, str], Comparison] = {}
    marks: dict[tuple[int, str], Mark] = {}
    for column in columns:
        means = {i: mean for i, row in enumerate(rows) if (mean := _mean(row, column.name)) is not None}
        ranked = [i for i in means if rows[i]["method"] != COPY]
        if column.higher_is_better is None or not ranked:
            continue
        sign = 1 if column.higher_is_better else -1
        best = max(ranked, key=lambda i: (sign * means[i], -i))
        marks[best, column.name] = "best"
        for i in ranked:
            if i == best:
                continue
            if comparison := _compare(rows[best], rows[i], column):
                pairs[i, column.name] = comparison
            else:
                marks[i, column.name] = "untested"
    adjusted = dict(zip(pairs, holm_comparisons(list(pairs.values())), strict=True))
    for key, comparison in adjusted.items():
        if comparison.p_adjusted is not None and comparison.p_adjusted >= ALPHA:
            marks[key] = "tied"
    return Board(entries[0]["protocol"], entries[0]["protocol_id"], columns, absent, rows, marks, adjusted)


def _mean(entry: dict[str, Any], metric: str) -> float | None:
    return entry["metrics"].get(metric, {}).get("mean")


def _columns(entries: list[dict[str, Any]]) -> tuple[list[Column], list[Column]]:
    names = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
    columns: list[Column] = []
    absent: list[Column] = []
    for name in names:
        having = [entry["metrics"][name] for entry in entries if name in entry["metrics"]]
        scored = [metric for metric in having if metric["mean"] is not None]
        first = (scored or having)[0]
        column = Column(
            name,
            first["title"],
            first["unit"],
            first["higher_is_better"],
            first["identity"],
            None if scored else first["reason"],
        )
        (columns if scored else absent).append(column)
    return columns, absent


def _ordered(entries: list[dict[str, Any]], columns: list[Column]) -> list[dict[str, Any]]:
    ranked = {column.name: column for column in columns if column.higher_is_better is not None}
    leading = next((ranked[name] for name in ORDER_BY if name in ranked), next(iter(ranked.values()), None))

    def key(entry: dict[str, Any]) -> tuple[int, bool, float, str, str]:
        mean = _mean(entry, leading.name) if leading else None
        value = 0.0 if mean is None or leading is None else -mean if leading.higher_is_better else mean
        return {COPY: 1, INPUT: 2}.get(entry["method"], 0), mean is None, value, entry["method"], entry["revision"]

    return sorted(entries, key=key)


def _compare(best: dict[str, Any], row: dict[str, Any], column: Column) -> Comparison | None:
    """Best minus row; None where the identity strings differ or no identity is complete in both."""
    a, b = best["metrics"][column.name], row["metrics"][column.name]
    if a["identity"] != b["identity"]:
        return None
    images = best["identity_images"]
    shared = [
        person
        for person, count in images.items()
        if row["identity_images"].get(person) == count
        and all(metric["by_identity"].get(person, {}).get("n") == count for metric in (a, b))
    ]
    if not shared:
        return None
    first, second = (
        pd.Series({person: metric["by_identity"][person]["mean"] for person in shared}, dtype=float)
        for metric in (a, b)
    )
    n_images = sum(images[person] for person in shared)
    return compare_identity_means(first, second, column.name, column.higher_is_better, n_images)
