"""Hold runs against what was measured before; exit code 1 on a regression."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

EXAMPLES = """examples:
  bench gate runs/refine-orl_heavy --against leaderboards/orl_heavy
  bench gate runs/mine --against leaderboards/orl_heavy/refine@demo --markdown comment.md
  bench gate runs/after --against runs/before --metrics id,psnr_y
  bench gate --all --against leaderboards/orl_heavy

A metric is a regression where the exact paired test over identities says worse (Holm over the metrics) and the loss
exceeds its tolerance (configs/metrics/standard.yaml), or where a value that was there is no more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--against",
        type=Path,
        required=True,
        metavar="BASELINE",
        help="entry (.json), run folder, leaderboards/PROTOCOL or leaderboards/PROTOCOL/METHOD",
    )
    parser.add_argument(
        "--all", action="store_true", help="first run every shipped method of that board again, into runs/gate"
    )
    parser.add_argument("--metrics", help="names separated by commas (default: all)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the test over all metrics (default: .05)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a table for a pull request's comment")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the outcome; 1 if any run regressed."""
    from bench.config import read_preset
    from bench.errors import UsageError
    from bench.files import write_text
    from bench.leaderboard.entry import entry_from_run
    from bench.leaderboard.gate import find_baseline, gate
    from bench.leaderboard.gate_table import COLUMNS, cells, markdown, title, verdict
    from bench.report.terminal import print_table

    if not 0 < arguments.alpha < 1:
        raise UsageError(f"--alpha must lie between 0 and 1, got {arguments.alpha:g}.")
    runs = list(arguments.runs)
    if arguments.all:
        runs += _run_all(arguments.against)
    if not runs:
        raise UsageError("Give the folder of a finished run, or --all. Try: bench gate --help")
    tolerances = read_preset("metrics", "standard").get("tolerance") or {}
    metrics = (
        None if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    )
    if metrics == []:
        raise UsageError(f"--metrics {arguments.metrics!r} names no metric. Leave it away for all.")
    results = []
    for path in runs:
        entry = entry_from_run(path)
        results.append(gate(entry, find_baseline(arguments.against, entry), tolerances, arguments.alpha, metrics))
    if arguments.markdown:
        write_text(arguments.markdown, markdown(results))
    failed = any(result.failed for result in results)
    if arguments.json:
        print(json.dumps({"failed": failed, "runs": [one.as_json() for one in results]}, indent=2, ensure_ascii=False))
        return int(failed)
    for result in results:
        print_table(COLUMNS, [cells(change) for change in result.changes], title(result))
    print(f"gate {verdict(results)}")
    return int(failed)


def _run_all(board: Path) -> list[Path]:
    """Runs every shipped method of a board, each in a process of its own, and prints its seconds."""
    import subprocess

    from bench.errors import BenchError
    from bench.leaderboard.gate import board_data, shipped_jobs
    from bench.paths import runs_root

    folders = []
    jobs, left_out = shipped_jobs(board)
    for label, why in left_out.items():
        print(f"{label}: left out ({why})", file=sys.stderr, flush=True)
    for label, words in jobs.items():
        folder = runs_root() / "gate" / label
        settings = [*board_data(board), f"run_dir={folder}", "leaderboard=false", "overwrite=always"]
        began = time.monotonic()
        job = subprocess.run(
            [sys.executable, "-m", "bench", "run", *words, *settings], stdout=subprocess.DEVNULL, check=False
        )
        print(f"{label}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        if job.returncode not in (0, 4):
            raise BenchError(
                f"{label}, which is on the board, could not be run again (exit code {job.returncode}): "
                f"bench run {' '.join(words + settings)}"
            )
        folders.append(folder)
    return folders
