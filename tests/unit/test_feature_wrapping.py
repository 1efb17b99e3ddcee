"""Feature wrapping: the release's names and numbers, the stock decoder at weight 0, gradients, tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UsageError
from methods.blocks.feature_wrapping import FeatureWrapping, load_released, to_released
from methods.blocks.tiling import Tiling, Window, WindowCache, tiled_decode

# Names and shapes of IceClear/StableSR's autoencoder with feature wrapping (398ee93).
LISTING = Path(__file__).parents[1] / "parity" / "keys_stablesr_cfw_vqgan.json"
CHANNELS = (8, 8, 16, 16)
GROUPS = 4


def _autoencoder(channels: tuple[int, ...] = CHANNELS, groups: int = GROUPS) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2 if channels[0] > 8 else 1,
        latent_channels=4,
        norm_num_groups=groups,
    ).eval()


def _wrapping(seed: int = 1, **arguments: Any) -> FeatureWrapping:
    torch.manual_seed(seed)
    return FeatureWrapping(CHANNELS, growth=4, groups=GROUPS, **arguments)


def _pictures(count: int = 2, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_paper_size_has_exactly_the_released_names_and_shapes() -> None:
    listing = {name: tuple(shape) for name, shape, _ in json.loads(LISTING.read_text())}
    with torch.device("meta"):
        autoencoder, wrapping = _autoencoder((128, 256, 512, 512), 32), FeatureWrapping()
    ours = {name: tuple(tensor.shape) for name, tensor in to_released(autoencoder, wrapping).items()}
    assert ours == listing and len(listing) == 404


def test_released_checkpoint_round_trips_and_every_tensor_is_accounted_for() -> None:
    autoencoder, wrapping = _autoencoder(), _wrapping()
    state = {name: torch.randn_like(tensor) for name, tensor in to_released(autoencoder, wrapping).items()}
    report = load_released(autoencoder, wrapping, state | {"loss.logvar": torch.zeros(())})
    assert report.ignored == ("loss.logvar",)
    assert report.autoencoder + report.fusion == len(state)
    again = to_released(autoencoder, wrapping)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    lowest = autoencoder.decoder.up_blocks[0].resnets[0].conv1.weight
    assert torch.equal(lowest, state["decoder.up.3.block.0.conv1.weight"])


def test_wrong_checkpoint_is_refused_before_anything_changes() -> None:
    autoencoder, wrapping = _autoencoder(), _wrapping()
    state = {name: torch.randn_like(tensor) for name, tensor in to_released(autoencoder, wrapping).items()}
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    del state["decoder.fusion_layer_1.encode_enc_1.norm1.weight"]
    state["decoder.fusion_layer_1.encode_enc_1.norm1.bias"] = torch.zeros(3)
    state["decoder.up.9.stray"] = torch.zeros(1)
    with pytest.raises(UsageError, match="vqgan_cfw_00011") as error:
        load_released(autoencoder, wrapping, state, "some.ckpt")
    for said in ("some.ckpt", "1 missing", "norm1.weight", "1 unknown", "up.9.stray", "(3,) instead of (16,)"):
        assert said in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())


@torch.no_grad()
def test_weight_zero_is_the_stock_decoder_and_the_path_of_features_is_its_own_too() -> None:
    autoencoder, wrapping, pictures = _autoencoder(), _wrapping(), _pictures()
    moments, features = wrapping.encode(autoencoder, pictures)
    posterior = autoencoder.encode(pictures).latent_dist
    assert torch.equal(moments, posterior.parameters)
    latent = posterior.mode()
    stock = autoencoder.decode(latent).sample
    assert torch.equal(wrapping.decode(autoencoder, latent, features, 0), stock)
    wrapped = wrapping.decode(autoencoder, latent, features, 1)
    assert (wrapped - stock).abs().max() > 1e-2
    for parameter in wrapping.parameters():
        parameter.zero_()
    assert torch.equal(wrapping.decode(autoencoder, latent, features, 1), stock)
    assert {level: tuple(feature.shape[1:]) for level, feature in features.items()} == {1: (8, 16, 24), 2: (16, 8, 12)}


@torch.no_grad()
def test_fusion_is_the_equation() -> None:
    """Eq. 3 with its blocks written out with functions."""
    layer = _wrapping().fusion_layer_1
    generator = torch.Generator().manual_seed(5)
    encoded, decoded = torch.randn(2, 1, 8, 6, 6, generator=generator)
    state = layer.state_dict()

    def convolution(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def residual(x: Tensor, name: str) -> Tensor:
        h = x
        for index in (1, 2):
            norm = f"{name}.norm{index}"
            h = F.group_norm(h, GROUPS, state[f"{norm}.weight"], state[f"{norm}.bias"], 1e-6)
            h = convolution(h * torch.sigmoid(h), f"{name}.conv{index}")
        return h + (convolution(x, f"{name}.conv_out") if f"{name}.conv_out.weight" in state else x)

    x = residual(torch.cat([encoded, decoded], 1), "encode_enc_1")
    for block in range(2):
        y = x
        for dense in (1, 2, 3):
            seen = y
            for index in range(1, 5):
                new = F.leaky_relu(convolution(seen, f"encode_enc_2.{block}.rdb{dense}.conv{index}"), 0.2)
                seen = torch.cat([seen, new], 1)
            y = y + 0.2 * convolution(seen, f"encode_enc_2.{block}.rdb{dense}.conv5")
        x = x + 0.2 * y
    expected = decoded + 0.5 * residual(x, "encode_enc_3")
    torch.testing.assert_close(layer(encoded, decoded, 0.5), expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_equal_with_checkpointing_and_another_forward_in_between() -> None:
    autoencoder = _autoencoder().requires_grad_(False)
    first, second = _pictures()[:1], _pictures()[1:]

    def gradients(checkpointing: bool) -> list[Tensor]:
        wrapping = _wrapping(checkpointing=checkpointing)
        moments, features = wrapping.encode(autoencoder, first)
        decoded = wrapping.decode(autoencoder, moments[:, :4], features)
        other_moments, other_features = wrapping.encode(autoencoder, second)
        wrapping.decode(autoencoder, other_moments[:, :4], other_features)
        decoded.square().mean().backward()
        return [parameter.grad for parameter in wrapping.parameters() if parameter.grad is not None]

    plain, recomputed = gradients(False), gradients(True)
    assert len(plain) == len(list(_wrapping().parameters()))
    assert all(gradient.abs().max() > 0 for gradient in plain)
    for ours, expected in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-5)


def test_features_that_do_not_fit_are_refused() -> None:
    autoencoder, wrapping = _autoencoder(), _wrapping()
    latent = torch.zeros(1, 4, 4, 6)
    _, features = wrapping.encode(autoencoder, _pictures(1, 64, 64))
    with pytest.raises(UsageError, match="level 2 are"):
        wrapping.decode(autoencoder, latent, features)
    with pytest.raises(UsageError, match=r"level 2 is missing \(given: \[1\]\)"):
        wrapping.decode(autoencoder, latent, {1: features[1]})


@torch.no_grad()
def test_wide_strip_is_decoded_by_windows_with_the_features_of_each() -> None:
    autoencoder, wrapping = _autoencoder(), _wrapping()
    pictures = F.interpolate(_pictures(1, 4, 20), (96, 520), mode="bicubic")
    moments, features = wrapping.encode(autoencoder, pictures)
    latent, tiling = moments[:, :4], Tiling(tile=32, overlap=16)
    of_window = WindowCache(lambda window: wrapping.encode(autoencoder, window.scaled(8).crop(pictures))[1])
    whole = wrapping.decode(autoencoder, latent, features, 0.5)

    def decode(part: Tensor, window: Window) -> Tensor:
        return wrapping.decode(autoencoder, part, of_window(window), 0.5)

    tiled = tiled_decode(decode, latent, tiling)
    assert tiled.shape == pictures.shape and len(of_window) == len(tiling.windows(12, 65))
    assert (tiled - whole).abs().mean() < 0.25 * whole.std()


@torch.no_grad()
def test_windows_end_without_the_sliver_of_diffusers_tiling() -> None:
    """49 latent columns in tiles of 32: diffusers' stride of 24 leaves a last tile of one column."""
    autoencoder = _autoencoder()
    latent = F.interpolate(
        torch.randn(1, 4, 3, 6, generator=torch.Generator().manual_seed(0)), (16, 49), mode="bicubic"
    )
    whole = autoencoder.decode(latent).sample
    tiled = tiled_decode(lambda part, _: autoencoder.decode(part).sample, latent, Tiling(tile=32, overlap=8))
    autoencoder.enable_tiling()
    autoencoder.tile_latent_min_size, autoencoder.tile_sample_min_size = 32, 256
    stock = autoencoder.decode(latent).sample
    last = (..., slice(-8, None))
    ours, theirs = ((picture[last] - whole[last]).abs().mean() for picture in (tiled, stock))
    assert stock.shape == tiled.shape == whole.shape
    assert ours < 0.7 * theirs
