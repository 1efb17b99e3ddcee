"""What takes noise, blur and compression off a picture before the diffusion model reads it (DiffBIR's first stage)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import MissingError, UsageError

KINDS = ("swinir", "convolutions")
SPANDREL_MISSING = (
    "SwinIR, which cleans pictures at the published size, needs the Python package spandrel. Install it with: "
    'pip install "face-restoration-bench[full]"'
)


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity (He et al., CVPR 2016), without normalisation.

    Args:
        channels: Of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        return features + cast(Tensor, self.second(F.silu(self.first(features))))


class ConvolutionalCleaner(nn.Module):
    """A small cleaner for pictures of 128 px: convolutions at a fraction of the picture's side, and two halves of it.

    Args:
        channels: Width at the fraction; twice as many at half of it.
        blocks: Residual blocks at each of the two.
        shuffle: Pixels of a picture's side that make one position.
    """

    def __init__(self, channels: int = 32, blocks: int = 3, shuffle: int = 4) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.head = nn.Conv2d(3 * shuffle**2, channels, 3, padding=1)
        self.outer = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.inner = nn.Sequential(*(ResidualBlock(2 * channels) for _ in range(blocks)))
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.last = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, 3 * shuffle**2, 3, padding=1)
        # It starts as what changes nothing.
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(cast(Tensor, self.tail.bias))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], H and W multiples of `2 * shuffle`."""
        outer = self.outer(self.head(F.pixel_unshuffle(pictures, self.shuffle)))
        inner = outer + self.up(self.inner(self.down(outer)))
        return pictures + F.pixel_shuffle(self.tail(self.last(inner)), self.shuffle)


def build_cleaner(options: Mapping[str, Any]) -> nn.Module:
    """A cleaner with new weights: pictures (B, 3, H, W), about [0, 1], in and out.

    Args:
        options: `kind`: `swinir` (Liang et al., ICCVW 2021, spandrel's, as DiffBIR and DifFace use it) or
            `convolutions`; the rest are arguments of the class.

    Raises:
        UsageError: There is no such kind.
        MissingError: spandrel is not installed.
    """
    own = dict(options)
    kind = own.pop("kind")
    if kind == "convolutions":
        return ConvolutionalCleaner(**own)
    if kind != "swinir":
        raise UsageError(f"method.network.cleaner.kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    try:
        from spandrel.architectures.SwinIR import SwinIR
    except ImportError as error:
        raise MissingError(SPANDREL_MISSING) from error
    # Its construction computes with tensors, which those of the meta device cannot.
    with torch.device("cpu"):
        return cast(nn.Module, SwinIR(**own))
