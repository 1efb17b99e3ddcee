"""The restore stage: every missing picture of this process, written as it is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from bench.data.evaluation import Collate, EvaluationPictures, EvaluationSampler
from bench.errors import MissingError
from bench.image import UnreadableImageError, read_image, write_png
from bench.progress import Progress
from bench.protocol.protocol import ProtocolImage
from bench.runs.journal import Journal
from bench.runs.personalise import Personaliser
from bench.runs.pictures import restored_path
from bench.runs.plan import RunPlan


class PictureWriter(Callback):
    """Writes each restored picture atomically, and a line about it into the journal.

    Args:
        run_dir: The run folder.
        journal: Journal of this process.
        images: The protocol's pictures.
        count: Pictures of this process.
    """

    def __init__(self, run_dir: Path, journal: Journal, images: Sequence[ProtocolImage], count: int) -> None:
        self.run_dir, self.journal = run_dir, journal
        self.images = {image.image_id: image for image in images}
        self.progress = Progress("restored", count)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the pictures of one batch.

        Raises:
            MissingError: Something that every picture needs is absent.
        """
        for image_id, (result, seconds) in zip(batch.image_ids, outputs, strict=True):
            if isinstance(result, MissingError):
                raise result
            reason = _write(restored_path(self.run_dir, image_id), result)
            if reason is not None:
                reason += _blamed_files(self.images[image_id], result)
            self.journal.append({"image_id": image_id, "seconds": seconds, "reason": reason})
        if trainer.is_global_zero:
            self.progress.advance(len(batch))


def _write(path: Path, result: torch.Tensor | Exception) -> str | None:
    """Writes a picture; returns why it cannot be written, or None."""
    if isinstance(result, Exception):
        return f"restoration failed: {type(result).__name__}: {result}"
    if not torch.isfinite(result).all():
        return "restoration failed: the result holds NaN or infinite values"
    pixels = result.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    write_png(path, np.ascontiguousarray(pixels))
    return None


def _blamed_files(image: ProtocolImage, error: Any) -> str:
    """Files of the references that an exception blames by their positions (its attribute `references`)."""
    photos = [image.references[position] for position in getattr(error, "references", ())]
    names = [photo.path for photo in photos[:3]] + (["…"] if len(photos) > 3 else [])
    return f" (file{'s' if len(photos) > 1 else ''}: {', '.join(names)})" if photos else ""


def missing_images(plan: RunPlan) -> list[ProtocolImage]:
    """Pictures of the protocol that are not there, or not whole."""
    missing = []
    for image in plan.protocol.images:
        try:
            pixels = read_image(restored_path(plan.run_dir, image.image_id))
            if pixels.shape == (plan.protocol.size, plan.protocol.size, 3):
                continue
        except UnreadableImageError:
            pass
        missing.append(image)
    return missing


def restore(plan: RunPlan, trainer: Trainer, images: Sequence[ProtocolImage]) -> None:
    """Restores this process's share of `images`: a shard without padding, no collective inside.

    The list is fixed before any process starts to write, so that all processes split the same one.
    """
    rank, world_size = trainer.global_rank, trainer.world_size
    journal = Journal(plan.run_dir / "journal" / "restore", rank)

    def note_failure(image_id: str, reason: str) -> None:
        journal.append({"image_id": image_id, "seconds": None, "reason": reason})

    dataset = EvaluationPictures(plan.pictures, images, plan.config["seed"])
    sampler = EvaluationSampler(len(images), rank, world_size)
    loader = DataLoader(
        dataset,
        batch_size=int(plan.config["batch_size"]),
        sampler=sampler,
        collate_fn=Collate(note_failure),
        num_workers=int(plan.config["trainer"]["num_workers"]),
    )
    callbacks: list[Callback] = [PictureWriter(plan.run_dir, journal, images, len(sampler))]
    if plan.method.personalises:
        callbacks.append(Personaliser(plan))
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    trainer.predict(plan.method, loader, return_predictions=False, weights_only=True)


def work_list(plan: RunPlan, first_process: bool) -> list[ProtocolImage]:
    """Pictures to restore: listed by the first process, read by the others."""
    path = plan.run_dir / "journal" / "todo.json"
    if first_process:
        from bench.files import write_json

        todo = missing_images(plan)
        write_json(path, [image.image_id for image in todo])
        return todo
    names = set(json.loads(path.read_text("utf-8")))
    return [image for image in plan.protocol.images if image.image_id in names]
