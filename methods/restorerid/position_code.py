"""Sines and cosines that say where a cell stands in a picture, for attention to find the same place elsewhere.

The demo's own: a large pretrained model learns from its data which token belongs where, the demo's few people do not
teach it. Codes of the form of Vaswani et al. 2017, Sec. 3.5, over two coordinates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = (1, 2, 4)
#: Numbers of one code: sine and cosine of each frequency along both sides.
CODE_WIDTH = 4 * len(FREQUENCIES)
#: Attention to the same place, before softmax, at the start. Tokens without a place have 0 and stay in sight.
START_LOGIT = 6.0


def position_code(height: int, width: int, like: Tensor | None = None) -> Tensor:
    """Codes of the centres of a grid's cells.

    Args:
        height: Rows of the grid.
        width: Columns.
        like: A tensor whose device and type the codes have; float32 on the CPU by default.

    Returns:
        (height * width, CODE_WIDTH), row by row.
    """
    device = None if like is None else like.device
    x, y = ((torch.arange(count, device=device) + 0.5) / count * 2 - 1 for count in (width, height))
    places = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1).flatten(0, 1)
    angles = torch.cat([places * (math.pi / 2 * frequency) for frequency in FREQUENCIES], -1)
    code = torch.cat([angles.sin(), angles.cos()], -1)
    return code if like is None else code.to(like)


@torch.no_grad()
def start_at_the_same_place(query: nn.Linear, key: nn.Linear, heads: int) -> None:
    """Makes every head attend to the token of the same place, whatever the tokens hold besides.

    Args:
        query: From a code to the queries of all heads.
        key: From tokens, whose last `CODE_WIDTH` numbers are their code, to the keys of all heads.
        heads: Number of heads; each is at least `CODE_WIDTH` wide.

    Raises:
        ValueError: A head is narrower than a code.
    """
    head_width = query.out_features // heads
    if head_width < CODE_WIDTH:
        raise ValueError(f"heads of {head_width} cannot hold a position code of {CODE_WIDTH}")
    weight = math.sqrt(START_LOGIT * math.sqrt(head_width) / (CODE_WIDTH / 2))
    query.weight.zero_()
    key.weight.zero_()
    for head in range(heads):
        rows = torch.arange(CODE_WIDTH) + head * head_width
        query.weight[rows, torch.arange(CODE_WIDTH)] = weight
        key.weight[rows, key.in_features - CODE_WIDTH + torch.arange(CODE_WIDTH)] = weight
