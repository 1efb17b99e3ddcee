"""Import into MLflow the finished runs that could not be uploaded before."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

EXAMPLES = """\
  bench sync --all                      every finished run and sweep under the runs folder
  bench sync runs/refine-orl_heavy      one run
  bench sync runs/sweeps/0123456789ab   a finished sweep with its jobs
  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 bench sync --all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="FOLDER", help="folder of a finished run or sweep")
    parser.add_argument(
        "--all", action="store_true", help="every finished run and sweep under $BENCH_RUNS (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Imports each run that is not in the store yet; exit code 4 if one could not be imported."""
    from bench.errors import IncompleteError, UsageError
    from bench.paths import runs_root
    from bench.report.terminal import print_table
    from bench.scores.summary import read_summary
    from bench.tracking.mlflow_store import (
        PENDING,
        finished_runs,
        forget_lost,
        public,
        record_run,
        record_sweep,
        recorded_run,
        recorded_sweep,
        tracking_uri,
    )
    from bench.tracking.sweep import finished_sweeps, sweep_folder

    if not arguments.runs and not arguments.all:
        raise UsageError("Name the run folders to import, or give --all for every run under the runs folder.")
    folders: list[Path] = []
    sweeps: list[Path] = []
    for folder in arguments.runs:
        if (jobs := _jobs(folder)) is None:
            read_summary(folder)
            folders.append(folder)
            sweeps += [found] if (found := sweep_folder(folder, runs_root())) else []
        else:
            folders += jobs
            sweeps.append(folder)
    if arguments.all:
        folders += finished_runs(runs_root())
        sweeps += finished_sweeps(runs_root())
    folders, sweeps = _once(folders), _once(sweeps)
    away = forget_lost([*folders, *sweeps])
    outcomes = []
    for folder in folders:
        earlier = recorded_run(folder)
        run_id = earlier or record_run(folder)
        if earlier and not away:
            (folder / PENDING).unlink(missing_ok=True)
        outcomes.append({"run": str(folder), "state": _state(earlier, run_id, away), "mlflow_run": run_id})
    for folder in sweeps:
        before = recorded_sweep(folder)
        parents = before or record_sweep(folder)
        ids = ", ".join(parents or []) or None
        outcomes.append({"run": str(folder), "state": _state(before, parents, away), "mlflow_run": ids})
    if arguments.json:
        print(json.dumps({"tracking_uri": public(tracking_uri()), "runs": outcomes}, indent=2, ensure_ascii=False))
    elif not outcomes:
        print(f"No finished run under {runs_root()}.")
    else:
        rows = [[str(one["run"]), str(one["state"]), str(one["mlflow_run"] or "-")] for one in outcomes]
        print_table(["run", "state", "MLflow run"], rows, title=f"MLflow at {public(tracking_uri())}")
    if away:
        print(f"Whether the store still holds what was imported before is not known: {away}", file=sys.stderr)
    return IncompleteError.exit_code if away or any(one["state"] == "failed" for one in outcomes) else 0


def _state(earlier: object, now: object, away: str | None) -> str:
    if earlier:
        return "imported before, not checked" if away else "already there"
    return "failed" if now is None else "imported"


def _jobs(folder: Path) -> list[Path] | None:
    """Run folders of a finished sweep's folder that are still there; None for any other folder.

    Raises:
        UsageError: The sweep has not finished.
    """
    from bench.errors import UsageError
    from bench.tracking.sweep import RECORD, read_sweep

    if (folder / "summary.json").is_file() or not (folder / RECORD).is_file():
        return None
    try:
        record = read_sweep(folder)
        finished, jobs = record["finished"], [job["run_dir"] for job in record["jobs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / RECORD} is not the record of a sweep: {error}") from error
    if not finished:
        raise UsageError(f"The sweep in {folder} has not finished. Give its finished runs, or --all for every one.")
    return [Path(job) for job in jobs if job and (Path(job) / "summary.json").is_file()]


def _once(folders: list[Path]) -> list[Path]:
    """Each folder once, however it was written."""
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]
