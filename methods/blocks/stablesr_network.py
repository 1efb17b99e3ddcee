"""StableSR's denoiser: a stock UNet that reads the LQ latent through SFT. Methods build on it by attaching more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from methods.blocks.adapted_unet import AdaptedUNet, Maps, compile_regions
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import build_unet
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import sft_adapters
from methods.blocks.staged_network import StagedNetwork


class StableSRNetwork(StagedNetwork):
    """UNet, time-aware encoder of the LQ latent, SFT in every ResBlock (StableSR, Wang et al., IJCV 2024, Sec. 3.1).

    Args:
        base: Base model: its UNet, and the width of its text tokens.
        options: `lq_encoder` and `sft`: arguments of the module of that name.
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        "adapted.unet.": "unet",
        "adapted.adapters.sft.": "sft",
        "lq_encoder.": "lq_encoder",
    }
    STAGES: ClassVar[Mapping[str, tuple[str, ...]]] = {"base": ("unet", "lq_encoder", "sft")}

    def __init__(self, base: BaseModel, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.adapted = AdaptedUNet(build_unet(base))
        self.lq_encoder = LqEncoder(in_channels=base.latent_channels, **options["lq_encoder"])
        maps = options["lq_encoder"]["map_channels"]
        self.adapted.attach("sft", sft_adapters(self.adapted.unet, maps, **options["sft"]))

    def lq_maps(self, lq_latent: Tensor, timestep: Tensor) -> Maps:
        """Maps of LQ latents (B, C, h, w) at timesteps (B,)."""
        maps: Maps = self.lq_encoder(lq_latent, timestep)
        return maps

    def enable_gradient_checkpointing(self) -> None:
        """See `StagedNetwork.enable_gradient_checkpointing`."""
        self.adapted.enable_gradient_checkpointing()
        self.lq_encoder.enable_gradient_checkpointing()

    def compile_regions(self, **options: Any) -> None:
        """See `StagedNetwork.compile_regions`."""
        self.adapted.compile_regions(**options)
        compile_regions(self.lq_encoder, **options)
