"""Face detection with five landmarks: YuNet through OpenCV.

One pass of YuNet is not steady enough to measure landmarks with: mirroring an ORL photo (eye distance
33 px) moves them by 1.8 px on average. Averaged over three sizes, mirrored and not, with every
candidate box of the face voting by its confidence, they move by 0.3 px, at six more passes a face.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.faces.remembered import Remembered, picture_key
from bench.weights import catalogue

if TYPE_CHECKING:
    import numpy as np

SHORTER_SIDE = 256
LONGER_SIDE = 1280
RETRY_SHORTER_SIDES = (160, 512)
SCORE_THRESHOLD = 0.6
NMS_THRESHOLD = 0.3
REFINE_FACE_SIZES = (140.0, 190.0, 240.0)
REFINE_MARGIN = 0.4
VOTE_SCORE_THRESHOLD = 0.3
VOTE_OVERLAP = 0.5

_MIRRORED_ORDER = [1, 0, 2, 4, 3]
_found_points: Remembered[np.ndarray | None] = Remembered()


class Face(NamedTuple):
    """A detected face.

    Attributes:
        box: (4,) float64: left, top, width, height in pixels.
        points: (5, 2) float64, x and y in pixels (whole numbers are pixel centres): the eye on the
            left of the picture, the other eye, nose, left and right mouth corner.
        score: Confidence in [0, 1].
    """

    box: np.ndarray
    points: np.ndarray
    score: float


def detect_faces(image: np.ndarray, upscale_to: int = SHORTER_SIDE, refine: bool = True) -> list[Face]:
    """Detects faces, the largest first.

    Pictures with a shorter side under `upscale_to` are upsampled and very large ones downsampled
    before detection; where no face is found, two other sizes are tried. The result is in the pixels of
    the picture that was given, and depends on that picture alone.

    Args:
        image: (H, W, 3) uint8 RGB.
        upscale_to: Shorter side in pixels below which the picture is upsampled to it.
        refine: Whether landmarks are averaged over several passes (see the module's text).

    Returns:
        Faces by falling box area; empty if there are none.

    Raises:
        MissingError: The detector's weights are absent.
        ValueError: The picture is not (H, W, 3) uint8.
    """
    import numpy as np

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an (H, W, 3) uint8 picture, got {image.shape} {image.dtype}")
    shorter, longer = min(image.shape[:2]), max(image.shape[:2])
    usual = min(max(1.0, upscale_to / shorter), max(LONGER_SIDE / longer, upscale_to / shorter))
    for scale in (usual, *(side / shorter for side in RETRY_SHORTER_SIDES)):
        rows = _candidates(image, scale, SCORE_THRESHOLD, NMS_THRESHOLD)
        if len(rows):
            break
    faces = [Face(row[:4], row[4:14].reshape(5, 2), float(row[14])) for row in rows]
    faces.sort(key=lambda face: -float(face.box[2] * face.box[3]))
    return [face._replace(points=_refined_points(image, face)) for face in faces] if refine else faces


def detect_main_face(image: np.ndarray) -> Face | None:
    """The largest face of a picture (see `detect_faces`), or None."""
    faces = detect_faces(image, refine=False)
    return faces[0]._replace(points=_refined_points(image, faces[0])) if faces else None


def main_face_points(image: np.ndarray) -> np.ndarray | None:
    """Landmarks of the largest face, (5, 2), or None; computed once per picture and process."""
    key = picture_key(image)
    if key not in _found_points:
        face = detect_main_face(image)
        _found_points[key] = None if face is None else face.points
    return _found_points[key]


def detector_identity() -> str:
    """Implementation, version, weights and settings of the detector, for metric identities."""
    import cv2

    return (
        f"yunet(opencv {cv2.__version__}, weights {catalogue.short_hash('yunet')}, RGB to BGR, "
        f"shorter side >= {SHORTER_SIDE} bicubic, score >= {SCORE_THRESHOLD}, largest face, "
        f"points averaged over face sizes {'/'.join(f'{size:g}' for size in REFINE_FACE_SIZES)} and mirrors)"
    )


def _refined_points(image: np.ndarray, face: Face) -> np.ndarray:
    """Landmarks averaged over passes at several sizes, mirrored and not; those of `face` if all fail."""
    import numpy as np

    height, width = image.shape[:2]
    left, top, box_width, box_height = face.box
    margin = REFINE_MARGIN * max(box_width, box_height)
    x0, y0 = max(0, int(left - margin)), max(0, int(top - margin))
    x1, y1 = min(width, int(left + box_width + margin) + 1), min(height, int(top + box_height + margin) + 1)
    region = image[y0:y1, x0:x1]
    inner_box = face.box - (x0, y0, 0, 0)
    found = []
    for size in REFINE_FACE_SIZES:
        scale = size / float(np.sqrt(box_width * box_height))
        for mirrored in (False, True):
            picture = np.ascontiguousarray(region[:, ::-1]) if mirrored else region
            rows = _candidates(picture, scale, VOTE_SCORE_THRESHOLD, 1.0)
            points = rows[:, 4:14].reshape(-1, 5, 2)
            if mirrored:
                rows[:, 0] = (x1 - x0) - 1 - rows[:, 0] - rows[:, 2]
                points = points[:, _MIRRORED_ORDER]
                points[:, :, 0] = (x1 - x0) - 1 - points[:, :, 0]
            votes = np.where(_overlap(rows[:, :4], inner_box) > VOTE_OVERLAP, rows[:, 14], 0.0)
            if votes.sum() > 0:
                found.append(np.average(points, axis=0, weights=votes))
    return np.mean(found, axis=0) + np.array([x0, y0]) if found else face.points


def _candidates(image: np.ndarray, scale: float, score_threshold: float, nms_threshold: float) -> np.ndarray:
    """(N, 15) float64 rows of box, points and score, in the pixels of `image`."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    size = (max(32, round(width * scale)), max(32, round(height * scale)))
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if size != (width, height):
        method = cv2.INTER_CUBIC if size[0] > width else cv2.INTER_AREA
        picture = cv2.resize(picture, size, interpolation=method)
    detector = _detector(score_threshold, nms_threshold)
    detector.setInputSize(size)
    _, rows = detector.detect(picture)
    rows = np.asarray([] if rows is None else rows, dtype=np.float64).reshape(-1, 15)
    stretch = np.array([width / size[0], height / size[1]])
    rows[:, 2:4] *= stretch
    for start in (0, *range(4, 14, 2)):
        rows[:, start : start + 2] = (rows[:, start : start + 2] + 0.5) * stretch - 0.5
    return rows


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of (N, 4) boxes with one box."""
    import numpy as np

    start = np.maximum(boxes[:, :2], box[:2])
    end = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = np.clip(end - start, 0, None).prod(axis=1)
    areas: np.ndarray = boxes[:, 2:].prod(axis=1) + box[2:].prod() - shared
    return shared / np.maximum(areas, 1e-9)


@cache
def _detector(score_threshold: float, nms_threshold: float) -> Any:
    import cv2

    model = str(catalogue.locate("yunet"))
    level = cv2.utils.logging.getLogLevel()
    # OpenCV 5 warns on each construction that its new engine ignores the target, which is the CPU anyway.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        return cv2.FaceDetectorYN.create(model, "", (320, 320), score_threshold, nms_threshold, 5000)
    finally:
        cv2.utils.logging.setLogLevel(level)
