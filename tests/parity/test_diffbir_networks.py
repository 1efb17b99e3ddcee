"""UNet and ControlNet are DiffBIR's (sources in the fixture's JSON), and its tensors stand in the released order."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.blocks.base_models import base_model
from methods.blocks.checkpoints.accounting import convert, restore
from methods.blocks.checkpoints.stable_diffusion import unet_part
from methods.blocks.latent_diffusion import build_unet
from methods.dual_pivot.network import DualPivotNetwork, build_control_net
from methods.dual_pivot.release import control_part
from methods.dual_pivot.released_order import first_tensors, released_control_names
from tests.parity.test_stablesr_unet import HERE, TOLERANCE, assert_same_state, fixture


@pytest.fixture(scope="module")
def loaded() -> tuple[DualPivotNetwork, dict[str, Tensor]]:
    tensors, state, config = fixture("fixture_diffbir_a")
    widths = [config["model_channels"] * multiplier for multiplier in config["channel_mult"]]
    base = base_model(
        {
            "name": "sd21_base",
            "unet": {
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "block_out_channels": widths,
                "layers_per_block": config["num_res_blocks"],
                "cross_attention_dim": config["context_dim"],
                "attention_head_dim": [width // config["num_head_channels"] for width in widths],
            },
        }
    )
    network = DualPivotNetwork(base, {"cleaner": {"kind": "convolutions", "channels": 4, "blocks": 1}}).eval()
    parts = [unet_part(network.unet, "unet."), control_part(network.controlnet, "controlnet.")]
    conversion = convert(state, parts, expected="the fixture", source="the fixture")
    network.unet.load_state_dict(conversion.states["unet"])
    network.controlnet.load_state_dict(conversion.states["controlnet"])
    assert_same_state(restore(conversion.states, parts), state)
    return network, tensors


@torch.no_grad()
def test_every_output_of_the_control_net_agrees(loaded: tuple[DualPivotNetwork, dict[str, Tensor]]) -> None:
    network, tensors = loaded
    down, middle = network.control(tensors["in.z_t"], tensors["in.t"], tensors["in.text"], tensors["in.hint"])
    stored = [name for name in tensors if name.startswith("out.control.")]
    assert len(stored) == len(down) + 1
    for number, features in enumerate([*down, middle]):
        torch.testing.assert_close(features, tensors[f"out.control.{number}"], **TOLERANCE)


@torch.no_grad()
def test_the_controlled_unet_agrees(loaded: tuple[DualPivotNetwork, dict[str, Tensor]]) -> None:
    network, tensors = loaded
    noisy, step, text, hint = (tensors[f"in.{name}"] for name in ("z_t", "t", "text", "hint"))
    torch.testing.assert_close(network(noisy, step, text, hint), tensors["out.eps"], **TOLERANCE)
    torch.testing.assert_close(network(noisy, step, text), tensors["out.eps_nocontrol"], **TOLERANCE)
    down, middle = network.control(noisy, step, text, hint)
    scaled = [own * scale for own, scale in zip([*down, middle], tensors["in.control_scales"], strict=True)]
    predicted = network.unet(
        noisy, step, text, down_block_additional_residuals=scaled[:-1], mid_block_additional_residual=scaled[-1]
    ).sample
    torch.testing.assert_close(predicted, tensors["out.eps_scaled"], **TOLERANCE)
    doubled = network(noisy, step, text, hint, scale=2.0)
    assert not torch.allclose(doubled, tensors["out.eps"], atol=1e-3)


@torch.no_grad()
def test_unet_and_control_net_read_texts_of_their_own(loaded: tuple[DualPivotNetwork, dict[str, Tensor]]) -> None:
    network, tensors = loaded
    noisy, step, text, hint = (tensors[f"in.{name}"] for name in ("z_t", "t", "text", "hint"))
    other = text.flip(0)
    both, own = network(noisy, step, text, hint), network(noisy, step, text, hint, other)
    assert (both - own).abs().max() > 1e-3
    assert (network(noisy, step, other, hint, other) - own).abs().max() > 1e-3


def test_published_control_net_has_the_released_tensors_in_their_order() -> None:
    base = base_model("sd21_base")
    with torch.device("meta"):
        control: Any = build_control_net(base, build_unet(base))
    listed = json.loads((HERE / "keys_diffbir_controlnet.json").read_text("utf-8"))
    released, state = released_control_names(control), control.state_dict()
    ordered = first_tensors(control, None)
    assert [released[name] for name in ordered] == [name for name, *_ in listed]
    assert [list(state[name].shape) for name in ordered] == [shape for _, shape, _ in listed]
    # The published recipe: up to the first attention's projection within the sixth block.
    assert first_tensors(control, 150) == ordered[:150]
    assert sum(tensor.numel() for tensor in state.values()) == 363_153_280
