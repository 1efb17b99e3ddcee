"""The index of all runs: one page with a table per protocol and a link to each run's report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.errors import UsageError
from bench.files import write_text
from bench.report.content import heading
from bench.report.report import render
from bench.report.tables import SORT_FIRST, cell, column, missing_cell, seconds_text, table
from bench.report.terminal import number
from bench.scores.summary import read_summary
from bench.tracking.sweep import finished_sweeps, read_sweep, sweep_reports

KEY_METRICS = (
    "id", "ips", "lmd_capped", "psnr_y", "ssim_y", "haarpsi", "lpips_alex", "mark_recall", "mark_false_copy",
    "id_spread", "id_change", "picture_spread",
)  # fmt: skip
FEWEST_METRICS = 4


def write_index(root: Path, output: Path | None = None) -> Path:
    """Writes the index page over all run folders under a folder.

    Args:
        root: Folder that holds run folders, at any depth.
        output: HTML file; by default `index.html` in `root`.

    Returns:
        The file.

    Raises:
        UsageError: `root` is no folder.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder. Give the folder that holds run folders (default: $BENCH_RUNS or runs).")
    output = output or root / "index.html"
    read: list[tuple[Path, dict[str, Any]]] = []
    broken: list[list[dict[str, Any]]] = []
    for folder in run_folders(root):
        try:
            read.append((folder, read_summary(folder)))
        except UsageError as error:
            broken.append([cell(_relative(folder, root)), cell(str(error), classes="text long")])
    groups: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    for folder, summary in read:
        groups.setdefault((summary["protocol"], summary["protocol_id"]), []).append((folder, summary))
    boards = [
        {"name": name, "id": identity, "table": _board(name, identity, members, root, output.parent)}
        for (name, identity), members in sorted(groups.items())
    ]
    text = render(
        "index.html",
        title="Runs",
        runs=len(read),
        boards=boards,
        sweeps=_sweeps(root, output.parent),
        broken=table("unreadable runs", [column("folder"), column("reason")], broken) if broken else None,
    )
    write_text(output, text)
    return output


def run_folders(root: Path) -> list[Path]:
    """Every folder with a `summary.json` under `root`, sorted; nothing is searched inside a run."""
    found = []
    for folder, children, files in os.walk(root):
        children[:] = sorted(child for child in children if not child.startswith("."))
        if "summary.json" in files:
            found.append(Path(folder))
            children.clear()
    return sorted(found)


def _board(
    name: str, identity: str, members: Sequence[tuple[Path, dict[str, Any]]], root: Path, page: Path
) -> dict[str, Any]:
    facts: dict[str, dict[str, Any]] = {}
    for _, summary in members:
        for metric, one in summary["metrics"].items():
            if one["mean"] is not None or metric not in facts:
                facts[metric] = one
    keyed = [metric for metric in facts if metric in KEY_METRICS and facts[metric]["mean"] is not None]
    first = set(keyed if len(keyed) >= FEWEST_METRICS else [m for m in facts if facts[m]["mean"] is not None][:8])
    columns = [column("method"), column("seed", "number"), column("images", "number", "descending")]
    for metric, one in facts.items():
        columns.append(column(heading(one), "number", SORT_FIRST[one["higher_is_better"]], shown=metric in first))
    columns += [column("s per image", "number"), column("made", "text", "descending"), column("folder")]
    rows = []
    for folder, summary in sorted(members, key=lambda member: str(member[1]["created"]), reverse=True):
        short = summary["images"] != summary["of"]
        images = cell(f"{summary['images']} of {summary['of']}", summary["images"], classes="short" if short else "")
        cells = [_method(folder, summary, page), cell(str(summary["seed"])), images]
        for metric, fact in facts.items():
            cells.append(_mean(summary["metrics"].get(metric), fact))
        seconds = summary.get("seconds_per_image")
        made = str(summary["created"])[:16].replace("T", " ")
        cells += [cell(seconds_text(seconds), "" if seconds is None else seconds), cell(made, str(summary["created"]))]
        rows.append([*cells, cell(_relative(folder, root), classes="text long")])
    people = max((one["identities"] for one in facts.values()), default=0)
    about = f"Protocol id {identity}, {members[0][1]['of']} images of {people} people, {_runs(len(members))}."
    return table(f"runs on {name}", columns, rows, choose=True, about=about)


def _method(folder: Path, summary: dict[str, Any], page: Path) -> dict[str, Any]:
    lines = [("interval", f"revision {summary['method_revision'][:12]}")]
    report = folder / "report.html"
    if report.is_file():
        return cell(summary["method"], href=_address(report, page), lines=lines)
    return cell(summary["method"], lines=[*lines, ("coverage", f"no report yet: bench report {_from_here(folder)}")])


def _mean(one: dict[str, Any] | None, fact: dict[str, Any]) -> dict[str, Any]:
    if one is None or one["mean"] is None:
        return missing_cell(one["reason"] if one else None)
    lines = [] if one["n"] == one["of"] else [("coverage short", f"{one['n']} of {one['of']} scored")]
    if one["identity"] != fact["identity"]:
        lines.append(("coverage short", "another version of the metric"))
    return cell(number(one["mean"]), repr(one["mean"]), lines=lines)


def _address(file: Path, page: Path) -> str:
    """Address of a file relative to the page's folder."""
    return quote(Path(os.path.relpath(file.resolve(), page.resolve())).as_posix())


def _from_here(folder: Path) -> str:
    """A folder as a command called here takes it."""
    absolute = folder.resolve()
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute))


def _sweeps(root: Path, page: Path) -> dict[str, Any] | None:
    """The reports that compare the jobs of a sweep, a row for each; None if there are none."""
    rows = []
    for folder in finished_sweeps(root):
        record = read_sweep(folder)
        for report in sweep_reports(folder):
            name = report.stem.removeprefix("report-").rpartition("-")[0]
            finished = str(record["finished"])
            rows.append(
                [
                    cell(f"{name}, sweep {record['id']}", href=_address(report, page)),
                    cell(str(record["command"]), classes="text long"),
                    cell(str(len(record["jobs"])), len(record["jobs"])),
                    cell(finished[:16].replace("T", " "), finished),
                ]
            )
    columns = [column("report"), column("command"), column("jobs", "number"), column("made", "text", "descending")]
    return table("comparison reports of sweeps", columns, rows) if rows else None


def _relative(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder != root else folder.name


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
