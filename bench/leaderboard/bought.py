"""What the reference bought: a method against the same network with its reference path off, on one board."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bench.leaderboard.complete import scorable_images
from bench.leaderboard.ranking import Board, Column, compare_rows
from bench.registry import load_method, method_targets
from bench.report.terminal import number
from bench.scores.statistics import Comparison, holm_comparisons

METRICS = ("id", "psnr_y", "haarpsi", "lmd_capped")
HEADING = "What the reference bought"


@dataclass(frozen=True)
class Bought:
    """One method with its references minus the same network without.

    Attributes:
        entry: Row of the method.
        without: Row of the network with its reference path off.
        tests: By metric the method minus the other, Holm-adjusted over all that the board shows of this; a metric that
            the two do not share is not in it.
    """

    entry: dict[str, Any]
    without: dict[str, Any]
    tests: dict[str, Comparison]


def what_references_bought(board: Board) -> tuple[list[Column], list[Bought]]:
    """The comparisons of a board, in the order of its rows, and the metrics that they have.

    A method says in its `MethodSpec` which variant is the same network without references. Results of others are left
    out; of several revisions of a row the latest counts.
    """
    columns = {column.name: column for column in board.columns}
    metrics = [columns[name] for name in METRICS if name in columns]
    found = []
    for entry, without in _pairs(board.entries):
        tests = {}
        for column in metrics:
            if all(own["metrics"].get(column.name, {}).get("mean") is not None for own in (entry, without)):
                images = scorable_images(board.entries, column.name)
                if (test := compare_rows(entry, without, column, images)) is not None:
                    tests[column.name] = test
        if tests:
            found.append(Bought(entry, without, tests))
    adjusted = iter(holm_comparisons([test for one in found for test in one.tests.values()]))
    found = [Bought(one.entry, one.without, {name: next(adjusted) for name in one.tests}) for one in found]
    return [column for column in metrics if any(column.name in one.tests for one in found)], found


def _pairs(entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda one: (one["created"], one["revision"])):
        if "accepted" not in entry:
            rows[entry["method"], entry["seed"]] = entry
    pairs = []
    for entry in entries:
        label, seed = entry["method"], entry["seed"]
        match = re.fullmatch(r"([\w-]+)(@\w+)?", label)
        if match is None or match[1] not in method_targets() or rows.get((label, seed)) is not entry:
            continue
        # Importing a method takes seconds: only where the board has a row that may be its network without references.
        if any(other.startswith(f"{match[1]}+") for other, _ in rows):
            suffix = load_method(match[1]).spec.without_reference
            without = rows.get((f"{match[1]}{suffix}{match[2] or ''}", seed))
            if suffix and without:
                pairs.append((entry, without))
    return pairs


def introduction() -> str:
    """What the section shows."""
    return (
        "Each method minus the same network with its reference path off: mean difference over people with its 95 % "
        "interval, and p of the two-sided sign-flip test on identity means, Holm over all of this table."
    )


def signed(value: float) -> str:
    """A difference with its sign, such as "+0.355"."""
    size = abs(value)
    return f"{'−' if value < 0 else '+'}{number(size, 3) if size >= 0.1 else f'{size:.4f}'}"


def interval_of(test: Comparison) -> str:
    """Bounds such as "[+0.31, +0.40]", or "" with one person."""
    return "" if test.low is None or test.high is None else f"[{signed(test.low)}, {signed(test.high)}]"


def p_of(test: Comparison) -> str:
    """The adjusted p-value, with a word where the reference made a metric worse."""
    p = test.p if test.p_adjusted is None else test.p_adjusted
    return f"p = {p:.2g}{', worse' if test.better is False else ''}"
