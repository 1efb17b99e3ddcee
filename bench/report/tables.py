"""The tables of a report as plain records that the template draws, sortable and filterable in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.metrics.consistency import METRICS as CONSISTENCY_METRICS
from bench.report.content import INPUT, Run, all_metrics, brief, heading, metric_rows, missing_values, told
from bench.report.terminal import number

EXAMPLES = 3
NO_TIME = 5e-4
SORT_FIRST = {True: "descending", False: "ascending", None: "ascending"}


def column(text: str, kind: str = "text", first: str = "ascending", shown: bool = True) -> dict[str, Any]:
    """A column: heading, kind ("text" or "number"), the order of the first click, and whether it starts visible."""
    return {"text": text, "kind": kind, "first": first, "shown": shown}


def cell(text: str, sort: object = None, **more: Any) -> dict[str, Any]:
    """A cell.

    Args:
        text: What it shows.
        sort: What it is sorted by; by default the text, "" for a missing value.
        more: `lines` below the text as (class, text), `classes`, `href`, `mark` (CSS classes of a run), `title`.
    """
    value = text if sort is None else str(sort)
    return {"text": text, "sort": value, "lines": [], "classes": "", "href": "", "mark": "", "title": ""} | more


def table(label: str, columns: list[dict[str, Any]], rows: list[list[dict[str, Any]]], **more: Any) -> dict[str, Any]:
    """A table; `more` may hold `heading`, `about` and `choose` (whether columns can be chosen)."""
    return {"label": label, "columns": columns, "rows": rows, "heading": "", "about": "", "choose": False} | more


def missing_cell(reason: str | None) -> dict[str, Any]:
    """A value that is not there, and why."""
    return cell("n/a", "", classes="none", lines=[("coverage", brief(reason))], title=told(reason))


def scores_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Means: a row per metric for one run, a row per run for several."""
    records = metric_rows(runs)
    if len(runs) == 1:
        columns = [
            column("metric"),
            column("mean", "number"),
            column("95 % interval", "number"),
            column("scored", "number"),
        ]
        rows = []
        for record in records:
            one = record["cells"][0]
            if one["mean"] is None:
                scored = cell("0" if one["of"] is None else f"0 of {one['of']}", 0)
                rows.append([cell(record["heading"]), missing_cell(one["reason"]), cell(""), scored])
                continue
            scored = cell(f"{one['n']} of {one['of']}", one["n"], classes="" if one["n"] == one["of"] else "short")
            mean = cell(number(one["mean"]), one["mean"])
            low = "" if one["low"] is None else repr(one["low"])
            rows.append([cell(record["heading"]), mean, cell(one["interval"] or "", low, classes="interval"), scored])
        return table("scores", columns, rows)
    columns = [column("method")]
    for record in records:
        known = any(one["mean"] is not None for one in record["cells"])
        columns.append(column(record["heading"], "number", SORT_FIRST[record["better"]], shown=known))
    rows = []
    for run in runs:
        cells = [_score(record["cells"][run.index]) for record in records]
        rows.append([cell(run.label, mark=run.mark, lines=[("interval", _revision(run))]), *cells])
    return table("scores", columns, rows, choose=True)


def _score(one: dict[str, Any]) -> dict[str, Any]:
    if one["mean"] is None:
        return missing_cell(one["reason"])
    lines = [("interval", one["interval"])] if one["interval"] else []
    if one["n"] != one["of"]:
        lines.append(("coverage short", f"{one['n']} of {one['of']} scored"))
    if "against" in one:
        # "better", "worse" or "no": only the first two are coloured.
        lines.append((f"verdict {one['verdict'].split()[0]}", f"{one['verdict']} ({one['against']})"))
    return cell(number(one["mean"]), repr(one["mean"]), lines=lines, classes="best" if one["best"] else "")


def _revision(run: Run) -> str:
    if run.summary["method"] == INPUT:
        return "the degraded picture"
    return f"{run.summary['method_revision'][:12]}, seed {run.summary['seed']}"


def set_table(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Scores of the whole set with the number of pictures; None if no run has any."""
    facts: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, metric in (run.summary.get("set_metrics") or {}).items():
            facts.setdefault(name, metric)
    if not facts:
        return None
    columns = [column("metric"), *(column(run.label, "number") for run in runs)]
    rows = []
    for name, metric in facts.items():
        cells = [cell(heading(metric))]
        for run in runs:
            one = (run.summary.get("set_metrics") or {}).get(name)
            if one is None or one["value"] is None:
                cells.append(missing_cell(one["reason"] if one else None))
                continue
            lines = [("interval", f"n = {one['n']} of {one['of']}")]
            if one["low"] is not None:
                lines.insert(0, ("interval", f"[{number(one['low'])}, {number(one['high'])}] {one['interval'] or ''}"))
            if not one["shown"]:
                lines.append(("coverage short", "too few pictures for a board"))
            cells.append(cell(number(one["value"]), repr(one["value"]), lines=lines))
        rows.append(cells)
    return table("scores of the whole set", columns, rows)


def missing_table(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Failed images and missing values, a row for each reason; None if everything is there."""
    found = missing_values(runs)
    columns = [column("what"), column("reason"), column("runs"), column("values", "number", "descending")]
    rows = []
    for one in found:
        names = sorted(one.images)
        examples = ", ".join(names[:EXAMPLES]) + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")
        lines = [("coverage", examples)] if examples else []
        lines += [("coverage", "score of the whole set")] if one.whole_set else []
        runs_told = "all" if len(one.runs) == len(runs) > 1 else ", ".join(one.runs)
        what = ", ".join(one.metrics) or "failed images"
        long = "text long"
        rows.append(
            [cell(what, lines=lines, classes=long), cell(one.reason, classes=long), cell(runs_told, classes=long)]
        )
        rows[-1].append(cell(str(one.values), one.values))
    return table("failed images and missing values", columns, rows) if rows else None


def seconds_text(seconds: float | None) -> str:
    """Seconds per image; "none" for what only hands a picture on."""
    return "none" if seconds is not None and seconds < NO_TIME else number(seconds, 3)


def without_values(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(short reason, titles) of the metrics that no run of a comparison has a value of: their columns start hidden."""
    found: dict[str, list[str]] = {}
    for name, metric in all_metrics(runs).items():
        if all(run.summary["metrics"].get(name, {}).get("mean") is None for run in runs):
            found.setdefault(brief(metric["reason"]), []).append(metric["title"])
    return [(reason, ", ".join(titles)) for reason, titles in found.items()]


def identities(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(heading, identity string) of every metric, the whole set's included."""
    found = [(record["heading"], identity) for record in metric_rows(runs) for identity in record["identity"]]
    for run in runs:
        for metric in (run.summary.get("set_metrics") or {}).values():
            if (pair := (heading(metric), metric["identity"])) not in found:
                found.append(pair)
    return found


def has_consistency(runs: Sequence[Run]) -> bool:
    """Whether each photograph was restored from several degradations, so that the restorations can be compared."""
    return any(metric in all_metrics(runs) for metric in CONSISTENCY_METRICS)


def has_planted_marks(runs: Sequence[Run]) -> bool:
    """Whether the protocol plants marks, so that copied detail can be told from invented detail."""
    return any(metric in all_metrics(runs) for metric in ("mark_recall", "mark_false_copy"))
