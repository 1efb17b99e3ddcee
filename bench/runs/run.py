"""A run from end to end: plan, restore, score, record."""

from __future__ import annotations

import resource
import statistics
import sys
from datetime import UTC, datetime
from typing import Any

from lightning import Trainer

from bench.errors import BenchError, IncompleteError
from bench.files import write_json
from bench.protocol.protocol import committed_path
from bench.registry import load_metric
from bench.runs.environment import environment
from bench.runs.journal import read_journals
from bench.runs.plan import RunPlan, plan
from bench.runs.restore import restore, work_list
from bench.runs.score import all_records, failed_restorations, score_share
from bench.runs.trainer import trainer_options
from bench.scores.summary import summarise
from bench.scores.table import SET_SCHEMA, ScoreRow, empty_set_scores, rows_to_frame, write_table


def run(config: dict[str, Any]) -> dict[str, Any] | None:
    """Runs one method on one protocol.

    Args:
        config: The composed `configs/run.yaml`.

    Returns:
        The summary, as in `summary.json`; None in every process but the first.

    Raises:
        UsageError: Wrong settings, or the run folder belongs to another run.
        MissingError: Data, weights or a package are absent.
        IncompleteError: The score table does not hold exactly the protocol's pictures.
    """
    current = plan(config)
    options = trainer_options(config["trainer"], training=False)
    trainer = Trainer(**options, logger=False, enable_checkpointing=False, use_distributed_sampler=False)
    # Lightning starts the other processes inside predict; the list must be written before.
    images = work_list(current, first_process=trainer.global_rank == 0)
    restore(current, trainer, images)
    trainer.strategy.barrier("restored")
    score_share(current, trainer.global_rank, trainer.world_size)
    trainer.strategy.barrier("scored")
    if trainer.global_rank != 0:
        return None
    return record(current, trainer.world_size)


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
    write_table(empty_set_scores(), current.run_dir / "set_scores.parquet", SET_SCHEMA)
    method, spec = current.method, current.method.spec
    failed = failed_restorations(current.run_dir)
    restored = [entry for entry in read_journals(current.run_dir / "journal" / "restore") if entry["seconds"]]
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
        "seconds_per_image": statistics.median(entry["seconds"] for entry in restored) if restored else None,
        "peak_memory_mb": peak_memory_mb(),
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "world_size": world_size,
        "batch_size": current.config["batch_size"],
        "failed": failed,
        **environment(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "licence": spec.licence,
        "paper": spec.paper,
    }
    write_json(current.run_dir / "summary.json", summary)
    _publish(current)
    return summary


def _publish(current: RunPlan) -> None:
    """Report, leaderboard entry, board and MLflow; what fails here is said and loses no scores."""
    from bench.leaderboard.board import redraw
    from bench.leaderboard.entry import add, board_roots
    from bench.report.report import write_report
    from bench.tracking.mlflow_store import record_run

    try:
        write_report([current.run_dir], current.run_dir / "report.html")
    except Exception as error:
        _say(f"the report was not written ({error}); try: bench report {current.run_dir}")
    is_committed = committed_path(current.protocol.name).is_file()
    if current.config["leaderboard"] and is_committed and not failed_restorations(current.run_dir):
        try:
            root, *others = board_roots()
            add(current.run_dir, root, others=others)
            redraw(root, [current.protocol.name])
        except (BenchError, OSError) as error:
            _say(f"no leaderboard entry was added: {error}")
    record_run(current.run_dir)


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


def peak_memory_mb() -> float:
    """Peak memory of this process, or of the GPU it used, in MB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
