"""A trained network as restoration runs it: in the type, memory layout and compilation that settings ask for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

from bench.errors import unknown_name

INFERENCE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Compilable(Protocol):
    def compile_regions(self) -> None: ...


Network = TypeVar("Network", bound=nn.Module)


class InferenceNetwork:
    """Makes the network for inference when it is first asked for, and again whenever weights or device have changed.

    Args:
        settings: `inference_dtype`: `float32`, `bfloat16` or `auto`, which is bfloat16 on a GPU with the preset `fast`
            and else float32. `channels_last`; `compile`.
        preset: The sampling preset.

    Raises:
        UsageError: There is no such type.
    """

    def __init__(self, settings: Mapping[str, Any], preset: str) -> None:
        self._type = settings.get("inference_dtype") or "auto"
        if self._type not in ("auto", *INFERENCE_TYPES):
            raise unknown_name("value of method.inference_dtype", self._type, ("auto", *INFERENCE_TYPES))
        self._preset = preset
        self._channels_last = bool(settings.get("channels_last", True))
        self._compile = bool(settings.get("compile", False))
        self._made: tuple[tuple[object, ...], nn.Module] | None = None

    def forget(self) -> None:
        """Makes the network anew when it is next asked for: something else changed the source's layout."""
        self._made = None

    def of(self, source: Network, device: torch.device) -> Network:
        """The network for inference: in float32 the source itself, in bfloat16 a copy.

        Args:
            source: A network with `compile_regions`, none of it in training.
            device: Where it is.
        """
        name = self._type
        if name == "auto":
            name = "bfloat16" if device.type == "cuda" and self._preset == "fast" else "float32"
        state = (id(source), device, name, _writes(source))
        if self._made is None or self._made[0] != state:
            with torch.inference_mode(False):
                network = source if name == "float32" else copy.deepcopy(source).to(INFERENCE_TYPES[name])
                if self._channels_last:
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                if self._compile:
                    cast(_Compilable, network).compile_regions()
            self._made = ((id(source), device, name, _writes(source)), network)
        return cast(Network, self._made[1])


def _writes(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is written in place or replaced, as by loading weights."""
    return tuple(
        (id(parameter), 0 if parameter.is_inference() else parameter._version) for parameter in network.parameters()
    )
