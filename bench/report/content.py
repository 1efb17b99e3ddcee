"""What a report says: the runs it is about, their tables, and the images worth looking at."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bench.errors import BenchError, UsageError
from bench.report.terminal import number, p_value
from bench.scores.compare import compare_tables
from bench.scores.summary import read_summary
from bench.scores.table import read_table

if TYPE_CHECKING:
    import pandas as pd

CASE_METRICS = ("id", "haarpsi")
MOST_REFERENCES = 5
REFERENCE_SIDE = 128
INPUT = "input"
COPY = "copy_reference"


class Pictures(Protocol):
    """The pictures of one run; each an (H, W, 3) uint8 RGB array."""

    def lq(self, image_id: str) -> np.ndarray:
        """The degraded picture."""
        ...

    def has_truth(self, image_id: str) -> bool:
        """Whether a ground truth exists."""
        ...

    def truth(self, image_id: str) -> np.ndarray:
        """The ground truth."""
        ...

    def restored(self, image_id: str) -> np.ndarray:
        """What the method made of it."""
        ...

    def references(self, image_id: str) -> Sequence[np.ndarray]:
        """The references the method was given."""
        ...


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


@dataclass(frozen=True)
class Picture:
    """One picture of a strip: caption, data address, width on the page, and its role."""

    caption: str
    source: str
    width: int
    role: str


@dataclass(frozen=True)
class Case:
    """One image to look at."""

    kind: str
    image_id: str
    identity: str
    values: list[tuple[str, str]]
    pictures: list[Picture]


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
    runs = []
    for index, (folder, summary) in enumerate(zip(folders, summaries, strict=True)):
        method = summary["method"]
        label = method if times[method] == 1 else f"{method} ({folder.name})"
        runs.append(Run(folder, label, summary, read_table(folder / "scores.parquet"), index))
    return runs


def metric_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One record per metric: heading, identities, and each run's mean, interval, coverage and test against Input."""
    baseline = next((run for run in runs if run.summary["method"] == INPUT), None)
    first = {name: metric for run in reversed(runs) for name, metric in run.summary["metrics"].items()}
    names = list(dict.fromkeys(name for run in runs for name in run.summary["metrics"]))
    ranked = {name: first[name]["higher_is_better"] for name in names}
    tests: dict[tuple[int, str], Any] = {}
    for run in runs:
        if baseline and run is not baseline:
            for comparison in compare_tables(run.scores, baseline.scores, None, ranked)[0]:
                tests[run.index, comparison.metric] = comparison
    rows = []
    for name in names:
        metric = first[name]
        arrow = {True: " ↑", False: " ↓", None: ""}[ranked[name]]
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        means = {run.index: run.summary["metrics"].get(name, {}).get("mean") for run in runs}
        # Copying a reference shows what copying scores; on IPS it would always be "best".
        known = [v for i, v in means.items() if v is not None and runs[i].summary["method"] != COPY]
        best = (max(known) if ranked[name] else min(known)) if len(known) > 1 and ranked[name] is not None else None
        cells = [
            _cell(run.summary["metrics"].get(name), tests.get((run.index, name)), means[run.index] == best)
            for run in runs
        ]
        identities = {run.summary["metrics"][name]["identity"] for run in runs if name in run.summary["metrics"]}
        rows.append(
            {"name": name, "heading": f"{metric['title']}{unit}{arrow}", "identity": sorted(identities), "cells": cells}
        )
    return rows


def _cell(metric: dict[str, Any] | None, test: Any, best: bool) -> dict[str, Any]:
    if metric is None or metric["mean"] is None:
        return {"mean": None, "reason": "not scored" if metric is None else metric["reason"]}
    interval = None if metric["low"] is None else f"[{number(metric['low'])}, {number(metric['high'])}]"
    cell = {"mean": number(metric["mean"]), "interval": interval, "n": metric["n"], "of": metric["of"], "best": best}
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
    return found


def case_metric(runs: Sequence[Run], wanted: str | None = None) -> str | None:
    """Metric that says which images are best and worst: `wanted`, else ID, else HaarPSI, else any ranked one.

    Raises:
        UsageError: `wanted` has no values or no direction in the leading run.
    """
    metrics = leading(runs).summary["metrics"]
    usable = [name for name, one in metrics.items() if one["mean"] is not None and one["higher_is_better"] is not None]
    if wanted is not None and wanted not in usable:
        raise UsageError(f"Images cannot be sorted by {wanted!r}. Possible: {', '.join(usable) or '(none)'}.")
    if wanted:
        return wanted
    return next((name for name in (*CASE_METRICS, *usable) if name in usable), None)


def leading(runs: Sequence[Run]) -> Run:
    """The run the report is about: the first that is not Input, else the first."""
    return next((run for run in runs if run.summary["method"] != INPUT), runs[0])


def choose_images(values: pd.Series, higher_is_better: bool, each: int) -> list[tuple[str, str]]:
    """(kind, image id) of the best, the median and the worst images, none twice."""
    ordered = list(values.sort_values(ascending=not higher_is_better, kind="stable").index)
    each = max(1, min(each, len(ordered) // 3))
    start = (len(ordered) - each) // 2
    groups = (("best", ordered[:each]), ("worst", ordered[::-1][:each]), ("median", ordered[start : start + each]))
    chosen: dict[str, str] = {}
    for kind, images in groups:
        for image_id in images:
            chosen.setdefault(image_id, kind)
    return [(kind, i) for kind in ("best", "median", "worst") for i, found in chosen.items() if found == kind]


def make_case(kind: str, image_id: str, runs: Sequence[Run], pictures: Sequence[Pictures], metrics: list[str]) -> Case:
    """Collects the pictures and values of one image.

    Args:
        kind: "best", "median" or "worst".
        image_id: The image.
        runs: The runs.
        pictures: Their pictures, in the same order.
        metrics: Metrics whose values stand below the strip.
    """
    lead = leading(runs)
    own = pictures[lead.index]
    strip = [_picture("LQ", own.lq(image_id), "lq")]
    for index, reference in enumerate(list(own.references(image_id))[:MOST_REFERENCES], start=1):
        strip.append(_picture(f"reference {index}", reference, "reference"))
    for run, source in zip(runs, pictures, strict=True):
        if run.summary["method"] == INPUT and run is not lead:
            continue
        try:
            strip.append(_picture(run.label, source.restored(image_id), "restored"))
        except (BenchError, OSError, KeyError):
            continue
    if own.has_truth(image_id):
        strip.append(_picture("ground truth", own.truth(image_id), "truth"))
    rows = lead.scores[lead.scores["image_id"] == image_id]
    values = []
    for metric in metrics:
        title = lead.summary["metrics"][metric]["title"]
        cells = [(run.label, run.values(metric).get(image_id)) for run in runs]
        values.append((title, ", ".join(number(v) if len(runs) == 1 else f"{n} {number(v)}" for n, v in cells)))
    return Case(kind, image_id, str(rows["identity"].iloc[0]), values, strip)


def _picture(caption: str, pixels: np.ndarray, role: str) -> Picture:
    from PIL import Image

    grey = bool((pixels[..., :1] == pixels).all())
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    if role == "reference" and max(image.size) > REFERENCE_SIDE:
        image.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    scale = 1 if role == "reference" else 2
    return Picture(caption, source, min(512, image.width * scale), role)
