"""Pictures, points and batches for tests that compute metrics a second time, by other programs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bench.metrics.metric import ScoringBatch
from bench.registry import load_metric

cv2 = pytest.importorskip("cv2")
skimage_data = pytest.importorskip("skimage.data")


def astronaut(size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB: a colour picture with one face."""
    crop = skimage_data.astronaut()[:256, 110:366]
    return np.ascontiguousarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA))


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """The picture out of focus."""
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    """The picture turned about its centre: another pose of the same face."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


@cache
def _found(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from bench.faces.detector import main_face_points
    from bench.weights import catalogue

    if reason := catalogue.missing("yunet"):
        pytest.skip(reason)
    found = main_face_points(np.frombuffer(content, np.uint8).reshape(shape))
    assert found is not None
    return found


def points_of(picture: np.ndarray) -> np.ndarray:
    """(5, 2) points of the face."""
    return _found(picture.tobytes(), picture.shape)


def batch_of(
    restored: np.ndarray,
    truth: np.ndarray,
    points: np.ndarray | None = None,
    references: tuple[np.ndarray, ...] = (),
    valid: np.ndarray | None = None,
) -> ScoringBatch:
    """A batch of one picture; the references' points are their own."""
    return ScoringBatch(
        image_ids=["a"],
        restored=restored[None],
        truth=truth[None],
        references=[list(references)],
        landmarks=None if points is None else points[None],
        reference_landmarks=[np.stack([points_of(own) for own in references])] if references else None,
        valid=np.ones((1, *restored.shape[:2]), dtype=bool) if valid is None else valid[None],
    )


def value(name: str, batch: ScoringBatch) -> float:
    """Score of the batch's picture; skips where the metric is absent here."""
    metric = load_metric(name)()
    if reason := metric.unavailable():
        pytest.skip(reason)
    found = metric.score_batch(batch)[0]
    assert found.value is not None, found.reason
    return found.value
