"""A network of named parts, trained part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from bench.errors import unknown_name


class StagedNetwork(nn.Module):
    """A denoiser whose parameters belong to parts, some of which a stage of training moves.

    Attributes:
        PARTS: Prefix of parameter names -> part of the network, for stages of training.
        STAGES: Stage of training -> parts that it trains.
    """

    PARTS: ClassVar[Mapping[str, str]]
    STAGES: ClassVar[Mapping[str, tuple[str, ...]]]

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass instead of keeping them: less memory, a slower step."""
        raise NotImplementedError

    def compile_regions(self, **options: Any) -> None:
        """Compiles the network's blocks in place; arguments as `torch.compile`."""
        raise NotImplementedError

    @classmethod
    def part_of(cls, parameter: str) -> str:
        """To which part of `STAGES` a parameter belongs, by its name.

        Raises:
            ValueError: To none.
        """
        for prefix, part in cls.PARTS.items():
            if parameter.startswith(prefix):
                return part
        raise ValueError(f"{parameter} belongs to no part of this network")

    @property
    def left_out(self) -> set[str]:
        """Parts of `STAGES` that the settings left out."""
        return set()

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Freezes everything but the parts of a stage, and returns these.

        Raises:
            UsageError: There is no such stage.
        """
        if stage not in self.STAGES:
            raise unknown_name("value of method.training.stage", stage, self.STAGES)
        chosen = []
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.part_of(name) in self.STAGES[stage])
            if parameter.requires_grad:
                chosen.append(parameter)
        return chosen
