"""A degradation T(x, θ): a list of operators that samples first and applies second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.degradation.operators import OPERATORS, build_operator
from bench.errors import UsageError
from bench.seeds import derive_seed

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
        self.operators = [build_operator(step).scaled(size / PRESET_SIZE) for step in self.steps]

    def specification(self) -> dict[str, Any]:
        """Everything that decides what the pipeline does, operator versions included."""
        return {
            "name": self.name,
            "size": self.size,
            "steps": self.steps,
            "versions": {operator.name: operator.version for operator in self.operators},
        }

    def sample(self, seeds: Sequence[int], size: tuple[int, int]) -> list[Theta]:
        """Draws θ for each picture from its own seed.

        Args:
            seeds: One seed per picture.
            size: (H, W) of the pictures.

        Returns:
            One JSON-serialisable record per picture.
        """
        thetas = []
        for seed in seeds:
            steps = []
            for position, operator in enumerate(self.operators):
                rng = np.random.default_rng(derive_seed(seed, operator.name, position))
                steps.append({"operator": operator.name, **operator.sample(rng, size)})
            thetas.append({"preset": self.name, "seed": int(seed), "steps": steps})
        return thetas

    def apply(self, images: Tensor, thetas: Sequence[Theta]) -> Tensor:
        """Degrades pictures with recorded parameters: T(x, θ).

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            thetas: One record per picture, from `sample`.

        Returns:
            Degraded pictures of the same shape, differentiable in `images`, bit-equal on replay on
            one device.

        Raises:
            UsageError: A record belongs to another list of operators, or a picture holds NaN.
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
    chain = [step["operator"] for step in thetas[0]["steps"]]
    for theta in thetas:
        if [step["operator"] for step in theta["steps"]] != chain:
            raise UsageError("Degradation records of one batch must list the same operators in the same order.")
    pictures = list(images.unbind(0))
    for position, name in enumerate(chain):
        records = [{k: v for k, v in theta["steps"][position].items() if k != "operator"} for theta in thetas]
        pictures = OPERATORS[name].apply(_stateless(name), pictures, records)
    return torch.stack(pictures)


def _stateless(name: str) -> Any:
    """An operator without ranges: applying needs recorded parameters only."""
    return object.__new__(OPERATORS[name])
