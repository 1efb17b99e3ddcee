"""Encoder that turns the latent of an LQ picture and a timestep into the maps that SFT reads.

The downward half of a UNet with its middle, from diffusers' own blocks. Source: Wang et al., "Exploiting Diffusion
Prior for Real-World Image Super-Resolution" (StableSR), IJCV 2024, Sec. 3.1 ("time-aware encoder"); RestorerID uses the
same network. Numbers agree with the released module at float32 (tests/parity).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D, DownBlock2D, UNetMidBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPSILON = 1e-5


class LqEncoder(nn.Module):
    """Time-aware encoder of an LQ latent.

    The features before each downsampling and those of the middle, each through a time-conditioned residual block, are
    its output: one map per level of the UNet it conditions, as large as that level's features.
    """

    def __init__(
        self,
        in_channels: int = 4,
        channels: int = 256,
        multipliers: Sequence[int] = (1, 1, 2, 2),
        layers_per_level: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        heads: int = 4,
        map_channels: int = 256,
        groups: int = 32,
    ) -> None:
        """Builds the encoder; the defaults are the released size.

        Args:
            in_channels: Channels of the latent.
            channels: Base width; the time embedding is four times as wide.
            multipliers: Width of each level in multiples of `channels`; as many levels as the UNet has.
            layers_per_level: Residual blocks of a level.
            attention_levels: Levels with self-attention; the middle always has it.
            heads: Attention heads.
            map_channels: Channels of every output map.
            groups: Groups of every normalisation.
        """
        super().__init__()
        self.heads = heads
        time_channels = channels * 4
        block: dict[str, Any] = {"temb_channels": time_channels, "resnet_eps": NORM_EPSILON, "resnet_groups": groups}
        self.time_steps = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels, time_channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        widths = [channels * multiplier for multiplier in multipliers]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[level - 1] if level else channels
            last = level == len(widths) - 1
            shape: dict[str, Any] = {
                "in_channels": before,
                "out_channels": width,
                "num_layers": layers_per_level,
                **block,
            }
            if level in attention_levels:
                shape |= {"attention_head_dim": width // heads, "downsample_type": None if last else "conv"}
                self.down_blocks.append(AttnDownBlock2D(**shape))
            else:
                self.down_blocks.append(DownBlock2D(**shape, add_downsample=not last))
        self.mid_block = UNetMidBlock2D(in_channels=widths[-1], attention_head_dim=widths[-1] // heads, **block)
        self.to_maps = nn.ModuleList(
            ResnetBlock2D(
                in_channels=width,
                out_channels=map_channels,
                temb_channels=time_channels,
                groups=groups,
                eps=NORM_EPSILON,
            )
            for width in widths
        )

    def forward(self, latent: Tensor, timestep: Tensor) -> dict[tuple[int, int], Tensor]:
        """Maps of an LQ latent at a timestep.

        Args:
            latent: Scaled latents of the LQ pictures, (B, in_channels, H, W); zeros stand for no condition.
            timestep: Diffusion timestep, (B,), or a number.

        Returns:
            Map (B, map_channels, h, w) by (h, w), from (H, W) down by halves (rounded up).
        """
        steps = torch.as_tensor(timestep, device=latent.device).expand(latent.shape[0])
        embedding = self.time_embedding(self.time_steps(steps).to(latent.dtype))
        features, levels = self.conv_in(latent), []
        for block in self.down_blocks:
            features, states = block(features, embedding)
            if block.downsamplers is not None:
                levels.append(states[-2])
        levels.append(self.mid_block(features, embedding))
        maps = [to_map(level, embedding) for to_map, level in zip(self.to_maps, levels, strict=True)]
        return {(int(tensor.shape[-2]), int(tensor.shape[-1])): cast(Tensor, tensor) for tensor in maps}

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations of the residual blocks in the backward pass instead of keeping them."""
        for module in (*self.down_blocks, self.mid_block):
            block = cast(Any, module)
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
