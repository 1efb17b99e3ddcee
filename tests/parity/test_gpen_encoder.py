"""The encoder is GPEN's: names, shapes and numbers (source in the fixture's JSON)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from methods.blocks.stylegan2 import StyleGAN2Generator
from methods.refine.network import GpenEncoder

HERE = Path(__file__).parent
FIXTURE = "fixture_gpen_a"


@torch.no_grad()
def test_features_and_style_agree():
    tensors = load_file(HERE / f"{FIXTURE}.safetensors")
    settings = json.loads((HERE / f"{FIXTURE}.json").read_text())["config"]
    encoder = GpenEncoder(
        settings["size"],
        style_dim=settings["style_dim"],
        channel_multiplier=settings["channel_multiplier"],
        narrow=settings["narrow"],
    )
    state = {name.removeprefix("state."): t.float() for name, t in tensors.items() if name.startswith("state.")}
    encoder.load_state_dict({n: t for n, t in state.items() if n.startswith(("ecd", "final_linear"))}, strict=True)
    features, style = encoder(tensors["in.image"])
    for stage, feature in enumerate(features):
        torch.testing.assert_close(feature, tensors[f"out.enc.ecd{stage}"], atol=1e-4, rtol=0)
    assert f"out.enc.ecd{len(features)}" not in tensors
    torch.testing.assert_close(style, tensors["out.style"], atol=1e-4, rtol=0)


def test_released_encoder_has_exactly_our_names_and_shapes():
    listing = json.loads((HERE / "keys_gpen_512_encoder.json").read_text())
    with torch.device("meta"):
        encoder = GpenEncoder(512, channel_multiplier=2)
    assert {n: tuple(t.shape) for n, t in encoder.state_dict().items()} == {n: tuple(s) for n, s, _ in listing}


def test_channels_are_the_decoders_at_every_resolution():
    with torch.device("meta"):
        encoder = GpenEncoder(512, channel_multiplier=1)
        decoder = StyleGAN2Generator(512, channel_multiplier=1)
        features, _ = encoder(torch.empty(1, 3, 512, 512))
    widths = [decoder.style_conv1.activate.bias.numel()]
    widths += [convolution.activate.bias.numel() for convolution in decoder.style_convs[::2]]
    assert [feature.shape[1] for feature in features] == widths[::-1]
