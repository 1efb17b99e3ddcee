"""Linear blurs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, by_shape, check_range
from bench.degradation.operators.kernels import gaussian_kernel
from bench.errors import UsageError

LARGEST_DIRECT_KERNEL = 15


class GaussianBlur(Operator):
    """Isotropic or anisotropic Gaussian blur with reflected borders.

    Args:
        sigma: Range of the standard deviation in pixels.
        kernel_size: Odd side of the truncated kernel in pixels.
        isotropic_probability: Chance of an isotropic kernel.
    """

    name = "gaussian_blur"

    def __init__(self, sigma: Sequence[float], kernel_size: int = 41, isotropic_probability: float = 0.5) -> None:
        self.sigma = check_range(self.name, "sigma", sigma, low=1e-3)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UsageError(f"{self.name}.kernel_size must be odd and positive, got {kernel_size}.")
        self.kernel_size = int(kernel_size)
        self.isotropic_probability = float(isotropic_probability)

    def scaled(self, factor: float) -> GaussianBlur:
        """Scales sigma and the kernel's side, so that the truncation stays where it is in sigmas."""
        low, high = self.sigma
        half = max(1, round(self.kernel_size // 2 * factor))
        return GaussianBlur((low * factor, high * factor), 2 * half + 1, self.isotropic_probability)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the two standard deviations and the angle."""
        isotropic = bool(rng.random() < self.isotropic_probability)
        sigma_x, sigma_y = (float(value) for value in rng.uniform(*self.sigma, size=2))
        angle = float(rng.uniform(-math.pi, math.pi))
        return {
            "sigma_x": sigma_x,
            "sigma_y": sigma_x if isotropic else sigma_y,
            "angle": 0.0 if isotropic else angle,
            "kernel_size": self.kernel_size,
        }

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Filters every picture with its own kernel, in one grouped convolution per picture size."""

        def work(positions: list[int]) -> Tensor:
            stack = torch.stack([images[position] for position in positions])
            count, channels, height, width = stack.shape
            side = max(parameters[position]["kernel_size"] for position in positions)
            pad = side // 2
            if pad >= min(height, width):
                raise UsageError(f"A {side} px blur kernel does not fit a picture of {height}x{width} px.")
            kernels = torch.zeros(count, side, side, dtype=torch.float64)
            for row, position in enumerate(positions):
                own = gaussian_kernel(
                    **{key: parameters[position][key] for key in ("sigma_x", "sigma_y", "angle")},
                    size=parameters[position]["kernel_size"],
                )
                margin = (side - own.shape[0]) // 2
                kernels[row, margin : side - margin, margin : side - margin] = own
            weight = kernels.to(stack).repeat_interleave(channels, 0).unsqueeze(1)
            padded = F.pad(stack, (pad, pad, pad, pad), mode="reflect")
            if side > LARGEST_DIRECT_KERNEL or stack.dtype == torch.float64:
                return _filtered_by_fft(padded, kernels.to(stack), pad)
            flat = padded.reshape(1, count * channels, *padded.shape[2:])
            return F.conv2d(flat, weight, groups=count * channels).reshape(stack.shape)

        return by_shape(images, work)


def _filtered_by_fft(padded: Tensor, kernels: Tensor, pad: int) -> Tensor:
    """Correlates padded pictures (B, C, H + 2 pad, W + 2 pad) with one odd, square kernel each (B, K, K).

    torch's convolution unfolds double-precision pictures: gigabytes at 512 px, and minutes.
    """
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.flip(-2, -1), s=size).unsqueeze(1)
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * pad :, 2 * pad :]
