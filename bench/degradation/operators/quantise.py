"""Rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bench.degradation.operator import Operator, Parameters


class Quantise(Operator):
    """Rounds to 8 bits, with the gradient of the identity."""

    name = "quantise"

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws nothing."""
        return {}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Clips to [0, 1] and rounds."""
        return [image + _rounding(image.detach()) for image in images]


def _rounding(image: Tensor) -> Tensor:
    """What clipping and rounding add to the picture."""
    return image.clamp(0, 1).mul_(255).round_().div_(255).sub_(image)
