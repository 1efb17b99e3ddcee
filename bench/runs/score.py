"""The score stage: every restored picture of this process, through every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError, MissingError
from bench.files import sha256_bytes, sha256_file
from bench.image import read_image
from bench.metrics.metric import Metric, Score, ScoringBatch
from bench.progress import Progress
from bench.protocol.alignment import valid_region
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.probe import picture_marks
from bench.protocol.protocol import ProtocolImage
from bench.registry import load_metric
from bench.runs.journal import Journal, read_journals
from bench.runs.pictures import restored_path
from bench.runs.plan import RunPlan

Scores = dict[str, Score]
Restored = Callable[[str], np.ndarray]


def scoring_batch(
    pictures: ProtocolPictures,
    images: Sequence[ProtocolImage],
    restored: Sequence[np.ndarray],
    others: Restored | None = None,
) -> ScoringBatch:
    """Everything the metrics need of some pictures, decoded once.

    Args:
        pictures: Pictures of the protocol.
        images: Which of its images.
        restored: What was restored from each, (H, W, 3) uint8 RGB.
        others: Gives any restored picture by its image id, or raises a `BenchError` that says why it is missing; for
            protocols in which a photograph comes under several degradations.
    """
    size = pictures.protocol.size
    several = others is not None and any(image.degradation is not None for image in images)

    def points(photo: Any) -> np.ndarray:
        return np.full((5, 2), np.nan) if photo.points is None else photo.points

    real = any(image.source is None for image in images)
    known = all(image.shown.points is not None for image in images)
    return ScoringBatch(
        image_ids=[image.image_id for image in images],
        restored=np.stack(restored),
        truth=None if real else np.stack([pictures.truth(image) for image in images]),
        references=[[pictures.crop(reference) for reference in image.references] for image in images],
        landmarks=np.stack([points(image.shown) for image in images]) if known else None,
        reference_landmarks=[np.stack([points(r) for r in image.references]) for image in images]
        if all(image.references for image in images)
        else None,
        valid=np.stack(
            [valid_region(image.shown.matrix, pictures.photo(image.shown.path).shape[:2], size) for image in images]
        ),
        marks=None if pictures.protocol.probe is None else [picture_marks(image, pictures.crop) for image in images],
        restorations=[_restorations(pictures, image, others) for image in images] if others and several else None,
    )


def _restorations(pictures: ProtocolPictures, image: ProtocolImage, others: Restored) -> list[np.ndarray] | str:
    """What was restored from each degradation of a picture's photograph, or why one of them is missing."""
    found = []
    for version in pictures.protocol.versions(image):
        try:
            found.append(others(version.image_id))
        except BenchError as error:
            return f"{version.image_id}, of the same photograph, is missing: {error}"
    return found


def score_share(plan: RunPlan, rank: int, world_size: int) -> None:
    """Scores this process's share; each picture's scores are journalled as soon as they are there."""
    metrics = [load_metric(name)() for name in plan.metrics]
    journal = Journal(plan.run_dir / "journal" / "score", rank)
    done = finished_scores(plan, metrics)
    # Shares are cut before the journals are looked at, which another process may be writing.
    mine = [image for image in plan.protocol.images[rank::world_size] if image.image_id not in done]
    failures = failed_restorations(plan.run_dir)

    def others(image_id: str) -> np.ndarray:
        try:
            return read_image(restored_path(plan.run_dir, image_id))
        except BenchError as error:
            raise MissingError(failures.get(image_id) or str(error)) from error

    size = int(plan.config["batch_size"])
    progress = Progress("scored", len(mine))
    for chunk in _chunks(mine, size):
        if rank == 0:
            progress.advance(len(chunk))
        readable, restored = [], []
        for image in chunk:
            try:
                restored.append(others(image.image_id))
                readable.append(image)
            except MissingError as error:
                journal.append(_record(image, None, {m.name: Score(None, str(error)) for m in metrics}, metrics))
        if not readable:
            continue
        scores = score_pictures(plan.pictures, readable, restored, metrics, others)
        for image, own in zip(readable, scores, strict=True):
            journal.append(_record(image, _digest(plan, image), own, metrics))


def score_pictures(
    pictures: ProtocolPictures,
    images: Sequence[ProtocolImage],
    restored: Sequence[np.ndarray],
    metrics: Sequence[Metric],
    others: Restored | None = None,
) -> list[Scores]:
    """Scores of some pictures by every metric; what cannot be scored is null with its reason.

    Args:
        pictures: Pictures of the protocol.
        images: Which of its images.
        restored: What was restored from each, (H, W, 3) uint8 RGB.
        metrics: What to score.
        others: As of `scoring_batch`.
    """

    def each_alone() -> list[Scores]:
        pairs = zip(images, restored, strict=True)
        return [
            own for image, picture in pairs for own in score_pictures(pictures, [image], [picture], metrics, others)
        ]

    if len(images) > 1 and len({_known(image) for image in images}) > 1:
        # What one picture lacks must not cost another its score.
        return each_alone()
    try:
        batch = scoring_batch(pictures, images, restored, others)
    except BenchError as error:
        if len(images) == 1:
            return [{metric.name: Score(None, str(error)) for metric in metrics}]
        return each_alone()
    by_metric = {metric.name: metric.score_batch(batch) for metric in metrics}
    return [{name: scores[row] for name, scores in by_metric.items()} for row in range(len(images))]


def _known(image: ProtocolImage) -> tuple[bool, bool, bool]:
    """Whether there is a ground truth, whether its points are known, and whether there are references."""
    return image.source is not None, image.shown.points is not None, bool(image.references)


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


def _digest(plan: RunPlan, image: ProtocolImage) -> str | None:
    """Hash of all restored pictures that an image's scores depend on; None where its own is missing.

    That is its own alone, or with it those of the same photograph under other degradations.
    """
    paths = [restored_path(plan.run_dir, version.image_id) for version in plan.protocol.versions(image)]
    hashes = [sha256_file(path) if path.is_file() else "missing" for path in paths]
    if not restored_path(plan.run_dir, image.image_id).is_file():
        return None
    return hashes[0] if len(hashes) == 1 else sha256_bytes("".join(hashes).encode())


def finished_scores(plan: RunPlan, metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    """Journalled scores that still hold: of the picture as it is now, by the metrics as they are now."""
    identities = {metric.name: metric.identity for metric in metrics}
    present = {image.image_id: _digest(plan, image) for image in plan.protocol.images}
    return {
        record["image_id"]: record
        for record in read_journals(plan.run_dir / "journal" / "score")
        if record["sha256"] is not None
        and record["sha256"] == present.get(record["image_id"])
        and {name: entry[0] for name, entry in record["scores"].items()} == identities
    }


def failed_restorations(run_dir: Path) -> dict[str, str]:
    """Pictures that could not be restored, and why; the last attempt counts."""
    last = {record["image_id"]: record["reason"] for record in read_journals(run_dir / "journal" / "restore")}
    return {
        image_id: reason
        for image_id, reason in last.items()
        if reason and not restored_path(run_dir, image_id).is_file()
    }


def all_records(plan: RunPlan) -> dict[str, dict[str, Any]]:
    """The scores of every picture: those that hold, and for the others the newest reason why there are none."""
    metrics = [load_metric(name)() for name in plan.metrics]
    identities = {metric.name: metric.identity for metric in metrics}
    without = {
        record["image_id"]: record
        for record in read_journals(plan.run_dir / "journal" / "score")
        if record["sha256"] is None and {name: entry[0] for name, entry in record["scores"].items()} == identities
    }
    return {**without, **finished_scores(plan, metrics)}
