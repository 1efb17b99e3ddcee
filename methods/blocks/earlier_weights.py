"""Weights that a training starts from: those of an earlier stage, or of another method with the same base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from bench.errors import UsageError
from bench.weights.method_weights import read_weights
from methods.blocks.staged_network import StagedNetwork


def in_float32(tensor: Tensor) -> Tensor:
    """A tensor of weights in float32; one that holds places or numbers as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def read_earlier_weights(
    network: StagedNetwork, file: str, needed: Iterable[str], passed_over: Sequence[str] = ()
) -> None:
    """Loads what a weights file holds of a network; parts that it has beyond the settings are passed over.

    Args:
        network: The network.
        file: A weights file (safetensors).
        needed: Parts that the file must hold whole.
        passed_over: Prefixes of tensors that another method has beyond this network.

    Raises:
        UsageError: The file is of another network, or lacks a part.
    """
    state, _ = read_weights(Path(file).expanduser())
    state = {name: value for name, value in state.items() if not name.startswith(tuple(passed_over))}
    wanted = network.state_dict()
    try:
        surplus = sorted({network.part_of(name) for name in state.keys() - wanted.keys()} - network.left_out)
        missing, _ = network.load_state_dict({k: in_float32(v) for k, v in state.items() if k in wanted}, strict=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"{file} is no earlier stage of this network: {reason}") from error
    absent = sorted({network.part_of(name) for name in missing} & set(needed))
    if absent or surplus:
        raise UsageError(
            f"{file} is no earlier stage of this network: it lacks {', '.join(absent) or 'nothing'} and has more of "
            f"{', '.join(surplus) or 'nothing'}."
        )
