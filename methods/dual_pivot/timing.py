"""What `bench perf` needs of Dual-Pivot Tuning: stand-ins for what is absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from bench.personal_state import PersonalSource, PersonalState
from methods.blocks.timing_substitutes import fill_zeros, substitute_absent
from methods.dual_pivot.released_order import first_tensors

if TYPE_CHECKING:
    from methods.dual_pivot.module import DualPivot


def prepare_for_timing(method: DualPivot, random_weights: bool) -> list[str]:
    """Makes a method restore random pictures at its full cost, whatever is absent; nothing of it can be scored.

    Args:
        method: The method, on the CPU. Changed in place.
        random_weights: Whether its own weights are random.

    Returns:
        What was replaced, in words.
    """
    if random_weights:
        fill_zeros(method.network)
    prompts = ["", method.personal_text("person")] if method.base.text is not None else []
    notes = substitute_absent(method, prompts)
    if method.personalises:
        method.persons = _AnyPerson(method)
        notes.append("nobody was learnt: untuned copies of the networks are timed")
    return notes


class _AnyPerson(Mapping[str, PersonalState]):
    """One person on every picture, to whom nothing was tuned."""

    def __init__(self, method: DualPivot) -> None:
        network = method.network
        tensors = {f"unet.{name}": value for name, value in network.unet.state_dict().items()}
        own = method.settings["personalisation"]
        if own["tunes"] == "both":
            control = network.controlnet.state_dict()
            chosen = first_tensors(network.controlnet, own["model"]["tensors"])
            tensors |= {f"controlnet.{name}": control[name] for name in chosen}
        tensors["text"] = method.text(1, method.personal_text("person"))[0]
        self.state = PersonalSource(torch.zeros(1, 3, 8, 8), 0).state(method, "random", tensors)

    def __getitem__(self, image_id: str) -> PersonalState:
        return self.state

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
