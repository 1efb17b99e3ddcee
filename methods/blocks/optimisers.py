"""AdamW in the forms that large networks are trained with, and what an optimiser has gathered as tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.errors import MissingError

KINDS = ("adamw", "fused", "8bit")


def adamw(groups: Sequence[dict[str, Any]], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, ICLR 2019).

    Args:
        groups: Groups of parameters, which may have settings of their own.
        options: `learning_rate`, `betas`, `weight_decay`; `kind`: `adamw`, `fused` (one kernel for all parameters), or
            `8bit`, whose state takes a quarter of the memory (Dettmers et al., ICLR 2022).

    Raises:
        MissingError: bitsandbytes is not installed, which `8bit` needs.
    """
    common: dict[str, Any] = {
        "lr": options["learning_rate"],
        "betas": tuple(options["betas"]),
        "weight_decay": options["weight_decay"],
    }
    kind = options.get("kind") or "adamw"
    if kind != "8bit":
        return torch.optim.AdamW(list(groups), **common, fused=kind == "fused" or None)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingError(
            "method.optimiser.kind=8bit needs the Python package bitsandbytes. Install it with: pip install "
            "bitsandbytes, or take method.optimiser.kind=fused."
        ) from error
    optimiser: torch.optim.Optimizer = AdamW8bit(list(groups), **common)
    return optimiser


def copied(value: Any) -> Tensor:
    """A tensor or number as a tensor of its own on the CPU."""
    return torch.as_tensor(value).detach().to("cpu", copy=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser has gathered, as tensors that a file can hold: `optimiser.<number of the parameter>.<name>`."""
    found: dict[str, Tensor] = {}
    for number, state in optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{number}.{name}": copied(value) for name, value in state.items()}
    return found


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads what `optimiser_tensors` gave, from among other tensors.

    Raises:
        ValueError: They are of other parameters.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimiser":
            number, _, name = rest.partition(".")
            states.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": states})
