"""Blurs: Gaussian, the kernel mixture of Real-ESRGAN, motion, and the median."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import (
    Operator,
    Parameters,
    check_number,
    check_odd,
    check_probability,
    check_range,
)
from bench.degradation.operators.filtering import by_planes, correlate, is_plain, needs_gradient
from bench.degradation.operators.kernels import (
    gaussian_kernel,
    generalised_gaussian_kernel,
    motion_kernel,
    plateau_kernel,
    sinc_kernel,
)
from bench.errors import UsageError, unknown_name

KERNEL_NAMES = (
    "isotropic",
    "anisotropic",
    "generalised_isotropic",
    "generalised_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
    "sinc",
)
SMALLEST_SIGMA = 1e-3
LARGEST_UNFOLDED = 1 << 24
# Fits a CPU's cache.
LARGEST_PARTITIONED = 1 << 20


class GaussianBlur(Operator):
    """Isotropic or anisotropic Gaussian blur with reflected borders.

    Args:
        sigma: Range of the standard deviation in pixels.
        kernel_size: Odd side of the truncated kernel in pixels.
        isotropic_probability: Chance of an isotropic kernel.
    """

    name = "gaussian_blur"

    def __init__(self, sigma: Sequence[float], kernel_size: int = 41, isotropic_probability: float = 0.5) -> None:
        self.sigma = check_range(self.name, "sigma", sigma, low=SMALLEST_SIGMA)
        self.kernel_size = check_odd(self.name, "kernel_size", kernel_size)
        self.isotropic_probability = check_probability(self.name, "isotropic_probability", isotropic_probability)

    def scaled(self, factor: float) -> GaussianBlur:
        """Scales sigma and the kernel's side, so that the truncation stays where it is in sigmas."""
        low, high = (max(SMALLEST_SIGMA, bound * factor) for bound in self.sigma)
        half = max(1, round(self.kernel_size // 2 * factor))
        return GaussianBlur((low, high), 2 * half + 1, self.isotropic_probability)

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
        """Filters every picture with its own kernel."""
        kernels = [
            gaussian_kernel(record["kernel_size"], record["sigma_x"], record["sigma_y"], record["angle"])
            for record in parameters
        ]
        return correlate(images, kernels)


class KernelBlur(Operator):
    """Blur with a kernel drawn from a mixture of families, as Real-ESRGAN does (BasicSR's `random_mixed_kernels`).

    Args:
        kernels: Weight of each family: isotropic, anisotropic, generalised_isotropic,
            generalised_anisotropic, plateau_isotropic, plateau_anisotropic, sinc. They need not sum to 1.
        sigma: Range of the scale along each axis in pixels.
        kernel_size: Range of the kernel's odd side in pixels, each odd side equally likely; or one side.
        beta_generalised: Range of the generalised Gaussian's shape, with 1 inside: half of the draws fall below 1.
        beta_plateau: The same of the plateau.
        cutoff: Range of the sinc's cut-off in radians per pixel; None is Real-ESRGAN's rule, [π/3, π] for sides
            below 13 and [π/5, π] otherwise.
    """

    name = "kernel_blur"

    def __init__(
        self,
        kernels: Mapping[str, float],
        sigma: Sequence[float] = (0.2, 3.0),
        kernel_size: int | Sequence[int] = (7, 21),
        beta_generalised: Sequence[float] = (0.5, 4.0),
        beta_plateau: Sequence[float] = (1.0, 2.0),
        cutoff: Sequence[float] | None = None,
    ) -> None:
        self.chances = _check_weights(self.name, kernels)
        self.sigma = check_range(self.name, "sigma", sigma, low=SMALLEST_SIGMA)
        self.kernel_size = check_odd_range(self.name, "kernel_size", kernel_size, low=3)
        self.beta_generalised = self._check_beta("beta_generalised", beta_generalised)
        self.beta_plateau = self._check_beta("beta_plateau", beta_plateau)
        self.cutoff = None if cutoff is None else check_range(self.name, "cutoff", cutoff, low=1e-3)
        if self.cutoff is not None and self.cutoff[1] > math.pi + 1e-3:
            raise UsageError(f"{self.name}.cutoff must not exceed pi radians per pixel, got {self.cutoff[1]}.")
        self.factor = 1.0

    def _check_beta(self, name: str, value: Sequence[float]) -> tuple[float, float]:
        low, high = check_range(self.name, name, value, low=1e-3)
        if not low <= 1 <= high:
            raise UsageError(f"{self.name}.{name} must have 1 inside, got [{low}, {high}].")
        return low, high

    def scaled(self, factor: float) -> KernelBlur:
        """Scales every length in the kernel: its side, sigma, and the wavelength of the cut-off."""
        copy = object.__new__(KernelBlur)
        copy.__dict__.update(self.__dict__, factor=self.factor * factor)
        return copy

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the family, the side and the shape for 512 px, then scales them."""
        kernel = str(rng.choice(list(self.chances), p=list(self.chances.values())))
        side = draw_odd(rng, self.kernel_size)
        record: Parameters = {"kernel": kernel, "kernel_size": 2 * max(1, round(side // 2 * self.factor)) + 1}
        if kernel == "sinc":
            cutoff = self.cutoff or (math.pi / (3 if side < 13 else 5), math.pi)
            return {**record, "cutoff": min(math.pi, float(rng.uniform(*cutoff)) / self.factor)}
        isotropic = not kernel.endswith("anisotropic")
        sigma_x, sigma_y = (float(value) * self.factor for value in rng.uniform(*self.sigma, size=2))
        angle = float(rng.uniform(-math.pi, math.pi))
        record |= {"sigma_x": sigma_x, "sigma_y": sigma_x if isotropic else sigma_y}
        record["angle"] = 0.0 if isotropic else angle
        if kernel.startswith(("generalised", "plateau")):
            low, high = self.beta_generalised if kernel.startswith("generalised") else self.beta_plateau
            record["beta"] = float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))
        return record

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Filters every picture with its own kernel, cut off where it reaches further than the picture.

        Kernels grow with the native size, and a step before may have made the picture as small as 16 px.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return correlate(images, [kernel_of(record, size) for record, size in zip(parameters, sizes, strict=True)])


def kernel_of(record: Parameters, size: tuple[int, int] | None = None) -> Tensor:
    """The kernel that a record of `kernel_blur` describes, (K, K) float64.

    Args:
        record: From `KernelBlur.sample`.
        size: (H, W) of the picture to be filtered, which bounds the side; None leaves it as recorded.

    Raises:
        UsageError: Unknown family.
    """
    family, side = record["kernel"], check_odd("kernel_blur", "kernel_size", record["kernel_size"])
    if family not in KERNEL_NAMES:
        raise unknown_name("kernel_blur kernel", str(family), KERNEL_NAMES)
    if size is not None:
        side = min(side, 2 * min(size) - 1)
    if family == "sinc":
        return sinc_kernel(side, record["cutoff"])
    shape = (side, record["sigma_x"], record["sigma_y"], record["angle"])
    if family.startswith("generalised"):
        return generalised_gaussian_kernel(*shape, record["beta"])
    if family.startswith("plateau"):
        return plateau_kernel(*shape, record["beta"])
    return gaussian_kernel(*shape)


class MotionBlur(Operator):
    """Blur along a straight line in a random direction; a line longer than the picture is cut off.

    Args:
        length: Range of the line's length in pixels.
    """

    name = "motion_blur"

    def __init__(self, length: Sequence[float]) -> None:
        self.length = check_range(self.name, "length", length)

    def scaled(self, factor: float) -> MotionBlur:
        """Scales the length."""
        return MotionBlur((self.length[0] * factor, self.length[1] * factor))

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the length and the direction."""
        return {"length": float(rng.uniform(*self.length)), "angle": float(rng.uniform(0, math.pi))}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Filters every picture along its own line."""
        lengths = [
            min(check_number(self.name, "length", record["length"]), 2.0 * (min(image.shape[-2:]) - 1))
            for image, record in zip(images, parameters, strict=True)
        ]
        pairs = zip(lengths, parameters, strict=True)
        return correlate(images, [motion_kernel(length, record["angle"]) for length, record in pairs])


class MedianBlur(Operator):
    """Median of a square window in each channel; the edge is repeated beyond the border.

    Args:
        kernel_size: Range of the window's odd side in pixels, each odd side equally likely; or one side. 1 is no blur.
    """

    name = "median_blur"

    def __init__(self, kernel_size: int | Sequence[int] = (3, 7)) -> None:
        self.kernel_size = check_odd_range(self.name, "kernel_size", kernel_size, low=1)
        self.factor = 1.0

    def scaled(self, factor: float) -> MedianBlur:
        """Scales the window; one that shrinks to a pixel does nothing."""
        copy = MedianBlur(self.kernel_size)
        copy.factor = self.factor * factor
        return copy

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the side for 512 px, then scales it."""
        return {"kernel_size": 2 * round(draw_odd(rng, self.kernel_size) // 2 * self.factor) + 1}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Filters every picture with its own window; the gradient goes to the pixel that was chosen."""
        return [_median(image, record["kernel_size"]) for image, record in zip(images, parameters, strict=True)]


def _median(image: Tensor, side: int) -> Tensor:
    if check_odd("median_blur", "kernel_size", side) == 1:
        return image
    fast = _median_by_opencv(image, side) if is_plain(image) else None
    if image.device.type == "cpu" and fast is None and not needs_gradient(image):
        return by_planes(image, lambda plane: _median_by_numpy(plane, side))
    if fast is not None and not needs_gradient(image):
        return fast
    soft = _median_by_torch(image, side)
    return soft if fast is None else fast + (soft - soft.detach())


def _median_by_opencv(image: Tensor, side: int) -> Tensor | None:
    """The median where OpenCV has one: windows above 5 px only of 8 bits, which is within half a level."""
    if side <= 5:
        return by_planes(image, lambda plane: cv2.medianBlur(plane, side))
    low, high = image.detach().aminmax()
    if low < 0 or high > 1:
        return None
    levels = by_planes(image, lambda plane: cv2.medianBlur((plane * 255 + 0.5).astype(np.uint8), side))
    return levels.to(image.dtype) / 255


def _median_by_numpy(plane: np.ndarray, side: int) -> np.ndarray:
    """The same values as torch's, in half to a third of the time; (H, W)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(plane, side // 2, mode="edge"), (side, side))
    result, middle = np.empty_like(plane), side * side // 2
    rows = max(1, LARGEST_PARTITIONED // (plane.shape[1] * side * side))
    for top in range(0, len(plane), rows):
        strip = windows[top : top + rows].reshape(-1, side * side)
        strip.partition(middle, axis=1)
        result[top : top + rows] = strip[:, middle].reshape(-1, plane.shape[1])
    return result


def _median_by_torch(image: Tensor, side: int) -> Tensor:
    half = side // 2
    padded = F.pad(image.unsqueeze(0), (half, half, half, half), mode="replicate").squeeze(0)
    # Unfolded, the picture grows by the window's area; strips of rows bound the memory.
    rows = max(1, LARGEST_UNFOLDED // (image.shape[0] * image.shape[2] * side * side))
    strips = []
    for top in range(0, image.shape[1], rows):
        strip = padded[:, top : min(top + rows, image.shape[1]) + 2 * half]
        windows = strip.unfold(1, side, 1).unfold(2, side, 1)
        strips.append(windows.flatten(-2).median(-1).values)
    return torch.cat(strips, 1)


def check_odd_range(operator: str, name: str, value: int | Sequence[int], low: int) -> tuple[int, int]:
    """Returns the range of an odd side.

    Raises:
        UsageError: Not one or two odd whole numbers of at least `low` in order.
    """
    sides = value if isinstance(value, list | tuple) else [value, value]
    first, last = check_range(operator, name, sides, low=low)
    if first % 2 != 1 or last % 2 != 1:
        raise UsageError(f"{operator}.{name} must be odd whole numbers, got {value}.")
    return int(first), int(last)


def draw_odd(rng: np.random.Generator, sides: tuple[int, int]) -> int:
    """One of the odd numbers from the first to the last, all equally likely."""
    return sides[0] + 2 * int(rng.integers((sides[1] - sides[0]) // 2 + 1))


def _check_weights(operator: str, weights: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError(f"{operator}.kernels must give weights by name, such as {{isotropic: 0.5, sinc: 0.1}}.")
    for name, weight in weights.items():
        if name not in KERNEL_NAMES:
            raise unknown_name(f"{operator} kernel", str(name), KERNEL_NAMES)
        check_number(operator, f"kernels.{name}", weight)
    total = sum(weights.values())
    if total <= 0:
        raise UsageError(f"{operator}.kernels needs a weight above 0.")
    return {name: weights[name] / total for name in KERNEL_NAMES if name in weights}
