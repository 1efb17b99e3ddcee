"""What a person is learnt from: their references, degraded and encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.seeds import derive_seed

if TYPE_CHECKING:
    from bench.degradation.pipeline import DegradationPipeline
    from methods.blocks.latent_space import LatentSpace

#: Pictures that are degraded and encoded together.
TOGETHER = 16


@dataclass(frozen=True)
class PersonalSamples:
    """Degraded references (PFStorer, Sec. 3.2: a random LQ is made of a reference in each iteration).

    Attributes:
        latent: Of the clean references, mirrored or not, (N, C, h, w).
        lq_latent: Of the degraded ones, (N, C, h, w).
        shown: Which reference each sample shows, (N,).
        references: Latents of the references as they were given, (R, C, h, w).
    """

    latent: Tensor
    lq_latent: Tensor
    shown: Tensor
    references: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.latent)

    def draw_references(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """For each of some samples (B,) another of the references, or the only one there is; (B,)."""
        count = len(self.references)
        if count == 1:
            return torch.zeros_like(rows)
        further = torch.randint(1, count, (len(rows),), generator=generator)
        return (self.shown[rows] + further) % count


@torch.no_grad()
def draw_samples(
    references: Tensor, count: int, seed: int, degradation: DegradationPipeline, space: LatentSpace, flip: bool
) -> PersonalSamples:
    """Draws samples; number n depends on the seed and n alone.

    Args:
        references: (R, 3, H, W) RGB in [0, 1], where the autoencoder is.
        count: How many.
        seed: Of the person.
        degradation: For pictures of the references' size.
        space: The autoencoder.
        flip: Whether half of them are mirrored.
    """
    seeds = [derive_seed(seed, "personal sample", number) for number in range(count)]
    # Every reference is shown as often as any other, in an order that the seed decides.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63)) % len(references)
    mirrored = torch.tensor([flip and derive_seed(own, "mirror") % 2 == 1 for own in seeds])
    size = (int(references.shape[-2]), int(references.shape[-1]))
    clean_latents, lq_latents = [], []
    for first in range(0, count, TOGETHER):
        rows = slice(first, first + TOGETHER)
        clean = references[order[rows]]
        clean = torch.where(mirrored[rows, None, None, None].to(clean.device), clean.flip(-1), clean)
        degraded = degradation.apply(clean, degradation.sample(seeds[rows], size))
        latents = space.encode(torch.cat([clean, degraded]) * 2 - 1)
        clean_latents.append(latents[: len(clean)])
        lq_latents.append(latents[len(clean) :])
    return PersonalSamples(torch.cat(clean_latents), torch.cat(lq_latents), order, space.encode(references * 2 - 1))
