"""What SDXL's kind of UNet reads beside latent and timestep: states of a prompt, and the picture's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptStates:
    """What SDXL reads of a prompt.

    Attributes:
        tokens: States of both text encoders, one beside the other, (B, T, width).
        pooled: The second encoder's summary, (B, pooled width).
    """

    tokens: Tensor
    pooled: Tensor

    def rows(self, count: int) -> PromptStates:
        """One prompt for `count` pictures, or as many as there are already."""
        return PromptStates(self.tokens.expand(count, -1, -1), self.pooled.expand(count, -1))

    def to(self, like: Tensor) -> PromptStates:
        """The same where another tensor is, in its type."""
        return PromptStates(self.tokens.to(like), self.pooled.to(like))


def picture_times(count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """SDXL's micro-conditioning of pictures that are neither resized nor cropped (Podell et al., ICLR 2024, Sec. 2.2).

    Args:
        count: Number of pictures.
        size: Their side in pixels, original and wanted.
        device: Where the result lies.

    Returns:
        (count, 6): original height and width, upper left corner of the crop, wanted height and width.
    """
    row = torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32, device=device)
    return row.expand(count, -1)
