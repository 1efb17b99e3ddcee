"""The score stage: every restored picture of this process, through every metric."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.files import sha256_file
from bench.image import read_image
from bench.metrics.metric import Metric, Score, ScoringBatch
from bench.protocol.alignment import valid_region
from bench.protocol.protocol import ProtocolImage, ProtocolPictures
from bench.registry import load_metric
from bench.runs.journal import Journal, read_journals
from bench.runs.pictures import restored_path
from bench.runs.plan import RunPlan

Scores = dict[str, Score]


def scoring_batch(
    pictures: ProtocolPictures, images: Sequence[ProtocolImage], restored: Sequence[np.ndarray]
) -> ScoringBatch:
    """Everything the metrics need of some pictures, decoded once."""
    size = pictures.protocol.size

    def points(photo: Any) -> np.ndarray:
        return np.full((5, 2), np.nan) if photo.points is None else photo.points

    known = all(image.source.points is not None for image in images)
    return ScoringBatch(
        image_ids=[image.image_id for image in images],
        restored=np.stack(restored),
        truth=np.stack([pictures.truth(image) for image in images]),
        references=[[pictures.crop(reference) for reference in image.references] for image in images],
        landmarks=np.stack([points(image.source) for image in images]) if known else None,
        reference_landmarks=[np.stack([points(r) for r in image.references]) for image in images]
        if all(image.references for image in images)
        else None,
        valid=np.stack(
            [valid_region(image.source.matrix, pictures.photo(image.source.path).shape[:2], size) for image in images]
        ),
    )


def score_share(plan: RunPlan, rank: int, world_size: int) -> None:
    """Scores this process's share; each picture's scores are journalled as soon as they are there."""
    metrics = [load_metric(name)() for name in plan.metrics]
    journal = Journal(plan.run_dir / "journal" / "score", rank)
    done = finished_scores(plan, metrics)
    mine = [image for image in plan.protocol.images if image.image_id not in done][rank::world_size]
    failures = failed_restorations(plan.run_dir)
    size = int(plan.config["batch_size"])
    for chunk in _chunks(mine, size):
        readable, restored = [], []
        for image in chunk:
            path = restored_path(plan.run_dir, image.image_id)
            try:
                restored.append(read_image(path))
                readable.append(image)
            except BenchError as error:
                reason = failures.get(image.image_id) or str(error)
                journal.append(_record(image, None, {m.name: Score(None, reason) for m in metrics}, metrics))
        if not readable:
            continue
        scores = score_pictures(plan.pictures, readable, restored, metrics)
        for image, own in zip(readable, scores, strict=True):
            digest = sha256_file(restored_path(plan.run_dir, image.image_id))
            journal.append(_record(image, digest, own, metrics))


def score_pictures(
    pictures: ProtocolPictures,
    images: Sequence[ProtocolImage],
    restored: Sequence[np.ndarray],
    metrics: Sequence[Metric],
) -> list[Scores]:
    """Scores of some pictures by every metric; what cannot be scored is null with its reason."""
    try:
        batch = scoring_batch(pictures, images, restored)
    except BenchError as error:
        if len(images) == 1:
            return [{metric.name: Score(None, str(error)) for metric in metrics}]
        pairs = zip(images, restored, strict=True)
        return [own for image, picture in pairs for own in score_pictures(pictures, [image], [picture], metrics)]
    by_metric = {metric.name: metric.score_batch(batch) for metric in metrics}
    return [{name: scores[row] for name, scores in by_metric.items()} for row in range(len(images))]


def _chunks(images: Sequence[ProtocolImage], size: int) -> Iterator[Sequence[ProtocolImage]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _record(image: ProtocolImage, digest: str | None, scores: Scores, metrics: Sequence[Metric]) -> dict[str, Any]:
    identities = {metric.name: metric.identity for metric in metrics}
    return {
        "image_id": image.image_id,
        "sha256": digest,
        "scores": {name: [identities[name], score.value, score.reason] for name, score in scores.items()},
    }


def finished_scores(plan: RunPlan, metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    """Journalled scores that still hold: of the picture as it is now, by the metrics as they are now."""
    identities = {metric.name: metric.identity for metric in metrics}
    usable: dict[str, dict[str, Any]] = {}
    known = set(plan.protocol.image_ids)
    for record in read_journals(plan.run_dir / "journal" / "score"):
        if record["image_id"] not in known or record["sha256"] is None:
            continue
        if {name: entry[0] for name, entry in record["scores"].items()} == identities:
            usable[record["image_id"]] = record
    return {
        image_id: record
        for image_id, record in usable.items()
        if (path := restored_path(plan.run_dir, image_id)).is_file() and sha256_file(path) == record["sha256"]
    }


def failed_restorations(run_dir: Path) -> dict[str, str]:
    """Pictures that could not be restored, and why; the last attempt counts."""
    last = {record["image_id"]: record["reason"] for record in read_journals(run_dir / "journal" / "restore")}
    return {image_id: reason for image_id, reason in last.items() if reason}


def all_records(plan: RunPlan) -> dict[str, dict[str, Any]]:
    """The newest journalled scores of every picture, failures included."""
    metrics = [load_metric(name)() for name in plan.metrics]
    records = {record["image_id"]: record for record in read_journals(plan.run_dir / "journal" / "score")}
    return {**records, **finished_scores(plan, metrics)}


def to_json(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False)
