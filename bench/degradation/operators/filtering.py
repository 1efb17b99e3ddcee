"""Filtering pictures with a kernel each: OpenCV where it is fastest, torch where a gradient or a GPU asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import UsageError

LARGEST_DIRECT_KERNEL = 15
# Above it, OpenCV's Fourier transform beats two passes with a line.
LARGEST_SEPARATE_KERNEL = 35


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


def is_plain(image: Tensor) -> bool:
    """Whether OpenCV may work on the picture: float32 on the CPU."""
    return image.device.type == "cpu" and image.dtype == torch.float32


def by_planes(image: Tensor, work: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Applies a function of OpenCV to each channel of a picture on the CPU, without its gradient."""
    planes = image.detach().contiguous().numpy()
    return torch.from_numpy(np.stack([work(plane) for plane in planes]))


def _correlate_equal(images: list[Tensor], kernels: list[Tensor]) -> list[Tensor]:
    fast = None
    if is_plain(images[0]):
        fast = [_by_opencv(image, kernel) for image, kernel in zip(images, kernels, strict=True)]
    if fast is not None and not any(needs_gradient(image) for image in images):
        return fast
    soft = list(_by_torch(torch.stack(images), torch.stack(kernels)).unbind(0))
    if fast is None:
        return soft
    return [value + (slope - slope.detach()) for value, slope in zip(fast, soft, strict=True)]


def _by_opencv(image: Tensor, kernel: Tensor) -> Tensor:
    column, row = kernel.sum(1), kernel.sum(0)
    border = cv2.BORDER_REFLECT_101
    if len(row) <= LARGEST_SEPARATE_KERNEL and float((torch.outer(column, row) - kernel).abs().max()) < 1e-12:
        lines = (row.numpy(), column.numpy())
        return by_planes(image, lambda plane: cv2.sepFilter2D(plane, -1, *lines, borderType=border))
    square = kernel.numpy()
    return by_planes(image, lambda plane: cv2.filter2D(plane, -1, square, borderType=border))


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
