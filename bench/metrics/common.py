"""Small parts shared by several metrics."""

from __future__ import annotations

import importlib.metadata
import math
from typing import TYPE_CHECKING

from bench.metrics.metric import Score, ScoringBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from torch import Tensor


def version(distribution: str) -> str:
    """Version of an installed distribution, or "absent"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def scores(values: Iterable[float], reason: str = "the value is not a finite number") -> list[Score]:
    """Scores from numbers; those that are not finite become None with the reason."""
    return [Score(value) if math.isfinite(value) else Score(None, reason) for value in map(float, values)]


def luma(images: Tensor) -> Tensor:
    """Full-range BT.601 luma, 0.299 R + 0.587 G + 0.114 B, as pyiqa's Y (BasicSR's runs from 16 to 235).

    Args:
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        (B, 1, H, W) in [0, 1]. A grey picture is its own luma.
    """
    weights = images.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlation of every channel with one kernel, at every position where the whole kernel fits.

    On the processor OpenCV sums in the kernel's order, as torch's `conv2d` does in float64, in a tenth of its time.

    Args:
        images: (B, C, H, W).
        kernel: (h, w) of the same type, fewer than 50 entries: with more OpenCV takes the Fourier transform.

    Returns:
        (B, C, H - h + 1, W - w + 1).
    """
    channels, (height, width) = images.shape[1], kernel.shape
    if images.device.type != "cpu":
        from torch.nn.functional import conv2d

        return conv2d(images, kernel.expand(channels, 1, height, width), groups=channels)
    import cv2
    import torch

    rows, columns = images.shape[2] - height + 1, images.shape[3] - width + 1
    weights = kernel.numpy()
    filtered = images.new_empty(len(images), rows, columns, channels)
    for own, picture in zip(filtered, images.permute(0, 2, 3, 1), strict=True):
        whole = cv2.filter2D(picture.numpy(), -1, weights, anchor=(0, 0))
        own.copy_(torch.from_numpy(whole).view(*picture.shape)[:rows, :columns])
    return filtered.permute(0, 3, 1, 2)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row-wise cosines of unit vectors: two (N, D) arrays to (N,), kept within [-1, 1]."""
    import numpy as np

    products: np.ndarray = np.clip((first * second).sum(axis=1), -1.0, 1.0)
    return products


def mean_reference_cosines(
    batch: ScoringBatch, embed: Callable[[Sequence[np.ndarray] | np.ndarray, Sequence[np.ndarray]], np.ndarray]
) -> list[Score]:
    """Mean cosine of each restored face with its references, by a recogniser.

    Args:
        batch: Pictures with landmarks and references.
        embed: Takes pictures and their (5, 2) points, returns (N, D) unit vectors.

    Returns:
        Scores in [-1, 1]; null where a picture has no references or one of them has no known landmarks.
    """
    import numpy as np

    if batch.landmarks is None or batch.reference_landmarks is None:
        return [Score(None, "needs the landmarks of the references")] * len(batch)
    restored = embed(batch.restored, list(batch.landmarks))
    found = []
    rows = zip(restored, batch.references, batch.reference_landmarks, strict=True)
    for embedding, references, points in rows:
        if not len(references):
            found.append(Score(None, "no references"))
            continue
        if not np.isfinite(points).all():
            found.append(Score(None, "a reference has no known landmarks"))
            continue
        others = embed(references, list(points))
        found.append(scores([float(np.mean(cosines(embedding[None], others)))])[0])
    return found
