"""Noise added to the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_range


class GaussianNoise(Operator):
    """Additive Gaussian noise, clipped to [0, 1].

    Args:
        sigma: Range of the standard deviation, in levels of 255.
        grey_probability: Chance that the three channels share one noise field.
    """

    name = "gaussian_noise"

    def __init__(self, sigma: Sequence[float], grey_probability: float = 0.0) -> None:
        self.sigma = check_range(self.name, "sigma", sigma)
        self.grey_probability = float(grey_probability)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the strength, whether it is grey, and the seed of the noise field."""
        return {
            "sigma": float(rng.uniform(*self.sigma)),
            "grey": bool(rng.random() < self.grey_probability),
            "seed": int(rng.integers(2**31)),
        }

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Adds each picture's own field, always drawn on the CPU so that devices agree."""
        noisy = []
        for image, record in zip(images, parameters, strict=True):
            channels = 1 if record["grey"] else image.shape[0]
            # NumPy's generator gives the same bits on every processor; torch.randn does not.
            normal = np.random.default_rng(record["seed"]).standard_normal((channels, *image.shape[1:]))
            field = torch.from_numpy(normal)
            noisy.append((image + field.to(image) * (record["sigma"] / 255.0)).clamp(0.0, 1.0))
        return noisy
