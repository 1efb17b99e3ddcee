"""Full-size checkpoints convert key by key, and as diffusers' own converters do where those exist.

Key lists: names and shapes of the released code's networks (IceClear/StableSR 398ee93, YingJiacheng/RestorerID
157e288) at full size.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from methods.blocks.base_models import BASE_MODELS
from methods.blocks.checkpoints.accounting import Conversion, Part, convert, restore
from methods.blocks.checkpoints.stablesr import LEFT_OUT, stablesr_parts
from methods.blocks.latent_diffusion import build_text_encoder, build_unet, build_vae
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import sft_adapters

HERE = Path(__file__).parent
LAYOUTS = {"keys_stablesr_full": "sd21_base", "keys_restorerid_basemodel": "sd15"}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def converted(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor], list[Part], Conversion]:
    """Base name, released tensors without content, the parts, and the conversion."""
    listing = json.loads((HERE / f"{request.param}.json").read_text())
    base = BASE_MODELS[LAYOUTS[request.param]]
    with torch.device("meta"):
        checkpoint = {name: torch.empty(shape) for name, shape, _ in listing}
        unet = build_unet(base)
        parts = stablesr_parts(
            unet,
            sft_adapters(unet, form="released_code"),
            LqEncoder(),
            build_vae(base),
            build_text_encoder(base),
            open_clip=base.open_clip,
        )
        conversion = convert(checkpoint, parts, expected="full size", source=request.param, left_out=LEFT_OUT)
    return base.name, checkpoint, parts, conversion


def test_every_key_is_consumed_with_its_shape_and_comes_back(converted):
    name, checkpoint, parts, conversion = converted
    consumed = {part.prefix + entry.released for part in parts for entry in part.entries}
    assert consumed | conversion.left_out.keys() == checkpoint.keys()
    assert not consumed & conversion.left_out.keys()
    not_schedule = [key for key in conversion.left_out if "." in key]
    # OpenCLIP's last layer (12 tensors) and two of its outputs; CLIP's encoder is used whole.
    assert len(not_schedule) == (14 if name == "sd21_base" else 0)
    assert len(conversion.left_out) - len(not_schedule) == 12
    back = restore(conversion.states, parts, conversion.left_out)
    assert {key: tensor.shape for key, tensor in back.items()} == {k: t.shape for k, t in checkpoint.items()}


def test_parameter_counts_are_the_published_ones(converted):
    name, _, _, conversion = converted
    count = {part: sum(t.numel() for t in state.values()) for part, state in conversion.states.items()}
    assert count["unet"] == {"sd21_base": 865_910_724, "sd15": 859_520_964}[name]
    assert count["vae"] == 83_653_863


def test_names_are_those_of_diffusers_converters(converted):
    name, checkpoint, _, conversion = converted
    base = BASE_MODELS[name]
    config = {
        **base.unet,
        "num_class_embeds": None,
        "class_embed_type": None,
        "addition_embed_type": None,
    }
    marked = {key: torch.empty(t.shape, device="meta") for key, t in checkpoint.items() if ".spade." not in key}
    theirs = convert_ldm_unet_checkpoint(dict(marked), config)
    assert released_names(theirs, marked) == our_names(converted, "unet")
    vae = convert_ldm_vae_checkpoint(dict(marked), dict(base.vae))
    assert set(vae) == set(conversion.states["vae"])
    same_place = {key for key, released in released_names(vae, marked).items() if released}
    ours = our_names(converted, "vae")
    assert {key: ours[key] for key in same_place} == {k: v for k, v in released_names(vae, marked).items() if v}
    if base.open_clip:
        text = SimpleNamespace(config=SimpleNamespace(projection_dim=1024), text_model=SimpleNamespace())
        marked["cond_stage_model.model.text_projection"] = torch.empty(1024, 1024, device="meta")
        found = convert_open_clip_checkpoint(text, dict(marked), prefix="cond_stage_model.model.")
        used = {key.removeprefix("text_model.") for key in found if "layers.23." not in key}
        assert used >= {key.removeprefix("text_model.") for key in conversion.states["text"]}


def our_names(converted: tuple[str, dict[str, Tensor], list[Part], Conversion], name: str) -> dict[str, str]:
    _, _, parts, _ = converted
    part = next(part for part in parts if part.name == name)
    return {entry.ours[0]: part.prefix + entry.released for entry in part.entries}


def released_names(found: dict[str, Tensor], marked: dict[str, Tensor]) -> dict[str, str | None]:
    """Our name -> released name, by the tensor's identity; None where the tensor was reshaped."""
    by_tensor = {id(tensor): re.sub(r"^model_ema\.", "", key) for key, tensor in marked.items()}
    return {key: by_tensor.get(id(tensor)) for key, tensor in found.items()}
