"""Filtering pictures with a kernel each: OpenCV where it is fastest, torch where a gradient or a GPU asks for it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import UsageError

LARGEST_DIRECT_KERNEL = 15


def correlate(images: Sequence[Tensor], kernels: Sequence[Tensor]) -> list[Tensor]:
    """Correlates every picture with its own kernel; borders are reflected without repeating the edge.

    Double precision and GPUs use torch; float32 on the CPU uses OpenCV, also where a gradient is
    asked for: the values are OpenCV's, the gradient is torch's.

    Args:
        images: Pictures, (C, H, W) each.
        kernels: One odd, square kernel per picture, float64 on the CPU.

    Returns:
        Filtered pictures of the same shapes.

    Raises:
        UsageError: A kernel reaches further than its picture.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, (image, kernel) in enumerate(zip(images, kernels, strict=True)):
        side = kernel.shape[0]
        if side // 2 >= min(image.shape[-2:]):
            height, width = image.shape[-2:]
            raise UsageError(f"A {side} px blur kernel does not fit a picture of {height}x{width} px.")
        groups.setdefault((side, *image.shape), []).append(position)
    results = list(images)
    for positions in groups.values():
        members = [images[position] for position in positions]
        for position, filtered in zip(
            positions, _correlate_equal(members, [kernels[p] for p in positions]), strict=True
        ):
            results[position] = filtered
    return results


def needs_gradient(image: Tensor) -> bool:
    """Whether a gradient is going to be asked for."""
    return torch.is_grad_enabled() and image.requires_grad


def to_hwc(image: Tensor) -> np.ndarray:
    """(C, H, W) picture on the CPU as a contiguous (H, W, C) array, as OpenCV takes it."""
    return np.ascontiguousarray(image.detach().permute(1, 2, 0).numpy())


def from_hwc(array: np.ndarray) -> Tensor:
    """The inverse of `to_hwc`."""
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _correlate_equal(images: list[Tensor], kernels: list[Tensor]) -> list[Tensor]:
    first = images[0]
    by_opencv = first.device.type == "cpu" and first.dtype == torch.float32
    fast = [_by_opencv(image, kernel) for image, kernel in zip(images, kernels, strict=True)] if by_opencv else None
    if fast is not None and not any(needs_gradient(image) for image in images):
        return fast
    soft = list(_by_torch(torch.stack(images), torch.stack(kernels)).unbind(0))
    if fast is None:
        return soft
    return [value + (slope - slope.detach()) for value, slope in zip(fast, soft, strict=True)]


def _by_opencv(image: Tensor, kernel: Tensor) -> Tensor:
    return from_hwc(cv2.filter2D(to_hwc(image), -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101))


def _by_torch(stack: Tensor, kernels: Tensor) -> Tensor:
    count, channels = stack.shape[:2]
    side = kernels.shape[-1]
    pad = side // 2
    padded = F.pad(stack, (pad, pad, pad, pad), mode="reflect")
    if side > LARGEST_DIRECT_KERNEL or stack.dtype == torch.float64:
        return _by_fft(padded, kernels.to(stack), pad)
    weight = kernels.to(stack).repeat_interleave(channels, 0).unsqueeze(1)
    flat = padded.reshape(1, count * channels, *padded.shape[2:])
    return F.conv2d(flat, weight, groups=count * channels).reshape(stack.shape)


def _by_fft(padded: Tensor, kernels: Tensor, pad: int) -> Tensor:
    """Correlates padded pictures (B, C, H + 2 pad, W + 2 pad) with one odd, square kernel each (B, K, K).

    torch's convolution unfolds double-precision pictures: gigabytes at 512 px, and minutes.
    """
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.flip(-2, -1), s=size).unsqueeze(1)
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * pad :, 2 * pad :]
