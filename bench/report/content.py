"""What a report says: the runs it is about, and the numbers of its tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
COLOURS, SHAPES = 6, 4
MOST_NAMED = 3


@dataclass(frozen=True)
class Run:
    """A finished run as the report shows it.

    Attributes:
        folder: Its folder.
        label: Name of its column, unique within the report.
        summary: Its `summary.json`.
        scores: Its score table.
        index: Position among the runs; decides its colour and shape.
    """

    folder: Path
    label: str
    summary: dict[str, Any]
    scores: pd.DataFrame
    index: int

    @property
    def mark(self) -> str:
        """CSS classes of its colour and, for every six runs another one, of its shape."""
        return f"run{self.index % COLOURS} shape{self.index // COLOURS % SHAPES}"

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
    labels = _labels([Path(folder) for folder in folders], summaries)
    return [
        Run(folder, label, summary, read_table(folder / "scores.parquet"), index)
        for index, (folder, label, summary) in enumerate(zip(folders, labels, summaries, strict=True))
    ]


def _labels(folders: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> list[str]:
    """The method of each run and, where several are of one method, what tells them apart."""
    labels = [str(summary["method"]) for summary in summaries]
    for method, count in Counter(labels).items():
        same = [index for index, summary in enumerate(summaries) if summary["method"] == method]
        if count == 1:
            continue
        seeds = [f"seed {summaries[index]['seed']}" for index in same]
        revisions = [f"revision {summaries[index]['method_revision'][:8]}" for index in same]
        both = [f"{revision}, {seed}" for revision, seed in zip(revisions, seeds, strict=True)]
        names = [folders[index].resolve().name for index in same]
        numbered = [f"{name}, {index + 1}" for index, name in zip(same, names, strict=True)]
        told = next(words for words in (seeds, revisions, both, names, numbered) if len(set(words)) == count)
        for index, words in zip(same, told, strict=True):
            labels[index] = f"{method} ({words})"
    return labels


def title_of(runs: Sequence[Run]) -> str:
    """What a report about these runs is called."""
    names = " and ".join(run.label for run in runs) if len(runs) <= MOST_NAMED else f"{len(runs)} runs"
    return f"{names} on {runs[0].summary['protocol']}"


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


def told(reason: str | None) -> str:
    """A reason as a report tells it: absent weights by name, no folders of this machine."""
    return public_reason(reason) or "not scored"


def brief(reason: str | None) -> str:
    """A reason short enough for a cell; the full text stands in the table of missing values."""
    public = told(reason)
    if public.startswith("weights missing: "):
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
        best = _best(runs, name, means, ranked[name]) if len(identities) == 1 else set()
        cells = [
            _cell(run.summary["metrics"].get(name), tests.get((run.index, name)), run.index in best) for run in runs
        ]
        better = ranked[name]
        rows.append(
            {"name": name, "heading": heading(metric), "better": better, "identity": identities, "cells": cells}
        )
    return rows


def _best(runs: Sequence[Run], metric: str, means: dict[int, float | None], better: bool | None) -> set[int]:
    """Runs with the best mean among those scored on the same images: on other images, other means are reached."""
    if better is None:
        return set()
    groups: dict[frozenset[str], list[int]] = {}
    for run in runs:
        # Copying a reference shows what copying scores; on IPS it would always be "best".
        if means[run.index] is not None and run.summary["method"] != COPY:
            groups.setdefault(frozenset(run.values(metric).index), []).append(run.index)
    compared = max((group for group in groups.items() if len(group[1]) > 1), key=lambda g: len(g[0]), default=None)
    if compared is None:
        return set()
    values = {index: value for index in compared[1] if (value := means[index]) is not None}
    best = (max if better else min)(values.values())
    return {index for index, value in values.items() if value == best}


def _cell(metric: dict[str, Any] | None, test: Any, best: bool) -> dict[str, Any]:
    if metric is None or metric["mean"] is None:
        counts = {"n": 0, "of": None} if metric is None else {"n": metric["n"], "of": metric["of"]}
        return {"mean": None, "reason": "not scored" if metric is None else metric["reason"]} | counts
    interval = None if metric["low"] is None else f"[{number(metric['low'])}, {number(metric['high'])}]"
    cell = {key: metric[key] for key in ("mean", "low", "n", "of")} | {"interval": interval, "best": best}
    if test is not None:
        p = f"p {p_value(test.p_adjusted)}" if test.p_adjusted < 1e-4 else f"p = {p_value(test.p_adjusted)}"
        verdict = {True: "better", False: "worse", None: "no difference shown"}[test.better]
        over = f", over {test.n_images} images" if test.n_images < metric["of"] else ""
        cell |= {"against": f"{test.mean_difference:+.3g}, {p}{over}", "verdict": verdict}
    return cell


@dataclass
class Missing:
    """What one reason kept from being there.

    Attributes:
        reason: The reason as the report tells it.
        full: The reasons as they were recorded; with folders of this machine.
        runs: Labels of the runs, in their order.
        metrics: Metrics without values, in their order; none where whole images failed.
        images: Ids of the images.
        values: Number of values, or of failed images.
        whole_set: Whether scores of the whole set are among them.
    """

    reason: str
    full: dict[str, None] = field(default_factory=dict)
    runs: dict[str, None] = field(default_factory=dict)
    metrics: dict[str, None] = field(default_factory=dict)
    images: dict[str, None] = field(default_factory=dict)
    values: int = 0
    whole_set: bool = False


def missing_values(runs: Sequence[Run]) -> list[Missing]:
    """Failed images first, then missing values, each reason once, the most frequent first."""
    failures: dict[str, Missing] = {}
    values: dict[str, Missing] = {}

    def note(
        where: dict[str, Missing], run: Run, reason: str | None, metric: str | None, images: Sequence[str]
    ) -> None:
        one = where.setdefault(told(reason), Missing(told(reason)))
        one.full[reason or "not scored"] = None
        one.runs[run.label] = None
        one.images |= dict.fromkeys(images)
        one.values += max(1, len(images))
        if metric is not None:
            one.metrics[metric] = None
            one.whole_set |= not images

    for run in runs:
        failed = run.summary.get("failed") or {}
        for image_id, why in failed.items():
            note(failures, run, why, None, [image_id])
        rows = run.scores[run.scores["value"].isna() & ~run.scores["image_id"].isin(list(failed))]
        for (metric, reason), group in rows.groupby(["metric", "reason"]):
            note(values, run, reason, metric, sorted(group["image_id"]))
        for name, one in (run.summary.get("set_metrics") or {}).items():
            if one["value"] is None:
                note(values, run, one["reason"], name, [])
    return [*failures.values(), *sorted(values.values(), key=lambda one: -one.values)]


def interval_notes(runs: Sequence[Run]) -> list[str]:
    """How the 95 % intervals were made, each with its simulated coverage where that is not 95 %."""
    from bench.scores.simulation import COVERAGE_FILE, coverage_note

    notes: dict[str, None] = {}
    for run in runs:
        for metric in run.summary["metrics"].values():
            if not metric["interval"]:
                continue
            made, _, cut = metric["interval"].partition(", ")
            note = None
            if COVERAGE_FILE.is_file() and metric["identities"]:
                per_identity = metric["n"] / metric["identities"]
                note = coverage_note(metric["identities"], made.partition(" over ")[0], per_identity)
            notes["; ".join(part for part in (made, note) if part)] = None
            notes |= dict.fromkeys([cut] if cut else [])
    return list(notes)


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
