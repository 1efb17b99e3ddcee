"""AuthFace's network: published sizes, what the ControlNet starts as, and what each stage trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor

from bench.errors import UsageError
from methods.authface.conditions import PromptStates, picture_times
from methods.authface.losses import predicted_latent
from methods.authface.network import AuthFaceNetwork
from methods.blocks.base_models import base_model

#: SDXL's kind of UNet, in small.
SMALL: dict[str, Any] = {
    "name": "sdxl",
    "unet": {
        "sample_size": 8, "block_out_channels": [32, 32, 64], "attention_head_dim": [2, 2, 4], "norm_num_groups": 8,
        "transformer_layers_per_block": [1, 1, 2], "cross_attention_dim": 24, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}  # fmt: skip


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = AuthFaceNetwork(base_model("sdxl"))
    assert sum(parameter.numel() for parameter in network.unet.parameters()) == 2_567_463_684
    assert sum(parameter.numel() for parameter in network.controlnet.parameters()) == 1_251_014_160


@pytest.fixture
def network() -> AuthFaceNetwork:
    torch.manual_seed(0)
    network = AuthFaceNetwork(base_model(SMALL)).eval()
    network.begin_control()
    return network


@pytest.fixture
def given() -> dict[str, Tensor | PromptStates]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latent": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 700]),
        "prompt": PromptStates(
            torch.randn(1, 5, 24, generator=generator), torch.randn(1, 16, generator=generator)
        ).rows(2),
        "times": picture_times(2, 64),
    }


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_control_starts_as_diffusers_starts_it_and_changes_nothing(
    network: AuthFaceNetwork, given: dict[str, Any], lq: Tensor
) -> None:
    expected = ControlNetModel.from_unet(network.unet).state_dict()
    for name, value in network.controlnet.state_dict().items():
        if "cond_embedding" not in name:  # drawn at random
            assert torch.equal(value, expected[name]), name
    assert torch.equal(network(**given, lq=lq), network(**given))


@torch.no_grad()
def test_the_picture_the_prompt_and_the_size_all_count(
    network: AuthFaceNetwork, given: dict[str, Any], lq: Tensor
) -> None:
    for parameter in network.controlnet.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.1)
    found = network(**given, lq=lq)
    assert found.shape == given["latent"].shape
    assert not torch.equal(found, network(**given, lq=lq.flip(-1)))
    assert not torch.equal(found, network(**given, lq=lq, scale=0.5))
    assert torch.allclose(network(**given, lq=lq, scale=0.0), network(**given), atol=1e-6)
    prompt: PromptStates = given["prompt"]
    for other in (PromptStates(prompt.tokens + 1, prompt.pooled), PromptStates(prompt.tokens, prompt.pooled + 1)):
        assert not torch.equal(found, network(**{**given, "prompt": other}, lq=lq))
    assert not torch.equal(found, network(**{**given, "times": picture_times(2, 1024)}, lq=lq))


@pytest.mark.parametrize("stage", ["prior", "control"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_stage_moves_its_part_alone(
    network: AuthFaceNetwork, given: dict[str, Any], lq: Tensor, stage: str, checkpointing: bool
) -> None:
    network.train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    chosen = network.train_only(stage)
    before = copy.deepcopy(network.state_dict())
    optimiser = torch.optim.AdamW(chosen, 1e-3)
    alphas = torch.tensor([0.9, 0.2])
    for _ in range(4):  # the zero convolutions let gradients through one after the other
        noise = network(**given, lq=lq if stage == "control" else None)
        loss = (predicted_latent(given["latent"], noise, alphas) - 0.1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    part = {"prior": "unet.", "control": "controlnet."}[stage]
    assert moved
    assert all(name.startswith(part) for name in moved)
    still = [name for name, _ in network.named_parameters() if name.startswith(part) and name not in moved]
    assert still == []


def test_mistakes_are_said(network: AuthFaceNetwork) -> None:
    with pytest.raises(UsageError, match=r"training\.stage"):
        network.train_only("both")
    with pytest.raises(UsageError, match="SDXL"):
        AuthFaceNetwork(base_model("demo"))


def test_times_are_sdxls() -> None:
    assert picture_times(3, 512).tolist() == [[512, 512, 0, 0, 512, 512]] * 3
