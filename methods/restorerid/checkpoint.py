"""RestorerID's checkpoint layout: StableSR's over Stable Diffusion 1.5, with identity attention, FIR and the ID model.

The released file is `RestorerIDFull.ckpt`. The UNet's keys hold five kinds of tensors, each a part of its own: the
stock UNet, SFT (`spade`), FIR-Adapters (`IDBalance`), LoRA and the identity's key and value layers; the ID model is
under `Adapter.`, its CLIP image encoder included.

`python -m methods.restorerid.checkpoint` takes the released file apart into the weights folder, and puts it together
again (see `methods.restorerid.release`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.blocks.checkpoints.accounting import Part, part_of, stacked_tensor
from methods.blocks.checkpoints.stable_diffusion import (
    LEFT_OUT,
    UNET_PREFIX,
    clip_text_part,
    unet_part,
    vae_part,
)
from methods.blocks.checkpoints.stablesr import block_adapter_part, lq_encoder_part, sft_part

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import nn
    from transformers import CLIPTextModel

    from methods.blocks.adapted_unet import AdapterSet
    from methods.blocks.lq_encoder import LqEncoder
    from methods.restorerid.identity_tokens import IdentityProjection

FILE = "RestorerIDFull.ckpt"
PROJECTION_PREFIX = "Adapter.image_proj_model."
IMAGE_ENCODER_PREFIX = "Adapter.image_encoder."
FIR_LEAVES = {
    "feature_norm": "IDBalance.param_free_norm",
    "norm": "IDBalance.norm",
    "attention.to_q": "IDBalance.crossattn.to_q",
    "attention.to_k": "IDBalance.crossattn.to_k",
    "attention.to_v": "IDBalance.crossattn.to_v",
    "attention.to_out": "IDBalance.crossattn.to_out.0",
    "shared": "IDBalance.mlp_shared.0",
    "gain": "IDBalance.mlp_gamma",
    "bias": "IDBalance.mlp_beta",
}
IDENTITY_LEAVES = {
    "identity_key": "to_k_ip",
    "identity_value": "to_v_ip",
    **{f"lora.{name}": f"to_{name}_lora" for name in ("q", "k", "v", "out")},
}
RESTORERID_LEFT_OUT = {
    **LEFT_OUT,
    r"Adapter\.image_encoder\.vision_model\.embeddings\.position_ids": "positions are counted",
}
#: Our name -> released name, within the projection; the first that fits is taken.
_PROJECTION_NAMES = (
    (r"proj\.net\.0\.proj\.(.*)", r"proj.0.\1"),
    (r"proj\.net\.2\.(.*)", r"proj.2.\1"),
    (r"norm\.(.*)", r"norm.\1"),
    (r"layers\.(\d+)\.ln0\.(.*)", r"perceiver_resampler.layers.\1.0.norm1.\2"),
    (r"layers\.(\d+)\.ln1\.(.*)", r"perceiver_resampler.layers.\1.0.norm2.\2"),
    (r"layers\.(\d+)\.attn\.to_q\.(.*)", r"perceiver_resampler.layers.\1.0.to_q.\2"),
    (r"layers\.(\d+)\.attn\.to_out\.0\.(.*)", r"perceiver_resampler.layers.\1.0.to_out.\2"),
    (r"layers\.(\d+)\.ff\.0\.(.*)", r"perceiver_resampler.layers.\1.1.0.\2"),
    (r"layers\.(\d+)\.ff\.1\.net\.0\.proj\.(.*)", r"perceiver_resampler.layers.\1.1.1.\2"),
    (r"layers\.(\d+)\.ff\.1\.net\.2\.(.*)", r"perceiver_resampler.layers.\1.1.3.\2"),
    (r"(proj_in|proj_out|norm_out)\.(.*)", r"perceiver_resampler.\1.\2"),
)


@dataclass(frozen=True)
class RestorerIDModules:
    """The modules that a full checkpoint fills; any of them may be on the meta device.

    Attributes:
        unet: Stock UNet.
        sft: SFT adapters of form `released_code`.
        identity: Identity attention.
        fir: FIR-Adapters of form `released_code`; None for the base checkpoint with identity alone.
        projection: Identity projection.
        lq_encoder: Time-aware LQ encoder.
        vae: Autoencoder.
        text: CLIP text encoder.
        image_encoder: CLIP image encoder (transformers' `CLIPVisionModelWithProjection`).
    """

    unet: UNet2DConditionModel
    sft: AdapterSet
    identity: AdapterSet
    fir: AdapterSet | None
    projection: IdentityProjection
    lq_encoder: LqEncoder
    vae: AutoencoderKL
    text: CLIPTextModel
    image_encoder: nn.Module

    def parts(self) -> list[Part]:
        """A part for each module, named as the attribute."""
        fir = [fir_part(self.unet, self.fir)] if self.fir is not None else []
        return [
            unet_part(self.unet),
            sft_part(self.unet, self.sft),
            identity_part(self.unet, self.identity),
            *fir,
            lq_encoder_part(self.lq_encoder),
            vae_part(self.vae),
            clip_text_part(self.text),
            projection_part(self.projection),
            part_of("image_encoder", IMAGE_ENCODER_PREFIX, self.image_encoder, lambda name: name),
        ]


def identity_part(unet: UNet2DConditionModel, adapters: AdapterSet, prefix: str = UNET_PREFIX) -> Part:
    """Identity attention, released inside each attention (part `identity`)."""
    return block_adapter_part("identity", unet, adapters, IDENTITY_LEAVES, prefix)


def fir_part(unet: UNet2DConditionModel, adapters: AdapterSet, prefix: str = UNET_PREFIX) -> Part:
    """FIR-Adapters of form `released_code`, released inside each residual block (part `fir`)."""
    return block_adapter_part("fir", unet, adapters, FIR_LEAVES, prefix)


def projection_part(projection: IdentityProjection, prefix: str = PROJECTION_PREFIX) -> Part:
    """The identity projection (part `projection`); key and value of its perceiver are released in one."""
    stacked = [
        stacked_tensor(
            f"perceiver_resampler.layers.{layer}.0.to_kv.weight",
            [f"layers.{layer}.attn.to_{which}.weight" for which in "kv"],
        )
        for layer in range(len(projection.layers))
    ]
    return part_of("projection", prefix, projection, _projection_name, stacked)


def ip_adapter_parts(unet: UNet2DConditionModel, identity: AdapterSet, projection: IdentityProjection) -> list[Part]:
    """The parts of IP-Adapter's own FaceID-Plus file, as `read_checkpoint` names its keys.

    There the attention layers are numbered: down, up, mid, self- before cross-attention.
    """
    numbers = {site: number for number, site in enumerate(_attention_order(unet))}
    released = {}
    for site, adapter in identity.items():
        for tensor in adapter.state_dict():
            leaf = max((leaf for leaf in IDENTITY_LEAVES if tensor.startswith(f"{leaf}.")), key=len)
            released[f"{site}.{tensor}"] = f"{numbers[site]}.{IDENTITY_LEAVES[leaf]}{tensor.removeprefix(leaf)}"
    return [
        part_of("identity", "ip_adapter.", identity, released.__getitem__),
        projection_part(projection, "image_proj."),
    ]


def _projection_name(name: str) -> str:
    for pattern, released in _PROJECTION_NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(released)
    raise ValueError(f"{name} is no tensor of the identity projection")


def _attention_order(unet: UNet2DConditionModel) -> list[str]:
    from methods.blocks.adapted_unet import attention_sites

    return [site.name for site in attention_sites(unet)]


if __name__ == "__main__":
    from methods.restorerid.release import main

    raise SystemExit(main())
