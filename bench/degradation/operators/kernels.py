"""Blur kernels, each a function of its parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Normalised bivariate Gaussian, (size, size) float64.

    Args:
        size: Odd side in pixels.
        sigma_x: Standard deviation along the first principal axis, pixels.
        sigma_y: Standard deviation along the second, pixels.
        angle: Angle of the first axis in radians.
    """
    half = size // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    kernel = torch.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return kernel / kernel.sum()
