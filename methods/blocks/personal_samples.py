"""What a person is learnt from: their references, degraded and encoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.seeds import derive_seed

if TYPE_CHECKING:
    from bench.degradation.pipeline import DegradationPipeline
    from methods.blocks.latent_space import LatentSpace

#: Pixels of the pictures that are degraded and encoded together: 16 at 128 px, one at 512.
PIXELS_TOGETHER = 16 * 128**2


class PersonalSamples:
    """Degraded references (as PFStorer, Sec. 3.2: a random LQ is made of a reference in each iteration).

    Samples are made in groups that always stay together, since in other company their last bits are others. Sample n
    depends on the references, the seed and the number of samples alone.

    Attributes:
        references: Latents of the references as they were given, (R, C, h, w).
        shown: Which reference each sample shows, (N,): each as often as any other, in an order that the seed decides.

    Args:
        pictures: References, (R, 3, H, W) RGB in [0, 1], where the autoencoder is.
        count: Number of samples, N.
        seed: Of the person.
        degradation: For pictures of the references' size.
        space: The autoencoder.
        flip: Whether half of the samples are mirrored.
        together: Samples of a group; by `PIXELS_TOGETHER` if not given.
        forget: Whether the groups last asked for alone are kept, for samples that are used once.
        clean: What is done to LQ pictures (B, 3, H, W) in [0, 1] before they are encoded; nothing if not given.
        degrade: Whether LQ pictures are made; without, the latents of the references stand in their place.
    """

    def __init__(
        self,
        pictures: Tensor,
        count: int,
        seed: int,
        degradation: DegradationPipeline,
        space: LatentSpace,
        flip: bool = True,
        together: int | None = None,
        forget: bool = False,
        clean: Callable[[Tensor], Tensor] | None = None,
        degrade: bool = True,
    ) -> None:
        self._pictures, self._degradation, self._space = pictures, degradation, space
        self._together = together or max(1, PIXELS_TOGETHER // (pictures.shape[-1] * pictures.shape[-2]))
        self._forget, self._clean, self._degrade = forget, clean, degrade
        self._groups: dict[int, tuple[Tensor, Tensor]] = {}
        self._seeds = [derive_seed(seed, "personal sample", number) for number in range(count)]
        self._mirrored = torch.tensor([flip and derive_seed(own, "mirror") % 2 == 1 for own in self._seeds])
        self.shown = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63)) % len(pictures)
        self.references = self.encoded(pictures)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._seeds)

    @torch.no_grad()
    def encoded(self, pictures: Tensor) -> Tensor:
        """Latents of pictures (B, 3, H, W) in [0, 1]."""
        return self._space.encode(pictures * 2 - 1)

    def latents(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of some samples (B,) and of their LQ pictures, (B, C, h, w) each."""
        numbers = [int(row) // self._together for row in rows]
        if self._forget:
            self._groups = {number: own for number, own in self._groups.items() if number in numbers}
        groups = [self._group(number) for number in numbers]
        places = [int(row) % self._together for row in rows]
        clean, lq = (
            torch.stack([group[kind][place] for group, place in zip(groups, places, strict=True)]) for kind in (0, 1)
        )
        return clean, lq

    def draw_references(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """For each of some samples (B,) another of the references, or the only one there is; (B,)."""
        count = len(self.references)
        if count == 1:
            return torch.zeros_like(rows)
        further = torch.randint(1, count, (len(rows),), generator=generator)
        return (self.shown[rows] + further) % count

    def _group(self, number: int) -> tuple[Tensor, Tensor]:
        if number not in self._groups:
            self._groups[number] = self._made(slice(number * self._together, (number + 1) * self._together))
        return self._groups[number]

    @torch.no_grad()
    def _made(self, rows: slice) -> tuple[Tensor, Tensor]:
        clean = self._pictures[self.shown[rows]]
        clean = torch.where(self._mirrored[rows, None, None, None].to(clean.device), clean.flip(-1), clean)
        if not self._degrade:
            latents = self.encoded(clean)
            return latents, latents
        size = (int(clean.shape[-2]), int(clean.shape[-1]))
        degraded = self._degradation.apply(clean, self._degradation.sample(self._seeds[rows], size))
        if self._clean is not None:
            degraded = self._clean(degraded)
        latents = self.encoded(torch.cat([clean, degraded]))
        return latents[: len(clean)], latents[len(clean) :]
