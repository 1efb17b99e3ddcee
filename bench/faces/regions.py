"""Regions of a face from its five points: eyes, mouth, skin.

Regions are drawn in the ArcFace frame of 112 px, where every face has one size and stands upright, and carried back
by the similarity that `bench.faces.geometry` gives. `eyes` and `mouth` follow the points themselves; `skin` is the
face's ellipse without wider surroundings of eyes, brows and mouth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.faces.geometry import ARCFACE_112, similarity

if TYPE_CHECKING:
    import numpy as np

REGIONS = ("eyes", "mouth", "skin")
#: Semi-axes (across, down) in the frame's pixels; the eyes of the template are 35 px apart.
EYE = (11.0, 7.0)
EYE_AND_BROW = (16.0, 13.0)
BROW_RISE = 5.0
MOUTH_BEYOND_CORNERS = 4.0
MOUTH_DOWN = 9.0
MOUTH_SURROUNDINGS = 4.0
FACE = (36.0, 44.0)
FACE_CENTRE = (56.0, 73.0)


def region_masks(points: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Where the regions of one face lie.

    Args:
        points: (5, 2) x, y in pixels: eyes, nose, mouth corners, left of the picture first.
        height: Rows of the picture.
        width: Its columns.

    Returns:
        (H, W) bool by region; pixels are judged by their centres.
    """
    import numpy as np

    matrix = similarity(points, ARCFACE_112)
    placed = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    rows, columns = np.mgrid[:height, :width]
    across = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2]
    down = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2]

    def ellipse(centre: np.ndarray, axes: tuple[float, float], grow: float = 0.0) -> np.ndarray:
        inside: np.ndarray = ((across - centre[0]) / (axes[0] + grow)) ** 2 + (
            (down - centre[1]) / (axes[1] + grow)
        ) ** 2 <= 1.0
        return inside

    left, right, _, corner_left, corner_right = placed
    mouth_centre = (corner_left + corner_right) / 2
    mouth_axes = (float(np.linalg.norm(corner_right - corner_left)) / 2 + MOUTH_BEYOND_CORNERS, MOUTH_DOWN)
    eyes = ellipse(left, EYE) | ellipse(right, EYE)
    mouth = ellipse(mouth_centre, mouth_axes)
    raised = np.array([0.0, -BROW_RISE])
    features = ellipse(left + raised, EYE_AND_BROW) | ellipse(right + raised, EYE_AND_BROW)
    features |= ellipse(mouth_centre, mouth_axes, grow=MOUTH_SURROUNDINGS)
    return {"eyes": eyes, "mouth": mouth, "skin": ellipse(np.array(FACE_CENTRE), FACE) & ~features}
