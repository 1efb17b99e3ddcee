"""What a folder remembers of its import: `mlflow.json` names the run, `mlflow_pending.json` why there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from bench.files import sha256_file
from bench.paths import bench_home
from bench.tracking.sweep import RECORD, sweep_of

MARKER = "mlflow.json"
PENDING = "mlflow_pending.json"
REPORT = "report.html"


def store_folder() -> Path:
    """Folder of the default store and of the lock."""
    return bench_home() / "mlflow"


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else the default SQLite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store_folder() / 'mlflow.db').resolve()}"


def public(uri: str) -> str:
    """An address without the user and password that may stand in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def recorded_run(run_dir: Path) -> str | None:
    """MLflow run id of a folder whose present scores and report went to the present store, or None.

    The store is not asked whether it still holds the run; `bench.tracking.mlflow_store.forget_lost` asks it.
    """
    try:
        marker = read_marker(run_dir)
        sweep = sweep_of(run_dir)
        current = (
            marker["tracking_uri"] == public(tracking_uri())
            and marker["scores_sha256"] == scores_hash(run_dir)
            and marker["report_sha256"] == report_hash(run_dir)
            and marker.get("sweep") == (sweep and sweep["id"])
        )
        return str(marker["run_id"]) if current else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_sweep(folder: Path) -> list[str] | None:
    """Ids of the parent runs if the present record of a sweep went to the present store, or None."""
    try:
        marker = read_marker(folder)
        current = marker["tracking_uri"] == public(tracking_uri())
        return list(marker["runs"]) if current and marker["sha256"] == sha256_file(folder / RECORD) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_ids(folder: Path) -> set[tuple[str, str]]:
    """(experiment, run id) of every run that a folder's marker names; empty without a marker of the present store."""
    try:
        marker = read_marker(folder)
        if marker["tracking_uri"] != public(tracking_uri()):
            return set()
        if "run_id" in marker:
            return {(str(marker["experiment"]), str(marker["run_id"]))}
        return set(zip(marker.get("experiments", marker["runs"]), marker["runs"], strict=True))
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def read_marker(folder: Path) -> Any:
    """The marker of a folder.

    Raises:
        OSError: There is none.
        ValueError: It is no JSON.
    """
    return json.loads((folder / MARKER).read_text(encoding="utf-8"))


def scores_hash(run_dir: Path) -> str:
    """SHA-256 of a run's score table."""
    return sha256_file(run_dir / "scores.parquet")


def report_hash(run_dir: Path) -> str | None:
    """SHA-256 of a run's report; None where none is written."""
    return sha256_file(run_dir / REPORT) if (run_dir / REPORT).is_file() else None
