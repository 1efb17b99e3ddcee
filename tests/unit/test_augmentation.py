"""Augmentation keeps pictures and points together, and repeats from its generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.data.augmentation import AugmentationSettings, PairAugmentation

SIDE = 96
OFF = AugmentationSettings(flip=0, deformation=0, rotation=0, zoom=0, shift=0, tone=0, light=0)
POINTS = torch.tensor([[32.0, 38.0], [62.0, 36.0], [47.0, 52.0], [36.0, 66.0], [60.0, 68.0]])


def _spots() -> tuple[Tensor, Tensor]:
    """Ground truth and reference with a bright spot on each of the five points; each spot has its own size."""
    axis = torch.arange(SIDE, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.zeros(SIDE, SIDE)
    for point in POINTS:
        image += torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 2.0**2))
    return image.clamp(0, 1).expand(2, 3, SIDE, SIDE).clone(), POINTS.expand(2, 5, 2).clone()


def _brightest_near(image: Tensor, point: Tensor, reach: int = 5) -> Tensor:
    """Centre of mass of what is bright within `reach` pixels of a point."""
    axis = torch.arange(SIDE, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    weight = image[0].clamp(min=0) * ((x - point[0]).abs() <= reach) * ((y - point[1]).abs() <= reach)
    return torch.stack([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def test_switched_off_it_changes_nothing() -> None:
    images, points = _spots()
    moved, moved_points = PairAugmentation(OFF)(images, points, np.random.default_rng(0))
    torch.testing.assert_close(moved, images, atol=1e-3, rtol=0)
    torch.testing.assert_close(moved_points, points, atol=1e-4, rtol=0)


def test_points_move_with_the_pictures() -> None:
    images, points = _spots()
    settings = AugmentationSettings(flip=0.5, tone=0, light=0)
    for seed in range(12):
        moved, moved_points = PairAugmentation(settings)(images, points, np.random.default_rng(seed))
        for image, own in zip(moved, moved_points, strict=True):
            for point in own:
                assert float((_brightest_near(image, point) - point).norm()) < 0.7


def test_mirroring_swaps_left_and_right() -> None:
    images, points = _spots()
    settings = AugmentationSettings(flip=1, deformation=0, rotation=0, zoom=0, shift=0, tone=0, light=0)
    moved, moved_points = PairAugmentation(settings)(images, points, np.random.default_rng(0))
    torch.testing.assert_close(moved, images.flip(-1), atol=1e-3, rtol=0)
    expected = POINTS[[1, 0, 2, 4, 3]].clone()
    expected[:, 0] = SIDE - 1 - expected[:, 0]
    torch.testing.assert_close(moved_points[0], expected, atol=1e-4, rtol=0)
    assert (moved_points[:, 0, 0] < moved_points[:, 1, 0]).all()


def test_the_deformation_is_shared_and_the_pose_is_not() -> None:
    images, points = _spots()
    shared = AugmentationSettings(flip=0, rotation=0, zoom=0, shift=0, tone=0, light=0)
    moved, moved_points = PairAugmentation(shared)(images, points, np.random.default_rng(3))
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved_points[0], moved_points[1])
    assert float((moved_points[0] - POINTS).abs().max()) > 0.3
    separate = AugmentationSettings(flip=0, deformation=0, tone=0, light=0)
    moved, moved_points = PairAugmentation(separate)(images, points, np.random.default_rng(3))
    assert float((moved_points[0] - moved_points[1]).abs().max()) > 0.3


def test_the_generator_decides_everything() -> None:
    images, points = _spots()
    augment = PairAugmentation(AugmentationSettings())
    first = augment(images, points, np.random.default_rng(5))
    again = augment(images, points, np.random.default_rng(5))
    other = augment(images, points, np.random.default_rng(6))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert 0 <= float(first[0].min()) <= float(first[0].max()) <= 1


def test_inputs_stay_as_they_were() -> None:
    images, points = _spots()
    before = images.clone(), points.clone()
    PairAugmentation(AugmentationSettings(flip=1))(images, points, np.random.default_rng(5))
    assert torch.equal(images, before[0])
    assert torch.equal(points, before[1])
