"""Imports finished run folders into MLflow; a run never fails because tracking does.

The store is `$MLFLOW_TRACKING_URI` where it is set, else an SQLite file under `bench_home()/mlflow`
with its artifacts beside it. A fresh SQLite store breaks when several processes create it at once,
so each import holds a lock shared by all processes of the user.

A sweep (`bench run -m`) is a parent run with one child per job. MLflow nests runs within one experiment, and
experiments are protocols here: a sweep over several protocols has one parent in each.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from bench.errors import UsageError
from bench.files import sha256_file, write_json
from bench.scores.summary import read_summary
from bench.tracking.marker import (
    MARKER,
    PENDING,
    REPORT,
    public,
    recorded_ids,
    recorded_run,
    recorded_sweep,
    report_hash,
    scores_hash,
    store_folder,
    tracking_uri,
)
from bench.tracking.run_fields import LONGEST_PARAMETER, allowed_key, image_table, metrics, parameters
from bench.tracking.sweep import RECORD, by_protocol, join_sweep, read_sweep, sweep_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Found = TypeVar("Found")
log = logging.getLogger(__name__)

ARTIFACTS = (
    "summary.json",
    "scores.parquet",
    "set_scores.parquet",
    REPORT,
    "config.yaml",
    "protocol.json",
    "environment.json",
    RECORD,
)
IMAGES = "images.json"
PARENT = "mlflow.parentRunId"
SUPERSEDED = "bench.superseded_by"
# Tables being created and connections being tried again are no news to whoever finished a run.
QUIETED = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}
LOCK_SECONDS = 600
ANSWER_SECONDS = 5
LONGEST_REASON = 240
BATCH = 100


def record_run(run_dir: Path) -> str | None:
    """Imports a finished run folder into MLflow, once.

    The experiment is the protocol's name. The run carries parameters (`config.yaml`, flattened),
    means with `.low`, `.high` and `.n`, and the folder's tables, report and configuration; `images.json`
    is the table of every image's values, which MLflow's pages can show. A job of a sweep is a child of the
    sweep's run. A folder whose scores and report are already in the store is left as it is; of one whose report
    alone was written again, that is uploaded. `mlflow.json` in the folder names the run; on failure
    `mlflow_pending.json` holds the reason and `bench sync FOLDER` tries again.

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


def _noting_failure(folder: Path, work: Callable[[str], Found]) -> Found | None:
    """Result of the work, or None with the reason in `mlflow_pending.json`."""
    uri = tracking_uri()
    try:
        found = work(uri)
        (folder / PENDING).unlink(missing_ok=True)
        return found
    except Exception as error:
        reason = _reason(error, uri)
        again = shlex.quote(str(folder))
        log.warning("MLflow did not take %s (%s); this tries again: bench sync %s", folder, reason, again)
        try:
            if folder.is_dir():
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                write_json(folder / PENDING, {"tracking_uri": public(uri), "reason": reason, "created": now})
        except OSError as failure:
            log.warning("Cannot note that in %s: %s", folder, failure)
        return None


def finished_runs(root: Path) -> list[Path]:
    """Every finished run folder under `root`, sorted."""
    found: list[Path] = []
    for folder, children, files in os.walk(root):
        if "summary.json" in files:
            found.append(Path(folder))
            children.clear()
    return sorted(found)


def _reason(error: Exception, uri: str) -> str:
    text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip().replace(uri, public(uri))
    return text[:LONGEST_REASON]


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
    tags = {
        "bench.run_folder": str(run_dir.resolve()),
        "bench.scores_sha256": scores_hash(run_dir),
        "protocol_id": summary["protocol_id"],
        "method": summary["method"],
        "method_revision": summary["method_revision"],
        "seed": str(summary["seed"]),
        "code": summary.get("code_revision") or "unknown",
    }
    report = report_hash(run_dir)
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
        _log(client, run_id, parameters(run_dir), metrics(summary))
        client.log_table(run_id, image_table(run_dir), IMAGES)
        for artifact in ARTIFACTS:
            if (run_dir / artifact).is_file():
                client.log_artifact(run_id, str(run_dir / artifact))
        client.set_terminated(run_id)
    else:
        for key, value in family.items():
            client.set_tag(run_id, key, value)
        if report:
            client.log_artifact(run_id, str(run_dir / REPORT))
    if sweep:
        _supersede(client, experiment, family, run_id)
    marker = {"tracking_uri": public(uri), "experiment": summary["protocol"], "run_id": run_id}
    hashes = {"scores_sha256": tags["bench.scores_sha256"], "report_sha256": report}
    write_json(run_dir / MARKER, marker | hashes | {"sweep": sweep and sweep["id"]})
    return run_id


