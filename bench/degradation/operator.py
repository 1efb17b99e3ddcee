"""What every degradation operator implements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from bench.errors import UsageError, unknown_name

Parameters = dict[str, Any]
Step = dict[str, Any]


class Operator:
    """One step of a degradation: samples its parameters first, applies them second.

    A subclass sets `name` and `version` (raised whenever its output changes), takes its ranges as
    keyword arguments, and implements `sample`, `apply` and, where a range is a length in pixels,
    `scaled`. Pictures are (3, H, W) RGB in [0, 1]; those of one call may differ in size.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def versions(self) -> dict[str, int]:
        """Versions of this operator and of those it holds, by name."""
        return {self.name: self.version}

    def scaled(self, factor: float) -> Operator:
        """The operator for pictures whose side is `factor` times the one its ranges are written for."""
        return self

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws parameters for one picture.

        Args:
            rng: The picture's own generator.
            size: (H, W) of the picture when the degradation starts.

        Returns:
            Built-in numbers and strings only, so that the record can be written as JSON.
        """
        raise NotImplementedError

    def draw(self, seed: int, size: tuple[int, int]) -> list[Step]:
        """Draws what this operator contributes to θ: `{operator: name, **parameters}` records.

        Args:
            seed: Seed of this operator for this picture.
            size: (H, W) of the picture when the degradation starts.
        """
        return [{"operator": self.name, **self.sample(np.random.default_rng(seed), size)}]

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Applies each picture's parameters to it; differentiable in the pictures."""
        raise NotImplementedError


def check_range(operator: str, name: str, value: Any, low: float = 0.0) -> tuple[float, float]:
    """Returns a range as two floats.

    Raises:
        UsageError: Not two numbers, upside down, or below `low`.
    """
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(is_number(part) for part in value):
        raise UsageError(f"{operator}.{name} must be two numbers [low, high], got {value!r}.")
    first, last = float(value[0]), float(value[1])
    if not low <= first <= last < math.inf:
        raise UsageError(f"{operator}.{name} must be [low, high] with {low} <= low <= high, got {list(value)}.")
    return first, last


def check_number(operator: str, name: str, value: Any, low: float = 0.0) -> float:
    """Returns a number as a float.

    Raises:
        UsageError: Not a finite number of at least `low`.
    """
    if not is_number(value) or not low <= value < math.inf:
        raise UsageError(f"{operator}.{name} must be a number of at least {low}, got {value!r}.")
    return float(value)


def check_names(operator: str, name: str, value: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Returns one name or several as a tuple.

    Raises:
        UsageError: Neither a name nor a list of names, none at all, or an unknown one.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise UsageError(f"{operator}.{name} must be a name or a list of names, got {value!r}.")
    if not names:
        raise UsageError(f"{operator}.{name} needs at least one of {', '.join(known)}.")
    for one in names:
        if one not in known:
            raise unknown_name(f"{operator} {name.removesuffix('s')}", one, known)
    return tuple(names)


def check_odd(operator: str, name: str, value: int, low: int = 1) -> int:
    """Returns an odd whole number.

    Raises:
        UsageError: Not one of at least `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or value % 2 == 0:
        raise UsageError(f"{operator}.{name} must be an odd whole number of at least {low}, got {value!r}.")
    return value


def is_number(value: object) -> bool:
    """Whether a value is a number; strings of digits and truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_probability(operator: str, name: str, value: float) -> float:
    """Returns a probability as a float.

    Raises:
        UsageError: Not a number from 0 to 1.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise UsageError(f"{operator}.{name} must be a number from 0 to 1, got {value!r}.")
    return float(value)


def by_shape(images: Sequence[Tensor], work: Callable[[list[int]], Tensor]) -> list[Tensor]:
    """Runs `work` once for each group of equally sized pictures and puts the results back in order.

    Args:
        images: Pictures, (3, H, W) each.
        work: Takes the positions of one group and returns its results, stacked in the same order.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(position)
    results: dict[int, Tensor] = {}
    for positions in groups.values():
        results.update(zip(positions, work(positions).unbind(0), strict=True))
    return [results[position] for position in range(len(images))]
