"""A network that a release holds, as a weights file of ours: its state, and what describes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.files import sha256_file
from bench.runs.plan import TRAINING_SETTINGS
from methods.blocks.staged_network import StagedNetwork


def network_state(network: StagedNetwork, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """State of a network.

    Args:
        network: The network, whose `PARTS` say where a part's tensors stand; may be on the meta device.
        states: State of each part, by the part's name; other parts are passed over.
    """
    return {
        f"{place}{name}": tensor.contiguous()
        for place, part in network.PARTS.items()
        for name, tensor in states[part].items()
    }


def network_metadata(method: str, settings: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """What describes a network of a published size: its method, settings, and the released file.

    Args:
        method: Name of the method.
        settings: The method's settings at that size.
        source: The released file, which is hashed.
    """
    # What trains a network is no setting of a released one, least of all the stage it is in.
    described = {key: value for key, value in settings.items() if key not in (*TRAINING_SETTINGS, "dropout")}
    return {
        "method": method,
        "size": settings.get("size") or "paper",
        "settings": described,
        "source": source.name,
        "source_sha256": sha256_file(source),
    }
