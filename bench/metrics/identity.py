"""Whether the restored face is the right person's.

Faces are cut by the ground truth's committed landmarks for every method, the degraded input included,
so that no method is scored on the easy pictures alone. The judge (`bench.faces.dlib_judge`) serves no
method's loss, conditioning or checkpoint selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.faces.remembered import Remembered, picture_key
from bench.metrics.common import cosines, mean_reference_cosines, scores
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

NO_FACE = "no face detected"
JUDGE_LICENCE = "BSL-1.0 (dlib); CC0-1.0 (weights)"
TRUTH_POINTS = "crops by the ground truth's landmarks"


class _Judged(Metric):
    higher_is_better: ClassVar[bool | None] = True
    limits: ClassVar[tuple[float | None, float | None]] = (-1.0, 1.0)
    licence: ClassVar[str] = JUDGE_LICENCE
    weights: ClassVar[tuple[str, ...]] = ("dlib_resnet",)
    cost: ClassVar[Cost] = "medium"

    def unavailable(self) -> str | None:
        """Whether dlib or the judge's weights are absent."""
        from bench.faces import dlib_judge

        return dlib_judge.unavailable()


class Identity(_Judged):
    """ID: centred cosine of the judge's descriptors of the restored face and of the ground truth."""

    name = "id"
    title = "ID"
    needs = ("truth", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.dlib_judge import judge_identity

        return f"id@{judge_identity()}@cosine with the ground truth, {TRUTH_POINTS}"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Cosine in [-1, 1]; 1 for the ground truth itself."""
        from bench.faces import dlib_judge

        truth, landmarks = _truth(batch)
        return scores(cosines(dlib_judge.embed(batch.restored, landmarks), dlib_judge.embed(truth, landmarks)).tolist())


class IdentityWithReferences(_Judged):
    """IPS (ReFine): centred cosine of the restored face with each reference, averaged over them."""

    name = "ips"
    title = "IPS"
    needs = ("references", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.dlib_judge import judge_identity

        return f"ips@{judge_identity()}@mean cosine with the references, {TRUTH_POINTS} and the references' own"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean cosine in [-1, 1]."""
        from bench.faces import dlib_judge

        return mean_reference_cosines(batch, dlib_judge.embed)


class IdentityDetected(_Judged):
    """ID on the restored picture's own detection: what a user would see, null where no face is found."""

    name = "id_detected"
    title = "ID (own detection)"
    licence = f"{JUDGE_LICENCE}; MIT (YuNet)"
    weights = ("dlib_resnet", "yunet")
    needs = ("truth", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.detector import detector_identity
        from bench.faces.dlib_judge import judge_identity

        return f"id_detected@{judge_identity()}@{detector_identity()}@cosine, ground truth by its landmarks"

    def unavailable(self) -> str | None:
        """Whether dlib, the judge's weights or the detector's are absent."""
        from bench.weights import catalogue

        return super().unavailable() or catalogue.missing("yunet")

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Cosine in [-1, 1]."""
        from bench.faces import dlib_judge
        from bench.faces.detector import main_face_points

        truth, landmarks = _truth(batch)
        points = [main_face_points(picture) for picture in batch.restored]
        seen = [index for index, place in enumerate(points) if place is not None]
        restored = dlib_judge.embed(
            [batch.restored[index] for index in seen], [place for place in points if place is not None]
        )
        expected = dlib_judge.embed([truth[index] for index in seen], [landmarks[index] for index in seen])
        found = dict(zip(seen, scores(cosines(restored, expected).tolist()), strict=True))
        return [found.get(index, Score(None, NO_FACE)) for index in range(len(batch))]


class _SFace(Metric):
    higher_is_better: ClassVar[bool | None] = True
    limits: ClassVar[tuple[float | None, float | None]] = (-1.0, 1.0)
    licence = "Apache-2.0"
    weights: ClassVar[tuple[str, ...]] = ("sface",)
    cost: ClassVar[Cost] = "low"

    def unavailable(self) -> str | None:
        """Whether SFace's weights or the package that reads them are absent."""
        import importlib.util

        from bench.weights import catalogue

        if importlib.util.find_spec("onnx") is None:
            return 'needs the Python package onnx; install it with: pip install "face-restoration-bench[demo]"'
        return catalogue.missing("sface")

    @property
    def recogniser(self) -> str:
        """The recogniser and its preprocessing, for the identity string."""
        from bench.weights import catalogue

        return (
            f"sface(own torch port 1, weights {catalogue.short_hash('sface')} dequantised)"
            "@RGB 112 px ArcFace crop, bilinear"
        )


class IdentitySFace(_SFace):
    """ID by SFace. Not for claims: methods train on it and are conditioned by it."""

    name = "id_sface"
    title = "ID (SFace, not for claims)"
    needs = ("truth", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        return f"id_sface@{self.recogniser}, {TRUTH_POINTS}@cosine with the ground truth"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Cosine in [-1, 1]."""
        from bench.faces.sface import crop_faces, shared_sface

        network, points = shared_sface(), _points(batch)
        restored = network(crop_faces(batch.restored_tensor.cpu(), points)).double()
        truth = network(crop_faces(batch.truth_tensor.cpu(), points)).double()
        return scores((restored * truth).sum(dim=1).clamp(-1.0, 1.0).tolist())


class ReferencesSFace(_SFace):
    """IPS by SFace, averaged over the references. Not for claims: methods train on it and are conditioned by it."""

    name = "ips_sface"
    title = "IPS (SFace, not for claims)"
    needs = ("references", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        return f"ips_sface@{self.recogniser}, {TRUTH_POINTS} and the references' own@mean cosine with the references"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean cosine in [-1, 1]."""
        return mean_reference_cosines(batch, _sface_embeddings)


_reference_embeddings: Remembered[np.ndarray] = Remembered()


def _sface_embeddings(pictures: Sequence[np.ndarray] | np.ndarray, points: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 128) float64 unit vectors; a picture that comes again is embedded once per process."""
    import numpy as np
    import torch

    from bench.faces.sface import crop_faces, shared_sface

    found = []
    for picture, place in zip(pictures, points, strict=True):
        key = picture_key(picture, np.asarray(place, np.float64))
        if key not in _reference_embeddings:
            image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).unsqueeze(0).float() / 255.0
            with torch.inference_mode():
                embedded = shared_sface()(crop_faces(image, torch.from_numpy(np.asarray(place))[None]))
            _reference_embeddings[key] = embedded[0].double().numpy()
        found.append(_reference_embeddings[key])
    return np.stack(found)


def _points(batch: ScoringBatch) -> Tensor:
    import torch

    return torch.from_numpy(_truth(batch)[1])


def _truth(batch: ScoringBatch) -> tuple[np.ndarray, np.ndarray]:
    if batch.truth is None or batch.landmarks is None:
        raise ValueError("this metric needs the ground truth and its landmarks")
    return batch.truth, batch.landmarks
