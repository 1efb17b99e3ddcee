"""The UNet with SFT, FIR-Adapters and identity attention is RestorerID's, and its checkpoint converts both ways.

Numbers and names come from the released code (source in the fixtures' JSON).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdaptedUNet
from methods.blocks.checkpoints.accounting import Conversion, convert, restore
from methods.blocks.checkpoints.stable_diffusion import unet_part
from methods.blocks.checkpoints.stablesr import sft_part
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import sft_adapters
from methods.restorerid.checkpoint import (
    FILE,
    RESTORERID_LEFT_OUT,
    RestorerIDModules,
    fir_part,
    identity_part,
    ip_adapter_parts,
    projection_part,
)
from methods.restorerid.fir_adapter import fir_adapters
from methods.restorerid.identity_attention import identity_attention_adapters
from methods.restorerid.identity_tokens import ClipImageStates, IdentityProjection

HERE = Path(__file__).parent


def decoded(*files: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under their released names, and inputs and outputs, of a fixture."""
    tensors = {name: tensor for file in files for name, tensor in load_file(HERE / f"{file}.safetensors").items()}
    weights = {
        name.removeprefix("state."): tensor.float() / 512 if tensor.dtype == torch.int8 else tensor
        for name, tensor in tensors.items()
        if name.startswith("state.")
    }
    return weights, {name: tensor for name, tensor in tensors.items() if not name.startswith("state.")}


@torch.no_grad()
def test_identity_tokens_agree():
    weights, tensors = decoded("fixture_restorerid_idproj_a")
    settings = json.loads((HERE / "fixture_restorerid_idproj_a.json").read_text())["config"]
    projection = IdentityProjection(
        settings["id_embeddings_dim"],
        settings["clip_embeddings_dim"],
        settings["cross_attention_dim"],
        tokens=settings["num_tokens"],
        depth=settings["depth"],
        heads=settings["heads"],
        head_width=settings["dim_head"],
        expansion=settings["ff_mult"],
    )
    parts = [projection_part(projection, "")]
    found = convert(weights, parts, expected="the fixture", source="the fixture")
    projection.load_state_dict(found.states["projection"], strict=True)
    identity, states = tensors["in.arcface"], tensors["in.clip_hidden"]
    torch.testing.assert_close(projection(identity, states), tensors["out.tokens"], atol=1e-4, rtol=0)
    none = projection(torch.zeros_like(identity), tensors["in.clip_hidden_uncond"])
    torch.testing.assert_close(none, tensors["out.tokens_uncond"], atol=1e-4, rtol=0)
    projection.shortcut, projection.shortcut_scale = True, 0.6
    torch.testing.assert_close(projection(identity, states), tensors["out.tokens_shortcut_s0.6"], atol=1e-4, rtol=0)
    back = restore({"projection": projection.state_dict()}, parts)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.fixture(scope="module")
def fixture_unet() -> tuple[AdaptedUNet, dict[str, Tensor]]:
    """The small UNet with the fixture's weights, through the converter and back."""
    weights, tensors = decoded("fixture_restorerid_unet_a", "fixture_restorerid_unet_a.part2")
    settings = json.loads((HERE / "fixture_restorerid_unet_a.json").read_text())["config"]
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=[settings["model_channels"] * factor for factor in settings["channel_mult"]],
        layers_per_block=settings["num_res_blocks"],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=settings["context_dim"],
        attention_head_dim=settings["num_heads"],
    ).eval()
    adapted = AdaptedUNet(unet)
    maps = settings["semb_channels"]
    sft = adapted.attach("sft", sft_adapters(unet, maps, settings["spade_hidden"], form="released_code"))
    identity = adapted.attach("identity", identity_attention_adapters(unet, rank=settings["lora_rank"]))
    fir = adapted.attach("fir", fir_adapters(unet, maps, hidden=settings["fir_hidden"], heads=settings["fir_heads"]))
    parts = [unet_part(unet, ""), sft_part(unet, sft, ""), identity_part(unet, identity, ""), fir_part(unet, fir, "")]
    found = convert(weights, parts, expected="the fixture", source="the fixture")
    assert not found.left_out
    for name, module in (("unet", unet), ("sft", sft), ("identity", identity), ("fir", fir)):
        module.load_state_dict(found.states[name], strict=True)
    back = restore({"unet": unet.state_dict(), **{n: m.state_dict() for n, m in adapted.adapters.items()}}, parts)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    return adapted, tensors


