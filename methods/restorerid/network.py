"""RestorerID's network: a stock UNet, what is attached to it, and the encoder of the LQ latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import UsageError, unknown_name
from methods.blocks.adapted_unet import AdaptedUNet, Maps
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import build_unet
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import sft_adapters
from methods.restorerid.fir_adapter import fir_adapters
from methods.restorerid.identity_attention import identity_attention_adapters
from methods.restorerid.identity_tokens import FaceFeatures, IdentityProjection

# What each stage of training changes. `base` is StableSR's stage, `identity` that of the ID model (taken ready-made
# in the paper), `fir` the paper's second stage, `single` all at once (Table 4).
STAGES = {
    "base": ("unet", "lq_encoder", "sft"),
    "identity": ("projection", "identity"),
    "fir": ("fir",),
    "single": ("unet", "lq_encoder", "sft", "projection", "identity", "fir"),
}


class RestorerIDNetwork(nn.Module):
    """Denoiser of RestorerID (arXiv 2411.14125, Fig. 2).

    Args:
        base: Base model: its UNet, and the width of its text tokens.
        options: `lq_encoder`, `sft`, `identity`, `projection` and `fir`: arguments of the module of that name.
        use_identity: Whether the ID model is there ("+ID" of Table 3).
        use_fir: Whether the FIR-Adapters are there ("+FIR" of Table 3); they need the ID model.

    Raises:
        UsageError: FIR-Adapters without the ID model.
    """

    def __init__(
        self, base: BaseModel, options: Mapping[str, Any], use_identity: bool = True, use_fir: bool = True
    ) -> None:
        super().__init__()
        if use_fir and not use_identity:
            raise UsageError(
                "The FIR-Adapters read identity tokens: method.use_identity=false needs method.use_fir=false."
            )
        self.adapted = AdaptedUNet(build_unet(base))
        unet, width = self.adapted.unet, base.text_width
        self.lq_encoder = LqEncoder(in_channels=base.latent_channels, **options["lq_encoder"])
        map_channels = options["lq_encoder"]["map_channels"]
        self.adapted.attach("sft", sft_adapters(unet, map_channels, **options["sft"]))
        self.projection: IdentityProjection | None = None
        if use_identity:
            self.projection = IdentityProjection(width=width, **options["projection"])
            self.adapted.attach("identity", identity_attention_adapters(unet, width, **options["identity"]))
        if use_fir:
            self.adapted.attach("fir", fir_adapters(unet, map_channels, width, **options["fir"]))

    def lq_maps(self, lq_latent: Tensor, timestep: Tensor) -> Maps:
        """Maps of LQ latents (B, C, h, w) at timesteps (B,)."""
        maps: Maps = self.lq_encoder(lq_latent, timestep)
        return maps

    def identity_tokens(self, features: FaceFeatures) -> Tensor:
        """Identity tokens (B, N, width) of faces.

        Raises:
            UsageError: This network has no ID model.
        """
        if self.projection is None:
            raise UsageError("This network was built without its ID model (method.use_identity=false).")
        tokens: Tensor = self.projection(features.identity, features.image_states)
        return tokens

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        lq_maps: Maps,
        identity_tokens: Tensor | None = None,
        identity_scale: Tensor | None = None,
    ) -> Tensor:
        """Predicts the noise.

        Args:
            latent: Noisy latents, (B, C, h, w).
            timestep: (B,).
            text: Text tokens, (B, T, width).
            lq_maps: See `lq_maps`; for B pictures, or for the pictures of one branch of a guided call.
            identity_tokens: (B, N, width); None without ID model.
            identity_scale: Weight of the identity, (B,) or that of one branch.

        Returns:
            (B, C, h, w).
        """
        if self.projection is None:
            return self.adapted(latent, timestep, text, lq_maps=lq_maps)
        if identity_scale is None:
            identity_scale = torch.ones(len(latent), device=latent.device)
        return self.adapted(
            latent, timestep, text, lq_maps=lq_maps, identity_tokens=identity_tokens, identity_scale=identity_scale
        )

    def part_of(self, parameter: str) -> str:
        """To which part of `STAGES` a parameter belongs, by its name."""
        for prefix, part in (
            ("adapted.unet.", "unet"),
            ("adapted.adapters.sft.", "sft"),
            ("adapted.adapters.identity.", "identity"),
            ("adapted.adapters.fir.", "fir"),
            ("lq_encoder.", "lq_encoder"),
            ("projection.", "projection"),
        ):
            if parameter.startswith(prefix):
                return part
        raise ValueError(f"{parameter} belongs to no part of RestorerID")

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Freezes everything but the parts of a stage, and returns these.

        Raises:
            UsageError: There is no such stage.
        """
        if stage not in STAGES:
            raise unknown_name("value of method.training.stage", stage, STAGES)
        chosen = []
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.part_of(name) in STAGES[stage])
            if parameter.requires_grad:
                chosen.append(parameter)
        return chosen
