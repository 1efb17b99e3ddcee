"""A run from end to end: plan, restore, score, record."""

from __future__ import annotations

import json
import resource
import statistics
import sys
from datetime import UTC, datetime
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bench.errors import BenchError, IncompleteError, UsageError
from bench.files import write_json
from bench.protocol.freeze import committed_path
from bench.registry import load_metric, set_metric_classes
from bench.runs.environment import environment
from bench.runs.journal import Journal, read_journals
from bench.runs.pictures import restored_path
from bench.runs.plan import RunPlan, claim, plan
from bench.runs.processes import is_first_process, shared_run_dir
from bench.runs.restore import restore, work_list
from bench.runs.score import all_records, failed_restorations, score_share
from bench.runs.sets import make_features, run_sets
from bench.runs.trainer import trainer_options
from bench.scores.summary import summarise, summarise_sets
from bench.scores.table import SET_SCHEMA, ScoreRow, rows_to_frame, write_table


def run(config: dict[str, Any]) -> dict[str, Any] | None:
    """Runs one method on one protocol.

    Args:
        config: The composed `configs/run.yaml`.

    Returns:
        The summary, as in `summary.json`, and its `run_dir`; None in every process but the first.

    Raises:
        UsageError: Wrong settings, or the run folder belongs to another run or is in use.
        MissingError: Data, weights or a package are absent.
        IncompleteError: The score table does not hold exactly the protocol's pictures.
    """
    options = trainer_options(config["trainer"], training=False)
    current = plan(config)
    with shared_run_dir(current.run_dir) as current.run_dir:
        if not is_first_process():
            return _stages(current, options)
        current.run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(current.run_dir / ".lock")
        try:
            with lock.acquire(blocking=False):
                claim(current)
                return _stages(current, options)
        except Timeout as error:
            raise UsageError(f"Another process is working in {current.run_dir}. Wait for it to end.") from error


def _stages(current: RunPlan, options: dict[str, Any]) -> dict[str, Any] | None:
    # Lightning starts the other processes inside predict; the list is written before.
    images = work_list(current, is_first_process())
    try:
        trainer = Trainer(**options, logger=False, enable_checkpointing=False, use_distributed_sampler=False)
    except (ValueError, MisconfigurationException) as error:
        raise UsageError(f"The trainer settings do not work here: {error}") from error
    if is_first_process() and (images or not (current.run_dir / "environment.json").is_file()):
        # A later call that restores nothing must not pass for the one that made the pictures.
        write_json(current.run_dir / "environment.json", environment())
    restore(current, trainer, images)
    if images:
        memory = Journal(current.run_dir / "journal" / "memory", trainer.global_rank)
        memory.append({"peak_memory_mb": peak_memory_mb(trainer.strategy.root_device)})
    trainer.strategy.barrier("restored")
    score_share(current, trainer.global_rank, trainer.world_size)
    make_features(current, trainer.global_rank, trainer.world_size)
    trainer.strategy.barrier("scored")
    return record(current, trainer.world_size) if trainer.global_rank == 0 else None


