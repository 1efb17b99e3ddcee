"""A degradation T(x, θ): a list of operators that samples first and applies second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.degradation.operators import OPERATORS
from bench.degradation.operators.control import build_steps, draw_steps
from bench.errors import UsageError, unknown_name

PRESET_SIZE = 512
Theta = dict[str, Any]


class DegradationPipeline:
    """A degradation for pictures of one native size.

    Args:
        name: Name of the preset.
        steps: One `{operator: name, ...ranges}` per step. Lengths are written for 512 px.
        size: Native side in pixels. Blur and downscale ranges are multiplied by size / 512.

    Raises:
        UsageError: A step is unknown or a range is upside down.
    """

    def __init__(self, name: str, steps: Sequence[dict[str, Any]], size: int = PRESET_SIZE) -> None:
        self.name = name
        self.size = size
        self.steps = [dict(step) for step in steps]
        self.operators = [operator.scaled(size / PRESET_SIZE) for operator in build_steps(name, self.steps)]

    def specification(self) -> dict[str, Any]:
        """Everything that decides what the pipeline does, operator versions included."""
        return {
            "name": self.name,
            "size": self.size,
            "steps": self.steps,
            "versions": {name: v for operator in self.operators for name, v in operator.versions().items()},
        }

    def sample(self, seeds: Sequence[int], size: tuple[int, int]) -> list[Theta]:
        """Draws θ for each picture from its own seed.

        Args:
            seeds: One seed per picture.
            size: (H, W) of the pictures.

        Returns:
            One JSON-serialisable record per picture.
        """
        return [
            {"preset": self.name, "seed": int(seed), "steps": draw_steps(self.operators, seed, size)} for seed in seeds
        ]

    def apply(self, images: Tensor, thetas: Sequence[Theta]) -> Tensor:
        """Degrades pictures with recorded parameters: T(x, θ).

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            thetas: One record per picture, from `sample`.

        Returns:
            Degraded pictures of the same shape, differentiable in `images`, bit-equal on replay on
            one device.

        Raises:
            UsageError: A record names an unknown operator, or a picture holds NaN.
        """
        return replay(images, thetas)


def replay(images: Tensor, thetas: Sequence[Theta]) -> Tensor:
    """Applies recorded parameters without their pipeline; see `DegradationPipeline.apply`."""
    if len(images) != len(thetas):
        raise UsageError(f"{len(images)} pictures but {len(thetas)} records of degradation parameters.")
    if not torch.isfinite(images.detach()).all():
        raise UsageError("A picture to be degraded holds NaN or infinite values.")
    if not thetas:
        return images
    pictures = list(images.unbind(0))
    waiting = [list(theta["steps"]) for theta in thetas]
    while any(waiting):
        # Chains may differ between pictures: whatever most of them wait for goes next, as one batch.
        names = [steps[0]["operator"] for steps in waiting if steps]
        name = max(sorted(set(names)), key=names.count)
        if name not in OPERATORS:
            raise unknown_name("degradation operator", str(name), OPERATORS)
        rows = [row for row, steps in enumerate(waiting) if steps and steps[0]["operator"] == name]
        records = [waiting[row].pop(0) for row in rows]
        parameters = [{key: value for key, value in record.items() if key != "operator"} for record in records]
        results = OPERATORS[name].apply(_stateless(name), [pictures[row] for row in rows], parameters)
        for row, result in zip(rows, results, strict=True):
            pictures[row] = result
    for picture, image in zip(pictures, images, strict=True):
        if picture.shape != image.shape:
            raise UsageError(
                f"The degradation turns a picture of {tuple(image.shape[1:])} into one of {tuple(picture.shape[1:])}. "
                "End its steps with resize_back."
            )
    return torch.stack(pictures)


def _stateless(name: str) -> Any:
    """An operator without ranges: applying needs recorded parameters only."""
    return object.__new__(OPERATORS[name])