def call(adapted: AdaptedUNet, tensors: dict[str, Tensor], scale: float | Tensor) -> Tensor:
    maps = {(side, side): tensors[f"in.lq_feat.{side}"] for side in (16, 8)}
    return adapted(
        tensors["in.z_t"],
        tensors["in.t"],
        tensors["in.text"],
        lq_maps=maps,
        identity_tokens=tensors["in.id"],
        identity_scale=scale,
    )


@torch.no_grad()
def test_prediction_agrees(fixture_unet):
    adapted, tensors = fixture_unet
    inner = {
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.1.1": "down_blocks.0.attentions.0",
        "middle_block": "mid_block",
        "output_blocks.0": "up_blocks.0.resnets.0",
    }
    seen: dict[str, Tensor] = {}

    def keep(released: str):
        def hook(_: nn.Module, __: object, output: object) -> None:
            seen[released] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [adapted.unet.get_submodule(ours).register_forward_hook(keep(name)) for name, ours in inner.items()]
    prediction = call(adapted, tensors, 0.75)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(inner)
    for name, output in seen.items():
        torch.testing.assert_close(output, tensors[f"inter.{name}"], atol=1e-4, rtol=0, msg=name)
    torch.testing.assert_close(prediction, tensors["out.eps_lambda0.75"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_scale_of_zero_and_per_sample_agree(fixture_unet):
    adapted, tensors = fixture_unet
    torch.testing.assert_close(call(adapted, tensors, 0.0), tensors["out.eps_lambda0"], atol=1e-4, rtol=0)
    expected = tensors["out.eps_lambda_tensor"]
    torch.testing.assert_close(call(adapted, tensors, tensors["in.lambda_tensor"]), expected, atol=1e-4, rtol=0)
    for site, adapter in adapted.adapters["identity"].items():
        adapter.merge_lora(adapted.unet.get_submodule(site))
    torch.testing.assert_close(call(adapted, tensors, tensors["in.lambda_tensor"]), expected, atol=1e-4, rtol=0)


def released(name: str) -> dict[str, Tensor]:
    """Tensors of a released file on the meta device, from its list of keys."""
    listing = json.loads((HERE / f"keys_restorerid_{name}.json").read_text())
    return {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, shape, dtype in listing}


@pytest.fixture(scope="module")
def paper_modules() -> RestorerIDModules:
    """Every module at the published size, on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )
        return RestorerIDModules(
            unet=unet,
            sft=sft_adapters(unet, form="released_code"),
            identity=identity_attention_adapters(unet),
            fir=fir_adapters(unet),
            projection=IdentityProjection(),
            lq_encoder=LqEncoder(),
            vae=AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=[128, 256, 512, 512],
                layers_per_block=2,
            ),
            text=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    max_position_embeddings=77,
                )
            ),
            image_encoder=ClipImageStates().image_encoder,
        )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_size_holds_every_released_key(paper_modules):
    assert count(paper_modules.unet) == 859_520_964
    checkpoint = {**released("full"), **{f"Adapter.{key}": tensor for key, tensor in released("adapter").items()}}
    parts = paper_modules.parts()
    found = convert(checkpoint, parts, expected="x", source="y", left_out=RESTORERID_LEFT_OUT)
    assert len(found.left_out) == 12, "the schedule's buffers alone are left out"
    back = restore(found.states, parts, found.left_out)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: t.shape for key, t in checkpoint.items()}
    prefix = "model.diffusion_model."
    assert {key.removeprefix(prefix) for key in checkpoint if key.startswith(prefix)} == released("unet").keys()
    in_unet = sum(tensor.numel() for key, tensor in checkpoint.items() if key.startswith(prefix))
    ours = (paper_modules.unet, paper_modules.sft, paper_modules.identity, paper_modules.fir)
    assert sum(count(module) for module in ours) == in_unet
    assert len(paper_modules.fir.state_dict()) == 330, "what the second stage trains"


def test_base_checkpoint_and_position_ids(paper_modules):
    checkpoint = {
        **released("full"),
        **{f"Adapter.{key}": tensor for key, tensor in released("adapter").items()},
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.empty(1, 77, device="meta"),
        "Adapter.image_encoder.vision_model.embeddings.position_ids": torch.empty(1, 257, device="meta"),
    }
    parts = paper_modules.parts()
    found = convert(checkpoint, parts, expected="x", source="y", left_out=RESTORERID_LEFT_OUT)
    assert len(found.left_out) == 14
    base = [part for part in parts if part.name in {"unet", "sft", "lq_encoder", "vae", "text"}]
    found = convert(released("basemodel"), base, expected="x", source="y", left_out=RESTORERID_LEFT_OUT)
    assert len(found.left_out) == 12


def test_attention_order_is_ip_adapters(paper_modules):
    parts = ip_adapter_parts(paper_modules.unet, paper_modules.identity, paper_modules.projection)
    ours = parts[0].released_shapes()
    facts = json.loads((HERE / "facts_restorerid.json").read_text())
    full = {key: tensor.shape for key, tensor in released("full").items()}
    expected = {}
    for number, module in facts["ip_adapter_processor_index_to_unet_module"].items():
        suffixes = facts["ip_adapter_suffixes_every_index"] + (
            facts["ip_adapter_suffixes_odd_index_only"] if int(number) % 2 else []
        )
        expected |= {f"ip_adapter.{number}.{suffix}": full[f"{module}.{suffix}"] for suffix in suffixes}
    assert ours == expected
    shapes = [part.released_shapes() for part in parts]
    content = {key: torch.empty(shape, device="meta") for own in shapes for key, shape in own.items()}
    found = convert(content, parts, expected="x", source="y")
    assert found.states["identity"].keys() == paper_modules.identity.state_dict().keys()


def small_modules(seed: int) -> RestorerIDModules:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    clip = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=50, max_position_embeddings=7, **clip)
    return RestorerIDModules(
        unet=unet,
        sft=sft_adapters(unet, 32, 16, form="released_code"),
        identity=identity_attention_adapters(unet, rank=2),
        fir=fir_adapters(unet, 32, hidden=16),
        projection=IdentityProjection(8, 16, 32, depth=1, head_width=16),
        lq_encoder=LqEncoder(
            channels=32, multipliers=(1, 1), layers_per_level=1, attention_levels=(0,), map_channels=32
        ),
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
        text=CLIPTextModel(text),
        image_encoder=ClipImageStates({**clip, "patch_size": 8, "image_size": 16}).image_encoder,
    )


def test_every_module_gets_its_tensors_and_wrong_files_are_named():
    first, second = small_modules(0), small_modules(1)
    with torch.no_grad():
        for module in (first.fir, first.identity, first.sft):
            for parameter in module.parameters():
                parameter.normal_()
    states = {part.name: getattr(first, part.name).state_dict() for part in first.parts()}
    checkpoint = restore(states, first.parts(), {"betas": torch.arange(3.0)})

    def converted(tensors: dict[str, Tensor], source: str) -> Conversion:
        return convert(tensors, second.parts(), expected=FILE, source=source, left_out=RESTORERID_LEFT_OUT)

    half = {key: tensor.half() if key.startswith("Adapter.") else tensor for key, tensor in checkpoint.items()}
    found = converted(half, "some.ckpt")
    assert found.left_out.keys() == {"betas"}
    assert found.states.keys() == states.keys()
    for name, state in states.items():
        getattr(second, name).load_state_dict(found.states[name], strict=True)
        other = getattr(second, name).state_dict()
        for key, tensor in state.items():
            rounded = tensor.half().float() if name in {"projection", "image_encoder"} else tensor
            assert torch.equal(other[key], rounded), f"{name}: {key}"
    without = {key: tensor for key, tensor in checkpoint.items() if "IDBalance" not in key}
    with pytest.raises(UsageError, match=r"base\.ckpt is not the expected checkpoint \(RestorerIDFull\.ckpt\)"):
        converted(without, "base.ckpt")
    with pytest.raises(UsageError, match="1 keys are unexpected: surprise"):
        converted({**checkpoint, "surprise": torch.zeros(1)}, "some.ckpt")
