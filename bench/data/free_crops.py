"""Crops at a random place and scale of the original photograph: trainings that need no aligned faces.

Sources: StableSR (Wang et al., IJCV 2024), whose released loader cuts 512 px out of the photograph as it is, mirrored
where it is too small; PFStorer (Varanka et al., CVPR 2024, Sec. 3.3), which also resizes, by factors it does not give.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def free_crop(
    photo: np.ndarray, size: int, scales: Sequence[float], rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Cuts a random square out of a photograph.

    Args:
        photo: (H, W, 3) uint8 RGB.
        size: Side of the result, in pixels.
        scales: Least and largest factor by which the photograph is resized, drawn evenly on a logarithmic scale.
        rng: Generator of the sample.

    Returns:
        (3, size, size) RGB in [0, 1], and the (2, 3) matrix from the photograph's pixels to the crop's.
    """
    low, high = np.log(scales[0]), np.log(scales[1])
    side = max(2, round(size / float(np.exp(rng.uniform(low, high)))))
    corner = []
    for length in photo.shape[:2]:
        spare = length - side
        # A photograph that is too small stays in the middle, and its mirror image is around it.
        corner.append(int(rng.integers(0, spare + 1)) if spare >= 0 else -((-spare) // 2))
    rows, columns = (
        _mirrored(np.arange(first, first + side), length) for first, length in zip(corner, photo.shape[:2], strict=True)
    )
    cut = torch.from_numpy(photo[rows][:, columns]).permute(2, 0, 1)[None].float().div(255)
    if side != size:
        cut = F.interpolate(cut, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    scale = size / side
    # Whole pixels are scaled, not their centres: the first one's centre moves to (scale - 1) / 2.
    shift = [(scale - 1) / 2 - scale * corner[1], (scale - 1) / 2 - scale * corner[0]]
    return cut[0], np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def _mirrored(positions: np.ndarray, length: int) -> np.ndarray:
    """Positions of a line that is mirrored at its ends, as often as it takes."""
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    within = np.abs(positions) % period
    return np.minimum(within, period - within)