def _supersede(client: MlflowClient, experiment: str, family: dict[str, str], run_id: str) -> None:
    """Leaves a sweep one child per job: what an earlier scoring of the same job gave steps out of it."""
    query = f"tags.`bench.sweep` = '{family['bench.sweep']}' and tags.`bench.job` = '{family['bench.job']}'"
    for run in _search(client, experiment, query):
        tags = run.data.tags
        if run.info.run_id == run_id:
            if SUPERSEDED in tags:
                client.delete_tag(run_id, SUPERSEDED)
        elif tags.get(SUPERSEDED) != run_id:
            client.set_tag(run.info.run_id, SUPERSEDED, run_id)
            if PARENT in tags:
                client.delete_tag(run.info.run_id, PARENT)


def _parent(client: MlflowClient, experiment: str, sweep: dict[str, Any]) -> str:
    """The sweep's run in an experiment; made where there is none. It ends when the sweep does."""
    if found := _search(client, experiment, f"tags.`bench.sweep_parent` = '{sweep['id']}'"):
        return str(found[0].info.run_id)
    tags = {"bench.sweep_parent": str(sweep["id"])}
    run_id = str(client.create_run(experiment, tags=tags, run_name=f"sweep {sweep['id']}").info.run_id)
    _log(client, run_id, {"command": sweep["command"][:LONGEST_PARAMETER], "jobs": str(sweep["jobs"])}, {})
    return run_id


def _complete(folder: Path, uri: str) -> list[str]:
    record = read_sweep(folder)
    told = {"id": record["id"], "command": record["command"], "jobs": len(record["jobs"])}
    codes = [job["exit_code"] for job in record["jobs"]]
    client = _client(uri)
    runs: dict[str, str] = {}
    for name, members in by_protocol(record).items():
        protocol = read_summary(members[0])["protocol"]
        experiment = _experiment(client, protocol, uri)
        run_id = _parent(client, experiment, told)
        for child in _search(client, experiment, f"tags.`bench.sweep` = '{record['id']}'"):
            # Their parent may have been deleted in the store since.
            if SUPERSEDED not in child.data.tags and child.data.tags.get(PARENT) != run_id:
                client.set_tag(child.info.run_id, PARENT, run_id)
        for artifact in (RECORD, f"report-{name}.html"):
            if (folder / artifact).is_file():
                client.log_artifact(run_id, str(folder / artifact))
        _log(client, run_id, {}, {"jobs_failed": sum(code != 0 for code in codes)})
        client.set_terminated(run_id, "FINISHED" if not any(codes) else "FAILED")
        runs[run_id] = protocol
    marker = {"tracking_uri": public(uri), "runs": list(runs), "experiments": list(runs.values())}
    write_json(folder / MARKER, marker | {"sha256": sha256_file(folder / RECORD)})
    return list(runs)


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
    """Run that already holds these scores of this folder; half-made ones, of imports that were killed, are deleted."""
    finished = None
    # A filter cannot hold every folder's name: MLflow has no way to write an apostrophe.
    for run in _search(client, experiment, f"tags.`bench.scores_sha256` = '{tags['bench.scores_sha256']}'"):
        if run.data.tags.get("bench.run_folder") != tags["bench.run_folder"]:
            continue
        if run.info.status == "FINISHED":
            finished = str(run.info.run_id)
        else:
            client.delete_run(run.info.run_id)
    return finished


def _search(client: MlflowClient, experiment: str, query: str = "") -> list[Run]:
    """All runs of an experiment that fit, without deleted ones."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], filter_string=query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def forget_lost(folders: Sequence[Path]) -> str | None:
    """Deletes the marker of each folder whose runs the present store does not hold, or holds as deleted.

    A marker says what was imported once; the store may have been removed since, or a run deleted in MLflow's
    pages. The store is asked once for each experiment.

    Args:
        folders: Folders of runs and of sweeps.

    Returns:
        Why the store could not be asked, or None. Never raises an `Exception`.
    """
    named = {folder: ids for folder in folders if (ids := recorded_ids(folder))}
    if not named:
        return None
    uri = tracking_uri()
    try:
        with _store_lock():
            client = _client(uri)
            there: set[tuple[str, str]] = set()
            for name in sorted({experiment for ids in named.values() for experiment, _ in ids}):
                experiment = client.get_experiment_by_name(name)
                if experiment is not None and experiment.lifecycle_stage != "deleted":
                    there |= {(name, run.info.run_id) for run in _search(client, experiment.experiment_id)}
        for folder, ids in named.items():
            if not ids <= there:
                (folder / MARKER).unlink(missing_ok=True)
    except Exception as error:
        return _reason(error, uri)
    return None


def _log(client: MlflowClient, run_id: str, parameters: dict[str, str], metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    params = [Param(key, value) for key, value in parameters.items()]
    values = [Metric(allowed_key(key), value, now, 0) for key, value in metrics.items()]
    for start in range(0, max(len(params), len(values)), BATCH):
        client.log_batch(run_id, metrics=values[start : start + BATCH], params=params[start : start + BATCH])
