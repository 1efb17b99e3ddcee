"""Imports finished run folders into MLflow; a run never fails because tracking does.

The store is `$MLFLOW_TRACKING_URI` where it is set, else an SQLite file under `bench_home()/mlflow`
with its artifacts beside it. A fresh SQLite store breaks when several processes create it at once,
so each import holds a lock shared by all processes of the user.

A sweep (`bench run -m`) is a parent run with one child per job. MLflow nests runs within one experiment, and
experiments are protocols here: a sweep over several protocols has one parent in each.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from bench.errors import UsageError
from bench.files import sha256_file, write_json
from bench.paths import bench_home
from bench.scores.summary import read_summary
from bench.tracking.sweep import RECORD, by_protocol, join_sweep, read_sweep, sweep_of

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

Found = TypeVar("Found")
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
    RECORD,
)
IMAGES = "images.json"
PARENT = "mlflow.parentRunId"
# Tables being created and connections being tried again are no news to whoever finished a run.
QUIETED = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}
LOCK_SECONDS = 600
ANSWER_SECONDS = 5
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
    means with `.low`, `.high` and `.n`, and the folder's tables, report and configuration; `images.json`
    is the table of every image's values, which MLflow's pages can show. A job of a sweep is a child of the
    sweep's run. A folder whose scores are already in the store is left as it is. `mlflow.json` in the folder
    names the run; on failure `mlflow_pending.json` holds the reason and `bench sync` tries again.

    Args:
        run_dir: Folder of a finished run.

    Returns:
        The MLflow run id, or None if it could not be imported. Never raises an `Exception`.
    """
    run_dir = Path(run_dir)
    try:
        if run_dir.is_dir():
            join_sweep(run_dir)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("Cannot note the sweep of %s: %s", run_dir, error)
    return _noting_failure(run_dir, lambda uri: recorded_run(run_dir) or _import_locked(run_dir, uri))


def record_sweep(folder: Path) -> list[str] | None:
    """Completes the parent runs of a finished sweep: how its jobs ended, and the reports that compare them.

    Args:
        folder: The sweep's folder, as `bench.tracking.sweep.finish_sweep` left it.

    Returns:
        Ids of the parent runs, one per protocol, or None if they could not be completed. Never raises an
        `Exception`.
    """
    return _noting_failure(Path(folder), lambda uri: recorded_sweep(folder) or _complete_locked(Path(folder), uri))


def recorded_sweep(folder: Path) -> list[str] | None:
    """Ids of the parent runs if the present record of a sweep is already in the present store, or None."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        current = marker["tracking_uri"] == public(tracking_uri())
        return list(marker["runs"]) if current and marker["sha256"] == sha256_file(folder / RECORD) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _noting_failure(folder: Path, work: Callable[[str], Found]) -> Found | None:
    """Result of the work, or None with the reason in `mlflow_pending.json`."""
    uri = tracking_uri()
    try:
        found = work(uri)
        (folder / PENDING).unlink(missing_ok=True)
        return found
    except Exception as error:
        reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip().replace(uri, public(uri))
        reason = reason[:LONGEST_REASON]
        log.warning("MLflow did not take %s (%s); `bench sync` tries again.", folder, reason)
        try:
            if folder.is_dir():
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                write_json(folder / PENDING, {"tracking_uri": public(uri), "reason": reason, "created": now})
        except OSError as failure:
            log.warning("Cannot note that in %s: %s", folder, failure)
        return None


def public(uri: str) -> str:
    """An address without the user and password that may stand in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def recorded_run(run_dir: Path) -> str | None:
    """MLflow run id of a folder whose present scores are already in the present store, or None."""
    try:
        marker = json.loads((run_dir / MARKER).read_text(encoding="utf-8"))
        sweep = sweep_of(run_dir)
        current = (
            marker["tracking_uri"] == public(tracking_uri())
            and marker["scores_sha256"] == _scores_hash(run_dir)
            and marker.get("sweep") == (sweep and sweep["id"])
        )
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


@contextmanager
def _store_lock() -> Iterator[None]:
    from filelock import FileLock

    if "?" in str(store_folder().resolve()):
        raise UsageError(
            f"MLflow cannot keep a store under a path with '?': {store_folder()}. Set MLFLOW_TRACKING_URI."
        )
    store_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(store_folder() / "import.lock", timeout=LOCK_SECONDS):
        yield


