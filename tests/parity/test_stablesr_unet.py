"""A stock UNet with SFT attached is StableSR's, and the LQ encoder too (sources in the fixtures' JSON)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from methods.blocks.adapted_unet import AdaptedUNet
from methods.blocks.checkpoints.accounting import convert, restore
from methods.blocks.checkpoints.stable_diffusion import unet_part
from methods.blocks.checkpoints.stablesr import lq_encoder_part, sft_part
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import sft_adapters

HERE = Path(__file__).parent
TOLERANCE = {"atol": 1e-4, "rtol": 0}


def fixture(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """Inputs and outputs, released state, configuration; weights are stored as int8 of value * 512."""
    tensors = load_file(HERE / f"{name}.safetensors")
    state = {
        key.removeprefix("state."): tensor.float() / 512 if tensor.dtype == torch.int8 else tensor
        for key, tensor in tensors.items()
        if key.startswith("state.")
    }
    return tensors, state, json.loads((HERE / f"{name}.json").read_text())["config"]


@torch.no_grad()
def test_unet_with_sft_agrees_everywhere():
    tensors, state, config = fixture("fixture_stablesr_unet_a")
    widths = [config["model_channels"] * multiplier for multiplier in config["channel_mult"]]
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=widths,
        layers_per_block=config["num_res_blocks"],
        cross_attention_dim=config["context_dim"],
        attention_head_dim=[width // config["num_head_channels"] for width in widths],
        use_linear_projection=True,
    ).eval()
    adapted = AdaptedUNet(unet)
    sft = adapted.attach("sft", sft_adapters(unet, config["semb_channels"], config["spade_hidden"], "released_code"))
    parts = [unet_part(unet, ""), sft_part(unet, sft, "")]
    conversion = convert(state, parts, expected="the fixture", source="the fixture")
    unet.load_state_dict(conversion.states["unet"])
    sft.load_state_dict(conversion.states["sft"])
    assert_same_state(restore(conversion.states, parts), state)

    seen: dict[str, Tensor] = {}
    for ours, theirs in (
        ("down_blocks.0.resnets.0", "input_blocks.1.0"),
        ("down_blocks.0.attentions.0", "input_blocks.1.1"),
        ("mid_block", "middle_block"),
        ("up_blocks.0.attentions.0", "output_blocks.0"),
    ):
        unet.get_submodule(ours).register_forward_hook(
            lambda _module, _inputs, output, theirs=theirs: seen.update(
                {theirs: output[0] if isinstance(output, tuple) else output}
            )
        )
    maps = {(side, side): tensors[f"in.lq_feat.{side}"] for side in (16, 8)}
    prediction = adapted(tensors["in.z_t"], tensors["in.t"], tensors["in.text"], lq_maps=maps)
    stored = {name.removeprefix("inter.") for name in tensors if name.startswith("inter.")}
    assert set(seen) == stored
    for name, features in seen.items():
        torch.testing.assert_close(features, tensors[f"inter.{name}"], **TOLERANCE)
    torch.testing.assert_close(prediction, tensors["out.eps"], **TOLERANCE)


@torch.no_grad()
def test_lq_encoder_agrees_at_every_size():
    tensors, state, config = fixture("fixture_restorerid_lqenc_a")
    encoder = LqEncoder(
        4,
        config["model_channels"],
        config["channel_mult"],
        config["num_res_blocks"],
        heads=config["num_heads"],
        map_channels=config["out_channels"],
    ).eval()
    part = lq_encoder_part(encoder, "")
    conversion = convert(state, [part], expected="the fixture", source="the fixture")
    encoder.load_state_dict(conversion.states["lq_encoder"])
    assert_same_state(restore(conversion.states, [part]), state)
    maps = encoder(tensors["in.lq_latent"], tensors["in.t"])
    assert [size for size, _ in maps] == [32, 16, 8, 4]
    for (height, width), tensor in maps.items():
        assert height == width
        torch.testing.assert_close(tensor, tensors[f"out.lq_feat.{width}"], **TOLERANCE)


@pytest.mark.parametrize("size", [(24, 16), (10, 14)])
@torch.no_grad()
def test_maps_are_as_large_as_the_features_of_a_unet_of_equal_depth(size):
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    encoder = LqEncoder(4, 8, (1, 1, 1), 1, (0,), 2, map_channels=8, groups=4)
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", sft_adapters(unet, 8, 8))
    latent, step = torch.randn(1, 4, *size), torch.tensor([5])
    maps = encoder(latent, step)
    assert len(maps) == 3
    assert adapted(latent, step, torch.zeros(1, 1, 8), lq_maps=maps).shape == latent.shape


def assert_same_state(back: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
