"""What a board says, before it is drawn: columns, order of rows, and who is tied with the best."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from bench.leaderboard.complete import complete_identities, scorable_images
from bench.scores.power import Power, protocol_power, smallest_p
from bench.scores.statistics import ALPHA, Comparison, compare_identity_means, holm_comparisons

Mark = Literal["best"]

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
class TieGroups:
    """Which rows of a board one metric tells apart: a compact letter display.

    Two rows share a letter exactly where the paired test does not separate them. The row with the best mean has an
    "a", and may have further letters: "ab" shares "a" with some rows and "b" with others. A row is not shown to differ
    from the best one where the two share any letter.

    Attributes:
        letters: By index of the row, such as "a" or "ab"; rows that are not ranked are not in it.
        ranks: By index of the row, the ranks it may have: 1 + rows shown better, and rows - rows shown
            worse. (2, 2) is a rank of its own; (1, 3) means that three rows share the first ranks.
        groups: Rows of each letter, in the order of letters, each from best to worst mean.
        comparisons: For (i, j) with i better on average: i minus j, Holm-adjusted over the pairs of this metric.
        untested: Pairs without an identity that both have scored in full; they count as not separated.
        can_separate: Whether any pair could come out as different: with too few identities, or too
            many pairs for them, even a difference on every identity is not enough.
    """

    letters: dict[int, str]
    ranks: dict[int, tuple[int, int]]
    groups: list[tuple[int, ...]]
    comparisons: dict[tuple[int, int], Comparison]
    untested: list[tuple[int, int]]
    can_separate: bool

    @property
    def best(self) -> int | None:
        """Index of the row with the best mean, or None where no row is ranked."""
        return self.groups[0][0] if self.groups else None


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
        groups: By ranked metric, the groups of rows that it cannot tell apart: all that is said about ties.
    """

    protocol: str
    protocol_id: str
    columns: list[Column]
    absent: list[Column]
    entries: list[dict[str, Any]]
    groups: dict[str, TieGroups] = field(default_factory=dict)

    @property
    def marks(self) -> dict[tuple[int, str], Mark]:
        """For (index of the row, metric) "best" where the row has the best mean."""
        return {(own.best, name): "best" for name, own in self.groups.items() if own.best is not None}

    @property
    def comparisons(self) -> dict[tuple[int, str], Comparison]:
        """For (index of the row, metric) the best row minus this one: of the tests behind the letters, those of it."""
        return {
            (second, name): test
            for name, own in self.groups.items()
            for (first, second), test in own.comparisons.items()
            if first == own.best
        }

    @property
    def power(self) -> dict[str, Power]:
        """By ranked metric what one test of two rows can show here; without the metrics that show no spread."""
        found = protocol_power([test for own in self.groups.values() for test in own.comparisons.values()])
        return {name: own for name, own in found.items() if own.deviation}


def build_board(entries: list[dict[str, Any]]) -> Board:
    """Orders and compares the entries of one protocol; see `tie_groups`.

    `copy_reference` is never the best: it shows what copying scores. Neither is a number of others that could not be
    computed again here.
    """
    columns, absent = _columns(entries)
    rows = _ordered(entries, columns)
    groups = {column.name: tie_groups(rows, column) for column in columns if column.higher_is_better is not None}
    return Board(entries[0]["protocol"], entries[0]["protocol_id"], columns, absent, rows, groups)


def tie_groups(rows: Sequence[dict[str, Any]], column: Column) -> TieGroups:
    """Groups the rows of a board that one metric cannot tell apart.

    Every pair of ranked rows (not `copy_reference`, and no number that was never computed here) is tested by the exact
    sign-flip test on the identity means that both have scored in full; a pair is separated where its p-value,
    Holm-adjusted over all pairs of this metric, is below .05. The letters are those of Piepho (2004, "An algorithm for
    a letter-based representation of all-pairwise comparisons"), in the order of means; equal means
    keep the order of rows, so that the same entries always give the same letters.

    Args:
        rows: Entries in the order of the board's rows.
        column: A metric with a direction.
    """
    means = {
        i: mean for i, row in enumerate(rows) if row["method"] != COPY and (mean := _mean(row, column.name)) is not None
    }
    sign = -1 if column.higher_is_better else 1
    order = sorted(means, key=lambda i: (sign * means[i], i))
    tests: dict[tuple[int, int], Comparison] = {}
    untested: list[tuple[int, int]] = []
    images = scorable_images(rows, column.name) if rows else {}
    for pair in itertools.combinations(order, 2):
        if comparison := compare_rows(rows[pair[0]], rows[pair[1]], column, images):
            tests[pair] = comparison
        else:
            untested.append(pair)
    tests = dict(zip(tests, holm_comparisons(list(tests.values())), strict=True))
    separated = [pair for pair, test in tests.items() if test.p_adjusted is not None and test.p_adjusted < ALPHA]
    groups = letter_groups(order, separated)
    letters = {i: "".join(_letter(index) for index, group in enumerate(groups) if i in group) for i in order}
    # Over incomplete identities the tested difference may have another sign than that of the means.
    better = [
        pair if (tests[pair].mean_difference > 0) == column.higher_is_better else pair[::-1] for pair in separated
    ]
    ranks = {i: (1 + sum(j == i for _, j in better), len(order) - sum(j == i for j, _ in better)) for i in order}
    most = max((test.n_identities for test in tests.values()), default=0)
    can_separate = most > 0 and smallest_p(most) * len(tests) < ALPHA
    return TieGroups(letters, ranks, groups, tests, untested, can_separate)


def letter_groups(order: Sequence[int], separated: Iterable[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Largest sets of items without a separated pair; any two items not separated share a set.

    Args:
        order: Items from best to worst.
        separated: Pairs that are shown to differ.

    Returns:
        The sets, each in the given order; the sets themselves in the order of their items.
    """
    groups = [frozenset(order)] if order else []
    for pair in separated:
        split: list[frozenset[int]] = []
        for group in groups:
            split += [group - {item} for item in pair] if group.issuperset(pair) else [group]
        unique = list(dict.fromkeys(split))
        groups = [group for group in unique if not any(group < other for other in unique)]
    position = {item: index for index, item in enumerate(order)}
    return sorted(
        (tuple(sorted(group, key=position.__getitem__)) for group in groups), key=lambda g: [position[i] for i in g]
    )


def _letter(index: int) -> str:
    """Small letters, then capitals, then a1, b1, ..."""
    count = len(string.ascii_letters)
    return string.ascii_letters[index % count] + (str(index // count) if index >= count else "")


def was_recomputed(entry: dict[str, Any], metric: str) -> bool:
    """Whether a number was computed here, if only on a sample; some of what others report cannot be."""
    return metric not in entry.get("accepted", {}).get("not_recomputed", {})


def _mean(entry: dict[str, Any], metric: str) -> float | None:
    """A mean that may be ranked."""
    if not was_recomputed(entry, metric):
        return None
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


def compare_rows(
    best: dict[str, Any], row: dict[str, Any], column: Column, images: dict[str, int]
) -> Comparison | None:
    """Best minus row; None where the identity strings differ or no identity is complete in both."""
    a, b = best["metrics"][column.name], row["metrics"][column.name]
    if a["identity"] != b["identity"]:
        return None
    shared = complete_identities(best, row, column.name, images)
    if not shared:
        return None
    first, second = (
        pd.Series({person: metric["by_identity"][person]["mean"] for person in shared}, dtype=float)
        for metric in (a, b)
    )
    n_images = sum(images[person] for person in shared)
    return compare_identity_means(first, second, column.name, column.higher_is_better, n_images)