def _import_locked(run_dir: Path, uri: str) -> str:
    with _store_lock():
        return recorded_run(run_dir) or _import(run_dir, uri)


def _complete_locked(folder: Path, uri: str) -> list[str]:
    with _store_lock():
        return recorded_sweep(folder) or _complete(folder, uri)


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
    sweep = sweep_of(run_dir)
    family = {}
    if sweep:
        parent = _parent(client, experiment, sweep)
        family = {PARENT: parent, "bench.sweep": str(sweep["id"]), "bench.job": str(sweep["job"])}
    run_id = _finished_earlier(client, experiment, tags)
    if run_id is None:
        name = f"{summary['method']} {run_dir.name}"
        run_id = client.create_run(experiment, tags=tags | family, run_name=name).info.run_id
        _log(client, run_id, parameters, _metrics(summary))
        client.log_table(run_id, _image_table(run_dir), IMAGES)
        for artifact in ARTIFACTS:
            if (run_dir / artifact).is_file():
                client.log_artifact(run_id, str(run_dir / artifact))
        client.set_terminated(run_id)
    else:
        for key, value in family.items():
            client.set_tag(run_id, key, value)
    marker = {"tracking_uri": public(uri), "experiment": summary["protocol"], "run_id": run_id}
    write_json(run_dir / MARKER, marker | {"scores_sha256": scores_sha256, "sweep": sweep and sweep["id"]})
    return run_id


def _parent(client: MlflowClient, experiment: str, sweep: dict[str, Any]) -> str:
    """The sweep's run in an experiment; made where there is none. It ends when the sweep does."""
    found = client.search_runs([experiment], filter_string=f"tags.`bench.sweep_parent` = '{sweep['id']}'")
    if found:
        return str(found[0].info.run_id)
    tags = {"bench.sweep_parent": str(sweep["id"])}
    run_id = str(client.create_run(experiment, tags=tags, run_name=f"sweep {sweep['id']}").info.run_id)
    parameters = {"command": sweep["command"][:LONGEST_PARAMETER], "jobs": str(sweep["jobs"])}
    _log(client, run_id, parameters, {})
    return run_id


def _complete(folder: Path, uri: str) -> list[str]:
    record = read_sweep(folder)
    told = {"id": record["id"], "command": record["command"], "jobs": len(record["jobs"])}
    codes = [job["exit_code"] for job in record["jobs"]]
    client = _client(uri)
    runs = []
    for name, members in by_protocol(record).items():
        experiment = _experiment(client, read_summary(members[0])["protocol"], uri)
        run_id = _parent(client, experiment, told)
        for artifact in (RECORD, f"report-{name}.html"):
            if (folder / artifact).is_file():
                client.log_artifact(run_id, str(folder / artifact))
        _log(client, run_id, {}, {"jobs_failed": sum(code != 0 for code in codes)})
        client.set_terminated(run_id, "FINISHED" if not any(codes) else "FAILED")
        runs.append(run_id)
    marker = {"tracking_uri": public(uri), "runs": runs, "sha256": sha256_file(folder / RECORD)}
    write_json(folder / MARKER, marker)
    return runs


def _image_table(run_dir: Path) -> pd.DataFrame:
    """One row per image, one column per metric."""
    from bench.scores.table import read_table

    scores = read_table(run_dir / "scores.parquet")
    table = scores.pivot(index=["image_id", "identity"], columns="metric", values="value").reset_index()
    table.columns.name = None
    return table.astype(object).where(table.notna(), None)


def _client(uri: str) -> MlflowClient:
    # A server that is away must not hold a finished run for minutes, which mlflow's defaults do.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # With a server, mlflow prints addresses to standard output, where `--json` prints the summary.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, level in QUIETED.items():
        logging.getLogger(name).setLevel(level)
    _ask(uri)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _ask(uri: str) -> None:
    """Asks a server once, briefly, whether it is there: whatever it answers, it is.

    Raises:
        ConnectionError: It is not.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS, allow_redirects=False)
    except requests.exceptions.SSLError:
        return
    except requests.exceptions.RequestException as error:
        raise ConnectionError(f"no server answers at {public(uri)} ({type(error).__name__})") from error


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
    for name, metric in (summary.get("set_metrics") or {}).items():
        values |= {name: metric["value"], f"{name}.low": metric["low"], f"{name}.high": metric["high"]}
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
