"""New people out of pairs of people: one's eyes on another's face, in ground truth and references alike.

A network trained on a few dozen people learns them by heart: it knows from the LQ picture who it is and no longer
needs the reference. Composites are people it has never seen before, whose look only their reference tells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Along the axis of the face, 0 is at the eyes and 1 at the mouth; across it, distances are in the same unit.
SEAM_WIDTH = 0.08
LOWER_FACE_FROM = (0.2, 0.85)
EYES_BAND = (-0.6, 0.4)
HALF_WIDTH = 1.2
INNER_FACE = (0.35, 1.15, 1.3)  # centre along the axis, half axes across and along

Region = Callable[[Tensor, Tensor], Tensor]


def draw_region(rng: np.random.Generator) -> Region:
    """Draws which part of the face is the other person's: the lower face, the eyes or the inner face.

    Returns:
        A function of (along, across), coordinates of pixels in the face's own frame, that gives the other person's
        weight in [0, 1] there.
    """
    kind = int(rng.integers(3))
    if kind == 0:
        start = float(rng.uniform(*LOWER_FACE_FROM))
        return lambda along, across: _soft(along - start) * _soft(HALF_WIDTH - across.abs())
    if kind == 1:
        return lambda along, across: (
            _soft(along - EYES_BAND[0]) * _soft(EYES_BAND[1] - along) * _soft(HALF_WIDTH - across.abs())
        )
    centre, wide, high = INNER_FACE
    return lambda along, across: _soft(1 - torch.sqrt((across / wide) ** 2 + ((along - centre) / high) ** 2))


def mix(image: Tensor, points: Tensor, other: Tensor, other_points: Tensor, region: Region) -> Tensor:
    """Puts a region of one face onto another, moved to fit its points and as bright as it along the seam.

    Args:
        image: (3, S, S) RGB in [0, 1].
        points: Its five points, (5, 2): eyes, nose, corners of the mouth.
        other: Picture of the other person, (3, S, S).
        other_points: Its points, (5, 2).
        region: See `draw_region`.

    Returns:
        (3, S, S); the points are still those of `image`.
    """
    side = image.shape[-1]
    axis = torch.arange(side, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1)
    weight = region(*_face_frame(pixels, points))
    moved = _moved(other, points, other_points, pixels)
    seam = weight * (1 - weight) + 1e-6
    gain = ((image * seam).sum() / (moved * seam).sum().clamp(min=1e-6)).clamp(0.5, 2.0)
    return (image + weight * (moved * gain - image)).clamp(0, 1)


def nearest_pose(points: Tensor, candidates: Tensor) -> int:
    """Which of the candidates (N, 5, 2) lies nearest to points (5, 2), shifts apart."""
    own = points - points.mean(0)
    others = candidates - candidates.mean(1, keepdim=True)
    return int((others - own).square().sum((1, 2)).argmin())


def _soft(distance: Tensor) -> Tensor:
    return torch.sigmoid(distance / SEAM_WIDTH * 4)


def _face_frame(pixels: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    axis = mouth - eyes
    length = axis.norm().clamp(min=1.0)
    down = axis / length
    offset = (pixels - eyes) / length
    return offset @ down, offset @ torch.stack([down[1], -down[0]])


def _moved(other: Tensor, points: Tensor, other_points: Tensor, pixels: Tensor) -> Tensor:
    """The other picture, moved by the affine map that fits its points best."""
    homogeneous = torch.cat([points, torch.ones(len(points), 1)], dim=1)
    matrix = torch.linalg.lstsq(homogeneous, other_points).solution  # (3, 2)
    looked_up = pixels @ matrix[:2] + matrix[2]
    grid = (looked_up + 0.5) / other.shape[-1] * 2 - 1
    options = {"mode": "bicubic", "padding_mode": "reflection", "align_corners": False}
    return F.grid_sample(other[None], grid[None], **options)[0].clamp(0, 1)  # type: ignore[arg-type]
