"""A degradation T(x, θ): a list of operators that samples first and applies second."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.degradation.operator import Operator, Parameters
from bench.degradation.operators import OPERATORS
from bench.degradation.operators.control import build_steps, draw_steps
from bench.errors import BenchError, UsageError, unknown_name

PRESET_SIZE = 512
SMALLEST_PICTURE = 2
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
        self.operators = [operator.scaled(size / PRESET_SIZE) for operator in build_steps(name, steps)]
        self.steps = [dict(step) for step in steps]

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

        Raises:
            UsageError: A side of the pictures is a single pixel.
        """
        if min(size) < SMALLEST_PICTURE:
            raise UsageError(
                f"The picture of {size[0]}x{size[1]} px is too small to be degraded: each side needs at least "
                f"{SMALLEST_PICTURE} px."
            )
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
            UsageError: A record is no θ or cannot be applied, or a picture holds NaN before or after a step.
        """
        return replay(images, thetas)


def check_theta(theta: Any) -> None:
    """Checks that something read from a file has the form of θ; what its numbers mean is checked when it is applied.

    Raises:
        UsageError: It holds no list of steps, or one of them names no operator that can stand in θ.
    """
    steps = theta.get("steps") if isinstance(theta, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UsageError(f"theta must hold a list of steps ({{operator: name, ...}}), got {reprlib.repr(theta)}.")
    for step in steps:
        name = step.get("operator")
        if not isinstance(name, str) or name not in OPERATORS:
            raise unknown_name("degradation operator", str(name), OPERATORS)
        if OPERATORS[name].apply is Operator.apply:
            raise UsageError(f"{name} holds other steps and cannot be applied; theta lists the steps that it drew.")


def operator_versions(theta: Theta) -> dict[str, int]:
    """This version's number of each operator that a θ names, by name."""
    return {name: OPERATORS[name].version for name in sorted({step["operator"] for step in theta["steps"]})}


def replay(images: Tensor, thetas: Sequence[Theta]) -> Tensor:
    """Applies recorded parameters without their pipeline; see `DegradationPipeline.apply`."""
    if len(images) != len(thetas):
        raise UsageError(f"{len(images)} pictures but {len(thetas)} records of degradation parameters.")
    for theta in thetas:
        check_theta(theta)
    if not torch.isfinite(images.detach()).all():
        raise UsageError("A picture to be degraded holds NaN or infinite values.")
    if not thetas:
        return images
    pictures = list(images.unbind(0))
    waiting = [list(theta["steps"]) for theta in thetas]
    sums: list[tuple[str, Tensor]] = []
    while any(waiting):
        # Chains may differ between pictures: whatever most of them wait for goes next, as one batch.
        names = [steps[0]["operator"] for steps in waiting if steps]
        name = max(sorted(set(names)), key=names.count)
        rows = [row for row, steps in enumerate(waiting) if steps and steps[0]["operator"] == name]
        records = [waiting[row].pop(0) for row in rows]
        results = _applied(name, [pictures[row] for row in rows], records)
        for row, result in zip(rows, results, strict=True):
            pictures[row] = result
        # NaN and infinite values survive a sum. A GPU is asked once, at the end, so that it need not wait.
        sums.append((name, torch.stack([result.detach().sum() for result in results])))
        if not images.is_cuda:
            _check_finite([sums.pop()])
    _check_finite(sums)
    for picture, image in zip(pictures, images, strict=True):
        if picture.shape != image.shape:
            raise UsageError(
                f"The degradation turns a picture of {tuple(image.shape[1:])} into one of {tuple(picture.shape[1:])}. "
                "End its steps with resize_back."
            )
    return torch.stack(pictures)


def _applied(name: str, pictures: Sequence[Tensor], records: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Applies one operator to pictures, each with its own record."""
    parameters: list[Parameters] = [
        {key: value for key, value in record.items() if key != "operator"} for record in records
    ]
    # An operator without ranges: applying needs recorded parameters only.
    operator = object.__new__(OPERATORS[name])
    try:
        return operator.apply(pictures, parameters)
    except (BenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        described = reprlib.repr(parameters[0]) + (f" or one of {len(parameters) - 1} others" if parameters[1:] else "")
        reason = str(error).strip() or type(error).__name__
        raise UsageError(f"{name} cannot be applied with the record {described}: {reason.splitlines()[0]}") from error


def _check_finite(sums: Sequence[tuple[str, Tensor]]) -> None:
    for name, values in sums:
        if not torch.isfinite(values).all():
            raise UsageError(f"{name} turned a picture into NaN or infinite values: its record cannot be right.")
