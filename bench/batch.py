"""The batch that flows through every method."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class FaceBatch:
    """Degraded faces with their references.

    Attributes:
        lq: Degraded pictures, (B, 3, H, W), RGB in [0, 1].
        references: Pictures of the same person, (B, R, 3, H, W), RGB in [0, 1]. Rows with fewer
            than R references are filled with zeros, never with copies.
        reference_mask: True where a reference is real, (B, R).
        image_ids: One id per picture, unique within a protocol.
        identities: Who is shown, one name per picture.
        seeds: One seed per picture; every random draw a method makes for a picture comes from it.
        gt: Ground truth, (B, 3, H, W), RGB in [0, 1]. None whenever a method is evaluated.
        landmarks: Five points (eyes, nose, mouth corners; x, y in pixels) of the ground truth,
            (B, 5, 2). Training only.
        reference_landmarks: The same points of the references, (B, R, 5, 2). Training only.
        degradation: Sampled parameters θ, one record per picture, so that T(x, θ) can be replayed.
            Training only.
    """

    lq: Tensor
    references: Tensor
    reference_mask: Tensor
    image_ids: list[str]
    identities: list[str]
    seeds: list[int]
    gt: Tensor | None = None
    landmarks: Tensor | None = None
    reference_landmarks: Tensor | None = None
    degradation: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Checks that every field speaks of the same number of pictures."""
        size = self.lq.shape[0]
        if self.lq.ndim != 4 or self.lq.shape[1] != 3:
            raise ValueError(f"lq must be (B, 3, H, W), got {tuple(self.lq.shape)}")
        if self.references.ndim != 5 or self.references.shape[:2] != self.reference_mask.shape:
            raise ValueError(
                f"references must be (B, R, 3, H, W) with a mask (B, R), got "
                f"{tuple(self.references.shape)} and {tuple(self.reference_mask.shape)}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != size:
                raise ValueError(f"{field.name} has {len(value)} entries for {size} pictures")

    def __len__(self) -> int:
        """Number of pictures."""
        return self.lq.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> FaceBatch:
        """Copy of the batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def row(self, position: int) -> FaceBatch:
        """One picture of the batch as a batch of its own."""
        chosen = {
            field.name: value[position : position + 1]
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **chosen)

    def for_restoration(self) -> FaceBatch:
        """Copy without anything that comes from the ground truth."""
        return replace(self, gt=None, landmarks=None, reference_landmarks=None, degradation=None)
