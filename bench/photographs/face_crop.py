"""The square that is cut out of a photograph around a face, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from bench.protocol.alignment import AlignmentTemplate, alignment_matrix

#: A square photograph whose corners lie within this share of the template's crop, in its sides, is that crop.
ALREADY_ALIGNED = 0.15
#: In degrees: `alignment_matrix` moves crops into photographs along the edges of these, which holds of upright faces.
MOST_TILTED = 30.0


@dataclass(frozen=True)
class FaceCrop:
    """Where an aligned square lies in a photograph.

    Attributes:
        matrix: (2, 3) from pixels of the photograph to pixels of the crop (the centre of the first pixel is at 0).
        side: Of the crop, in pixels.
        photo_size: (H, W) of the photograph.
    """

    matrix: np.ndarray
    side: int
    photo_size: tuple[int, int]

    @property
    def scale(self) -> float:
        """Pixels of the crop per pixel of the photograph."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))

    @property
    def side_in_photo(self) -> float:
        """Side of the crop in pixels of the photograph."""
        return self.side / self.scale

    @cached_property
    def inverse(self) -> np.ndarray:
        """(2, 3) from pixels of the crop to pixels of the photograph."""
        return np.asarray(cv2.invertAffineTransform(self.matrix), np.float64)

    @cached_property
    def corners(self) -> np.ndarray:
        """(4, 2) corners of the crop in the photograph, x and y, at the outer edges of its pixels, going round."""
        low, high = -0.5, self.side - 0.5
        square = np.array([[low, low], [high, low], [high, high], [low, high]])
        found: np.ndarray = square @ self.inverse[:, :2].T + self.inverse[:, 2]
        return found

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the photograph that hold every pixel the crop shows."""
        (left, top), (right, bottom) = self.corners.min(0), self.corners.max(0)
        height, width = self.photo_size
        rows = slice(max(0, math.floor(top)), max(0, min(height, math.ceil(bottom) + 1)))
        return rows, slice(max(0, math.floor(left)), max(0, min(width, math.ceil(right) + 1)))

    def at_side(self, side: int) -> FaceCrop:
        """The same square with another number of pixels."""
        return replace(self, matrix=resized_matrix(self.matrix, side / self.side), side=side)

    def of_enlarged(self, scale: tuple[float, float], photo_size: tuple[int, int]) -> FaceCrop:
        """The same square in the photograph at `scale` times its size, down and across."""
        down, across = scale
        shrink = np.diag([1 / across, 1 / down])
        shift = np.array([0.5 / across - 0.5, 0.5 / down - 0.5])
        linear = self.matrix[:, :2] @ shrink
        moved = self.matrix[:, :2] @ shift + self.matrix[:, 2]
        return replace(self, matrix=np.concatenate([linear, moved[:, None]], axis=1), photo_size=photo_size)

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """(side, side, C) uint8 out of a photograph (H, W, C) uint8; mirrored beyond its edges."""
        found = warped(pixels, self.matrix, (self.side, self.side))
        return np.clip(np.rint(found), 0, 255).astype(np.uint8)

    def back(self, crop: np.ndarray) -> np.ndarray:
        """What a crop (side, side, C) float32 looks like in the photograph: (h, w, C) float32, within `window`."""
        rows, columns = self.window
        matrix = self.inverse.copy()
        matrix[:, 2] -= (columns.start, rows.start)
        return warped(crop, matrix, (columns.stop - columns.start, rows.stop - rows.start))


def face_crop(points: np.ndarray, template: AlignmentTemplate, side: int, photo_size: tuple[int, int]) -> FaceCrop:
    """The crop that a template asks for.

    A square photograph that is nearly this crop is one that somebody aligned before: it is taken whole, so that it is
    not moved by the detector's error.

    Args:
        points: (5, 2) of the face, in pixels of the photograph.
        template: Where they belong.
        side: Of the crop, in pixels.
        photo_size: (H, W) of the photograph.
    """
    if abs(_tilt(points)) > MOST_TILTED:
        template = replace(template, keep_inside=False)
    matrix = resized_matrix(alignment_matrix(points, template, photo_size), side / template.size)
    crop = FaceCrop(matrix, side, photo_size)
    height, width = photo_size
    if height == width:
        edges = np.array([[0, 0], [width, 0], [width, width], [0, width]]) - 0.5
        if np.abs(crop.corners - edges).max() <= ALREADY_ALIGNED * width:
            return FaceCrop(resized_matrix(np.eye(2, 3), side / width), side, photo_size)
    return crop


def _tilt(points: np.ndarray) -> float:
    """Angle of the line through the eyes, in degrees; 0 where the face stands upright."""
    across, down = points[1] - points[0]
    return math.degrees(math.atan2(down, across))


def resized_matrix(matrix: np.ndarray, scale: float) -> np.ndarray:
    """An affine (2, 3) whose target is `scale` times as large."""
    found = np.asarray(matrix, np.float64) * scale
    found[:, 2] += (scale - 1) / 2
    return found


def warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Warps a picture without aliasing, however much it shrinks; mirrored beyond its edges.

    Bicubic where it grows. Where it shrinks it is sampled at least once per pixel of the picture, and each pixel of the
    result is the mean of its samples.

    Args:
        image: (H, W, C), uint8 or float32.
        matrix: (2, 3) from the picture to the result.
        size: (w, h) of the result.

    Returns:
        (h, w, C) float32, in the range of `image`.
    """
    finer = max(1, math.ceil(1 / math.sqrt(abs(float(np.linalg.det(matrix[:, :2])))) - 1e-6))
    width, height = size
    picture, matrix = _around(image, np.asarray(matrix, np.float64), size)
    fine = cv2.warpAffine(
        picture.astype(np.float32),
        resized_matrix(matrix, finer),
        (width * finer, height * finer),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    if finer > 1:
        fine = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    return fine.reshape(height, width, image.shape[2])


def _around(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture that a warp may look at, and the matrix that starts there: photographs are large."""
    width, height = size
    inverse = cv2.invertAffineTransform(matrix)
    square = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64) - 0.5
    corners = square @ inverse[:, :2].T + inverse[:, 2]
    # What lies beyond the picture's edge shows what lies as far inside.
    margin = float((corners.max(0) - corners.min(0)).max()) + 4
    low = np.floor(corners.min(0) - margin).astype(int)
    high = np.ceil(corners.max(0) + margin).astype(int)
    left, top = np.clip(low, 0, (image.shape[1] - 1, image.shape[0] - 1))
    right, bottom = np.clip(high, (left + 1, top + 1), (image.shape[1], image.shape[0]))
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (left, top)
    return image[top:bottom, left:right], moved
