"""Sixty-eight landmarks without a download: dlib's predictor (Kazemi and Sullivan 2014) in the iBUG 300-W order.

dlib's predictor starts from the box of dlib's own detector, which finds few degraded faces. Ours starts from the box
that this detector would have given, placed by five points: `BOX_112` is its mean place in the ArcFace frame of 112 px
over the training photographs of ORL. The predictor was trained on iBUG 300-W, whose licence excludes commercial use.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from bench.faces.dlib_judge import dlib_version, no_dlib
from bench.faces.geometry import ARCFACE_112, similarity
from bench.faces.remembered import Remembered, picture_key
from bench.weights import catalogue

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = "dlib_68_points"
#: Centre (x, y) and side, in the ArcFace frame, of the box from which the predictor starts.
BOX_112 = (54.7, 70.9, 84.0)
#: Side in pixels that the box has at least; smaller faces are enlarged before the predictor reads them.
SMALLEST_BOX = 180.0
_found: Remembered[np.ndarray] = Remembered()


def unavailable() -> str | None:
    """Why the predictor cannot be used here, or None."""
    return no_dlib() if dlib_version() == "absent" else catalogue.missing(WEIGHTS)


def points_68(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Landmarks of a face, computed once per picture and process.

    Args:
        picture: (H, W, 3) uint8 RGB.
        points: (5, 2) x, y in pixels that place the box: eyes, nose, mouth corners, left of the picture first.

    Returns:
        (68, 2) float64 x, y in pixels, whole numbers being pixel centres.

    Raises:
        MissingError: The package dlib or the predictor's file is absent.
    """
    import numpy as np

    key = picture_key(picture, np.asarray(points, np.float64))
    if key not in _found:
        _found[key] = _predict(picture, points)
    return _found[key]


def predictor_identity() -> str:
    """Implementation, version, weights and box, for metric identities."""
    return (
        f"dlib 68 points(dlib {dlib_version()}, weights {catalogue.short_hash(WEIGHTS)}, "
        f"box {'/'.join(f'{number:g}' for number in BOX_112)} of 112 by five points, at least {SMALLEST_BOX:g} px)"
    )


def _predict(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    import cv2
    import dlib
    import numpy as np

    to_picture = similarity(ARCFACE_112, points)
    centre = to_picture @ (BOX_112[0], BOX_112[1], 1.0)
    side = BOX_112[2] * float(np.hypot(*to_picture[:, 0]))
    scale = max(1.0, SMALLEST_BOX / side)
    if scale > 1.0:
        height, width = picture.shape[:2]
        size = (round(width * scale), round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
        stretch = np.array([size[0] / width, size[1] / height])
    else:
        stretch = np.ones(2)
    centre = (centre + 0.5) * stretch - 0.5
    start, end = centre - side * stretch / 2, centre + side * stretch / 2
    box = dlib.rectangle(*(round(float(number)) for number in (*start, *end)))
    shape = _predictor(str(catalogue.locate(WEIGHTS)))(np.ascontiguousarray(picture), box)
    found = np.array([(part.x, part.y) for part in shape.parts()], dtype=np.float64)
    return (found + 0.5) / stretch - 0.5


@cache
def _predictor(path: str) -> Any:
    import dlib

    return dlib.shape_predictor(path)
