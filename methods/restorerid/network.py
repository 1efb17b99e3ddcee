"""RestorerID's network: a stock UNet, what is attached to it, and the encoder of the LQ latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdapterSet, Maps
from methods.blocks.base_models import BaseModel
from methods.blocks.stablesr_network import StableSRNetwork
from methods.restorerid.fir_adapter import fir_adapters
from methods.restorerid.identity_attention import IdentityAttention, identity_attention_adapters
from methods.restorerid.identity_tokens import FaceFeatures, IdentityProjection

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

# What each stage of training changes. `base` is StableSR's stage, `identity` that of the ID model (taken ready-made
# in the paper), `fir` the paper's second stage, `single` base and FIR-Adapters together (Table 4), `joint` everything.
STAGES = {
    **StableSRNetwork.STAGES,
    "identity": ("projection", "identity"),
    "fir": ("fir",),
    "single": ("unet", "lq_encoder", "sft", "fir"),
    "joint": ("unet", "lq_encoder", "sft", "projection", "identity", "fir"),
}


class RestorerIDNetwork(StableSRNetwork):
    """Denoiser of RestorerID (arXiv 2411.14125, Fig. 2).

    Args:
        base: Base model: its UNet, and the width of its text tokens.
        options: `lq_encoder`, `sft`, `identity`, `projection` and `fir`: arguments of the module of that name.
        use_identity: Whether the ID model is there ("+ID" of Table 3).
        use_fir: Whether the FIR-Adapters are there ("+FIR" of Table 3); they need the ID model.

    Raises:
        UsageError: FIR-Adapters without the ID model.
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        **StableSRNetwork.PARTS,
        "adapted.adapters.identity.": "identity",
        "adapted.adapters.fir.": "fir",
        "projection.": "projection",
    }
    STAGES: ClassVar[Mapping[str, tuple[str, ...]]] = STAGES

    def __init__(
        self, base: BaseModel, options: Mapping[str, Any], use_identity: bool = True, use_fir: bool = True
    ) -> None:
        if use_fir and not use_identity:
            raise UsageError(
                "The FIR-Adapters read identity tokens: method.use_identity=false needs method.use_fir=false."
            )
        super().__init__(base, options)
        unet, width = self.adapted.unet, base.text_width
        map_channels = options["lq_encoder"]["map_channels"]
        self.projection: IdentityProjection | None = None
        if use_identity:
            self.projection = IdentityProjection(width=width, **options["projection"])
            self.adapted.attach("identity", identity_attention_adapters(unet, width, **options["identity"]))
        if use_fir:
            self.adapted.attach("fir", fir_adapters(unet, map_channels, width, **options["fir"]))

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
        use_kept: bool = False,
        base_only: bool = False,
    ) -> Tensor:
        """Predicts the noise.

        Args:
            latent: Noisy latents, (B, C, h, w).
            timestep: (B,).
            text: Text tokens, (B, T, width).
            lq_maps: See `lq_maps`; for B pictures, or for the pictures of one branch of a guided call.
            identity_tokens: (B, N, width); None without ID model.
            identity_scale: Weight of the identity, (B,) or that of one branch.
            use_kept: Whether cross-attention reads the keys and values of `keep`, made of the same tokens.
            base_only: Whether ID model and FIR-Adapters are passed over, as if they were not there.

        Returns:
            (B, C, h, w).
        """
        if self.projection is None:
            return self.adapted(latent, timestep, text, lq_maps=lq_maps)
        if base_only:
            return self.adapted(latent, timestep, text, lq_maps=lq_maps, base_only=True)
        if identity_scale is None:
            identity_scale = torch.ones(len(latent), device=latent.device)
        conditions: dict[str, Any] = {"identity_tokens": identity_tokens, "identity_scale": identity_scale}
        if use_kept:
            conditions["use_kept"] = True
        return self.adapted(latent, timestep, text, lq_maps=lq_maps, **conditions)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """For the calls of one sampling: LoRA merged into the projections, and room for what `keep` makes.

        Weights may change between samplings, not within one.
        """
        try:
            with torch.inference_mode():
                for adapter, attention in self._identity_attention():
                    adapter.merge_lora(attention)
            yield
        finally:
            for adapter, _ in self._identity_attention():
                adapter.unmerge_lora()
                adapter.drop_kept()

    @torch.inference_mode()
    def keep(self, text: Tensor, identity_tokens: Tensor | None) -> None:
        """Makes the keys and values of tokens once for all steps; within `sampling`, see `forward`.

        Args:
            text: Text tokens of a whole call, (B, T, width).
            identity_tokens: (B, N, width).
        """
        for adapter, attention in self._identity_attention():
            adapter.keep(attention, text, identity_tokens)

    def _identity_attention(self) -> Iterator[tuple[IdentityAttention, Attention]]:
        if "identity" not in self.adapted.adapters:
            return
        for site, adapter in cast(AdapterSet, self.adapted.adapters["identity"]).items():
            yield cast(IdentityAttention, adapter), cast("Attention", self.adapted.unet.get_submodule(site))

    @property
    def left_out(self) -> set[str]:
        """See `StableSRNetwork.left_out`."""
        parts = {"identity", "projection"} if self.projection is None else set()
        return parts | (set() if "fir" in self.adapted.adapters else {"fir"})

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Freezes everything but the parts of a stage, and returns these.

        Raises:
            UsageError: There is no such stage, or the settings left out what it trains.
        """
        if stage in STAGES and set(STAGES[stage]) <= self.left_out:
            raise UsageError(
                f"method.training.stage={stage} trains what the settings left out: set method.use_identity=true"
                f"{' and method.use_fir=true' if stage == 'fir' else ''}."
            )
        return super().train_only(stage)
