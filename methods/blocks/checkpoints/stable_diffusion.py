"""Stable Diffusion's single-file layout (CompVis, Stability): UNet, autoencoder and text encoders.

The names follow from the shape of the network, so that any width and depth converts. `UNetNames` also tells where
further tensors of a residual block or an attention stand, for parts that add their own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from methods.blocks.checkpoints.accounting import Entry, Part, part_of, reshaped_tensor, stacked_tensor

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTextModel

    from methods.blocks.lq_encoder import LqEncoder

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model."

SCHEDULE_BUFFERS = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|"
    "log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|"
    "posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2"
)
LEFT_OUT = {
    SCHEDULE_BUFFERS: "the noise schedule is made from the settings",
    r"lvlb_weights|logvar": "weights of a loss that is not used",
    r"model_ema\..*": "the moving average; the weights themselves are taken",
    r"cond_stage_model\.transformer\.text_model\.embeddings\.position_ids": "positions are counted",
    r"cond_stage_model\.model\.(text_projection|logit_scale)": "the tokens are taken before the projection",
    r"cond_stage_model\.model\.transformer\.resblocks\.23\..*": "the tokens are taken before the last layer",
    r"cond_stage_model\.model\.attn_mask": "the causal mask is made from the length",
    r"first_stage_model\.loss\..*": "weights of the autoencoder's training loss",
}

RESNET_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ROOTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP_LEAVES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


class UNetNames:
    """Released names of the modules and tensors of a UNet, or of an LQ encoder, which is half of one."""

    def __init__(self, unet: UNet2DConditionModel | LqEncoder) -> None:
        """Reads depth and attention of the network."""
        self.modules = dict(unet.named_modules())
        self.layers = sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+", name)) for name in self.modules)

    def released(self, name: str) -> str:
        """Released name of a module or tensor.

        Args:
            name: Its name in diffusers (`down_blocks.0.resnets.1.conv2.weight`, `down_blocks.0.resnets.1`).

        Returns:
            The same in the release (`input_blocks.2.0.out_layers.3.weight`, `input_blocks.2.0`).

        Raises:
            ValueError: The layout has no such module.
        """
        for root, other in UNET_ROOTS.items():
            if name.startswith(f"{root}."):
                return other + name.removeprefix(root)
        place, rest = self._block(name)
        kind, _, leaf = rest.partition(".")
        if kind == "resnet" and leaf:
            module, _, tensor = leaf.partition(".")
            return f"{place}.{RESNET_LEAVES[module]}" + (f".{tensor}" if tensor else "")
        return f"{place}.{leaf}" if leaf else place

    def _block(self, name: str) -> tuple[str, str]:
        per_level = self.layers + 1
        if found := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(.*)", name):
            number = 1 + int(found[1]) * per_level + int(found[3])
            return f"input_blocks.{number}.{int(found[2] == 'attentions')}", _kind(found[2]) + found[4]
        if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv(.*)", name):
            return f"input_blocks.{(int(found[1]) + 1) * per_level}.0", f"sampler.op{found[2]}"
        if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)(.*)", name):
            number = 2 * int(found[2]) + int(found[1] == "attentions")
            return f"middle_block.{number}", _kind(found[1]) + found[3]
        if found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(.*)", name):
            number = int(found[1]) * per_level + int(found[3])
            return f"output_blocks.{number}.{int(found[2] == 'attentions')}", _kind(found[2]) + found[4]
        if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0(.*)", name):
            after = 2 if f"up_blocks.{found[1]}.attentions" in self.modules else 1
            return f"output_blocks.{int(found[1]) * per_level + self.layers}.{after}", f"sampler{found[2]}"
        raise ValueError(f"{name} is no module of a Stable Diffusion UNet")


def unet_part(unet: UNet2DConditionModel, prefix: str = UNET_PREFIX) -> Part:
    """The UNet (part `unet`)."""
    return part_of("unet", prefix, unet, UNetNames(unet).released)


def vae_part(vae: AutoencoderKL, prefix: str = VAE_PREFIX) -> Part:
    """The autoencoder (part `vae`); its attention is released as 1x1 convolutions."""
    levels = len(vae.decoder.up_blocks)
    linear = [
        reshaped_tensor(_vae_name(name, levels), name, (*tensor.shape, 1, 1), tensor.shape)
        for name, tensor in vae.state_dict().items()
        if re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight", name)
    ]
    return part_of("vae", prefix, vae, lambda name: _vae_name(name, levels), linear)


def clip_text_part(text: CLIPTextModel, prefix: str = f"{TEXT_PREFIX}transformer.text_model.") -> Part:
    """CLIP's text encoder as transformers names it (part `text`): Stable Diffusion 1.x."""
    return part_of("text", prefix, text, lambda name: name.removeprefix("text_model."))


