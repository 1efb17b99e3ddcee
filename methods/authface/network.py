"""AuthFace's network: a UNet tuned to portraits, and a ControlNet that reads the degraded picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor, nn

from bench.errors import UsageError, unknown_name
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import build_unet

#: Stage of training -> what it trains: the whole UNet on portraits, then the ControlNet alone (Sec. 3.1 and 3.2).
STAGES: Mapping[str, tuple[str, ...]] = {"prior": ("unet",), "control": ("controlnet",)}


@dataclass(frozen=True)
class PromptStates:
    """What SDXL reads of a prompt.

    Attributes:
        tokens: States of both text encoders, one beside the other, (B, T, width).
        pooled: The second encoder's summary, (B, pooled width).
    """

    tokens: Tensor
    pooled: Tensor

    def rows(self, count: int) -> PromptStates:
        """One prompt for `count` pictures, or as many as there are already."""
        return PromptStates(self.tokens.expand(count, -1, -1), self.pooled.expand(count, -1))


def picture_times(count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """SDXL's micro-conditioning of pictures that are neither resized nor cropped (Podell et al., ICLR 2024, Sec. 2.2).

    Args:
        count: Number of pictures.
        size: Their side in pixels, original and wanted.
        device: Where the result lies.

    Returns:
        (count, 6): original height and width, upper left corner of the crop, wanted height and width.
    """
    row = torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32, device=device)
    return row.expand(count, -1)


class AuthFaceNetwork(nn.Module):
    """Denoiser of AuthFace (Li et al., ACM MM 2025, Fig. 4).

    Args:
        base: Base model with SDXL's kind of UNet.

    Raises:
        UsageError: The base model's UNet reads no pooled text.
    """

    def __init__(self, base: BaseModel) -> None:
        super().__init__()
        if base.unet.get("addition_embed_type") != "text_time":
            raise UsageError(
                f"AuthFace's UNet is SDXL's, which reads a pooled text and the picture's size; {base.name!r} is not."
            )
        self.unet = build_unet(base)
        # Its first weights are taken over in `begin_control`, after those of the UNet are there.
        self.controlnet = ControlNetModel.from_unet(self.unet, load_weights_from_unet=False)

    @torch.no_grad()
    def begin_control(self) -> None:
        """Starts the ControlNet as the UNet's encoder (Sec. 3.2); it then changes nothing yet."""
        for name in ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"):
            ours = getattr(self.controlnet, name)
            ours.load_state_dict(getattr(self.unet, name).state_dict())
        embedding = self.controlnet.controlnet_cond_embedding.conv_out
        outputs = [*self.controlnet.controlnet_down_blocks, self.controlnet.controlnet_mid_block]
        for module in (embedding, *outputs):
            for parameter in module.parameters():
                parameter.zero_()

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        prompt: PromptStates,
        times: Tensor,
        lq: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Predicts the noise.

        Args:
            latent: Noisy latents, (B, C, h, w).
            timestep: (B,).
            prompt: Of each picture.
            times: See `picture_times`, (B, 6).
            lq: Degraded pictures, (B, 3, H, W) RGB in [0, 1], not in [-1, 1]; None leaves the ControlNet out, as in
                the first stage.
            scale: Weight of the ControlNet.

        Returns:
            (B, C, h, w).
        """
        added = {"text_embeds": prompt.pooled, "time_ids": times}
        residuals: dict[str, Any] = {}
        if lq is not None:
            down, middle = self.controlnet(
                latent, timestep, prompt.tokens, lq, scale, added_cond_kwargs=added, return_dict=False
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted: Tensor = self.unet(
            latent, timestep, prompt.tokens, added_cond_kwargs=added, return_dict=False, **residuals
        )[0]
        return predicted

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass instead of keeping them: less memory, a slower step."""
        self.unet.enable_gradient_checkpointing()
        self.controlnet.enable_gradient_checkpointing()

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Freezes everything but what a stage trains, and returns that.

        Raises:
            UsageError: There is no such stage.
        """
        if stage not in STAGES:
            raise unknown_name("value of method.training.stage", stage, STAGES)
        self.requires_grad_(False)
        chosen = [parameter for part in STAGES[stage] for parameter in getattr(self, part).parameters()]
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen
