"""Imports finished run folders into MLflow; a run never fails because tracking does.

The store is `$MLFLOW_TRACKING_URI` where it is set, else an SQLite file under `bench_home()/mlflow`
with its artifacts beside it. A fresh SQLite store breaks when several processes create it at once,
so each import holds a lock shared by all processes of the user.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bench.errors import UsageError
from bench.files import sha256_file, write_json
from bench.paths import bench_home
from bench.scores.summary import read_summary

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MARKER = "mlflow.json"
PENDING = "mlflow_pending.json"
ARTIFACTS = (
    "summary.json",
    "scores.parquet",
    "set_scores.parquet",
    "report.html",
    "config.yaml",
    "protocol.json",
    "environment.json",
)
# Tables being created and connections being tried again are no news to whoever finished a run.
QUIETED = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}
LOCK_SECONDS = 600
LONGEST_PARAMETER = 500
LONGEST_REASON = 240
BATCH = 100


def store_folder() -> Path:
    """Folder of the default store and of the lock."""
    return bench_home() / "mlflow"


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else the default SQLite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store_folder() / 'mlflow.db').resolve()}"


def record_run(run_dir: Path) -> str | None:
    """Imports a finished run folder into MLflow, once.

    The experiment is the protocol's name. The run carries parameters (`config.yaml`, flattened),
    means with `.low`, `.high` and `.n`, and the folder's tables, report and configuration. A
    folder whose scores are already in the store is left as it is. `mlflow.json` in the folder
    names the run; on failure `mlflow_pending.json` holds the reason and `bench sync` tries again.

    Args:
        run_dir: Folder of a finished run.

    Returns:
        The MLflow run id, or None if it could not be imported. Never raises an `Exception`.
    """
    run_dir = Path(run_dir)
    uri = tracking_uri()
    try:
        run_id = recorded_run(run_dir) or _import_locked(run_dir, uri)
        (run_dir / PENDING).unlink(missing_ok=True)
        return run_id
    except Exception as error:
        reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip()[:LONGEST_REASON]
        log.warning("MLflow did not take %s (%s); `bench sync` tries again.", run_dir, reason)
        try:
            if run_dir.is_dir():
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                write_json(run_dir / PENDING, {"tracking_uri": uri, "reason": reason, "created": now})
        except OSError as failure:
            log.warning("Cannot note that in %s: %s", run_dir, failure)
        return None


def recorded_run(run_dir: Path) -> str | None:
    """MLflow run id of a folder whose present scores are already in the present store, or None."""
    try:
        marker = json.loads((run_dir / MARKER).read_text(encoding="utf-8"))
        current = marker["tracking_uri"] == tracking_uri() and marker["scores_sha256"] == _scores_hash(run_dir)
        return str(marker["run_id"]) if current else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished_runs(root: Path) -> list[Path]:
    """Every finished run folder under `root`, sorted."""
    found: list[Path] = []
    for folder, children, files in os.walk(root):
        if "summary.json" in files:
            found.append(Path(folder))
            children.clear()
    return sorted(found)


def _import_locked(run_dir: Path, uri: str) -> str:
    from filelock import FileLock

    if "?" in str(store_folder().resolve()):
        raise UsageError(
            f"MLflow cannot keep a store under a path with '?': {store_folder()}. Set MLFLOW_TRACKING_URI."
        )
    store_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(store_folder() / "import.lock", timeout=LOCK_SECONDS):
        return recorded_run(run_dir) or _import(run_dir, uri)


def _import(run_dir: Path, uri: str) -> str:
    summary = read_summary(run_dir)
    parameters = dict(_flatten(_config(run_dir)))
    scores_sha256 = _scores_hash(run_dir)
    tags = {
        "bench.run_folder": str(run_dir.resolve()),
        "bench.scores_sha256": scores_sha256,
        "protocol_id": summary["protocol_id"],
        "method": summary["method"],
        "method_revision": summary["method_revision"],
        "seed": str(summary["seed"]),
        "code": summary.get("code_revision") or "unknown",
    }
    client = _client(uri)
    experiment = _experiment(client, summary["protocol"], uri)
    run_id = _finished_earlier(client, experiment, tags)
    if run_id is None:
        run_id = client.create_run(experiment, tags=tags, run_name=f"{summary['method']} {run_dir.name}").info.run_id
        _log(client, run_id, parameters, _metrics(summary))
        for name in ARTIFACTS:
            if (run_dir / name).is_file():
                client.log_artifact(run_id, str(run_dir / name))
        client.set_terminated(run_id)
    marker = {"tracking_uri": uri, "experiment": summary["protocol"], "run_id": run_id, "scores_sha256": scores_sha256}
    write_json(run_dir / MARKER, marker)
    return run_id


def _client(uri: str) -> MlflowClient:
    # A server that is away must not hold a finished run for minutes, which mlflow's defaults do.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, level in QUIETED.items():
        logging.getLogger(name).setLevel(level)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri, name)))
        except MlflowException:
            # Someone on another machine, whom the lock does not hold, may have been quicker.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside an SQLite file (mlflow's own default is the working directory); a server decides itself."""
    if urlsplit(uri).scheme != "sqlite":
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts" / experiment).as_uri()


def _finished_earlier(client: MlflowClient, experiment: str, tags: dict[str, str]) -> str | None:
    """Run of an import that was killed before it could write the marker; half-made ones are deleted."""
    quoted = tags["bench.run_folder"].replace("'", "''")
    if "'" in quoted:
        return None
    query = f"tags.`bench.run_folder` = '{quoted}' and tags.`bench.scores_sha256` = '{tags['bench.scores_sha256']}'"
    finished = None
    for run in client.search_runs([experiment], filter_string=query):
        if run.info.status == "FINISHED":
            finished = str(run.info.run_id)
        else:
            client.delete_run(run.info.run_id)
    return finished


def _log(client: MlflowClient, run_id: str, parameters: dict[str, str], metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    params = [Param(key, value) for key, value in parameters.items()]
    values = [Metric(_key(key), value, now, 0) for key, value in metrics.items()]
    for start in range(0, max(len(params), len(values)), BATCH):
        client.log_batch(run_id, metrics=values[start : start + BATCH], params=params[start : start + BATCH])


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    values: dict[str, float | None] = {
        name: summary.get(name) for name in ("seconds_per_image", "peak_memory_mb", "parameters", "images")
    }
    values["failed"] = len(summary.get("failed") or {})
    for name, metric in summary["metrics"].items():
        values |= {name: metric["mean"], f"{name}.low": metric["low"], f"{name}.high": metric["high"]}
        values[f"{name}.n"] = metric["n"]
    return {name: float(value) for name, value in values.items() if value is not None}


def _config(run_dir: Path) -> Any:
    import yaml

    path = run_dir / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and (value or not prefix):
        for key, child in value.items():
            yield from _flatten(child, f"{prefix}.{key}" if prefix else str(key))
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    yield _key(prefix), text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 1] + "…"


def _key(name: str) -> str:
    """`name` with what MLflow's keys may not hold replaced."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def _scores_hash(run_dir: Path) -> str:
    return sha256_file(run_dir / "scores.parquet")
