"""Distances between sixty-eight landmarks of the restored picture and of the ground truth.

The papers report "LMSE" without a formula, and their values differ by scale: about 33 (PFStorer) and 5.8 squared,
against 4.8 (RestorerID). Here the name says which: `lmse` is the mean of squared distances in px², `lmd` the mean of
distances in px. Both depend on the picture's size; compare them at one size only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.metrics.common import scores
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch

if TYPE_CHECKING:
    import numpy as np

NO_FACE = "no face detected"
NO_FACE_IN_TRUTH = "no face detected in the ground truth"


class _Landmarks68(Metric):
    higher_is_better: ClassVar[bool | None] = False
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, None)
    cost: ClassVar[Cost] = "medium"
    squared: ClassVar[bool]

    def landmarks(self, batch: ScoringBatch) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
        """Landmarks of each restored picture and of its ground truth, each (68, 2) or None."""
        raise NotImplementedError

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean distance or mean squared distance of every picture; null where no face is found."""
        import numpy as np

        found = []
        for restored, truth in self.landmarks(batch):
            if truth is None:
                found.append(Score(None, NO_FACE_IN_TRUTH))
            elif restored is None:
                found.append(Score(None, NO_FACE))
            else:
                squares = np.square(restored - truth).sum(axis=1)
                found.extend(scores([float(np.mean(squares if self.squared else np.sqrt(squares)))]))
        return found

    @property
    def how(self) -> str:
        """The formula, in words."""
        squared = "squared distances" if self.squared else "distances"
        return f"mean of 68 {squared} to the landmarks found in the ground truth"


class _Farl(_Landmarks68):
    licence: ClassVar[str] = "MIT (pyfacer, RetinaFace); MIT (FaRL), trained on iBUG 300-W: non-commercial"
    weights: ClassVar[tuple[str, ...]] = ("retinaface_mobilenet", "farl_ibug300w")
    needs = ("truth",)
    cost: ClassVar[Cost] = "high"

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.farl import farl_identity

        return f"{self.name}@{farl_identity()}@{self.how}"

    def unavailable(self) -> str | None:
        """Whether pyfacer or its weights are absent."""
        from bench.faces import farl

        return farl.unavailable()

    def landmarks(self, batch: ScoringBatch) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
        """By FaRL, each picture on its own detection."""
        from bench.faces.farl import farl_points

        assert batch.truth is not None
        pairs = zip(batch.restored, batch.truth, strict=True)
        return [(farl_points(restored), farl_points(truth)) for restored, truth in pairs]


class LmseFarl(_Farl):
    """LMSE as squared pixels: mean squared distance of 68 FaRL landmarks, lower is better."""

    name = "lmse_px2"
    title = "LMSE (FaRL 68)"
    unit = "px²"
    squared = True


class LmdFarl(_Farl):
    """LMD: mean distance of 68 FaRL landmarks, lower is better."""

    name = "lmd_farl"
    title = "LMD (FaRL 68)"
    unit = "px"
    squared = False


class _Dlib(_Landmarks68):
    licence: ClassVar[str] = "BSL-1.0 (dlib); CC0-1.0 (weights), trained on iBUG 300-W: non-commercial; MIT (YuNet)"
    weights: ClassVar[tuple[str, ...]] = ("dlib_68_points", "yunet")
    needs = ("truth", "landmarks")
    cost: ClassVar[Cost] = "low"

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.detector import detector_identity
        from bench.faces.points68 import predictor_identity

        return f"{self.name}@{predictor_identity()}@{detector_identity()}@{self.how} by its committed points"

    def unavailable(self) -> str | None:
        """Whether dlib, its predictor or the detector's weights are absent."""
        from bench.faces import points68
        from bench.weights import catalogue

        return points68.unavailable() or catalogue.missing("yunet")

    def landmarks(self, batch: ScoringBatch) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
        """By dlib: the restored picture on its own detection, the ground truth on its committed points."""
        from bench.faces.detector import main_face_points
        from bench.faces.points68 import points_68

        assert batch.truth is not None and batch.landmarks is not None
        found: list[tuple[np.ndarray | None, np.ndarray | None]] = []
        for restored, truth, committed in zip(batch.restored, batch.truth, batch.landmarks, strict=True):
            seen = main_face_points(restored)
            found.append((None if seen is None else points_68(restored, seen), points_68(truth, committed)))
        return found


class LmseDlib(_Dlib):
    """Mean squared distance of 68 landmarks by dlib's predictor, without a download; lower is better."""

    name = "lmse_dlib68"
    title = "LMSE (dlib 68)"
    unit = "px²"
    squared = True


class LmdDlib(_Dlib):
    """Mean distance of 68 landmarks by dlib's predictor, without a download; lower is better."""

    name = "lmd_dlib68"
    title = "LMD (dlib 68)"
    unit = "px"
    squared = False
