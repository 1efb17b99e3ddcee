"""Restore, score and record a method on a frozen protocol."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  bench run method=refine data=orl_heavy
  bench run method=refine data=celebref_heavy data.root=FOLDER
  bench run method=refine data=orl_heavy method.reference=none
  bench run -m method=input,refine data=orl_heavy,orl_light

A run that was stopped goes on where it stopped when the same command is given again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "bench run method=NAME [data=NAME] [key=value ...] [-m] [--json]"
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma lists")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Runs; returns the exit code."""
    if arguments.multirun:
        return _sweep(arguments)
    import json
    import os

    from bench.config import compose

    config = compose("run", arguments.overrides)
    # Before numpy and torch are loaded: what they size their thread pools by.
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.runs.quiet import quiet_lightning
    from bench.runs.run import run as run_method

    quiet_lightning()

    summary = run_method(config)
    if summary is None:
        return 0
    if arguments.json:
        print(json.dumps(summary))
    else:
        _print_summary(summary, summary["run_dir"])
    return 4 if summary["failed"] else 0


def _print_summary(summary: dict, run_dir: str) -> None:  # type: ignore[type-arg]
    from bench.report.terminal import number, print_table

    rows = []
    for metric in summary["metrics"].values():
        arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        missing = metric["mean"] is None
        interval = "" if missing else f"[{number(metric['low'])}, {number(metric['high'])}]"
        coverage = f"{metric['n']}/{metric['of']}"
        rows.append(
            [f"{metric['title']}{unit}{arrow}", number(metric["mean"]), interval, coverage, metric["reason"] or ""]
        )
    title = (
        f"{summary['method_title']} ({summary['method']}) on {summary['protocol']} "
        f"[{summary['protocol_id']}], {summary['images']} of {summary['of']} pictures"
    )
    print_table(["metric", "mean", "95 % interval", "scored", "why not"], rows, title)
    if summary["seconds_per_image"] is not None:
        print(f"{summary['seconds_per_image']:.3f} s per image, peak memory {summary['peak_memory_mb']:.0f} MB")
    for image_id, reason in summary["failed"].items():
        print(f"failed: {image_id}: {reason}")
    print(f"run folder: {run_dir}\nreport: {run_dir}/report.html")


def _sweep(arguments: argparse.Namespace) -> int:
    """Starts one `python -m bench run` per combination, one after the other; the worst exit code wins."""
    import os
    import subprocess
    import sys

    from bench.config import expand_sweep
    from bench.errors import UsageError
    from bench.paths import runs_root
    from bench.tracking.sweep import finish_sweep, job_environment, start_sweep, sweep_reports

    jobs = expand_sweep(arguments.overrides)
    if len(jobs) > 1 and any(word.startswith("run_dir=") for word in arguments.overrides):
        raise UsageError("run_dir= with -m would send every job to one folder. Leave it out: each job gets its own.")
    folder = start_sweep(arguments.overrides, jobs, runs_root())
    codes = []
    for position, words in enumerate(jobs, start=1):
        print(f"[{position}/{len(jobs)}] bench run {' '.join(words)}", file=sys.stderr, flush=True)
        flags = ["--json"] if arguments.json else []
        environment = os.environ | job_environment(folder, position)
        command = [sys.executable, "-m", "bench", "run", *words, *flags]
        code = subprocess.run(command, check=False, env=environment).returncode
        codes.append(code if code >= 0 else 1)
    record = finish_sweep(folder, codes)
    if any(job["run_dir"] for job in record["jobs"]):
        from bench.tracking.mlflow_store import record_sweep

        record_sweep(folder)
    print(f"sweep: {folder}", file=sys.stderr)
    for report in sweep_reports(folder):
        print(f"comparison: {report}", file=sys.stderr)
    return max(codes, default=0)
