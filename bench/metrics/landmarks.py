"""Whether the face's parts are in their places: distances between landmarks, and the detection rate.

Found landmarks are compared with the committed ones of the ground truth (`ScoringBatch.landmarks`), not
with a new detection on it, so that one detection error enters instead of two. The floor this leaves: on 96 training
crops of ORL (128 px, eye distance 48 px) the ground truth itself scores 1.1 px; no point is off by more than 0.7 px on
average, the rest is the detector's scatter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.metrics.common import scores
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch

if TYPE_CHECKING:
    import numpy as np

NO_FACE = "no face detected"
FAILURE_SHARE = 0.25


class _Detected(Metric):
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, None)
    licence: ClassVar[str] = "MIT (YuNet)"
    weights: ClassVar[tuple[str, ...]] = ("yunet",)
    cost: ClassVar[Cost] = "low"
    how: ClassVar[str]

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.detector import detector_identity

        return f"{self.name}@{detector_identity()}@{self.how}"

    def unavailable(self) -> str | None:
        """Whether the detector's weights are absent."""
        from bench.weights import catalogue

        return catalogue.missing("yunet")


class LandmarkDistance(_Detected):
    """LMD: mean distance of the five landmarks to the ground truth's, in px; null where no face is found."""

    name = "lmd_px"
    title = "LMD"
    unit = "px"
    higher_is_better: ClassVar[bool | None] = False
    needs = ("truth", "landmarks")
    how = "mean distance of 5 points to the ground truth's committed landmarks"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean Euclidean distance of every picture."""
        return [Score(None, NO_FACE) if distance is None else scores([distance])[0] for distance in _distances(batch)]


class CappedLandmarkDistance(_Detected):
    """LMD with a ceiling: no more than a quarter of the eye distance, which is also what no face costs.

    A method cannot drop out of the mean by restoring no face: every picture whose ground truth has known landmarks
    gets a value.
    """

    name = "lmd_capped"
    title = "LMD (capped)"
    unit = "px"
    higher_is_better: ClassVar[bool | None] = False
    needs = ("truth", "landmarks")
    how = (
        "mean distance of 5 points to the ground truth's committed landmarks, "
        f"at most {FAILURE_SHARE:g} eye distances, no face = that"
    )

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Capped distance of every picture, a face found or not; null only where the ground truth's are not finite."""
        import numpy as np

        eyes = _landmarks(batch)[:, :2]
        ceilings = FAILURE_SHARE * np.linalg.norm(eyes[:, 1] - eyes[:, 0], axis=1)
        pairs = zip(_distances(batch), ceilings.tolist(), strict=True)
        return scores(ceiling if distance is None else min(distance, ceiling) for distance, ceiling in pairs)


class DetectionRate(_Detected):
    """1 where a face is found in the restored picture, else 0; the mean is the detection rate."""

    name = "detected"
    title = "Detected"
    higher_is_better: ClassVar[bool | None] = True
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    needs = ()
    how = "1 if found"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """1.0 or 0.0 for every picture."""
        from bench.faces.detector import main_face_points

        return [Score(float(main_face_points(picture) is not None)) for picture in batch.restored]


def _landmarks(batch: ScoringBatch) -> np.ndarray:
    if batch.landmarks is None:
        raise ValueError("this metric needs the ground truth's landmarks")
    return batch.landmarks


def _distances(batch: ScoringBatch) -> list[float | None]:
    import numpy as np

    from bench.faces.detector import main_face_points

    found = [main_face_points(picture) for picture in batch.restored]
    return [
        None if points is None else float(np.linalg.norm(points - truth, axis=1).mean())
        for points, truth in zip(found, _landmarks(batch), strict=True)
    ]
