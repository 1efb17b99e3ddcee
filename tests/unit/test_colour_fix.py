"""Colour fixes: against another implementation, what they keep, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from bench.errors import UsageError
from methods.blocks.colour_fix import adain_colour_fix, colour_fix, wavelet_colour_fix, wavelet_decompose, wavelet_low


def _images(seed: int, count: int = 2, height: int = 40, width: int = 56) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_low_frequencies_are_those_of_scipy() -> None:
    image = _images(1)
    expected = image.double().numpy()
    for level in range(5):
        line = np.zeros(2 * 2**level + 1)
        line[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (2, 3):
            expected = ndimage.correlate1d(expected, line, axis=axis, mode="nearest")
    np.testing.assert_allclose(wavelet_low(image).numpy(), expected, atol=1e-6)


def test_wavelet_fix_is_high_plus_low_also_below_the_largest_radius() -> None:
    for size in ((40, 56), (5, 9), (1, 1)):
        restored, lq = _images(1, height=size[0], width=size[1]), _images(2, height=size[0], width=size[1])
        expected = wavelet_decompose(restored)[0] + wavelet_decompose(lq)[1]
        torch.testing.assert_close(wavelet_colour_fix(restored, lq), expected, atol=1e-5, rtol=0)


def test_colour_cast_is_removed_and_detail_kept() -> None:
    picture = _images(3, height=96, width=96)
    cast = picture + torch.tensor([0.2, -0.1, 0.05])[:, None, None]
    torch.testing.assert_close(wavelet_colour_fix(cast, picture), picture, atol=1e-5, rtol=0)
    torch.testing.assert_close(adain_colour_fix(cast * 1.5, picture), picture, atol=1e-3, rtol=0)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    restored, lq = _images(1, 3), _images(2, 3)
    for method in ("wavelet", "adain"):
        together = colour_fix(restored, lq, method)
        alone = torch.cat([colour_fix(restored[i : i + 1], lq[i : i + 1], method) for i in range(3)])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_both_ranges_give_the_same_picture(method: str) -> None:
    restored, lq = _images(1), _images(2) * 0.02 + 0.5
    unit = colour_fix(restored, lq, method)
    signed = colour_fix(restored * 2 - 1, lq * 2 - 1, method, value_range=(-1, 1))
    torch.testing.assert_close((signed + 1) / 2, unit, atol=1e-6, rtol=0)
    assert unit.min() >= 0 and unit.max() <= 1
    assert torch.equal(colour_fix(restored + 1, lq, "none"), torch.ones_like(restored))


def test_half_precision_keeps_its_type_and_is_computed_wider() -> None:
    restored, lq = _images(1).bfloat16(), _images(2).bfloat16()
    fixed = wavelet_colour_fix(restored, lq)
    assert fixed.dtype == torch.bfloat16
    assert torch.equal(fixed, wavelet_colour_fix(restored.float(), lq.float()).bfloat16())


@pytest.mark.parametrize(
    ("restored", "lq", "said"),
    [
        (torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8), "alpha"),
        (torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), "grey"),
        (torch.rand(3, 8, 8), torch.rand(3, 8, 8), "RGB batches"),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4), "resize"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(1, 3, 8, 8), "floating point"),
    ],
)
def test_other_images_are_refused_with_the_reason(restored: Tensor, lq: Tensor, said: str) -> None:
    for method in ("wavelet", "adain"):
        with pytest.raises(UsageError, match=said):
            colour_fix(restored, lq, method)


def test_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match="wavelet"):
        colour_fix(_images(1), _images(2), "wavelets")  # type: ignore[arg-type]
