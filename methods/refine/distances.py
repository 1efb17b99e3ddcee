"""Element-wise distances on aligned faces, from the features of a recogniser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.faces.sface import INPUT_SIZE, SFace, crop_faces
from methods.refine.losses import FeatureDistance, absolute_distance

FEATURE_WEIGHTS = (1.0, 1.0, 1.0, 0.5)


class AlignedFaceDistance:
    """|a - b| plus the LPIPS-like distance of SFace features, measured on the aligned crop.

    Where the backbones of LPIPS cannot be loaded this is the demo's perceptual distance. The crop holds
    the whole picture (the template's face is small), so its map is laid back over the picture. One pass
    serves the distance and the embedding.

    Args:
        recogniser: Frozen SFace.
        points: (B, 5, 2) points by which every picture of this batch is cropped, pixels.
        feature_weight: Weight of the features beside |a - b|.
    """

    def __init__(self, recogniser: SFace, points: Tensor, feature_weight: float = 0.2) -> None:
        self.recogniser, self.points, self.feature_weight = recogniser, points, feature_weight
        self._features = FeatureDistance(lambda image: [image], FEATURE_WEIGHTS)
        self._cache: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def remember(self, *images: Tensor) -> None:
        """Runs the recogniser once over several pictures (B, 3, H, W), those without gradient together."""
        groups = [[image for image in images if image.requires_grad], [i for i in images if not i.requires_grad]]
        for group in groups:
            if not group:
                continue
            stacked = torch.cat(group).add(1).div(2)
            crops = crop_faces(stacked, self.points.repeat(len(group), 1, 1)).contiguous(
                memory_format=torch.channels_last
            )
            embeddings, layers = self.recogniser.embedding_and_features(crops)
            normalised = [layer * torch.rsqrt(layer.square().sum(1, keepdim=True) + 1e-10) for layer in layers]
            for position, image in enumerate(group):
                part = slice(position * len(image), (position + 1) * len(image))
                self._cache[id(image)] = embeddings[part], [layer[part] for layer in normalised]

    def embedding(self, image: Tensor) -> Tensor:
        """Embedding (B, 128) of pictures cropped by this batch's points."""
        return self._recall(image)[0]

    def _recall(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        if id(image) not in self._cache:
            self.remember(image)
        return self._cache[id(image)]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of two pictures (B, 3, H, W) in [-1, 1], as (B, 1, H, W)."""
        crop_map = self._features.between(self._recall(a)[1], self._recall(b)[1], (INPUT_SIZE, INPUT_SIZE))
        return absolute_distance(a, b) + self.feature_weight * self._lay_back(crop_map, a.shape[-2:])

    def _lay_back(self, crop_map: Tensor, size: Sequence[int]) -> Tensor:
        """Brings a map of the crop (B, 1, 112, 112) to the picture (B, 1, *size)."""
        from bench.faces.geometry import ARCFACE_112
        from methods.refine.warp import apply_similarity, fit_similarity

        template = torch.tensor(ARCFACE_112, dtype=torch.float64, device=self.points.device)
        matrix = fit_similarity(self.points.double(), template.expand(len(self.points), -1, -1))
        height, width = size
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack([x, y], dim=-1).double().view(1, -1, 2).to(self.points.device)
        where = apply_similarity(matrix, pixels.expand(len(self.points), -1, -1)).view(-1, height, width, 2)
        grid = (where + 0.5) / INPUT_SIZE * 2 - 1
        return F.grid_sample(crop_map, grid.to(crop_map.dtype), padding_mode="border", align_corners=False)
