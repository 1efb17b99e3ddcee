"""What a UNet computes before its decoder, kept: for trainings that change nothing before it.

diffusers' `UNet2DConditionModel` runs unchanged; a twin that shares its decoder has stand-ins in the place of the first
convolution, the down blocks and the middle, which hand on what was kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.blocks.adapted_unet import AdaptedUNet


@dataclass(frozen=True)
class EncoderFeatures:
    """What the decoder reads of the encoder, for B pictures.

    Attributes:
        skips: Outputs of the first convolution and of the down blocks, in the order they are made.
        middle: Output of the middle block.
    """

    skips: tuple[Tensor, ...]
    middle: Tensor

    def __getitem__(self, rows: Tensor) -> EncoderFeatures:
        """Some of the pictures."""
        return EncoderFeatures(tuple(skip[rows] for skip in self.skips), self.middle[rows])

    @staticmethod
    def join(parts: Sequence[EncoderFeatures]) -> EncoderFeatures:
        """Pictures of several calls, one after the other."""
        skips = tuple(torch.cat(rows) for rows in zip(*(part.skips for part in parts), strict=True))
        return EncoderFeatures(skips, torch.cat([part.middle for part in parts]))


class _ReadError(Exception):
    """The encoder is done."""


class _Skips(nn.Module):
    """In the place of the first convolution, and of all down blocks together."""

    has_cross_attention = False

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.features: EncoderFeatures | None = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        features = cast(EncoderFeatures, self.features)
        return features.skips[0] if self.first else (features.skips[-1], features.skips[1:])


class _Middle(nn.Module):
    """In the place of the middle block."""

    has_cross_attention = False

    def __init__(self) -> None:
        super().__init__()
        self.features: EncoderFeatures | None = None

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return cast(EncoderFeatures, self.features).middle


class FrozenEncoder:
    """Reads a UNet's encoder once, and runs its decoder from what was read.

    Args:
        adapted: The network. Its decoder is shared, and may be trained; its encoder must not change.
    """

    def __init__(self, adapted: AdaptedUNet) -> None:
        self.adapted = adapted
        twin = copy.copy(adapted.unet)
        # Modules of its own in the place of the encoder; everything else is the same object.
        twin.__dict__["_modules"] = dict(adapted.unet._modules)
        self._stand_ins = (_Skips(first=True), _Skips(first=False), _Middle())
        first, down, middle = self._stand_ins
        for name, module in (("conv_in", first), ("down_blocks", nn.ModuleList([down])), ("mid_block", middle)):
            setattr(twin, name, module)
        self._decoder = AdaptedUNet.__new__(AdaptedUNet)
        nn.Module.__init__(self._decoder)
        self._decoder.unet = twin
        # The hooks of the decoder's adapters read the conditions of the network they were attached to.
        self._decoder._holder = adapted._holder

    @torch.no_grad()
    def read(self, latent: Tensor, timestep: Tensor, text: Tensor, **conditions: Any) -> EncoderFeatures:
        """Runs the encoder.

        Args:
            latent: See `AdaptedUNet.forward`.
            timestep: See `AdaptedUNet.forward`.
            text: See `AdaptedUNet.forward`.
            **conditions: See `AdaptedUNet.forward`.
        """
        unet = self.adapted.unet
        skips: list[Tensor] = []
        middle: list[Tensor] = []

        def keep_first(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            skips.append(output)

        def keep_block(_module: nn.Module, _inputs: Any, output: tuple[Tensor, tuple[Tensor, ...]]) -> None:
            skips.extend(output[1])

        def keep_middle(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            middle.append(output)
            raise _ReadError

        hooks = [unet.conv_in.register_forward_hook(keep_first), unet.mid_block.register_forward_hook(keep_middle)]
        hooks += [block.register_forward_hook(keep_block) for block in unet.down_blocks]
        try:
            self.adapted(latent, timestep, text, **conditions)
        except _ReadError:
            return EncoderFeatures(tuple(skips), middle[0])
        finally:
            for hook in hooks:
                hook.remove()
        raise RuntimeError("the UNet has no middle block")

    def decode(
        self, features: EncoderFeatures, latent: Tensor, timestep: Tensor, text: Tensor, **conditions: Any
    ) -> Tensor:
        """The prediction, (B, C, h, w), as the whole network makes it; gradients reach the decoder alone.

        Args:
            features: What `read` made of the same latents, timesteps and text.
            latent: See `AdaptedUNet.forward`; only its size is read.
            timestep: See `AdaptedUNet.forward`.
            text: See `AdaptedUNet.forward`.
            **conditions: See `AdaptedUNet.forward`.
        """
        for stand_in in self._stand_ins:
            stand_in.features = features
        decode: Callable[..., Tensor] = self._decoder
        return decode(latent, timestep, text, **conditions)
