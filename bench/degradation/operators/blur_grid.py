"""Gaussian blur of listed widths and angles, as test sets on a grid have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.degradation.operator import Parameters, check_number
from bench.degradation.operators.blur import SMALLEST_SIGMA, GaussianBlur
from bench.errors import UsageError


class GaussianBlurGrid(GaussianBlur):
    """Anisotropic Gaussian blur whose two widths and angle are drawn from lists; borders are reflected.

    Source: DifFace, datapipe/prepare/face/make_testing_data.py, which walks through the grid; here each picture draws
    its point.

    Args:
        sigmas: Standard deviations in pixels; each axis draws its own.
        angles: Angles of the first axis in degrees.
        kernel_size: Odd side of the truncated kernel in pixels.
    """

    name = "gaussian_blur_grid"

    def __init__(self, sigmas: Sequence[float], angles: Sequence[float], kernel_size: int = 41) -> None:
        for name, values in (("sigmas", sigmas), ("angles", angles)):
            if not isinstance(values, list | tuple) or not values:
                raise UsageError(f"{self.name}.{name} must be a list of at least one number, got {values!r}.")
        self.sigmas = [check_number(self.name, "sigmas", sigma, low=SMALLEST_SIGMA) for sigma in sigmas]
        self.angles = [check_number(self.name, "angles", angle, low=-360) for angle in angles]
        super().__init__((min(self.sigmas), max(self.sigmas)), kernel_size, 0.0)

    def scaled(self, factor: float) -> GaussianBlurGrid:
        """Scales the widths and the kernel's side."""
        half = max(1, round(self.kernel_size // 2 * factor))
        sigmas = [max(SMALLEST_SIGMA, sigma * factor) for sigma in self.sigmas]
        return GaussianBlurGrid(sigmas, self.angles, 2 * half + 1)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the two standard deviations and the angle."""
        sigma_x, sigma_y = (self.sigmas[int(rng.integers(len(self.sigmas)))] for _ in range(2))
        angle = self.angles[int(rng.integers(len(self.angles)))]
        return {
            "sigma_x": sigma_x,
            "sigma_y": sigma_y,
            "angle": float(np.deg2rad(angle)),
            "kernel_size": self.kernel_size,
        }
