"""Where things lie: the shipped configuration and data cards, the user's cache, the runs."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def resource_root() -> Path:
    """Folder that holds `configs/`, `datasets/` and `leaderboards/`.

    In a checkout this is the repository root; in an installed wheel it is `bench/_data`.
    """
    package = Path(__file__).resolve().parent
    packaged = package / "_data"
    return packaged if packaged.is_dir() else package.parent


def bench_home() -> Path:
    """Folder for caches and the MLflow store: `$BENCH_HOME`, else `~/.cache/face-restoration-bench`."""
    configured = os.environ.get("BENCH_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "face-restoration-bench"


def runs_root() -> Path:
    """Folder that new run folders are created in: `$BENCH_RUNS`, else `runs` in the working directory."""
    return Path(os.environ.get("BENCH_RUNS", "runs"))


def leaderboard_root() -> Path:
    """Folder that leaderboard entries are written to.

    `$BENCH_LEADERBOARDS` if set; the repository's own folder in a checkout; a folder under
    `bench_home()` in an installation, whose package files are not the user's to change.
    """
    configured = os.environ.get("BENCH_LEADERBOARDS")
    if configured:
        return Path(configured).expanduser()
    root = resource_root()
    return bench_home() / "leaderboards" if root.name == "_data" else root / "leaderboards"
