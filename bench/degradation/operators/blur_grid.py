"""Gaussian blur of listed widths and angles, as test sets on a grid have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.degradation.operator import Parameters, check_range
from bench.degradation.operators.blur import GaussianBlur
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
        self.sigmas = [check_range(self.name, "sigmas", (sigma, sigma), low=1e-3)[0] for sigma in sigmas]
        self.angles = [check_range(self.name, "angles", (angle, angle), low=-360)[0] for angle in angles]
        if not self.sigmas or not self.angles:
            raise UsageError(f"{self.name} needs at least one of sigmas and of angles.")
        super().__init__((min(self.sigmas), max(self.sigmas)), kernel_size, 0.0)

    def scaled(self, factor: float) -> GaussianBlurGrid:
        """Scales the widths and the kernel's side."""
        half = max(1, round(self.kernel_size // 2 * factor))
        return GaussianBlurGrid([sigma * factor for sigma in self.sigmas], self.angles, 2 * half + 1)

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
