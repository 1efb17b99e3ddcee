"""Changes of colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_number, check_range
from bench.errors import UsageError

LUMA = (0.299, 0.587, 0.114)
TORCHVISION_LUMA = (0.2989, 0.587, 0.114)


class ColourShift(Operator):
    """Adds a constant to each channel, clipped to [0, 1] (GFPGAN's `color_jitter`: [-20, 20]).

    Args:
        shift: Range of the constant in levels of 255; one number s is [-s, s].
    """

    name = "colour_shift"

    def __init__(self, shift: float | Sequence[float] = 20) -> None:
        bounds = shift if isinstance(shift, list | tuple) else (-check_number(self.name, "shift", shift), shift)
        self.shift = check_range(self.name, "shift", bounds, low=-255)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws one shift per channel."""
        return {"shift": [float(value) for value in rng.uniform(*self.shift, size=3)]}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Shifts every picture's channels."""
        return [
            (image + image.new_tensor(record["shift"]).div(255)[:, None, None]).clamp(0, 1)
            for image, record in zip(images, parameters, strict=True)
        ]


class ColourJitter(Operator):
    """Brightness, contrast, saturation and hue in random order (GFPGAN's `color_jitter_pt`, torchvision's functions).

    Args:
        brightness: Range of the factor on the picture.
        contrast: Range of the factor on the distance to the mean grey.
        saturation: Range of the factor on the distance to the own grey.
        hue: Range of the turn of the hue, in whole turns from -0.5 to 0.5.
    """

    name = "colour_jitter"

    def __init__(
        self,
        brightness: Sequence[float] = (0.5, 1.5),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.0, 1.5),
        hue: Sequence[float] = (-0.1, 0.1),
    ) -> None:
        self.ranges = {
            "brightness": check_range(self.name, "brightness", brightness),
            "contrast": check_range(self.name, "contrast", contrast),
            "saturation": check_range(self.name, "saturation", saturation),
            "hue": check_range(self.name, "hue", hue, low=-0.5),
        }
        if self.ranges["hue"][1] > 0.5:
            raise UsageError(f"{self.name}.hue must not exceed 0.5, got {list(hue)}.")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the order and the four factors."""
        names = list(self.ranges)
        order = [names[int(position)] for position in rng.permutation(len(names))]
        return {"order": order, **{name: float(rng.uniform(*self.ranges[name])) for name in names}}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Changes every picture in its own order."""
        results = []
        for image, record in zip(images, parameters, strict=True):
            changed = image
            for name in record["order"]:
                changed = _CHANGES[name](changed, record[name])
            results.append(changed)
        return results


class Grey(Operator):
    """Turns the picture grey, in three equal channels (luminance of BT.601, as OpenCV)."""

    name = "grey"

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws nothing."""
        return {}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Replaces every channel by the luminance."""
        return [luminance(image, LUMA).expand_as(image).contiguous() for image in images]


def luminance(image: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Weighted sum of the channels, (3, H, W) to (1, H, W)."""
    return weights[0] * image[0:1] + weights[1] * image[1:2] + weights[2] * image[2:3]


def _brightness(image: Tensor, factor: float) -> Tensor:
    return (image * factor).clamp(0, 1)


def _contrast(image: Tensor, factor: float) -> Tensor:
    return (image * factor + luminance(image, TORCHVISION_LUMA).mean() * (1 - factor)).clamp(0, 1)


def _saturation(image: Tensor, factor: float) -> Tensor:
    return (image * factor + luminance(image, TORCHVISION_LUMA) * (1 - factor)).clamp(0, 1)


def _hue(image: Tensor, turn: float) -> Tensor:
    """Turns the hue and keeps HSV's saturation and value, without divisions by zero in the gradient."""
    value, chroma = image.amax(0), image.amax(0) - image.amin(0)
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = image
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    turned = sextant + 6 * turn
    channels = [(turned + offset).remainder(6) for offset in (5.0, 3.0, 1.0)]
    return torch.stack([value - chroma * torch.minimum(channel, 4 - channel).clamp(0, 1) for channel in channels])


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
