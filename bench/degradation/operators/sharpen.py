"""Sharpening."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_number, check_odd
from bench.degradation.operators.filtering import by_planes, correlate, needs_gradient
from bench.errors import UsageError


class UnsharpMask(Operator):
    """Unsharp masking that leaves flat areas alone (BasicSR's `usm_sharp`; Real-ESRGAN's ground truth).

    Args:
        weight: Share of the detail that is added.
        radius: Side of the Gaussian's kernel in pixels; an even one grows by 1. Its sigma follows OpenCV's rule
            0.3 ((side - 1) / 2 - 1) + 0.8.
        threshold: Detail below it, in levels of 255, is not sharpened.
    """

    name = "usm_sharpen"

    def __init__(self, weight: float = 0.5, radius: float = 50, threshold: float = 10) -> None:
        self.weight = check_number(self.name, "weight", weight)
        self.threshold = check_number(self.name, "threshold", threshold)
        self.radius = check_number(self.name, "radius", radius, low=1e-3)

    def scaled(self, factor: float) -> UnsharpMask:
        """Scales the radius."""
        return UnsharpMask(self.weight, self.radius * factor, self.threshold)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Records the settings; draws nothing."""
        side = max(3, 2 * (int(self.radius) // 2) + 1)
        return {"weight": self.weight, "kernel_size": side, "threshold": self.threshold}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Sharpens every picture; the gradient takes the mask as given."""
        sides = [check_odd(self.name, "kernel_size", record["kernel_size"]) for record in parameters]
        details = [image - smooth for image, smooth in zip(images, _smooth(images, sides), strict=True)]
        masks = [
            (detail.detach().abs() * 255 > record["threshold"]).to(detail)
            for detail, record in zip(details, parameters, strict=True)
        ]
        softened = _smooth(masks, sides)
        return [
            mask * (image + record["weight"] * detail).clamp(0, 1) + (1 - mask) * image
            for image, detail, mask, record in zip(images, details, softened, parameters, strict=True)
        ]


def _smooth(images: Sequence[Tensor], sides: Sequence[int]) -> list[Tensor]:
    """Gaussian blur of a kernel side each; on the CPU the values are OpenCV's, row by row and column by column."""
    results: list[Tensor] = []
    for image, side in zip(images, sides, strict=True):
        if side // 2 >= min(image.shape[-2:]):
            raise UsageError(f"A {side} px sharpening kernel does not fit a picture of {tuple(image.shape[-2:])} px.")
        on_cpu = image.device.type == "cpu"
        if not on_cpu or needs_gradient(image):
            line = torch.from_numpy(cv2.getGaussianKernel(side, 0)).squeeze(1)
            (soft,) = correlate([image], [torch.outer(line, line)])
        if not on_cpu:
            results.append(soft)
            continue
        fast = by_planes(image, functools.partial(cv2.GaussianBlur, ksize=(side, side), sigmaX=0))
        results.append(fast + (soft - soft.detach()) if needs_gradient(image) else fast)
    return results
