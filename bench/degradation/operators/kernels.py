"""Blur kernels, each a function of its parameters: odd sides, float64, sum 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.degradation.operator import check_odd
from bench.errors import UsageError

LARGEST_KERNEL = 4095


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Normalised bivariate Gaussian, (size, size) float64.

    Args:
        size: Odd side in pixels.
        sigma_x: Standard deviation along the first principal axis, pixels.
        sigma_y: Standard deviation along the second, pixels.
        angle: Angle of the first axis in radians.
    """
    kernel = torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle))
    return kernel / kernel.sum()


def generalised_gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    """Normalised generalised Gaussian exp(-d^β / 2), d the squared Mahalanobis distance; (size, size) float64.

    Source: Pascal et al., "Parameter Estimation for Multivariate Generalized Gaussian Distributions", 2013, as used by
    Real-ESRGAN.

    Args:
        size: Odd side in pixels.
        sigma_x: Scale along the first principal axis, pixels.
        sigma_y: Scale along the second, pixels.
        angle: Angle of the first axis in radians.
        beta: Shape; 1 is the Gaussian, below 1 has heavier tails.
    """
    kernel = torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle) ** beta)
    return kernel / kernel.sum()


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    """Normalised plateau 1 / (1 + d^β), d the squared Mahalanobis distance; (size, size) float64.

    Args:
        size: Odd side in pixels.
        sigma_x: Scale along the first principal axis, pixels.
        sigma_y: Scale along the second, pixels.
        angle: Angle of the first axis in radians.
        beta: Shape; the larger, the flatter the top and the steeper its edge.
    """
    kernel = 1 / (1 + _squared_distance(size, sigma_x, sigma_y, angle) ** beta)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Normalised circular low-pass filter (ringing), cut off at a square; (size, size) float64.

    Args:
        size: Odd side in pixels.
        cutoff: Cut-off frequency in radians per pixel, up to π.
    """
    distance = _squared_distance(size, 1.0, 1.0, 0.0).sqrt()
    kernel = cutoff * torch.special.bessel_j1(cutoff * distance) / (2 * math.pi * distance)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def motion_kernel(length: float, angle: float) -> Tensor:
    """Mean over a straight, centred path of bilinearly interpolated pixels, exact; (side, side) float64.

    The side is the smallest odd one that holds the path.

    Args:
        length: Length of the path in pixels; 0 is no blur.
        angle: Direction in radians, from the x axis (right) towards the y axis (down).
    """
    half = math.ceil(length / 2)
    kernel = torch.zeros(2 * half + 1, 2 * half + 1, dtype=torch.float64)
    if half == 0:
        kernel[0, 0] = 1.0
        return kernel
    direction = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
    # The weights are quadratic in the position between two grid lines: two Gauss points integrate them exactly.
    lines = torch.arange(-half, half + 1, dtype=torch.float64)
    ends = torch.tensor([-length / 2, length / 2], dtype=torch.float64)
    crossings = [lines / component for component in direction if abs(float(component)) > 1e-12]
    stops = torch.cat([ends, *crossings]).clamp(-length / 2, length / 2).sort().values
    middle, extent = (stops[1:] + stops[:-1]) / 2, stops[1:] - stops[:-1]
    for sign in (-1, 1):
        points = (middle + sign * extent / math.sqrt(12))[:, None] * direction + half
        corner = points.floor().clamp(0, 2 * half - 1)
        share = points - corner
        for down in (0, 1):
            for right in (0, 1):
                weight = (share[:, 0] if down else 1 - share[:, 0]) * (share[:, 1] if right else 1 - share[:, 1])
                rows, columns = (corner + torch.tensor([down, right])).long().unbind(1)
                kernel.index_put_((rows, columns), weight * extent / 2, accumulate=True)
    return kernel / kernel.sum()


def _squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Squared Mahalanobis distance of every pixel to the centre.

    Raises:
        UsageError: The side is not odd and positive or too large, or a scale is not above 0.
    """
    if check_odd("blur", "kernel_size", size) > LARGEST_KERNEL:
        raise UsageError(f"A blur kernel of {size} px is too large: {LARGEST_KERNEL} px at most.")
    if not min(sigma_x, sigma_y) > 0:
        raise UsageError(f"A blur's sigma must be above 0, got {sigma_x!r} and {sigma_y!r}.")
    half = size // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2
