"""How much of each pixel comes from a restored crop: all in the middle of the face, nothing at the crop's border."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.photographs.face_crop import FaceCrop

#: Width of the way from nothing to all, in sides of the crop.
FEATHER = 0.16
#: Half the width, in distances between two faces, of the way from one's side to the other's.
BORDERLAND = 0.12


def face_mask(crop: FaceCrop, points: np.ndarray, others: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Weights of a restored crop in the photograph.

    A side of the crop beyond which the photograph ends hides no seam and is not feathered, so that an aligned crop is
    restored to its edges.

    Args:
        crop: Where it lies.
        points: (5, 2) of the face, in pixels of the photograph.
        others: The same of the other faces; what is nearer to one of them than to this one is left to it.

    Returns:
        (h, w) float32 in [0, 1] for the pixels of `crop.window`, 0 outside of the crop.
    """
    rows, columns = crop.window
    y, x = np.mgrid[rows, columns].astype(np.float64)
    place = np.stack([x, y], axis=-1)
    mapped = place @ crop.matrix[:, :2].T + crop.matrix[:, 2] + 0.5
    inside = ((mapped > 0) & (mapped < crop.side)).all(-1)
    mask = inside.astype(np.float64)
    distances = (mapped[..., 1], crop.side - mapped[..., 0], crop.side - mapped[..., 1], mapped[..., 0])
    for number, distance in enumerate(distances):
        if not _at_the_edge(crop.corners[[number, (number + 1) % 4]], crop.photo_size):
            mask *= _smooth(distance / (FEATHER * crop.side))
    own = points.mean(0)
    for other in others:
        way = other.mean(0) - own
        if (length := float(way @ way)) > 0:
            mask *= _smooth((0.5 + BORDERLAND - (place - own) @ way / length) / (2 * BORDERLAND))
    return mask.astype(np.float32)


def _at_the_edge(ends: np.ndarray, photo_size: tuple[int, int]) -> bool:
    """Whether a side of the crop, (2, 2), runs along an edge of the photograph or beyond it."""
    height, width = photo_size
    before = (ends <= 0.5).all(0)
    after = (ends >= (width - 1.5, height - 1.5)).all(0)
    return bool(before.any() or after.any())


def _smooth(ramp: np.ndarray) -> np.ndarray:
    """From 0 to 1 without a bend at either end, where `ramp` goes from 0 to 1."""
    ramp = np.clip(ramp, 0, 1)
    smoothed: np.ndarray = ramp * ramp * (3 - 2 * ramp)
    return smoothed
