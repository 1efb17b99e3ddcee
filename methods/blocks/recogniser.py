"""Recognisers that condition methods and serve their identity losses; never the judge of the metric `id`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bench.errors import MissingError, unknown_name
from bench.faces.sface import EMBEDDING_SIZE, SFace, crop_faces
from bench.weights import catalogue

CATALOGUE_NAMES = {"sface": "sface", "arcface": "arcface_w600k_r50"}


class ConditioningRecogniser:
    """Embeds faces for conditioning and losses; no module, so that its weights are never saved.

    Args:
        name: Which recogniser: "sface", or "arcface" (insightface's w600k_r50, as the paper's).
        embedding_size: Width of its embedding.
    """

    def __init__(self, name: str, embedding_size: int) -> None:
        self.name, self.embedding_size = name, embedding_size
        self._network: nn.Module | None = None

    def sface(self) -> SFace:
        """SFace, loaded on first use."""
        network = self.network()
        if not isinstance(network, SFace):
            raise unknown_name("recogniser for the distance sface_l1", self.name, ["sface"])
        return network

    def network(self) -> nn.Module:
        """The frozen network, loaded on first use.

        Raises:
            MissingError: Its weights are absent.
        """
        if self._network is None:
            self._network = SFace() if self.name == "sface" else ArcFace(catalogue.locate(CATALOGUE_NAMES[self.name]))
            self._network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        return self._network

    def short_hash(self) -> str:
        """First digits of the hash of its weights."""
        return f"{self.name} {catalogue.short_hash(CATALOGUE_NAMES[self.name])}"

    def embed(self, images: Tensor, points: Tensor) -> Tensor:
        """Embeds faces.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            points: (B, 5, 2) points in pixels.

        Returns:
            Unit embeddings, (B, embedding_size).

        Raises:
            MissingError: The recogniser's weights are absent.
        """
        embedding: Tensor = self.network().to(images.device)(crop_faces(images, points))
        return embedding


class ArcFace(nn.Module):
    """An ArcFace network from its ONNX file, differentiable.

    Args:
        path: ONNX file that takes (B, 3, 112, 112) RGB in [-1, 1].

    Raises:
        MissingError: The package that converts it is absent.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnx
            from onnx2torch import convert
        except ImportError as error:
            raise MissingError(
                f"method.identity=arcface needs the package {error.name}. Install it with: "
                'pip install "face-restoration-bench[full]"'
            ) from error
        self.backbone = convert(onnx.load(str(path)))

    def forward(self, crops: Tensor) -> Tensor:
        """Embeds aligned crops (B, 3, 112, 112) RGB in [0, 1]; returns unit embeddings (B, 512)."""
        return nn.functional.normalize(self.backbone(crops * 2 - 1), dim=1)


def build_recogniser(name: str) -> ConditioningRecogniser:
    """The recogniser of that name; its weights are read on first use.

    Raises:
        UsageError: There is no such recogniser.
    """
    sizes = {"sface": EMBEDDING_SIZE, "arcface": 512}
    if name not in sizes:
        raise unknown_name("recogniser (method.identity)", name, sizes)
    return ConditioningRecogniser(name, sizes[name])
