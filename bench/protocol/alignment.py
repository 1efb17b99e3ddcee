"""Alignment: from five points to a committed affine matrix, and from the matrix to a crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class AlignmentTemplate:
    """Where the five points of a face belong in an aligned crop.

    Attributes:
        name: Name used in data cards.
        size: Side of the square crop in pixels.
        points: (5, 2): eye on the left of the picture, other eye, nose tip, mouth corners (x, y in
            pixels, centre of the first pixel at 0).
        keep_inside: Move the crop by the least amount that keeps it within the photograph.
    """

    name: str
    size: int
    points: tuple[tuple[float, float], ...]
    keep_inside: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The template as built-in types."""
        return {
            "name": self.name,
            "size": self.size,
            "points": [list(point) for point in self.points],
            "keep_inside": self.keep_inside,
        }


ORL_TIGHT = AlignmentTemplate(
    name="orl_tight",
    size=128,
    points=((39.5, 52.0), (87.5, 52.0), (63.5, 80.5), (43.0, 101.7), (84.0, 101.7)),
    keep_inside=True,
)
# Five points of FFHQ faces at 512 px as given in facexlib/utils/face_restoration_helper.py (xinntao/facexlib, commit
# 05b5905). Its crops are cut by cv2.warpAffine, in which the centre of the first pixel is at 0, as here.
FFHQ_512 = AlignmentTemplate(
    name="ffhq_512",
    size=512,
    points=(
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ),
)
TEMPLATES = {template.name: template for template in (ORL_TIGHT, FFHQ_512)}


def alignment_matrix(points: np.ndarray, template: AlignmentTemplate, photo_size: tuple[int, int]) -> np.ndarray:
    """Least-squares similarity from a photograph to the template (Umeyama 1991, no reflection).

    Args:
        points: (5, 2) points in the photograph, pixels.
        template: Where they belong.
        photo_size: (H, W) of the photograph.

    Returns:
        (2, 3) matrix that maps photograph pixels to crop pixels, rounded to 1e-6.
    """
    target = np.asarray(template.points, dtype=np.float64)
    source_mean, target_mean = points.mean(0), target.mean(0)
    source, aim = points - source_mean, target - target_mean
    left, singular, right = np.linalg.svd(aim.T @ source / len(points))
    sign = np.array([1.0, np.sign(np.linalg.det(left @ right))])
    rotation = left @ np.diag(sign) @ right
    scale = float((singular * sign).sum() / source.var(0).sum())
    matrix = np.empty((2, 3))
    matrix[:, :2] = scale * rotation
    matrix[:, 2] = target_mean - matrix[:, :2] @ source_mean
    if template.keep_inside:
        matrix[:, 2] += _shift_inside(matrix, template.size, photo_size)
    return np.round(matrix, 6)


def _shift_inside(matrix: np.ndarray, size: int, photo_size: tuple[int, int]) -> np.ndarray:
    """Shift of the photograph that covers as much of the crop as its middle lines allow."""
    height, width = photo_size
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    sides = np.array([[0, centre_y], [width - 1, centre_y], [centre_x, 0], [centre_x, height - 1]])
    mapped = sides @ matrix[:, :2].T + matrix[:, 2]
    last = size - 1
    shift = np.zeros(2)
    for axis, (low, high) in enumerate(((mapped[0, 0], mapped[1, 0]), (mapped[2, 1], mapped[3, 1]))):
        if high - low < last:
            shift[axis] = (last - low - high) / 2
        else:
            shift[axis] = -max(low, 0.0) + max(last - high, 0.0)
    return shift


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Cuts an aligned crop out of a photograph.

    Cubic splines in double precision with mirrored borders: the same bits on every processor.

    Args:
        image: (H, W, 3) uint8 RGB.
        matrix: (2, 3), photograph to crop.
        size: Side of the crop in pixels.

    Returns:
        (size, size, 3) uint8 RGB. The photograph itself where the matrix is the identity and the
        sizes agree.
    """
    from scipy import ndimage

    if image.shape[:2] == (size, size) and np.array_equal(matrix, np.eye(2, 3)):
        return image
    inverse = np.linalg.inv(matrix[:, :2])
    # ndimage speaks (row, column); ours is (x, y).
    swapped = inverse[::-1, ::-1]
    offset = (-inverse @ matrix[:, 2])[::-1]
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    channels = [
        ndimage.affine_transform(
            image[..., channel].astype(np.float64), swapped, offset, (size, size), order=3, mode="mirror"
        )
        for channel in range(1 if grey else 3)
    ]
    crop = np.stack(channels * 3 if grey else channels, axis=-1)
    return np.clip(np.rint(crop), 0, 255).astype(np.uint8)


def valid_region(matrix: np.ndarray, photo_size: tuple[int, int], size: int) -> np.ndarray:
    """(size, size) bool: where the crop shows the photograph and not its mirrored border."""
    inverse = np.linalg.inv(matrix[:, :2])
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    source = np.stack([x, y], axis=-1) @ inverse.T - inverse @ matrix[:, 2]
    height, width = photo_size
    tolerance = 0.5
    inside: np.ndarray = (
        (source[..., 0] >= -tolerance)
        & (source[..., 0] <= width - 1 + tolerance)
        & (source[..., 1] >= -tolerance)
        & (source[..., 1] <= height - 1 + tolerance)
    )
    return inside


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Maps (..., 2) points of the photograph into the crop."""
    mapped: np.ndarray = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped
