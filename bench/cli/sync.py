"""Import into MLflow the finished runs that could not be uploaded before."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """\
  bench sync --all                      every finished run and sweep under the runs folder
  bench sync runs/refine-orl_heavy      one run
  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 bench sync --all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
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
        public,
        record_run,
        record_sweep,
        recorded_run,
        recorded_sweep,
        tracking_uri,
    )
    from bench.tracking.sweep import finished_sweeps

    if not arguments.runs and not arguments.all:
        raise UsageError("Name the run folders to import, or give --all for every run under the runs folder.")
    for folder in arguments.runs:
        read_summary(folder)
    folders = list(dict.fromkeys([*arguments.runs, *(finished_runs(runs_root()) if arguments.all else [])]))
    outcomes = []
    for folder in folders:
        earlier = recorded_run(folder)
        run_id = earlier or record_run(folder)
        if earlier:
            (folder / PENDING).unlink(missing_ok=True)
        state = "already there" if earlier else "imported" if run_id else "failed"
        outcomes.append({"run": str(folder), "state": state, "mlflow_run": run_id})
    for folder in finished_sweeps(runs_root()) if arguments.all else []:
        before = recorded_sweep(folder)
        parents = before or record_sweep(folder)
        state = "already there" if before else "failed" if parents is None else "imported"
        outcomes.append({"run": str(folder), "state": state, "mlflow_run": ", ".join(parents or []) or None})
    if arguments.json:
        print(json.dumps({"tracking_uri": public(tracking_uri()), "runs": outcomes}, indent=2, ensure_ascii=False))
    elif not outcomes:
        print(f"No finished run under {runs_root()}.")
    else:
        rows = [[str(one["run"]), str(one["state"]), str(one["mlflow_run"] or "-")] for one in outcomes]
        print_table(["run", "state", "MLflow run"], rows, title=f"MLflow at {public(tracking_uri())}")
    return IncompleteError.exit_code if any(one["state"] == "failed" for one in outcomes) else 0
