"""A network of ESRGAN's layout that gives back what it reads, four times enlarged by repeating pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def identity_esrgan(width: int = 8, growth: int = 32) -> dict[str, Tensor]:
    """Its tensors under the names of Real-ESRGAN's releases."""
    shapes = {"conv_first": (width, 3), "conv_body": (width, width), "conv_last": (3, width)}
    shapes |= dict.fromkeys(("conv_up1", "conv_up2", "conv_hr"), (width, width))
    for dense in (1, 2, 3):
        for number in range(1, 6):
            outside = width if number == 5 else growth
            shapes[f"body.0.rdb{dense}.conv{number}"] = (outside, width + (number - 1) * growth)
    state = {f"{name}.weight": torch.zeros(*shape, 3, 3) for name, shape in shapes.items()}
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"):
        for channel in range(3):
            state[f"{name}.weight"][channel, channel, 1, 1] = 1.0
    return state | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
