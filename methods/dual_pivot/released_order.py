"""The ControlNet's tensors in the order of DiffBIR's release: the published recipe tunes the first 150 of them."""

from __future__ import annotations

import re
from typing import Any

from methods.blocks.checkpoints.stable_diffusion import UNetNames

#: Modules in the order in which the released network holds them.
TOP = ("time_embed", "input_blocks", "zero_convs", "middle_block", "middle_block_out")
#: Within a residual block, and within the attention after it.
INSIDE = (
    *("in_layers", "emb_layers", "out_layers", "skip_connection", "op"),
    *("norm", "proj_in", "transformer_blocks", "proj_out"),
)
IN_TRANSFORMER = ("attn1", "ff", "attn2", "norm1", "norm2", "norm3")
IN_ATTENTION = ("to_q", "to_k", "to_v", "to_out")
LEAVES = ("weight", "bias")
ORDERED = (*TOP, *INSIDE, *IN_TRANSFORMER, *IN_ATTENTION, *LEAVES)


def released_control_names(control: Any) -> dict[str, str]:
    """Name of each tensor of a `ControlNetModel` -> its name in the release.

    Args:
        control: From `methods.dual_pivot.network.build_control_net`.
    """
    names = UNetNames(control)
    found = {}
    for name in control.state_dict():
        if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.*)", name):
            found[name] = f"zero_convs.{match[1]}.0.{match[2]}"
        elif name.startswith("controlnet_mid_block."):
            found[name] = f"middle_block_out.0.{name.removeprefix('controlnet_mid_block.')}"
        else:
            found[name] = names.released(name)
    return found


def first_tensors(control: Any, count: int | None) -> list[str]:
    """The first tensors of the ControlNet in the order of the release, by their names here; all where no count is said.

    Args:
        control: See `released_control_names`.
        count: How many.
    """
    released = released_control_names(control)
    return sorted(released, key=lambda name: _place(released[name]))[:count]


def _place(released: str) -> tuple[int, ...]:
    """Sort key: modules by `ORDERED`, numbers by themselves."""
    words = released.split(".")
    return tuple(
        int(word) if word.isdecimal() else ORDERED.index(word) for word in words if word not in ("net", "proj")
    )
