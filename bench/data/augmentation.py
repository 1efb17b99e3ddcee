"""Augmentation that keeps a ground truth and its reference pictures of one and the same person.

A few dozen identities are too few to learn what a reference is for. A smooth deformation and a tone
curve that are *shared* by the ground truth and its reference make a new person out of an old one; what
is drawn separately (pose in the plane, light) is what differs between two photographs of one person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.protocol.probe import BRIGHT_SKIN, TEMPLATE_SIDE, coverage, luma_around, place

LEFT_RIGHT = (1, 0, 2, 4, 3)
# How many marks a person gets in training, where (in the probe's template of 128 px), how large and how strong.
MARKS = (2, 4)
MARK_COLUMNS, MARK_ROWS = (26.0, 102.0), (22.0, 120.0)
MARK_RADIUS, MARK_CONTRAST = (2.0, 3.0), (0.25, 0.4)


@dataclass(frozen=True)
class AugmentationSettings:
    """Strengths; zeros switch everything off.

    Attributes:
        flip: Chance of mirroring ground truth and reference together.
        deformation: Standard deviation of the shared deformation's 5x5 control points, in
            hundredths of the side.
        rotation: Largest rotation of either picture, degrees.
        zoom: Largest relative change of either picture's scale.
        shift: Largest shift of either picture, in hundredths of the side.
        tone: Largest shared change of contrast and gamma, relative.
        light: Largest separate change of contrast and brightness, relative.
        marks: Chance that a person gets small marks, as the probe paints them (bench/protocol/probe.py)
            but anywhere on the face: in half of these samples on the ground truth and the references,
            in the other half on the references alone. Off by default.
        mixed_identities: Chance that a sample shows a new person made of two (bench/data/mixed_identities.py). Off by
            default.
    """

    flip: float = 0.5
    deformation: float = 1.6
    rotation: float = 6.0
    zoom: float = 0.06
    shift: float = 3.0
    tone: float = 0.25
    light: float = 0.12
    marks: float = 0.0
    mixed_identities: float = 0.0


class PairAugmentation:
    """Draws one augmentation for a ground truth and its references and applies it."""

    def __init__(self, settings: AugmentationSettings) -> None:
        self.settings = settings

    def __call__(self, images: Tensor, points: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augments pictures of one person.

        Args:
            images: (N, 3, S, S) RGB in [0, 1]; the ground truth first, then references.
            points: (N, 5, 2) points in pixels.
            rng: Generator of this sample.

        Returns:
            Pictures and points of the same shapes.
        """
        settings = self.settings
        side = images.shape[-1]
        # Nothing is drawn where marks are off, so that such trainings stay what they were.
        if settings.marks and rng.random() < settings.marks:
            images = plant_marks(images, points, rng)
        if rng.random() < settings.flip:
            images = images.flip(-1)
            points = points.clone()
            points[..., 0] = side - 1 - points[..., 0]
            points = points[:, LEFT_RIGHT]
        control = torch.from_numpy(rng.normal(0.0, settings.deformation / 100 * side, (1, 2, 5, 5))).float()
        field = F.interpolate(control, size=(side, side), mode="bicubic", align_corners=True)
        moved_images, moved_points = [], []
        for image, own in zip(images, points, strict=True):
            matrix = self._similarity(rng, side)
            # Where in the old picture does each new pixel look: deformation first, then the similarity.
            pixels = _pixel_grid(side) + field[0].permute(1, 2, 0)
            looked_up = pixels @ matrix[:, :2].T + matrix[:, 2]
            grid = (looked_up + 0.5) / side * 2 - 1
            moved = F.grid_sample(
                image.unsqueeze(0), grid.unsqueeze(0), mode="bicubic", padding_mode="reflection", align_corners=False
            )
            moved_images.append(moved[0].clamp(0, 1))
            before = (own - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).T
            moved_points.append(_undo_field(before, field))
        return self._tone(torch.stack(moved_images), rng), torch.stack(moved_points)

    def _similarity(self, rng: np.random.Generator, side: int) -> Tensor:
        settings = self.settings
        angle = np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
        scale = 1 + rng.uniform(-settings.zoom, settings.zoom)
        shift = rng.uniform(-settings.shift, settings.shift, 2) / 100 * side
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.full(2, (side - 1) / 2)
        offset = centre - linear @ centre + shift
        return torch.from_numpy(np.column_stack([linear, offset])).float()

    def _tone(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        settings = self.settings
        gamma = float(np.exp(rng.uniform(-settings.tone, settings.tone)))
        contrast = 1 + float(rng.uniform(-settings.tone, settings.tone))
        toned = []
        for image in images.clamp(1e-4, 1) ** gamma:
            own_contrast = contrast * (1 + float(rng.uniform(-settings.light, settings.light)))
            brightness = float(rng.uniform(-settings.light, settings.light)) / 2
            toned.append(((image - 0.5) * own_contrast + 0.5 + brightness).clamp(0, 1))
        return torch.stack(toned)


def plant_marks(images: Tensor, points: Tensor, rng: np.random.Generator) -> Tensor:
    """Paints a person's marks on the references and, in every second draw, on the ground truth too.

    Args:
        images: (N, 3, S, S) RGB in [0, 1]; the ground truth first, then references.
        points: (N, 5, 2) points in pixels.
        rng: Generator of this sample.

    Returns:
        Pictures of the same shape.
    """
    side = images.shape[-1]
    on_truth = bool(rng.random() < 0.5)
    painted = images.clone()
    for _ in range(int(rng.integers(MARKS[0], MARKS[1] + 1))):
        position = (float(rng.uniform(*MARK_COLUMNS)), float(rng.uniform(*MARK_ROWS)))
        radius = float(rng.uniform(*MARK_RADIUS)) * side / TEMPLATE_SIDE
        contrast = float(rng.uniform(*MARK_CONTRAST))
        last = images[-1].permute(1, 2, 0).numpy()
        if luma_around(last, *place(position, points[-1].numpy()), 2 * radius) > BRIGHT_SKIN:
            contrast = -contrast
        for row in range(0 if on_truth else 1, len(images)):
            x, y = place(position, points[row].numpy())
            painted[row] += contrast * torch.from_numpy(coverage(side, x, y, radius)).float()
    return painted.clamp(0, 1)


def _pixel_grid(side: int) -> Tensor:
    axis = torch.arange(side, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1)


def _undo_field(points: Tensor, field: Tensor) -> Tensor:
    """Solves q + field(q) = p for each point by fixed-point iteration."""
    side = field.shape[-1]
    solution = points.clone()
    for _ in range(5):
        grid = ((solution + 0.5) / side * 2 - 1).reshape(1, 1, -1, 2)
        offset = F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=False)
        solution = points - offset[0, :, 0].T
    return solution
