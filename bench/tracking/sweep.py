"""Sweeps: what `bench run -m` ran, in one folder, so that tracking can show the jobs under one parent.

A sweep's id is the hash of its jobs and of the runs folder: the same command again goes on with the same sweep.
Its folder is `<runs>/sweeps/<id>`: `sweep.json` (command, jobs, exit codes, run folders) and one comparison report
per protocol. Each job notes its sweep in its own run folder, so that it can be imported later and elsewhere.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.files import write_json

log = logging.getLogger(__name__)

VARIABLE = "BENCH_SWEEP"
RECORD = "sweep.json"
FOLDER = "sweeps"
FINE = (0, 4)


def start_sweep(words: Sequence[str], jobs: Sequence[Sequence[str]], root: Path) -> Path:
    """Makes the folder of a sweep.

    Args:
        words: The overrides as they were given.
        jobs: The overrides of each job.
        root: Folder that the jobs' run folders are created in.

    Returns:
        The sweep's folder.
    """
    described = json.dumps([[list(job) for job in jobs], str(root.resolve())], ensure_ascii=False)
    identity = hashlib.sha256(described.encode()).hexdigest()[:12]
    folder = root / FOLDER / identity
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "id": identity,
        "command": " ".join(["bench run -m", *words]),
        "jobs": [{"words": list(job), "exit_code": None, "run_dir": None} for job in jobs],
        "created": _now(),
        "finished": None,
    }
    write_json(folder / RECORD, record)
    return folder


def job_environment(folder: Path, position: int) -> dict[str, str]:
    """Variables that tell a job which sweep it belongs to; jobs are counted from 1."""
    return {VARIABLE: json.dumps({"folder": str(folder.resolve()), "job": position})}


def join_sweep(run_dir: Path, environment: Mapping[str, str] | None = None) -> None:
    """Notes in a run folder, and in the sweep's, which job of which sweep made it; nothing outside a sweep.

    Raises:
        OSError: A folder cannot be written.
        ValueError: The variable or the sweep's record is not what `start_sweep` wrote.
    """
    handed = (os.environ if environment is None else environment).get(VARIABLE)
    if not handed:
        return
    job = json.loads(handed)
    folder, position = Path(job["folder"]), int(job["job"])
    record = read_sweep(folder)
    told = {"id": record["id"], "command": record["command"], "job": position, "jobs": len(record["jobs"])}
    write_json(run_dir / RECORD, told)
    write_json(folder / "jobs" / f"{position}.json", {"run_dir": str(run_dir.resolve())})


def sweep_of(run_dir: Path) -> dict[str, Any] | None:
    """What `join_sweep` noted in a run folder: `id`, `command`, `job` and `jobs`; None for a run of its own."""
    try:
        told = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) and {"id", "command", "job", "jobs"} <= set(told) else None
    except (OSError, ValueError):
        return None


def finish_sweep(folder: Path, exit_codes: Sequence[int]) -> dict[str, Any]:
    """Writes down how the jobs ended and a comparison report for each protocol that several of them ran on.

    Returns:
        The record, as in `sweep.json`.
    """
    record = read_sweep(folder)
    for position, (job, code) in enumerate(zip(record["jobs"], exit_codes, strict=True), start=1):
        job["exit_code"] = code
        noted = folder / "jobs" / f"{position}.json"
        if code in FINE and noted.is_file():
            job["run_dir"] = json.loads(noted.read_text(encoding="utf-8"))["run_dir"]
    record["finished"] = _now()
    write_json(folder / RECORD, record)
    for name, members in by_protocol(record).items():
        if len(members) > 1:
            _compare(members, folder / f"report-{name}.html")
    return record


def by_protocol(record: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Run folders of a sweep by the name and id of their protocol, without repeats."""
    from bench.errors import BenchError
    from bench.scores.summary import read_summary

    groups: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(job["run_dir"] for job in record["jobs"] if job["run_dir"]):
        try:
            summary = read_summary(Path(folder))
        except BenchError:
            continue
        groups.setdefault(f"{summary['protocol']}-{summary['protocol_id'][:8]}", []).append(Path(folder))
    return groups


def finished_sweeps(root: Path) -> list[Path]:
    """Folders of finished sweeps under a runs folder, sorted."""
    found = []
    for path in sorted((root / FOLDER).glob(f"*/{RECORD}")):
        try:
            if read_sweep(path.parent)["finished"]:
                found.append(path.parent)
        except (OSError, ValueError, KeyError):
            continue
    return found


def sweep_folder(run_dir: Path, root: Path) -> Path | None:
    """Folder of the finished sweep that a run is a job of, found beside the run or under a runs folder, or None."""
    told = sweep_of(run_dir)
    places = [run_dir.resolve().parent, root] if told else []
    finished = [folder for place in places for folder in finished_sweeps(place)]
    return next((folder for folder in finished if told and folder.name == told["id"]), None)


def sweep_reports(folder: Path) -> list[Path]:
    """The comparison reports of a sweep, one per protocol that several jobs ran on, sorted."""
    return sorted(folder.glob("report-*.html"))


def read_sweep(folder: Path) -> dict[str, Any]:
    """The record of a sweep's folder.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such record.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise ValueError(f"{folder / RECORD} is not the record of a sweep")
    return record


def _compare(members: Sequence[Path], output: Path) -> None:
    from bench.report.report import write_report

    try:
        write_report(members, output)
    except Exception as error:
        log.warning("The report %s was not written: %s", output, error)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
