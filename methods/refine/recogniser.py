"""The recogniser I(·) that conditions ReFine and serves its identity loss."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import MissingError, unknown_name
from bench.faces.sface import EMBEDDING_SIZE, SFace, crop_faces


class ConditioningRecogniser:
    """Embeds faces for conditioning and losses; no module, so that its weights are never saved.

    Args:
        name: Which recogniser.
        embedding_size: Width of its embedding.
    """

    def __init__(self, name: str, embedding_size: int) -> None:
        self.name, self.embedding_size = name, embedding_size
        self._network: SFace | None = None

    def sface(self) -> SFace:
        """The SFace network, loaded on first use."""
        if self._network is None:
            self._network = SFace().to(memory_format=torch.channels_last)
        return self._network

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
        if self.name == "arcface":
            raise MissingError(
                "method.identity=arcface needs insightface's w600k_r50 as a torch module, which is not bundled. "
                "Use method.identity=sface (ships with the demo extra)."
            )
        network = self.sface().to(images.device)
        embedding: Tensor = network(crop_faces(images, points))
        return embedding


def build_recogniser(name: str) -> ConditioningRecogniser:
    """The recogniser of that name; its weights are read on first use.

    Raises:
        UsageError: There is no such recogniser.
    """
    sizes = {"sface": EMBEDDING_SIZE, "arcface": 512}
    if name not in sizes:
        raise unknown_name("recogniser (method.identity)", name, sizes)
    return ConditioningRecogniser(name, sizes[name])
