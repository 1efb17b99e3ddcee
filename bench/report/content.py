"""What a report says: the runs it is about, and the numbers of its tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.report.terminal import number, p_value
from bench.scores.compare import compare_tables
from bench.scores.summary import public_reason, read_summary
from bench.scores.table import read_table

if TYPE_CHECKING:
    import pandas as pd

CASE_METRICS = ("id", "haarpsi")
INPUT = "input"
COPY = "copy_reference"
LONGEST_BRIEF = 70


@dataclass(frozen=True)
class Run:
    """A finished run as the report shows it.

    Attributes:
        folder: Its folder.
        label: Name of its column, unique within the report.
        summary: Its `summary.json`.
        scores: Its score table.
        index: Position among the runs; decides its colour.
    """

    folder: Path
    label: str
    summary: dict[str, Any]
    scores: pd.DataFrame
    index: int

    def values(self, metric: str) -> pd.Series:
        """Values of one metric by image, without missing ones."""
        rows = self.scores[(self.scores["metric"] == metric) & self.scores["value"].notna()]
        return rows.set_index("image_id")["value"]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads the runs of a report.

    Raises:
        UsageError: No folder, one that is no finished run, or runs of different protocols.
    """
    if not folders:
        raise UsageError("A report needs at least one run folder.")
    summaries = [read_summary(folder) for folder in folders]
    if len(ids := sorted({summary["protocol_id"] for summary in summaries})) > 1:
        raise UsageError(f"The runs belong to different protocols ({', '.join(ids)}): write one report for each.")
    times = Counter(summary["method"] for summary in summaries)
    names = Counter((summary["method"], folder.name) for folder, summary in zip(folders, summaries, strict=True))
    runs = []
    for index, (folder, summary) in enumerate(zip(folders, summaries, strict=True)):
        method = summary["method"]
        label = method if times[method] == 1 else f"{method} ({folder.name})"
        if names[method, folder.name] > 1:
            label = f"{method} ({folder.parent.name}/{folder.name}, {index + 1})"
        runs.append(Run(folder, label, summary, read_table(folder / "scores.parquet"), index))
    return runs


def leading(runs: Sequence[Run]) -> Run:
    """The run the report is about: the first that is a method's, else the first."""
    return next((run for run in runs if run.summary["method"] not in (INPUT, COPY)), runs[0])


def baseline(runs: Sequence[Run]) -> Run | None:
    """The run that shows what the degraded pictures score, if it is among them."""
    return next((run for run in runs if run.summary["method"] == INPUT), None)


def all_metrics(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Facts of every metric that any run has, by name, in the order of the runs' summaries."""
    facts: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, metric in run.summary["metrics"].items():
            facts.setdefault(name, metric)
    return facts


def heading(metric: dict[str, Any]) -> str:
    """Title, unit and direction of a metric."""
    arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['title']}{unit}{arrow}"


def brief(reason: str | None) -> str:
    """A reason short enough for a cell; the full text stands in the table of missing values."""
    public = public_reason(reason)
    if not public:
        return "not scored"
    if public != reason or public.startswith("weights missing: "):
        return public
    first = re.split(r"[:.;]\s|\n", public.strip(), maxsplit=1)[0]
    return first if len(first) <= LONGEST_BRIEF else first[: LONGEST_BRIEF - 1].rstrip() + "…"


def metric_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One record per metric: heading, identities, and each run's mean, interval, coverage and test against Input."""
    against = baseline(runs)
    facts = all_metrics(runs)
    ranked = {name: metric["higher_is_better"] for name, metric in facts.items()}
    tests: dict[tuple[int, str], Any] = {}
    for run in runs:
        if against and run is not against:
            for comparison in compare_tables(run.scores, against.scores, None, ranked)[0]:
                tests[run.index, comparison.metric] = comparison
    rows = []
    for name, metric in facts.items():
        found = [run.summary["metrics"][name] for run in runs if name in run.summary["metrics"]]
        identities = sorted({one["identity"] for one in found})
        means = {run.index: run.summary["metrics"].get(name, {}).get("mean") for run in runs}
        best = _best(runs, means, ranked[name]) if len(identities) == 1 else None
        cells = [
            _cell(run.summary["metrics"].get(name), tests.get((run.index, name)), means[run.index] == best)
            for run in runs
        ]
        better = ranked[name]
        rows.append(
            {"name": name, "heading": heading(metric), "better": better, "identity": identities, "cells": cells}
        )
    return rows


def _best(runs: Sequence[Run], means: dict[int, float | None], better: bool | None) -> float | None:
    # Copying a reference shows what copying scores; on IPS it would always be "best".
    known = [v for i, v in means.items() if v is not None and runs[i].summary["method"] != COPY]
    return (max(known) if better else min(known)) if len(known) > 1 and better is not None else None


def _cell(metric: dict[str, Any] | None, test: Any, best: bool) -> dict[str, Any]:
    if metric is None or metric["mean"] is None:
        return {"mean": None, "reason": "not scored" if metric is None else metric["reason"]}
    interval = None if metric["low"] is None else f"[{number(metric['low'])}, {number(metric['high'])}]"
    cell = {"mean": metric["mean"], "interval": interval, "n": metric["n"], "of": metric["of"], "best": best}
    if test is not None:
        p = f"p {p_value(test.p_adjusted)}" if test.p_adjusted < 1e-4 else f"p = {p_value(test.p_adjusted)}"
        verdict = {True: "better", False: "worse", None: "no difference shown"}[test.better]
        cell |= {"against": f"{test.mean_difference:+.3g}, {p}", "verdict": verdict}
    return cell


def missing_values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Failed images and missing values with their reasons, most frequent first."""
    found = []
    for run in runs:
        failed = run.summary.get("failed") or {}
        found += [{"run": run.label, "what": image_id, "n": 1, "reason": why} for image_id, why in failed.items()]
        rows = run.scores[run.scores["value"].isna() & ~run.scores["image_id"].isin(list(failed))]
        for (metric, reason), group in sorted(rows.groupby(["metric", "reason"]), key=lambda item: -len(item[1])):
            examples = ", ".join(sorted(group["image_id"])[:3]) + (", …" if len(group) > 3 else "")
            found.append({"run": run.label, "what": f"{metric}: {examples}", "n": len(group), "reason": reason})
        for name, metric in (run.summary.get("set_metrics") or {}).items():
            if metric["value"] is None:
                what = f"{name}: the whole set"
                found.append({"run": run.label, "what": what, "n": metric["of"], "reason": metric["reason"]})
    return found


def case_metric(runs: Sequence[Run], wanted: str | None = None) -> str | None:
    """Metric that says which images are best and worst: `wanted`, else ID, else HaarPSI, else any ranked one.

    Raises:
        UsageError: `wanted` has no values or no direction in the leading run.
    """
    usable = ranked_metrics(leading(runs))
    if wanted is not None and wanted not in usable:
        raise UsageError(f"Images cannot be sorted by {wanted!r}. Possible: {', '.join(usable) or '(none)'}.")
    if wanted:
        return wanted
    return next((name for name in (*CASE_METRICS, *usable) if name in usable), None)


def ranked_metrics(run: Run) -> list[str]:
    """Metrics of a run that have values and a direction."""
    metrics = run.summary["metrics"]
    return [n for n, one in metrics.items() if one["mean"] is not None and one["higher_is_better"] is not None]
