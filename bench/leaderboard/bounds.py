"""The bounds of an entry's intervals, computed again from its identity means by the code that makes summaries.

`python -m bench.leaderboard.bounds FOLDER...` rewrites the entries below some folders whose bounds the statistics give
in another way today, for instance since a metric states what it can reach (`limits`). Means and identity means stay.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import write_json
from bench.leaderboard.entry import read_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = ("low", "high", "interval")


def recomputed_bounds(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bounds of every metric with a mean, as `bench.scores.summary.summarise` gives them for its identity means.

    Args:
        entry: A valid entry.

    Returns:
        By metric `low`, `high` and `interval`.
    """
    from bench.registry import metric_classes
    from bench.scores.summary import summarise
    from bench.scores.table import ScoreRow, rows_to_frame

    rows = [
        ScoreRow(
            protocol_id=entry["protocol_id"],
            method=entry["method"],
            method_revision=entry["revision"],
            seed=entry["seed"],
            image_id=person,
            identity=person,
            metric=name,
            metric_id=metric["identity"],
            value=own["mean"],
            reason=None,
        )
        for name, metric in entry["metrics"].items()
        for person, own in metric["by_identity"].items()
    ]
    summary = summarise(rows_to_frame(rows), metric_classes()) if rows else {}
    return {name: {key: own[key] for key in KEYS} for name, own in summary.items()}


def same_bounds(stated: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a metric of an entry states the bounds it should, rounding aside."""
    if stated["interval"] != wanted["interval"]:
        return False
    pairs = [(stated[key], wanted[key]) for key in ("low", "high")]
    return all(
        one == other if one is None or other is None else math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
        for one, other in pairs
    )


def with_todays_bounds(entry: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """An entry with the bounds the statistics give today, and what changed, a sentence each."""
    entry = copy.deepcopy(entry)
    changes = []
    for name, wanted in recomputed_bounds(entry).items():
        stated = entry["metrics"][name]
        if not same_bounds(stated, wanted):
            changes.append(f"{name} {_in_words(stated)} -> {_in_words(wanted)}")
            stated.update(wanted)
    return entry, changes


def _in_words(bounds: dict[str, Any]) -> str:
    return f"[{bounds['low']}, {bounds['high']}] ({bounds['interval']})"


def main(folders: Sequence[str]) -> None:
    """Rewrites the entries below some folders that need it and prints what changed."""
    for folder in folders:
        for path in sorted(Path(folder).rglob("*@*.json")):
            entry, changes = with_todays_bounds(read_entry(path))
            if changes:
                write_json(path, entry)
                sys.stdout.write("".join(f"{path}: {change}\n" for change in changes))


if __name__ == "__main__":
    main(sys.argv[1:])
