"""Identity as the papers measure it: insightface's buffalo_l, and VQFR's degradation angle.

Neither decides a claim here: methods condition on buffalo_l or train with it, and the degradation angle sees the
whole picture unaligned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.metrics.common import cosines, mean_reference_cosines, scores, version
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch
from bench.metrics.networks import INSTALL, NetworkMetric, fill, read_state, weights_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import nn

GREY_SIDE = 128


class _Buffalo(Metric):
    higher_is_better: ClassVar[bool | None] = True
    limits: ClassVar[tuple[float | None, float | None]] = (-1.0, 1.0)
    licence: ClassVar[str] = "MIT (insightface, onnxruntime); weights: non-commercial research only"
    weights: ClassVar[tuple[str, ...]] = ("arcface_w600k_r50",)
    cost: ClassVar[Cost] = "high"

    @property
    def recogniser(self) -> str:
        """The recogniser and its preprocessing, for the identity string."""
        from bench.faces.buffalo import WEIGHTS

        return (
            f"insightface buffalo_l w600k_r50(onnxruntime {version('onnxruntime')}, weights {weights_of(WEIGHTS)})"
            "@RGB 112 px norm_crop, bilinear, (p - 127.5) / 127.5"
        )

    def unavailable(self) -> str | None:
        """Whether onnxruntime or the recogniser's file is absent."""
        from bench.faces.buffalo import WEIGHTS
        from bench.weights import catalogue

        if version("onnxruntime") == "absent":
            return f"needs the Python package onnxruntime; {INSTALL}"
        reason = catalogue.missing(WEIGHTS)
        return f"weights missing: {reason}" if reason else None

    def score_batch(self, batch: ScoringBatch) -> list[Score]:
        """As for every metric; a file that is not the recogniser leaves nulls with that reason."""
        from bench.errors import BenchError

        try:
            return super().score_batch(batch)
        except BenchError as error:
            return [Score(None, str(error))] * len(batch)


class IdentityBuffalo(_Buffalo):
    """ID as most papers have it: cosine of buffalo_l's embeddings of the restored face and of the ground truth."""

    name = "id_buffalo_l"
    title = "ID (buffalo_l)"
    needs = ("truth", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        return f"id_buffalo_l@{self.recogniser}@cosine with the ground truth, crops by the ground truth's landmarks"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Cosine in [-1, 1]."""
        from bench.faces import buffalo

        assert batch.truth is not None and batch.landmarks is not None
        restored = buffalo.embed(batch.restored, batch.landmarks)
        return scores(cosines(restored, buffalo.embed(batch.truth, batch.landmarks)).tolist())


class ReferencesBuffalo(_Buffalo):
    """IPS (ReFine) with buffalo_l: cosine of the restored face with each reference, averaged over them."""

    name = "ips_buffalo_l"
    title = "IPS (buffalo_l)"
    needs = ("references", "landmarks")

    @property
    def identity(self) -> str:
        """Identity string."""
        return (
            f"ips_buffalo_l@{self.recogniser}@mean cosine with the references, "
            "crops by the ground truth's landmarks and the references' own"
        )

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean cosine in [-1, 1]."""
        from bench.faces import buffalo

        return mean_reference_cosines(batch, buffalo.embed)


class DegradationAngle(NetworkMetric):
    """Deg. (VQFR, GFPGAN): angle between ArcFace embeddings of whole grey pictures of 128 px, in degrees.

    No alignment, so that it also sees hair, pose and background. Lower is better.
    """

    name = "degradation_angle"
    title = "Deg."
    unit = "°"
    higher_is_better: ClassVar[bool | None] = False
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 180.0)
    licence = "Apache-2.0; weights: none stated (arcface-pytorch)"
    cost: ClassVar[Cost] = "medium"
    packages = ()
    weights = ("arcface_resnet18_110",)

    @property
    def identity(self) -> str:
        """Identity string."""
        import cv2

        return (
            f"degradation_angle@own ArcFace18 1@weights {weights_of(self.weights[0])}"
            f"@grey by OpenCV {cv2.__version__}, {GREY_SIDE} px bilinear, whole picture, (p - 127.5) / 127.5"
            "@arccos of the cosine, degrees"
        )

    def build(self, *files: Path) -> nn.Module:
        """The recogniser `bench.faces.arcface18`."""
        from bench.faces.arcface18 import ArcFace18

        network = ArcFace18()
        fill(network, read_state(files[0]), files[0], ignored=r"num_batches_tracked$")
        return network

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Angle in degrees, 0 to 180."""
        import numpy as np

        assert batch.truth is not None
        restored, truth = self._embed(batch.restored, batch.device), self._embed(batch.truth, batch.device)
        return scores(np.degrees(np.arccos(cosines(restored, truth))).tolist())

    def _embed(self, pictures: np.ndarray, device: str) -> np.ndarray:
        import cv2
        import numpy as np
        import torch

        grey = [cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (GREY_SIDE, GREY_SIDE)) for picture in pictures]
        images = torch.from_numpy((np.stack(grey).astype(np.float32) - 127.5) / 127.5).unsqueeze(1).to(device)
        raw: np.ndarray = self.network(device)(images).double().cpu().numpy()
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)
