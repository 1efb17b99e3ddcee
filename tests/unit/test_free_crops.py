"""Crops at random places and scales of a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config import compose
from bench.data.free_crops import free_crop
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import UsageError
from bench.protocol.protocol import DataSettings


def test_at_scale_one_it_is_a_piece_of_the_photograph() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    places = set()
    for seed in range(40):
        crop, matrix = free_crop(photo, 32, (1.0, 1.0), np.random.default_rng(seed))
        left, top = -matrix[:, 2].round().astype(int)
        places.add((left, top))
        expected = torch.from_numpy(photo[top : top + 32, left : left + 32]).permute(2, 0, 1) / 255
        assert torch.equal(crop, expected)
    assert len(places) > 30


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_matrix_says_where_everything_went(scale: float) -> None:
    """A bright spot lies in the crop where the matrix puts it."""
    rows, columns = np.mgrid[:120, :120]
    spot = np.exp(-((columns - 61.0) ** 2 + (rows - 52.0) ** 2) / (2 * 3.0**2))
    photo = np.repeat((spot * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    for seed in range(300):
        crop, matrix = free_crop(photo, 64, (scale, scale), np.random.default_rng(seed))
        weights = crop[0].double().numpy()
        weights = np.where(weights > 0.05, weights, 0)
        x, y = matrix[:, :2] @ [61.0, 52.0] + matrix[:, 2]
        if not (25 < x < 39 and 25 < y < 39):
            continue
        found_rows, found_columns = np.mgrid[:64, :64]
        assert (weights * found_columns).sum() / weights.sum() == pytest.approx(x, abs=0.3)
        assert (weights * found_rows).sum() / weights.sum() == pytest.approx(y, abs=0.3)
        break
    else:
        pytest.fail("no crop shows the spot in its middle")


def test_a_small_photograph_is_mirrored_around() -> None:
    photo = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    crop, _ = free_crop(photo, 9, (1.0, 1.0), np.random.default_rng(0))
    expected = np.pad(photo, ((2, 2), (2, 3), (0, 0)), mode="reflect")
    assert torch.equal(crop, torch.from_numpy(expected).permute(2, 0, 1) / 255)


def test_training_on_free_crops_leaves_references_aligned(orl_root: Path) -> None:
    data = DataSettings(**compose("train", ["method=pfstorer"])["data"])
    still = {"flip": 0, "deformation": 0, "rotation": 0, "zoom": 0, "shift": 0, "tone": 0, "light": 0}
    aligned = TrainingPairs(data, TrainingSettings(batch_size=4, augmentation=still)).batch(0)
    free = TrainingPairs(data, TrainingSettings(batch_size=4, augmentation=still, crop_scales=(0.9, 1.4))).batch(0)
    assert torch.equal(aligned.references, free.references)
    assert aligned.gt is not None
    assert free.gt is not None
    assert (aligned.gt - free.gt).abs().mean() > 0.02
    assert free.landmarks is not None
    assert aligned.landmarks is not None
    assert not torch.equal(free.landmarks, aligned.landmarks)


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 1.0), (0.0, 1.0)])
def test_scales_out_of_order_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="crop_scales"):
        TrainingSettings(crop_scales=scales)
