"""Changes of size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_range

SMALLEST_SIDE = 16


class Downscale(Operator):
    """Bilinear resize by a factor; below 1 it enlarges.

    Args:
        scale: Range of the factor the side is divided by.
    """

    name = "downscale"

    def __init__(self, scale: Sequence[float]) -> None:
        self.scale = check_range(self.name, "scale", scale, low=1e-3)

    def scaled(self, factor: float) -> Downscale:
        """Scales the range, so that the smallest picture keeps its size in pixels; never to below a factor of 1."""
        low, high = (max(1.0, bound * factor) if bound > 1 else bound for bound in self.scale)
        return Downscale((low, high))

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the factor and fixes the size in pixels, rounded down as in the published chains."""
        scale = float(rng.uniform(*self.scale))
        height, width = (max(SMALLEST_SIDE, int(side / scale)) for side in size)
        return {"height": height, "width": width}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Resizes every picture to its own size."""
        return [
            _resize(image, (record["height"], record["width"]))
            for image, record in zip(images, parameters, strict=True)
        ]


class ResizeBack(Operator):
    """Bilinear resize to the size the picture had when the degradation started."""

    name = "resize_back"

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Records the size; draws nothing."""
        return {"height": size[0], "width": size[1]}

    apply = Downscale.apply


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image.unsqueeze(0), size=size, mode="bilinear", align_corners=False).squeeze(0)
