"""The sweep behind the adaptive ID-scale: pictures restored with every lambda, kept as a table.

Source: RestorerID (arXiv 2411.14125), Sec. 3.4. The similarity must not come from the recogniser that judges
restorations; the one that conditions the method may be used.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from bench.errors import MissingError, UsageError
from bench.files import write_text
from methods.restorerid.adaptive_scale import SweepRow

if TYPE_CHECKING:
    from torch import Tensor

    from bench.batch import FaceBatch
    from methods.restorerid.identity_tokens import FaceEncoder
    from methods.restorerid.quality import QualityEstimator

COLUMNS = tuple(field.name for field in fields(SweepRow))


def sweep(
    restore: Callable[[FaceBatch, float], Tensor],
    batches: Iterable[FaceBatch],
    quality: QualityEstimator,
    encoder: FaceEncoder,
    scales: Sequence[float],
) -> Iterator[SweepRow]:
    """Restores every picture with every weight of the identity.

    Args:
        restore: Restores a batch with one lambda, (B, 3, H, W) in [0, 1]; same noise for every lambda.
        batches: Degraded pictures of training identities with ground truth and landmarks; image ids unique.
        quality: Estimator that the scale will follow.
        encoder: Whose face embedding compares restored picture and ground truth, both cropped at the ground truth's
            landmarks.
        scales: The weights, such as `sweep_scales()`.

    Yields:
        One row for each picture and weight.

    Raises:
        UsageError: A batch has no ground truth or landmarks.
    """
    for batch in batches:
        if batch.gt is None or batch.landmarks is None:
            raise UsageError("The sweep of the ID-scale needs training pictures with ground truth and landmarks.")
        qualities = quality(batch.lq).tolist()
        truth = encoder.encode(batch.gt, batch.landmarks).identity
        blind = batch.for_restoration()
        for scale in scales:
            with torch.inference_mode():
                restored = restore(blind, scale).clamp(0.0, 1.0)
            found = F.cosine_similarity(encoder.encode(restored, batch.landmarks).identity, truth, dim=1)
            for image_id, value, similarity in zip(batch.image_ids, qualities, found.tolist(), strict=True):
                yield SweepRow(image_id, value, scale, similarity)


def write_sweep(path: Path, rows: Iterable[SweepRow]) -> None:
    """Writes a sweep as CSV, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in rows)
    write_text(path, text.getvalue())


def read_sweep(path: Path) -> list[SweepRow]:
    """Reads what `write_sweep` wrote.

    Raises:
        MissingError: There is no such file.
        UsageError: It is no sweep.
    """
    if not path.is_file():
        raise MissingError(f"{path} is not there. Give the table of a sweep of the ID-scale.")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{path} is no sweep of the ID-scale: its columns must be {', '.join(COLUMNS)}.")
        try:
            return [
                SweepRow(
                    image_id=row["image_id"],
                    quality=float(row["quality"]),
                    scale=float(row["scale"]),
                    similarity=float(row["similarity"]),
                )
                for row in reader
            ]
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path} is no sweep of the ID-scale: {error}.") from error
