"""The summary of a run; its metrics part is a pure function of the score table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.scores.statistics import identity_means, mean_interval
from bench.scores.table import metric_identities

if TYPE_CHECKING:
    import pandas as pd

    from bench.metrics.metric import Metric

SUMMARY_SCHEMA = 1


def summarise(scores: pd.DataFrame, metrics: dict[str, type[Metric]], of: int | None = None) -> dict[str, Any]:
    """Mean over identity means, 95 % interval and coverage of every metric in a score table.

    Args:
        scores: Score table of one run.
        metrics: Classes by name: the order of the result, titles, units and directions. A metric of
            the table that is not among them comes last, under its bare name and without direction.
        of: Number of images of the protocol; by default the images the table speaks of.

    Returns:
        For each metric `identity`, `title`, `unit`, `higher_is_better`, `mean`, `low`, `high`,
        `interval`, `n`, `of`, `identities` and `reason`. A metric without any value has null for
        mean, bounds and interval, and its most common reason; the values hold no NaN.

    Raises:
        UsageError: One metric carries two identities.
    """
    found = metric_identities(scores)
    total = int(scores["image_id"].nunique()) if of is None else of
    names = [name for name in metrics if name in found] + sorted(set(found) - set(metrics))
    summary: dict[str, Any] = {}
    for name in names:
        rows = scores[scores["metric"] == name]
        metric = metrics.get(name)
        means = identity_means(rows)
        interval = mean_interval(means) if len(means) else None
        reasons = rows["reason"].dropna()
        summary[name] = {
            "identity": found[name],
            "title": metric.title if metric else name,
            "unit": metric.unit if metric else "",
            "higher_is_better": metric.higher_is_better if metric else None,
            "mean": interval.mean if interval else None,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "interval": interval.description if interval else None,
            "n": int(rows["value"].notna().sum()),
            "of": total,
            "identities": len(means),
            "reason": None if interval else (str(reasons.mode().iloc[0]) if len(reasons) else "not scored"),
        }
    return summary


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Reads the summary of a finished run folder.

    Raises:
        UsageError: The folder is missing, holds no finished run, or its summary is unreadable.
    """
    path = run_dir / "summary.json"
    if not path.is_file():
        state = "is not a finished run: it has no summary.json" if run_dir.is_dir() else "does not exist"
        raise UsageError(f"{run_dir} {state}. Give the folder of a finished `bench run`.")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {path}: {error}") from error
    if not isinstance(summary, dict) or summary.get("schema") != SUMMARY_SCHEMA:
        raise UsageError(f"{path} is not a run summary of schema {SUMMARY_SCHEMA}; run `bench run` again.")
    return summary
