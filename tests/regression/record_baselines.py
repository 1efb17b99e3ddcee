"""Writes the entries of finished runs on orl_heavy_ci as the baselines that the tests gate against.

By hand, when a change of the scores is wanted and understood; no test does it:

    bench run -m method=input,copy_reference,refine,restorerid,authface data=orl_heavy_ci leaderboard=false
    python tests/regression/record_baselines.py RUN...
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.files import write_json
from bench.leaderboard.entry import entry_from_run, entry_path

BASELINES = Path(__file__).with_name("baselines")


def record(runs: list[Path]) -> list[Path]:
    """Replaces the baseline of each run's method; returns the files."""
    written = []
    for run in runs:
        entry = entry_from_run(run)
        path = entry_path(entry, BASELINES)
        for old in path.parent.glob(f"{entry['method']}@*.json"):
            old.unlink()
        write_json(path, entry)
        written.append(path)
    return written


if __name__ == "__main__":
    for file in record([Path(word) for word in sys.argv[1:]]):
        sys.stdout.write(f"{file}\n")
