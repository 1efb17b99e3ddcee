"""The generator is the released one: names, shapes and numbers (source in the fixture's JSON)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods.blocks.stylegan2 import StyleGAN2Generator
from methods.refine.network import ReFineNetwork

HERE = Path(__file__).parent
FIXTURE = "fixture_stylegan2_basicsr_a"
PUBLIC_PRIOR = json.loads((HERE / "keys_stylegan2_512_basicsr_cmul1.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(HERE / f"{FIXTURE}.safetensors")


@pytest.fixture(scope="module")
def generator(tensors) -> StyleGAN2Generator:
    settings = json.loads((HERE / f"{FIXTURE}.json").read_text())["config"]
    generator = StyleGAN2Generator(
        settings["out_size"],
        style_dim=settings["num_style_feat"],
        mlp_layers=settings["num_mlp"],
        channel_multiplier=settings["channel_multiplier"],
        narrow=settings["narrow"],
    )
    state = {name.removeprefix("state."): t.float() for name, t in tensors.items() if name.startswith("state.")}
    generator.load_state_dict(state, strict=True)
    return generator


@pytest.fixture(scope="module")
def noise(tensors) -> list[torch.Tensor]:
    return [tensors[f"in.noise.{index}"] for index in range(9)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_latents_agree(generator, tensors):
    close(generator.map_styles([tensors["in.z"]]), tensors["out.latents_z"])


@torch.no_grad()
@pytest.mark.parametrize("output", ["image_z", "image_wplus", "image_trunc0.7", "image_buffer_noise", "image_mix2"])
def test_pictures_agree(generator, tensors, noise, output):
    z = tensors["in.z"]
    image = {
        "image_z": lambda: generator([z], noise=noise),
        "image_wplus": lambda: generator.synthesise(tensors["in.wplus"], noise),
        "image_trunc0.7": lambda: generator(
            [z], noise=noise, truncation=0.7, truncation_latent=tensors["in.truncation_latent"]
        ),
        "image_buffer_noise": lambda: generator([z], randomize_noise=False),
        "image_mix2": lambda: generator([z, tensors["in.z2"]], noise=noise, inject_index=3),
    }[output]()
    close(image, tensors[f"out.{output}"])


@torch.no_grad()
def test_channels_last_agrees(generator, tensors, noise):
    maps = [item.to(memory_format=torch.channels_last) for item in noise]
    close(generator([tensors["in.z"]], noise=maps), tensors["out.image_z"])


@torch.no_grad()
def test_bfloat16_runs_near_float32(generator, tensors, noise):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = generator([tensors["in.z"]], noise=noise)
    expected = tensors["out.image_z"]
    assert (image.float() - expected).abs().mean() < 0.05 * expected.std()


def expected_shapes(listing: list) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape, _ in listing}


def test_public_prior_has_exactly_our_names_and_shapes():
    with torch.device("meta"):
        generator = StyleGAN2Generator(512, channel_multiplier=1)
    assert {name: tuple(t.shape) for name, t in generator.state_dict().items()} == expected_shapes(PUBLIC_PRIOR)


def test_paper_size_network_holds_the_public_prior():
    with torch.device("meta"):
        network = ReFineNetwork(512, channel_multiplier=1, narrow=1, style_dim=512)
    held = {name.removeprefix("prior."): t for name, t in network.state_dict().items() if name.startswith("prior.")}
    assert {name: tuple(t.shape) for name, t in held.items()} == expected_shapes(PUBLIC_PRIOR)
    state = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(PUBLIC_PRIOR).items()}
    network.prior.load_state_dict(state, strict=True, assign=True)
