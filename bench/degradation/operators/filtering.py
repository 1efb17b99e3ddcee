"""Filtering pictures with a kernel each: OpenCV where it is fastest, torch where a gradient or a GPU asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from bench.errors import UsageError

LARGEST_DIRECT_KERNEL = 15
# On the CPU in float32, at 512 px: above these sides the Fourier transform is faster.
LARGEST_OPENCV_KERNEL = 11
LARGEST_SEPARABLE_KERNEL = 27


def correlate(images: Sequence[Tensor], kernels: Sequence[Tensor]) -> list[Tensor]:
    """Correlates every picture with its own kernel; borders are reflected without repeating the edge.

    On the CPU pictures are filtered one by one, so that none depends on its batch. In float32 there, OpenCV filters
    with small and separable kernels; its values stay where a gradient is asked for, which is torch's.

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
        if images[positions[0]].device.type == "cpu":
            for position in positions:
                results[position] = _on_cpu(images[position], kernels[position])
            continue
        stack = torch.stack([images[position] for position in positions])
        filtered = _by_torch(stack, torch.stack([kernels[position] for position in positions]))
        for position, result in zip(positions, filtered.unbind(0), strict=True):
            results[position] = result
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


def _on_cpu(image: Tensor, kernel: Tensor) -> Tensor:
    if is_plain(image):
        kernel = _without_margin(kernel)
    fast = _by_opencv(image, kernel) if is_plain(image) else None
    if fast is not None and not needs_gradient(image):
        return fast
    soft = _by_torch(image.unsqueeze(0), kernel.unsqueeze(0)).squeeze(0)
    return soft if fast is None else fast + (soft - soft.detach())


def _without_margin(kernel: Tensor) -> Tensor:
    """The kernel without outer rings that together weigh less than float32 resolves."""
    half = kernel.shape[0] // 2
    offsets = torch.arange(-half, half + 1).abs()
    rings = torch.zeros(half + 1, dtype=kernel.dtype)
    rings.index_add_(0, torch.maximum(offsets[:, None], offsets[None]).flatten(), kernel.abs().flatten())
    margin = int((rings.flip(0).cumsum(0) < 1e-8).sum())
    return kernel[margin : kernel.shape[0] - margin, margin : kernel.shape[1] - margin]


def _by_opencv(image: Tensor, kernel: Tensor) -> Tensor | None:
    """The filtered picture where OpenCV is the fastest."""
    side = kernel.shape[0]
    border = cv2.BORDER_REFLECT_101
    column, row = kernel.sum(1), kernel.sum(0)
    if side <= LARGEST_SEPARABLE_KERNEL and float((torch.outer(column, row) - kernel).abs().max()) < 1e-12:
        lines = (row.contiguous().numpy(), column.contiguous().numpy())
        return by_planes(image, lambda plane: cv2.sepFilter2D(plane, -1, *lines, borderType=border))
    if side <= LARGEST_OPENCV_KERNEL:
        square = kernel.contiguous().numpy()
        return by_planes(image, lambda plane: cv2.filter2D(plane, -1, square, borderType=border))
    return None


def _by_torch(stack: Tensor, kernels: Tensor) -> Tensor:
    count, channels = stack.shape[:2]
    side = kernels.shape[-1]
    pad = side // 2
    padded = F.pad(stack, (pad, pad, pad, pad), mode="reflect")
    on_cpu = stack.device.type == "cpu"
    if side > (LARGEST_OPENCV_KERNEL if on_cpu else LARGEST_DIRECT_KERNEL) or stack.dtype == torch.float64:
        return _by_fft(padded, kernels.to(stack), pad)
    weight = kernels.to(stack).repeat_interleave(channels, 0).unsqueeze(1)
    flat = padded.reshape(1, count * channels, *padded.shape[2:])
    return F.conv2d(flat, weight, groups=count * channels).reshape(stack.shape)


def _by_fft(padded: Tensor, kernels: Tensor, pad: int) -> Tensor:
    """Correlates padded pictures (B, C, H + 2 pad, W + 2 pad) with one odd, square kernel each (B, K, K).

    torch's convolution unfolds double-precision pictures: gigabytes at 512 px, and minutes.
    """
    height, width = padded.shape[-2:]
    inside = (..., slice(2 * pad, height), slice(2 * pad, width))
    if padded.dtype == torch.float64:
        # Frozen pictures are made in double precision: their bits stay those of the exact size.
        size = (height, width)
        spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.flip(-2, -1), s=size).unsqueeze(1)
        return torch.fft.irfft2(spectrum, s=size)[inside]
    size = (next_fast_len(height, real=True), next_fast_len(width, real=True))
    transfer = torch.fft.rfft2(kernels.flip(-2, -1), s=size).unsqueeze(1)
    # One channel at a time stays in a CPU's cache and in memory that the process already holds: half the time.
    parts = padded.split(1, dim=1) if padded.device.type == "cpu" else (padded,)
    return torch.cat([torch.fft.irfft2(torch.fft.rfft2(part, s=size) * transfer, s=size)[inside] for part in parts], 1)
