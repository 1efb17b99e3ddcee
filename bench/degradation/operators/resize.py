"""Changes of size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_names, check_number, check_probability, check_range
from bench.degradation.operators.filtering import by_planes, is_plain, needs_gradient
from bench.errors import UsageError, unknown_name

SMALLEST_SIDE = 16
LARGEST_SIDE = 1 << 16
INTERPOLATIONS = ("area", "bilinear", "bicubic", "bicubic_antialiased")
# The same weights as torch, ten times as fast on a CPU; a gradient is torch's.
_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
DIRECTIONS = ("up", "down", "keep")


class Downscale(Operator):
    """Resize by a factor; below 1 it enlarges.

    Args:
        scale: Range of the factor the side is divided by.
        interpolation: `bilinear`, `bicubic` (both without antialiasing), `bicubic_antialiased`, `area`, or a list of
            them to draw from.
    """

    name = "downscale"

    def __init__(self, scale: Sequence[float], interpolation: str | Sequence[str] = "bilinear") -> None:
        self.scale = check_range(self.name, "scale", scale, low=1e-3)
        self.interpolations = check_interpolations(self.name, "interpolation", interpolation)

    def scaled(self, factor: float) -> Downscale:
        """Scales the range, so that the smallest picture keeps its size in pixels; never to below a factor of 1."""
        low, high = (max(1.0, bound * factor) if bound > 1 else bound for bound in self.scale)
        return Downscale((low, high), self.interpolations)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the factor and fixes the size in pixels, rounded down as in the published chains."""
        scale = float(rng.uniform(*self.scale))
        height, width = (max(SMALLEST_SIDE, int(side / scale)) for side in size)
        return {"height": height, "width": width, **_draw_interpolation(rng, self.interpolations)}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Resizes every picture to its own size."""
        return [
            resize(image, (record["height"], record["width"]), record.get("interpolation", "bilinear"))
            for image, record in zip(images, parameters, strict=True)
        ]


class ResizeBack(Operator):
    """Resize to the size the picture had when the degradation started.

    Args:
        interpolation: As in `downscale`.
    """

    name = "resize_back"

    def __init__(self, interpolation: str | Sequence[str] = "bilinear") -> None:
        self.interpolations = check_interpolations(self.name, "interpolation", interpolation)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Records the size; draws the interpolation where there are several."""
        return {"height": size[0], "width": size[1], **_draw_interpolation(rng, self.interpolations)}

    apply = Downscale.apply


