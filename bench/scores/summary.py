"""The summary of a run; its metrics part is a pure function of the score table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.scores.statistics import identity_means, mean_interval
from bench.scores.table import metric_identities

if TYPE_CHECKING:
    import pandas as pd

    from bench.metrics.metric import Metric
    from bench.metrics.set_metric import SetMetric
    from bench.scores.statistics import Interval

SUMMARY_SCHEMA = 1


def public_reason(reason: str | None) -> str | None:
    """A reason fit to be published: absent weights by name, files without the folders of this machine."""
    found = re.search(r"Weights '([^']+)'", reason or "")
    if found:
        return f"weights missing: {found.group(1)}"
    return None if reason is None else re.sub(r"(?<![\w.:/])/(?:[^\s/:]+/)+", "", reason)


def summarise(scores: pd.DataFrame, metrics: dict[str, type[Metric]], of: int | None = None) -> dict[str, Any]:
    """Mean over identity means, 95 % interval and coverage of every metric in a score table.

    Args:
        scores: Score table of one run.
        metrics: Classes by name: the order of the result, titles, units and directions. A metric of
            the table that is not among them comes last, under its bare name and without direction.
        of: Number of images of the protocol; by default the images the table speaks of.

    Returns:
        For each metric `identity`, `title`, `unit`, `higher_is_better`, `mean`, `low`, `high`,
        `interval`, `n`, `of`, `identities` and `reason`: why images have no value, most often;
        null where all have one. A metric without any value has null for mean, bounds and interval; the values hold
        no NaN. Bounds beyond what a metric can reach (its `limits`, such as 0 and 1 of a rate) are cut off there,
        and `interval` says so.

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
        low, high, description = _within(interval, getattr(metric, "limits", (None, None)))
        reasons = rows["reason"].dropna()
        summary[name] = {
            "identity": found[name],
            "title": metric.title if metric else name,
            "unit": metric.unit if metric else "",
            "higher_is_better": metric.higher_is_better if metric else None,
            "mean": interval.mean if interval else None,
            "low": low,
            "high": high,
            "interval": description,
            "n": int(rows["value"].notna().sum()),
            "of": total,
            "identities": len(means),
            "reason": str(reasons.mode().iloc[0]) if len(reasons) else (None if interval else "not scored"),
        }
    return summary


def _within(
    interval: Interval | None, limits: tuple[float | None, float | None]
) -> tuple[float | None, float | None, str | None]:
    """Bounds of an interval cut off at the metric's limits, and how it was made.

    Student-t's bounds of a rate near 1 lie beyond 1, where no rate can be.
    """
    if interval is None:
        return None, None, None
    smallest, largest = limits
    low, high, description = interval.low, interval.high, interval.description
    cut = []
    if low is not None and smallest is not None and low < smallest:
        low = smallest
        cut.append(f"lower bound cut off at {smallest:g}")
    if high is not None and largest is not None and high > largest:
        high = largest
        cut.append(f"upper bound cut off at {largest:g}")
    return low, high, ", ".join([description, *cut])


def summarise_sets(scores: pd.DataFrame, metrics: dict[str, type[SetMetric]]) -> dict[str, Any]:
    """The `set_metrics` part of a summary, from a table of set scores (`bench.scores.table.SET_SCHEMA`).

    Args:
        scores: Set scores of one run.
        metrics: Classes by name: titles, units, directions and limits.

    Returns:
        For each metric `identity`, `title`, `unit`, `higher_is_better`, `value`, `low`, `high`, `interval`
        (how the bounds were made, or why there are none), `n`, `of`, `shown` (whether boards show it for so
        many pictures) and `reason`.
    """
    import pandas as pd

    summary: dict[str, Any] = {}
    for row in scores.sort_values("metric").to_dict("records"):
        metric = metrics.get(row["metric"])
        known = {key: None if pd.isna(value) else value for key, value in row.items()}
        summary[row["metric"]] = {
            "identity": row["metric_id"],
            "title": metric.title if metric else row["metric"],
            "unit": metric.unit if metric else "",
            "higher_is_better": metric.higher_is_better if metric else None,
            **{key: known[key] for key in ("value", "low", "high", "interval")},
            "n": int(row["n"]),
            "of": int(row["of"]),
            "shown": int(row["of"]) >= metric.smallest if metric else True,
            "reason": known["reason"],
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
