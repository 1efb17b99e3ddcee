"""AuthFace's network: a UNet tuned to portraits, and a ControlNet that reads the degraded picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding, ControlNetModel
from torch import Tensor

from bench.errors import UsageError
from methods.authface.conditions import PromptStates
from methods.authface.tags import TagEncoder
from methods.blocks.adapted_unet import compile_regions
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import build_unet
from methods.blocks.staged_network import StagedNetwork

#: Channels of the ControlNet's convolutions over the picture, diffusers' own.
CONDITION_CHANNELS = (16, 32, 96, 256)


class KeptEmbedding(ControlNetConditioningEmbedding):
    """ControlNet's convolutions over the degraded picture, which are the same in every step of a sampling."""

    #: By the id of the pictures' tensor: the tensor, which keeps its id from being used again, and the features.
    kept: dict[int, tuple[Tensor, Tensor]] | None = None

    def forward(self, conditioning: Tensor) -> Tensor:
        """Features of pictures (B, 3, H, W); those kept, if the pictures are a tensor that came before."""
        if self.kept is None:
            return super().forward(conditioning)
        if id(conditioning) not in self.kept:
            self.kept[id(conditioning)] = (conditioning, super().forward(conditioning))
        return self.kept[id(conditioning)][1]


class AuthFaceNetwork(StagedNetwork):
    """Denoiser of AuthFace (Liang et al., ACM MM 2025, Fig. 4).

    Stage `prior` tunes the whole UNet on portraits, stage `control` trains the ControlNet alone (Sec. 3.1 and 3.2).

    Args:
        base: Base model with SDXL's kind of UNet.
        condition_channels: Channels of the convolutions over the degraded picture.
        tag_encoder: Whether prompts are tags, read by a small encoder of its own.

    Raises:
        UsageError: The base model's UNet reads no pooled text.
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        "unet.": "unet",
        "controlnet.": "controlnet",
        "tag_encoder.": "tag_encoder",
    }
    STAGES: ClassVar[Mapping[str, tuple[str, ...]]] = {"prior": ("unet", "tag_encoder"), "control": ("controlnet",)}

    def __init__(
        self, base: BaseModel, condition_channels: Sequence[int] = CONDITION_CHANNELS, tag_encoder: bool = False
    ) -> None:
        super().__init__()
        if not base.pooled_width:
            raise UsageError(
                f"AuthFace's UNet is SDXL's, which reads a pooled text and the picture's size; {base.name!r} is not."
            )
        self.unet = build_unet(base)
        # Its first weights are taken over in `begin_control`, after those of the UNet are there.
        self.controlnet = ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=tuple(condition_channels), load_weights_from_unet=False
        )
        # Another class, the same tensors.
        self.controlnet.controlnet_cond_embedding.__class__ = KeptEmbedding
        self.tag_encoder = TagEncoder(base.text_width, base.pooled_width) if tag_encoder else None

    @torch.no_grad()
    def begin_control(self) -> None:
        """Starts the ControlNet as the UNet's encoder (Sec. 3.2); it then changes nothing yet."""
        for name in ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"):
            ours = getattr(self.controlnet, name)
            ours.load_state_dict(getattr(self.unet, name).state_dict())
        embedding = self.controlnet.controlnet_cond_embedding.conv_out
        for module in (embedding, *self._outputs()):
            for parameter in module.parameters():
                parameter.zero_()

    @property
    def controls(self) -> bool:
        """Whether the ControlNet was ever trained: before, its outputs are zero."""
        return any(bool(parameter.any()) for module in self._outputs() for parameter in module.parameters())

    def _outputs(self) -> list[Any]:
        return [*self.controlnet.controlnet_down_blocks, self.controlnet.controlnet_mid_block]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Keeps what the ControlNet's convolutions make of a tensor of pictures, for all steps of a sampling."""
        embedding = self.controlnet.controlnet_cond_embedding
        embedding.kept = {}
        try:
            yield
        finally:
            embedding.kept = None

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        prompt: PromptStates,
        times: Tensor,
        lq: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Predicts the noise, or the velocity.

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
        """See `StagedNetwork.enable_gradient_checkpointing`."""
        self.unet.enable_gradient_checkpointing()
        self.controlnet.enable_gradient_checkpointing()

    def compile_regions(self, **options: Any) -> None:
        """See `StagedNetwork.compile_regions`."""
        compile_regions(self.unet, **options)
        compile_regions(self.controlnet, **options)

    @property
    def left_out(self) -> set[str]:
        """See `StagedNetwork.left_out`."""
        return set() if self.tag_encoder is not None else {"tag_encoder"}
