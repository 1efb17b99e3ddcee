"""The operators of the first-order chain: blur, resize, noise, JPEG, quantisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, by_shape, check_range
from bench.errors import UsageError

SMALLEST_SIDE = 16
LARGEST_DIRECT_KERNEL = 15


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


class JPEG(Operator):
    """JPEG compression with the real codec (4:2:0 chroma subsampling).

    The gradient is that of a differentiable JPEG at the same quality (straight through the codec).

    Args:
        quality: Range of the quality, 1 to 100.
    """

    name = "jpeg"

    def __init__(self, quality: Sequence[float]) -> None:
        self.quality = check_range(self.name, "quality", quality, low=1)
        if self.quality[1] > 100:
            raise UsageError(f"{self.name}.quality must not exceed 100, got {list(quality)}.")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the quality; its fraction is dropped, as the codec does."""
        return {"quality": int(rng.uniform(*self.quality))}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Compresses and decodes every picture at its own quality."""
        return [
            _straight_through_jpeg(image, record["quality"]) for image, record in zip(images, parameters, strict=True)
        ]


def _straight_through_jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = image.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    encoded, content = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise RuntimeError(f"The JPEG encoder failed on a picture of {pixels.shape[:2]} px at quality {quality}.")
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("The JPEG decoder failed on what the encoder wrote.")
    real = torch.from_numpy(np.ascontiguousarray(decoded[:, :, ::-1])).permute(2, 0, 1).to(image).div_(255.0)
    if not (torch.is_grad_enabled() and image.requires_grad):
        return real
    from kornia.enhance import jpeg_codec_differentiable

    height, width = image.shape[1:]
    padding = (0, -width % 16, 0, -height % 16)
    padded = F.pad(image.unsqueeze(0), padding, mode="replicate")
    soft = jpeg_codec_differentiable(padded, torch.full((1,), float(max(quality, 1))).to(image))
    soft = soft[0, :, :height, :width]
    return real + (soft - soft.detach())


class Quantise(Operator):
    """Rounds to 8 bits, with the gradient of the identity."""

    name = "quantise"

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws nothing."""
        return {}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Clips to [0, 1] and rounds."""
        return [image + (image.clamp(0, 1).mul(255).round().div(255) - image).detach() for image in images]


OPERATORS: dict[str, type[Operator]] = {
    operator.name: operator for operator in (GaussianBlur, Downscale, GaussianNoise, JPEG, ResizeBack, Quantise)
}


def build_operator(step: dict[str, Any]) -> Operator:
    """Builds an operator from one entry of a preset: `{operator: name, range: [low, high], ...}`.

    Raises:
        UsageError: Unknown operator or argument.
    """
    from bench.errors import unknown_name

    arguments = dict(step)
    name = arguments.pop("operator", "")
    if name not in OPERATORS:
        raise unknown_name("degradation operator", str(name), OPERATORS)
    try:
        return OPERATORS[name](**arguments)
    except TypeError as error:
        raise UsageError(f"Degradation operator {name}: {error}.") from error
