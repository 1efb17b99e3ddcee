"""Dual-Pivot Tuning's network, DiffBIR's: a cleaner, Stable Diffusion's UNet, and a ControlNet that reads latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor, nn

from methods.blocks.adapted_unet import compile_regions
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import build_unet
from methods.blocks.staged_network import StagedNetwork
from methods.dual_pivot.cleaner import build_cleaner


class NoEmbedding(nn.Module):
    """In the place of ControlNet's convolutions over a picture: the hint is a latent, which `conv_in` reads itself."""

    def forward(self, conditioning: Tensor) -> Tensor:
        """Nothing to add to the features."""
        return conditioning.new_zeros(())


def build_control_net(base: BaseModel, unet: nn.Module) -> ControlNetModel:
    """DiffBIR's IRControlNet: a copy of the UNet's encoder whose first convolution takes noisy latent and hint.

    Args:
        base: The base model.
        unet: diffusers' `UNet2DConditionModel` of it.
    """
    control: Any = ControlNetModel.from_unet(
        unet,  # type: ignore[arg-type]
        conditioning_embedding_out_channels=(8, 8),
        load_weights_from_unet=False,
    )
    first = control.conv_in
    control.conv_in = nn.Conv2d(2 * base.latent_channels, first.out_channels, first.kernel_size, padding=first.padding)
    control.controlnet_cond_embedding = NoEmbedding()
    return control  # type: ignore[no-any-return]


class DualPivotNetwork(StagedNetwork):
    """Denoiser of DiffBIR (Lin et al., ECCV 2024, Sec. 3.2), which Dual-Pivot Tuning personalises.

    Stage `cleaner` trains the cleaner on pictures, `prior` the UNet on ground truth, `control` the ControlNet (the
    guiding network) with both frozen.

    Args:
        base: Base model: its UNet, and the width of its text tokens.
        options: `cleaner`: see `build_cleaner`.
    """

    PARTS: ClassVar[Mapping[str, str]] = {"unet.": "unet", "controlnet.": "controlnet", "cleaner.": "cleaner"}
    STAGES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cleaner": ("cleaner",),
        "prior": ("unet",),
        "control": ("controlnet",),
    }

    def __init__(self, base: BaseModel, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = build_unet(base)
        # Its first weights are taken over in `begin_control`, after those of the UNet are there.
        self.controlnet = build_control_net(base, self.unet)
        self.cleaner = build_cleaner(options["cleaner"])

    @torch.no_grad()
    def begin_control(self) -> None:
        """Starts the ControlNet as the UNet's encoder that sees no hint; it then changes nothing yet."""
        for name in ("time_embedding", "down_blocks", "mid_block"):
            getattr(self.controlnet, name).load_state_dict(getattr(self.unet, name).state_dict())
        first: Any = self.controlnet.conv_in
        first.weight.zero_()
        first.weight[:, : self.unet.conv_in.in_channels] = self.unet.conv_in.weight
        first.bias.copy_(self.unet.conv_in.bias)  # type: ignore[arg-type]
        for module in self._outputs():
            for parameter in module.parameters():
                parameter.zero_()

    @property
    def controls(self) -> bool:
        """Whether the ControlNet was ever trained: before, its outputs are zero."""
        return any(bool(parameter.any()) for module in self._outputs() for parameter in module.parameters())

    def train(self, mode: bool = True) -> DualPivotNetwork:
        """Leaves a frozen cleaner in evaluation mode: SwinIR drops paths at random while it is trained."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.cleaner.parameters()):
            self.cleaner.eval()
        return self

    def _outputs(self) -> list[Any]:
        return [*self.controlnet.controlnet_down_blocks, self.controlnet.controlnet_mid_block]

    def clean(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] without most of their degradation, in [0, 1]."""
        cleaned: Tensor = self.cleaner(pictures)
        return cleaned.clamp(0, 1)

    def control(self, latent: Tensor, timestep: Tensor, text: Tensor, hint: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the ControlNet adds to the UNet's skips and to its middle.

        Args:
            latent: Noisy latents, (B, C, h, w).
            timestep: (B,).
            text: Tokens of the empty prompt, which the released code gives it whatever the UNet reads, (B, T, width).
            hint: Latents of the cleaned pictures, (B, C, h, w).
        """
        both = torch.cat([latent, hint], dim=1)
        down, middle = self.controlnet(both, timestep, text, controlnet_cond=hint, return_dict=False)
        return list(down), middle

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        hint: Tensor | None = None,
        control_text: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Predicts the noise, or the velocity.

        Args:
            latent: Noisy latents, (B, C, h, w).
            timestep: (B,).
            text: Text tokens that the UNet reads, (B, T, width).
            hint: Latents of the cleaned pictures, (B, C, h, w); None leaves the ControlNet out.
            control_text: Text tokens that the ControlNet reads; those of the UNet if not given.
            scale: Weight of the ControlNet.

        Returns:
            (B, C, h, w).
        """
        residuals: dict[str, Any] = {}
        if hint is not None:
            own = text if control_text is None else control_text
            down, middle = self.control(latent, timestep, own, hint)
            if scale != 1:
                down, middle = [scale * one for one in down], scale * middle
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted: Tensor = self.unet(latent, timestep, text, return_dict=False, **residuals)[0]
        return predicted

    def enable_gradient_checkpointing(self) -> None:
        """See `StagedNetwork.enable_gradient_checkpointing`."""
        self.unet.enable_gradient_checkpointing()
        self.controlnet.enable_gradient_checkpointing()

    def compile_regions(self, **options: Any) -> None:
        """See `StagedNetwork.compile_regions`."""
        compile_regions(self.unet, **options)
        compile_regions(self.controlnet, **options)
