"""Tiles: cover, weights, blending without seams, padding, and the VAE window by window."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UsageError
from methods.blocks.tiling import (
    Tiling,
    Window,
    WindowCache,
    gaussian_weights,
    make_blend,
    pad_to_multiple,
    tiled_decode,
    tiled_encode,
)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def seam_ratio(difference: Tensor, borders: list[int]) -> float:
    """Mean jump between neighbouring columns at borders of tiles over the mean jump elsewhere; (..., H, W)."""
    jumps = (difference[..., 1:] - difference[..., :-1]).abs().mean(dim=tuple(range(difference.ndim - 1)))
    at_border = torch.zeros(len(jumps), dtype=torch.bool)
    at_border[[border - 1 for border in borders]] = True
    return float(jumps[at_border].mean() / jumps[~at_border].mean())


def inner_borders(windows: tuple[Window, ...], width: int) -> list[int]:
    edges = {window.left for window in windows} | {window.left + window.width for window in windows}
    return sorted(edges - {0, width})


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (96, 96), (12, 80), (97, 200), (1, 1), (63, 65), (128, 70)])
@pytest.mark.parametrize("preset", ["symmetric", "released_code"])
def test_windows_cover_everything_at_one_size(size: tuple[int, int], preset: str) -> None:
    height, width = size
    windows = Tiling(preset=preset).windows(height, width)  # type: ignore[arg-type]
    covered = torch.zeros(size)
    for window in windows:
        assert window.size == (min(64, height), min(64, width))
        assert window.top + window.height <= height and window.left + window.width <= width
        window.crop(covered).add_(1)
    assert covered.min() >= 1
    assert len(set(windows)) == len(windows)
    lefts = sorted({window.left for window in windows})
    distances = [after - before for before, after in itertools.pairwise(lefts)]
    assert max(distances, default=0) <= 32
    if preset == "symmetric":
        assert max(distances, default=0) - min(distances, default=0) <= 1
    elif width > 64:
        assert lefts == [*range(0, width - 64, 32), width - 64]


def test_weights_are_the_formula_and_the_release_is_asymmetric() -> None:
    symmetric, released = gaussian_weights(64, 48), gaussian_weights(64, 48, preset="released_code")
    assert torch.equal(symmetric, symmetric.flip(0)) and torch.equal(symmetric, symmetric.flip(1))
    assert torch.equal(released, released.flip(1)) and not torch.allclose(released, released.flip(0))
    y, x = 10, 30
    expected = math.exp(-(((y - 32) / 64) ** 2) / 0.02) * math.exp(-(((x - 23.5) / 48) ** 2) / 0.02)
    assert released[y, x].item() == pytest.approx(expected, rel=1e-5)
    assert symmetric.min() > 0


def test_blending_crops_of_a_picture_gives_the_picture_again_and_again() -> None:
    picture = _noise(2, 3, 97, 150)
    tiling = Tiling(preset="released_code")
    blend = make_blend(tiling, 97, 150)
    for scale in (1.0, 2.0):
        for window in tiling.windows(97, 150):
            blend.add(window, window.crop(picture * scale).half().float())
        torch.testing.assert_close(blend.result(), picture.mul(scale).half().float(), atol=1e-5, rtol=0)


def test_conditions_are_computed_once_a_window() -> None:
    made: list[Window] = []
    cache = WindowCache(lambda window: made.append(window) or len(made))
    first, second = Window(0, 0, 4, 4), Window(0, 2, 4, 4)
    assert [cache(first), cache(second), cache(Window(0, 0, 4, 4))] == [1, 2, 1]
    assert made == [first, second] and len(cache) == 2


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 64), (65, 200), (20, 130)])
def test_padding_reflects_and_is_cut_back(size: tuple[int, int]) -> None:
    image = _noise(1, 3, *size)
    padded, padding = pad_to_multiple(image, 64)
    assert padded.shape[-2] % 64 == 0 and padded.shape[-1] % 64 == 0
    assert torch.equal(padding.cut(padded), image)
    assert padding.cut(torch.empty(1, 3, padded.shape[-2] * 2, padded.shape[-1] * 2), 2).shape[-1] == 2 * size[1]
    if size == (65, 200):
        assert torch.equal(pad_to_multiple(image, 8)[0], F.pad(image, (0, 0, 0, 7), mode="reflect"))
    if size == (7, 3):
        assert torch.equal(padded[0, 0, 0, :6], image[0, 0, 0, [0, 1, 2, 1, 0, 1]])
    assert pad_to_multiple(image, 64, minimum=256)[0].shape[-1] >= 256


def _toy_autoencoder() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    decoder = torch.nn.Sequential(
        torch.nn.Conv2d(4, 16, 3, padding=1),
        torch.nn.GroupNorm(4, 16),
        torch.nn.SiLU(),
        torch.nn.Upsample(scale_factor=8, mode="bilinear"),
        torch.nn.Conv2d(16, 3, 3, padding=1),
    )
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 8, 8))
    return encoder, decoder


@torch.no_grad()
def test_tiled_autoencoder_has_no_seams() -> None:
    encoder, decoder = _toy_autoencoder()
    tiling = Tiling(tile=32, overlap=16)
    image = F.interpolate(_noise(1, 3, 6, 10), (192, 768), mode="bicubic")
    latent = tiled_encode(lambda pixels, _: encoder(pixels), image, tiling)
    whole = encoder(image)
    torch.testing.assert_close(latent, whole, atol=2e-3, rtol=0)
    decoded = tiled_decode(lambda part, _: decoder(part), whole, tiling)
    assert decoded.shape == image.shape
    borders = inner_borders(tiling.windows(24, 96), 96)
    assert seam_ratio(decoded - decoder(whole), [8 * border for border in borders]) < 1.2
    without_overlap = tiled_decode(lambda part, _: decoder(part), whole, Tiling(tile=32, overlap=0))
    borders = inner_borders(Tiling(tile=32, overlap=0).windows(24, 96), 96)
    assert seam_ratio(without_overlap - decoder(whole), [8 * border for border in borders]) > 3


@torch.no_grad()
def test_what_fits_into_a_tile_is_decoded_as_it_is() -> None:
    _, decoder = _toy_autoencoder()
    latent = _noise(2, 4, 12, 20)
    assert torch.equal(tiled_decode(lambda part, _: decoder(part), latent), decoder(latent))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="overlap"):
        Tiling(tile=32, overlap=32)
    with pytest.raises(UsageError, match="at least 1"):
        Tiling(batch=0)
    with pytest.raises(UsageError, match="variance"):
        Tiling(variance=0)
    with pytest.raises(UsageError, match="preset of tiles"):
        Tiling(preset="flat")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pad it first"):
        tiled_encode(lambda pixels, _: pixels, torch.zeros(1, 3, 20, 16))
    with pytest.raises(UsageError, match="Nothing was added"):
        make_blend(Tiling(), 8, 8).result()
