"""Estimates of the memory that a run or a training needs, and what to do where there was too little.

Rough on purpose: they say whether a thing is hopeless, and which setting saves most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.errors import UsageError

INTERPRETER_MB = 900
#: Float maps of the picture's size that a network holds for each picture when it restores.
MAPS_IN_FLIGHT = 150
#: Bytes of AdamW's state for a parameter, by kind: two moments in float32, or in 8 bits with their scales.
STATE_BYTES = {"adamw": 8.0, "fused": 8.0, "8bit": 2.1}


@dataclass(frozen=True)
class TrainingMemory:
    """What a training holds whatever its batches are, in MB.

    Attributes:
        weights: Of every network, copies for a running mean included.
        gradients: Of what is trained.
        state: Of the optimiser.
    """

    weights: float
    gradients: float
    state: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.state


def restoring_mb(parameters: int, batch: int, side: int) -> float:
    """Roughly what restoring needs: interpreter and packages, weights twice, and the maps of a batch."""
    if not parameters:
        return INTERPRETER_MB
    return INTERPRETER_MB + parameters * 8 / 1e6 + batch * side * side * 4 * MAPS_IN_FLIGHT / 1e6


def training_memory(parameters: Iterable[torch.nn.Parameter], kind: str = "adamw") -> TrainingMemory:
    """What a training with AdamW holds before its first batch.

    Args:
        parameters: All parameters, each once; those that are trained require gradients.
        kind: Kind of AdamW, see `STATE_BYTES`.
    """
    weights = gradients = trained = 0
    for parameter in parameters:
        weights += parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            gradients += parameter.numel() * parameter.element_size()
            trained += parameter.numel()
    return TrainingMemory(weights / 1e6, gradients / 1e6, trained * STATE_BYTES[kind] / 1e6)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, on a GPU or in main memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def training_out_of_memory(method: Any, batch: int, free_mb: float, precision: str) -> UsageError:
    """Says what a training needs, and which settings need less.

    Args:
        method: The method in training; its `settings` say what it has.
        batch: Pictures of a batch.
        free_mb: Memory of the device, all that this process could have had.
        precision: The trainer's.
    """
    settings: Mapping[str, Any] = method.settings
    optimiser: Mapping[str, Any] = settings.get("optimiser") or {}
    kind = optimiser.get("kind") or "adamw"
    held = training_memory(method.parameters(), kind)
    advice = []
    if batch > 1:
        advice.append(f"batch_size={max(1, batch // 2)}")
    if (settings.get("training") or {}).get("checkpointing") is False:
        advice.append("method.training.checkpointing=true (a slower step)")
    if precision == "32-true":
        advice.append("trainer.precision=bf16-mixed (activations in half the memory)")
    least = held.total
    if "kind" in optimiser and kind != "8bit":
        saved = held.state - training_memory(method.parameters(), "8bit").state
        advice.append(f"method.optimiser.kind=8bit (saves {saved / 1e3:.1f} GB)")
        least -= saved
    if getattr(method, "averaged", None) is not None:
        # The running mean is as large as what is trained.
        advice.append(f"method.ema_halflife_pictures=0 (saves {held.gradients / 1e3:.1f} GB)")
        least -= held.gradients
    text = (
        f"Out of memory: training {method.label} with batches of {batch} holds about {held.total / 1e3:.1f} GB "
        f"(weights {held.weights / 1e3:.1f}, gradients {held.gradients / 1e3:.1f}, optimiser {held.state / 1e3:.1f}) "
        f"before any activation, and the device has {free_mb / 1e3:.1f} GB. "
    )
    if least >= free_mb:
        return UsageError(f"{text}At least {least / 1e3:.1f} GB are needed: no setting makes it fit here.")
    return UsageError(f"{text}What needs less: {'; '.join(advice) or 'nothing that can be set'}.")


def restoring_out_of_memory(method: Any, height: int, width: int) -> UsageError:
    """Says that a picture of a size took too much, and which settings need less."""
    settings: Mapping[str, Any] = method.settings
    advice = ["method.tiles_per_call=1"] if int(settings.get("tiles_per_call") or 1) > 1 else []
    advice += ["method.self_ensemble=false"] if settings.get("self_ensemble") else []
    advice += ["a smaller picture"] if method.any_size else []
    advice.append("a device with more memory")
    return UsageError(
        f"Out of memory: {method.label} restored a picture of {width}x{height} px alone. What helps: "
        f"{'; '.join(advice)}."
    )
