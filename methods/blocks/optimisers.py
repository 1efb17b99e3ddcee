"""AdamW in the forms that large networks are trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

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
