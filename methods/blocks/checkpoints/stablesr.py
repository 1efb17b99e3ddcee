"""StableSR's checkpoint layout: a Stable Diffusion file with SFT in every residual block and the LQ encoder beside it.

RestorerID's base checkpoint has the same layout over Stable Diffusion 1.5; its further parts (identity tokens, FIR
adapters) are described where they are built and given to `convert` together with these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.blocks.checkpoints.accounting import Part, part_of
from methods.blocks.checkpoints.stable_diffusion import (
    LEFT_OUT,
    RESNET_LEAVES,
    UNET_PREFIX,
    UNetNames,
    clip_text_part,
    head_wise_attention,
    open_clip_text_part,
    unet_part,
    vae_part,
)

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    from methods.blocks.adapted_unet import AdapterSet
    from methods.blocks.lq_encoder import LqEncoder

LQ_ENCODER_PREFIX = "structcond_stage_model."
SFT_LEAVES = {
    "norm": "spade.param_free_norm",
    "shared": "spade.mlp_shared.0",
    "gamma": "spade.mlp_gamma",
    "beta": "spade.mlp_beta",
}

__all__ = ["LEFT_OUT", "lq_encoder_part", "sft_part", "stablesr_parts"]


def block_adapter_part(
    name: str, unet: UNet2DConditionModel, adapters: AdapterSet, leaves: dict[str, str], prefix: str = UNET_PREFIX
) -> Part:
    """Adapters whose tensors are released inside the residual block (or attention) they belong to.

    Args:
        name: What the part is called in the result.
        unet: The UNet whose sites they are attached to.
        adapters: The set; its site names lead to the released ones.
        leaves: Name of a module inside the adapter -> its released name inside the site.
        prefix: Prefix of the UNet's keys.
    """
    names = UNetNames(unet)
    released = {}
    for site, adapter in adapters.items():
        for tensor in adapter.state_dict():
            ours = max((leaf for leaf in leaves if tensor.startswith(f"{leaf}.")), key=len)
            released[f"{site}.{tensor}"] = f"{names.released(site)}.{leaves[ours]}{tensor.removeprefix(ours)}"
    return part_of(name, prefix, adapters, released.__getitem__)


def sft_part(unet: UNet2DConditionModel, adapters: AdapterSet, prefix: str = UNET_PREFIX) -> Part:
    """SFT of form `released_code` in every residual block (part `sft`)."""
    return block_adapter_part("sft", unet, adapters, SFT_LEAVES, prefix)


def lq_encoder_part(encoder: LqEncoder, prefix: str = LQ_ENCODER_PREFIX) -> Part:
    """The time-aware LQ encoder (part `lq_encoder`); query, key and value of its attention are released in one."""
    names = UNetNames(encoder)
    attentions = [name for name, module in encoder.named_modules() if hasattr(module, "to_q")]
    fused = [
        entry
        for attention in attentions
        for entry in head_wise_attention(encoder, attention, names.released(attention), encoder.heads)
    ]

    def rename(name: str) -> str:
        if name.startswith("to_maps."):
            _, number, module, tensor = name.split(".")
            return f"fea_tran.{number}.{RESNET_LEAVES[module]}.{tensor}"
        return names.released(name).replace(".group_norm.", ".norm.").replace(".to_out.0.", ".proj_out.")

    return part_of("lq_encoder", prefix, encoder, rename, fused)


def stablesr_parts(
    unet: UNet2DConditionModel,
    sft: AdapterSet,
    lq_encoder: LqEncoder,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    *,
    open_clip: bool,
) -> list[Part]:
    """Every part of a full checkpoint (`convert` it with `left_out=LEFT_OUT`).

    Args:
        unet: UNet (part `unet`).
        sft: SFT adapters of form `released_code` (part `sft`).
        lq_encoder: LQ encoder (part `lq_encoder`).
        vae: Autoencoder (part `vae`).
        text: Text encoder (part `text`).
        open_clip: Whether the text encoder is OpenCLIP's (Stable Diffusion 2.x) rather than CLIP's (1.x).
    """
    text_part = open_clip_text_part(text) if open_clip else clip_text_part(text)
    return [unet_part(unet), sft_part(unet, sft), lq_encoder_part(lq_encoder), vae_part(vae), text_part]