def open_clip_text_part(text: CLIPTextModel, prefix: str = f"{TEXT_PREFIX}model.") -> Part:
    """OpenCLIP's text encoder (part `text`): Stable Diffusion 2.x, query, key and value in one tensor."""
    fused = []
    for name in text.state_dict():
        if found := re.fullmatch(r"((?:text_model\.)?encoder\.layers\.(\d+)\.self_attn)\.q_proj\.(weight|bias)", name):
            released = f"transformer.resblocks.{found[2]}.attn.in_proj_{found[3]}"
            fused.append(stacked_tensor(released, [f"{found[1]}.{which}_proj.{found[3]}" for which in "qkv"]))
    return part_of("text", prefix, text, _open_clip_name, fused)


def head_wise_attention(module: nn.Module, name: str, released: str, heads: int) -> list[Entry]:
    """Entries of an attention released with query, key and value of each head side by side (guided diffusion's).

    Args:
        module: The network the attention belongs to.
        name: The attention's path in it.
        released: The attention's released path.
        heads: Number of heads.
    """
    width = module.get_submodule(name).get_parameter("to_q.weight").shape[0]
    head = width // heads
    entries = [
        Entry(
            f"{released}.qkv.weight",
            tuple(f"{name}.to_{which}.weight" for which in "qkv"),
            lambda t: _interleave([part.reshape(heads, head, width) for part in t]).reshape(3 * width, width, 1),
            lambda t: [part.reshape(width, width) for part in t.reshape(heads, 3, head, width).unbind(1)],
        ),
        Entry(
            f"{released}.qkv.bias",
            tuple(f"{name}.to_{which}.bias" for which in "qkv"),
            lambda t: _interleave([part.reshape(heads, head) for part in t]).reshape(3 * width),
            lambda t: [part.reshape(width) for part in t.reshape(heads, 3, head).unbind(1)],
        ),
        reshaped_tensor(f"{released}.proj_out.weight", f"{name}.to_out.0.weight", (width, width, 1), (width, width)),
    ]
    return entries


def _interleave(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(parts, dim=1)


def _kind(group: str) -> str:
    return "resnet" if group == "resnets" else "attention"


def _vae_name(name: str, levels: int) -> str:
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = f"block_{int(found[3]) + 1}" if found[2] == "resnets" else "attn_1"
        return f"{found[1]}.mid.{place}.{_vae_leaf(found[4])}"
    if found := re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(.*)", name):
        level = int(found[3]) if found[2] == "down" else levels - 1 - int(found[3])
        return f"{found[1]}.{found[2]}.{level}.{_vae_leaf(found[4])}"
    return name.replace("conv_norm_out", "norm_out")


def _vae_leaf(leaf: str) -> str:
    leaf = re.sub(r"^resnets\.(\d+)\.", r"block.\1.", leaf)
    leaf = re.sub(r"^(down|up)samplers\.0\.conv", r"\1sample.conv", leaf)
    for ours, released in (
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
    ):
        leaf = leaf.replace(ours, released)
    return leaf


def _open_clip_name(name: str) -> str:
    name = name.removeprefix("text_model.")
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
        return f"transformer.resblocks.{found[1]}.{OPEN_CLIP_LEAVES[found[2]]}.{found[3]}"
    return {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }.get(name, name.replace("final_layer_norm", "ln_final"))