def record(current: RunPlan, world_size: int) -> dict[str, Any]:
    """Writes tables, summary and report, adds the leaderboard entry, hands the run to MLflow.

    Raises:
        IncompleteError: The scored pictures are not exactly those of the protocol.
    """
    frame = rows_to_frame(_rows(current))
    if set(frame["image_id"]) != set(current.protocol.image_ids):
        missing = sorted(set(current.protocol.image_ids) - set(frame["image_id"]))
        raise IncompleteError(
            f"{len(missing)} of {len(current.protocol.images)} pictures were not scored ({', '.join(missing[:3])}, …). "
            "Run the same command again to finish them."
        )
    write_table(frame, current.run_dir / "scores.parquet")
    sets = run_sets(current)
    write_table(sets, current.run_dir / "set_scores.parquet", SET_SCHEMA)
    method, spec = current.method, current.method.spec
    failed = _failed(current)
    journals = current.run_dir / "journal"
    seconds = {
        entry["image_id"]: entry["seconds"]
        for entry in read_journals(journals / "restore")
        if entry["seconds"] is not None
    }
    peaks = [entry["peak_memory_mb"] for entry in read_journals(journals / "memory")]
    made_with = json.loads((current.run_dir / "environment.json").read_text("utf-8"))
    summary: dict[str, Any] = {
        "schema": 1,
        "protocol": current.protocol.name,
        "protocol_id": current.protocol.id,
        "data": current.config["data"]["name"],
        "method": method.label,
        "method_name": spec.name,
        "method_title": spec.title,
        "method_revision": current.revision,
        "seed": current.config["seed"],
        "images": len(current.protocol.images) - len(failed),
        "of": len(current.protocol.images),
        "metrics": summarise(
            frame, {name: load_metric(name) for name in current.metrics}, of=len(current.protocol.images)
        ),
        "set_metrics": summarise_sets(sets, set_metric_classes()),
        "seconds_per_image": statistics.median(seconds.values()) if seconds else None,
        "peak_memory_mb": max(peaks) if peaks else None,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "world_size": world_size,
        "batch_size": current.config["batch_size"],
        "failed": failed,
        **made_with,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "licence": spec.licence,
        "paper": spec.paper,
    }
    write_json(current.run_dir / "summary.json", summary)
    _publish(current, summary)
    return summary | {"run_dir": str(current.run_dir)}


def _failed(current: RunPlan) -> dict[str, str]:
    """Why each picture that is not there is not there."""
    reasons = failed_restorations(current.run_dir)
    absent = [name for name in current.protocol.image_ids if not restored_path(current.run_dir, name).is_file()]
    return {name: reasons.get(name, "the restored picture is missing") for name in absent}


def _publish(current: RunPlan, summary: dict[str, Any]) -> None:
    """Report, leaderboard entry, board and MLflow; what fails here is said and loses no scores."""
    from bench.leaderboard.board import redraw
    from bench.leaderboard.entry import add, board_roots, extended_entry, same_scores_listed
    from bench.tracking.mlflow_store import record_run

    try:
        from bench.report.report import write_report

        write_report([current.run_dir], current.run_dir / "report.html")
    except Exception as error:
        _say(f"the report was not written ({error}); try: bench report {current.run_dir}")
    if current.config["leaderboard"] and (obstacle := _not_for_the_board(current, summary)) is None:
        try:
            root, *others = board_roots()
            if not same_scores_listed(summary, [root, *others]):
                # Time was measured before, on a machine that may have been quieter.
                known = extended_entry(summary, [root, *others])
                add(current.run_dir, root, others=others, speed_of=known)
                redraw(root, [current.protocol.name])
        except (BenchError, OSError) as error:
            obstacle = str(error)
        if obstacle:
            _say(f"no leaderboard entry was added: {obstacle}")
    record_run(current.run_dir)


def _not_for_the_board(current: RunPlan, summary: dict[str, Any]) -> str | None:
    """Why a run stands on no board: only whole runs on a committed protocol with shipped weights do by themselves."""
    committed = committed_path(current.protocol.name)
    if not committed.is_file() or json.loads(committed.read_text("utf-8"))["id"] != current.protocol.id:
        return "its protocol is not a committed one"
    if summary["failed"]:
        return "some pictures failed"
    if missing := sorted(set(current.config["metrics"].get("claims", [])) - set(current.metrics)):
        return f"the metrics {', '.join(missing)} were not computed"
    if current.config["method"].get("weights"):
        return "the weights are your own; add it with: bench leaderboard add RUN"
    return None


def _say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr)  # noqa: T201


def _rows(current: RunPlan) -> list[ScoreRow]:
    identities = {image.image_id: image.identity for image in current.protocol.images}
    return [
        ScoreRow(
            protocol_id=current.protocol.id,
            method=current.method.label,
            method_revision=current.revision,
            seed=int(current.config["seed"]),
            image_id=image_id,
            identity=identities[image_id],
            metric=name,
            metric_id=metric_id,
            value=value,
            reason=reason,
        )
        for image_id, entry in all_records(current).items()
        if image_id in identities
        for name, (metric_id, value, reason) in entry["scores"].items()
    ]


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU if the method ran on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
