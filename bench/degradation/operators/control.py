"""Steps that hold other steps: taken with a probability, one of several, or in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.degradation.operator import Operator, Step, check_number, check_probability
from bench.errors import UsageError, unknown_name
from bench.seeds import derive_seed

Steps = Sequence[dict[str, Any]]
CHOICE_KEYS = ("weight", "steps")


def draw_steps(operators: Sequence[Operator], seed: int, size: tuple[int, int]) -> list[Step]:
    """θ of operators in a row, each drawn from a seed of its own."""
    return [
        step
        for position, operator in enumerate(operators)
        for step in operator.draw(derive_seed(seed, operator.name, position), size)
    ]


def build_steps(owner: str, steps: Steps) -> list[Operator]:
    """Builds the operators of a list of steps.

    Raises:
        UsageError: It is not a list of steps, or one of them is wrong.
    """
    from bench.degradation.operators import build_operator

    if not isinstance(steps, Sequence) or not all(isinstance(step, Mapping) for step in steps):
        raise UsageError(f"{owner} takes a list of steps ({{operator: name, ...}}), got {steps!r}.")
    return [build_operator(dict(step)) for step in steps]


class _Holder(Operator):
    """An operator that stands for others and leaves no record of its own in θ."""

    operators: list[Operator]

    def versions(self) -> dict[str, int]:
        """Versions of this operator and of everything it holds."""
        held = {name: version for operator in self.operators for name, version in operator.versions().items()}
        return {self.name: self.version, **held}

    def scaled(self, factor: float) -> _Holder:
        """The same with every held operator scaled."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, operators=[operator.scaled(factor) for operator in self.operators])
        return copy


class Maybe(_Holder):
    """Takes its steps with a probability, all or none.

    Args:
        probability: Chance that they are taken.
        steps: What is taken.
    """

    name = "maybe"

    def __init__(self, probability: float, steps: Steps) -> None:
        self.probability = check_probability(self.name, "probability", probability)
        self.operators = build_steps(self.name, steps)

    def draw(self, seed: int, size: tuple[int, int]) -> list[Step]:
        """Draws whether, then the steps."""
        taken = np.random.default_rng(seed).random() < self.probability
        return draw_steps(self.operators, seed, size) if taken else []


class CleanPassThrough(_Holder):
    """Leaves the picture clean with a probability, and degrades it otherwise (PFStorer's p_HQ).

    Args:
        probability: Chance of a clean picture.
        otherwise: Steps of the degradation.
    """

    name = "clean_pass_through"

    def __init__(self, probability: float, otherwise: Steps) -> None:
        self.probability = check_probability(self.name, "probability", probability)
        self.operators = build_steps(self.name, otherwise)

    def draw(self, seed: int, size: tuple[int, int]) -> list[Step]:
        """Draws whether the picture stays clean, then the steps."""
        clean = np.random.default_rng(seed).random() < self.probability
        return [] if clean else draw_steps(self.operators, seed, size)


class OneOf(_Holder):
    """Takes one of several lists of steps.

    Args:
        choices: `{weight: number, steps: [...]}` each; the weights need not sum to 1.
    """

    name = "one_of"

    def __init__(self, choices: Sequence[dict[str, Any]]) -> None:
        if not isinstance(choices, list | tuple) or not all(isinstance(choice, Mapping) for choice in choices):
            raise UsageError(f"one_of.choices must be a list of {{weight: number, steps: [...]}}, got {choices!r}.")
        for choice in choices:
            if unknown := [key for key in choice if key not in CHOICE_KEYS]:
                raise unknown_name("key of a choice of one_of", str(unknown[0]), CHOICE_KEYS)
            if "steps" not in choice:
                raise UsageError(f"A choice of one_of has no steps: {dict(choice)!r}.")
        weights = [check_number(self.name, "choices.weight", choice.get("weight", 1.0)) for choice in choices]
        if not weights or sum(weights) == 0:
            raise UsageError("one_of.choices needs at least one choice with a weight above 0.")
        self.chances = [weight / sum(weights) for weight in weights]
        self.operators = [_Sequence(choice["steps"]) for choice in choices]

    def draw(self, seed: int, size: tuple[int, int]) -> list[Step]:
        """Draws which, then its steps."""
        chosen = int(np.random.default_rng(seed).choice(len(self.chances), p=self.chances))
        return self.operators[chosen].draw(derive_seed(seed, "choice", chosen), size)


class _Sequence(_Holder):
    """Steps in a row: one choice of `one_of`."""

    def __init__(self, steps: Steps) -> None:
        self.operators = build_steps("one_of.choices", steps)

    def versions(self) -> dict[str, int]:
        return {name: version for operator in self.operators for name, version in operator.versions().items()}

    def draw(self, seed: int, size: tuple[int, int]) -> list[Step]:
        return draw_steps(self.operators, seed, size)


class Shuffle(_Holder):
    """Takes its steps in random order.

    Args:
        steps: What is shuffled.
    """

    name = "shuffle"

    def __init__(self, steps: Steps) -> None:
        self.operators = build_steps(self.name, steps)

    def draw(self, seed: int, size: tuple[int, int]) -> list[Step]:
        """Draws the order, then each step."""
        order = [int(position) for position in np.random.default_rng(seed).permutation(len(self.operators))]
        return [
            step
            for position in order
            for step in self.operators[position].draw(derive_seed(seed, "shuffled", position), size)
        ]