class Resize(Operator):
    """Random resize up, down, or to the same size, as in Real-ESRGAN. Not clipped: bicubic may leave [0, 1].

    Args:
        probabilities: Weights of `up`, `down` and `keep`; they need not sum to 1.
        down: Range of the factor on the side when it shrinks, up to 1.
        up: Range of the factor when it grows, from 1.
        interpolations: Drawn from equally: `area`, `bilinear`, `bicubic`, `bicubic_antialiased`.
        base: What the starting side is divided by before the factors multiply it: 4 in the second resize of
            Real-ESRGAN x4.
    """

    name = "resize"

    def __init__(
        self,
        probabilities: Mapping[str, float] | None = None,
        down: Sequence[float] = (0.15, 1.0),
        up: Sequence[float] = (1.0, 1.5),
        interpolations: str | Sequence[str] = ("area", "bilinear", "bicubic"),
        base: float = 1.0,
    ) -> None:
        weights = {"up": 0.2, "down": 0.7, "keep": 0.1} if probabilities is None else probabilities
        self.chances = self._check_chances(weights)
        self.down = check_range(self.name, "down", down, low=1e-3)
        self.up = check_range(self.name, "up", up, low=1.0)
        if self.down[1] > 1:
            raise UsageError(f"{self.name}.down must not exceed 1, got {list(down)}.")
        self.interpolations = check_interpolations(self.name, "interpolations", interpolations)
        self.base = check_number(self.name, "base", base, low=1.0)

    def _check_chances(self, weights: Mapping[str, float]) -> dict[str, float]:
        if not isinstance(weights, Mapping):
            raise UsageError(f"{self.name}.probabilities must be {{up: p, down: p, keep: p}}, got {weights!r}.")
        for name, weight in weights.items():
            if name not in DIRECTIONS:
                raise unknown_name(f"{self.name} direction", str(name), DIRECTIONS)
            check_probability(self.name, f"probabilities.{name}", weight)
        total = sum(weights.values())
        if total <= 0:
            raise UsageError(f"{self.name}.probabilities needs one above 0.")
        return {name: weights[name] / total for name in DIRECTIONS if name in weights}

    def scaled(self, factor: float) -> Resize:
        """Scales what is below 1, so that the smallest picture keeps its size in pixels; enlarging stays."""
        base = max(1.0, self.base * factor) if self.base > 1 else 1.0
        low, high = (min(1.0, bound * base / self.base / factor) if bound < 1 else 1.0 for bound in self.down)
        return Resize(self.chances, (low, high), self.up, self.interpolations, base)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws direction, factor and interpolation, and fixes the size in pixels, rounded down."""
        direction = str(rng.choice(list(self.chances), p=list(self.chances.values())))
        scale = float(rng.uniform(*(self.up if direction == "up" else self.down)))
        share = 1.0 if direction == "keep" else scale
        height, width = (max(SMALLEST_SIDE, int(side * share / self.base)) for side in size)
        return {"height": height, "width": width, **_draw_interpolation(rng, self.interpolations)}

    apply = Downscale.apply


class BicubicDownscale(Operator):
    """MATLAB's antialiased bicubic reduction by a whole factor: the task of super-resolution.

    Args:
        factor: What the side is divided by, whatever the native size; the result is rounded up.
    """

    name = "bicubic_downscale"

    def __init__(self, factor: int = 8) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise UsageError(f"{self.name}.factor must be a whole number of at least 1, got {factor!r}.")
        self.factor = factor

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Records the factor; draws nothing."""
        return {"factor": self.factor}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Reduces every picture."""
        return [matlab_downscale(image, record["factor"]) for image, record in zip(images, parameters, strict=True)]


def resize(image: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resizes a (C, H, W) picture; aligned at the outer edges of the corner pixels.

    Args:
        image: The picture.
        size: (H, W) in pixels.
        interpolation: One of `INTERPOLATIONS`.

    Raises:
        UsageError: Unknown interpolation, or a side that is no whole number from 1 to `LARGEST_SIDE`.
    """
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", str(interpolation), INTERPOLATIONS)
    if not all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in size):
        raise UsageError(f"A picture cannot be resized to {size[0]!r}x{size[1]!r} px (1 to {LARGEST_SIDE}).")
    if tuple(image.shape[-2:]) == size:
        return image
    if interpolation == "area":
        return F.interpolate(image.unsqueeze(0), size=size, mode="area").squeeze(0)
    fast = None
    if is_plain(image) and interpolation in _OPENCV:
        shape, code = size[::-1], _OPENCV[interpolation]
        fast = by_planes(image, lambda plane: cv2.resize(plane, shape, interpolation=code))
        if not needs_gradient(image):
            return fast
    mode, _, antialiased = interpolation.partition("_")
    soft = F.interpolate(
        image.unsqueeze(0), size=size, mode=mode, align_corners=False, antialias=bool(antialiased)
    ).squeeze(0)
    return soft if fast is None else fast + (soft - soft.detach())


def matlab_downscale(image: Tensor, factor: int) -> Tensor:
    """`imresize(image, 1 / factor)` of MATLAB: antialiased bicubic, edges mirrored; (C, ⌈H/f⌉, ⌈W/f⌉)."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise UsageError(f"bicubic_downscale: the factor must be a whole number of at least 1, got {factor!r}.")
    if factor == 1:
        return image
    height, width = (math.ceil(side / factor) for side in image.shape[-2:])
    padded = image
    for dimension, (side, count) in enumerate(zip(image.shape[-2:], (height, width), strict=True), start=1):
        # Two result pixels on each side: as far as the widened cubic reaches.
        indices = np.pad(np.arange(side), (2 * factor, (count + 2) * factor - side), mode="symmetric")
        padded = padded.index_select(dimension, torch.from_numpy(indices).to(image.device))
    reduced = resize(padded, (height + 4, width + 4), "bicubic_antialiased")
    return reduced[:, 2:-2, 2:-2].contiguous()


def check_interpolations(operator: str, argument: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """Returns names of interpolations as a tuple.

    Raises:
        UsageError: None, or an unknown one.
    """
    return check_names(operator, argument, value, INTERPOLATIONS)


def _draw_interpolation(rng: np.random.Generator, names: tuple[str, ...]) -> Parameters:
    """Draws only where there is a choice; bilinear alone is not recorded."""
    if names == ("bilinear",):
        return {}
    return {"interpolation": names[int(rng.integers(len(names)))] if len(names) > 1 else names[0]}
