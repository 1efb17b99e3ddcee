"""A network of ESRGAN's layout that gives back what it reads, four times enlarged by repeating pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.realesrgan.ncnn import rrdbnet_shapes


def identity_esrgan(width: int = 8, growth: int = 32) -> dict[str, Tensor]:
    """Its tensors under the names of Real-ESRGAN's releases; one block."""
    shapes = rrdbnet_shapes(width, growth, blocks=1)
    state = {f"{name}.weight": torch.zeros(*shape, 3, 3) for name, shape in shapes.items()}
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"):
        for channel in range(3):
            state[f"{name}.weight"][channel, channel, 1, 1] = 1.0
    return state | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
