"""The ReFine network: GPEN-like encoder, identity-aware style code, StyleGAN2 decoder.

Source: "Copy or Not? Reference-Based Face Image Restoration with Fine Details" (WACV 2025), Sec. 3.1:
x_hat = G(x_d, y_w, I(y)). Its supplement, with the details of the fusion, is not public; what is
chosen here is said where it is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from methods.blocks.stylegan2 import (
    ConvLayer,
    EqualLinear,
    Injection,
    StyleConv,
    StyleGAN2Generator,
    ToRGB,
    channels_by_resolution,
)


class GpenEncoder(nn.Module):
    """Encoder of GPEN under its parameter names (`ecd0.0.0.weight`, ..., `final_linear.0.weight`).

    A 1x1 convolution at full resolution, then one filtered stride-2 convolution per halving down to
    4x4, and a linear layer to the style code. Its channels at every resolution are those of the
    StyleGAN2 decoder (the same table), so features of both can be interpolated without adapters.
    Source: Yang et al., "GAN Prior Embedded Network", CVPR 2021.

    Args:
        size: Side of the pictures, a power of two.
        style_dim: Width of the style code.
        channel_multiplier: Factor on the channels at 64 px and above.
        narrow: Factor on all channels.
        input_channels: Channels of the input.
    """

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        channel_multiplier: float = 2,
        narrow: float = 1,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        channels = channels_by_resolution(channel_multiplier, narrow)
        self.stages = int(math.log2(size)) - 1
        self.ecd0 = nn.Sequential(ConvLayer(input_channels, channels[size], 1))
        for stage in range(1, self.stages):
            side = size >> stage
            layer = ConvLayer(channels[2 * side], channels[side], 3, downsample=True)
            self.add_module(f"ecd{stage}", nn.Sequential(layer))
        self.final_linear = nn.Sequential(EqualLinear(16 * channels[4], style_dim, activate=True))

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encodes pictures.

        Args:
            image: Input, (B, input_channels, size, size), in [-1, 1].

        Returns:
            Features from full resolution down to 4x4, and the style code (B, style_dim).
        """
        features = []
        for stage in range(self.stages):
            image = self.get_submodule(f"ecd{stage}")(image)
            features.append(image)
        return features, self.final_linear(image.flatten(1))


class MaskFusion(nn.Module):
    """Interpolates encoder and decoder features with a predicted one-channel mask.

    M = sigmoid(conv([f_encoder; f_decoder])), out = M f_encoder + (1 - M) f_decoder. The paper names
    the interpolation and the predicted mask; kernel, single channel and start value are ours.

    Args:
        channels: Channels of each of the two inputs.
        mask_bias: Start value of the mask's logit; -2 starts near the prior.
        side: Side of the kernel.
    """

    def __init__(self, channels: int, mask_bias: float = -2.0, side: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 1, side, padding=side // 2)
        nn.init.zeros_(self.conv.weight)
        nn.init.constant_(self.conv.bias, mask_bias)  # type: ignore[arg-type]

    def forward(self, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
        """Fuses two (B, C, H, W) maps; returns the result and the mask (B, 1, H, W)."""
        encoder = encoder.to(decoder.dtype)
        mask = torch.sigmoid(self._logit(encoder, decoder)).to(decoder.dtype)
        return torch.lerp(decoder, encoder, mask), mask

    def _logit(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        """The convolution of [encoder; decoder], (B, 1, H, W)."""
        if self.conv.kernel_size != (1, 1) or self.conv.bias is None:
            return self.conv(torch.cat([encoder, decoder], dim=1))
        # One output channel is a matrix-vector product, many times quicker on a CPU than the convolution.
        weights = self.conv.weight.view(2, 1, 1, -1).expand(-1, len(encoder), -1, -1)
        logit = torch.bmm(weights[0], encoder.flatten(2)) + torch.bmm(weights[1], decoder.flatten(2)) + self.conv.bias
        return logit.unflatten(-1, encoder.shape[-2:])


@dataclass
class RefineOutput:
    """What the network returns when masks are asked for.

    Attributes:
        image: Restored pictures, (B, 3, S, S), about [-1, 1], not clamped.
        masks: Share of the encoder in every fusion, (B, 1, side, side): one at 4x4, then two per
            resolution.
    """

    image: Tensor
    masks: list[Tensor] = field(default_factory=list)


class ReFineNetwork(nn.Module):
    """ReFine's generator (paper Sec. 3.1, Fig. 2).

    The decoder stands under `prior` with the public StyleGAN2 prior's names and shapes and loads it
    strictly; its mapping network and noise take no part and are not trained. Each style convolution's
    noise is replaced by the mask fusion with the encoder's features of that resolution.

    Args:
        size: Side S of the pictures, a power of two from 8 to 1024.
        channel_multiplier: Factor on the channels at 64 px and above (public prior: 1).
        narrow: Factor on all channels.
        style_dim: Width of the style code and of the four style layers (paper: 512).
        mlp_layers_prior: Depth of the prior's unused mapping network (public prior: 8).
        identity_dim: Width of the identity embedding.
        input_channels: 6 for [LQ; warped reference] as in the paper, 7 with the validity mask.
        use_warped_reference: False cuts the warped reference off (Fig. 7 h).
        use_identity: False cuts the identity embedding off (Fig. 7 g). Both off is the blind network.
        from_scratch: Whether training starts without a pretrained prior: the first picture is then
            grey instead of noise (output layers times 0.1), and the masks start at a half.
        mask_bias: Start value of the fusion masks' logits; None takes 0 from scratch, else -2, near
            the prior.
        mask_kernel: Side of the kernel that predicts a mask.

    Raises:
        ValueError: `input_channels` is neither 6 nor 7, or `size` is no power of two.
    """

    def __init__(
        self,
        size: int,
        *,
        channel_multiplier: float = 1,
        narrow: float = 1,
        style_dim: int = 512,
        mlp_layers_prior: int = 8,
        identity_dim: int = 512,
        input_channels: int = 7,
        use_warped_reference: bool = True,
        use_identity: bool = True,
        from_scratch: bool = False,
        mask_bias: float | None = None,
        mask_kernel: int = 1,
    ) -> None:
        super().__init__()
        if input_channels not in (6, 7):
            raise ValueError(f"input_channels must be 6 or 7, got {input_channels}")
        self.size = size
        self.identity_dim = identity_dim
        self.input_channels = input_channels
        self.use_warped_reference = use_warped_reference
        self.use_identity = use_identity
        self.encoder = GpenEncoder(size, style_dim, channel_multiplier, narrow, input_channels)
        widths = [style_dim + identity_dim] + [style_dim] * 4
        self.style_layers = nn.Sequential(
            *(EqualLinear(before, after, activate=True) for before, after in pairwise(widths))
        )
        self.prior = StyleGAN2Generator(size, style_dim, mlp_layers_prior, channel_multiplier, narrow)
        if mask_bias is None:
            mask_bias = 0.0 if from_scratch else -2.0
        channels = channels_by_resolution(channel_multiplier, narrow)
        levels = int(math.log2(size))
        sides = [4] + [2**level for level in range(3, levels + 1) for _ in range(2)]
        self.fusions = nn.ModuleList(MaskFusion(channels[side], mask_bias, mask_kernel) for side in sides)
        self.prior.style_mlp.requires_grad_(False)
        for module in self.prior.modules():
            if isinstance(module, StyleConv):
                module.weight.requires_grad_(False)
            elif isinstance(module, ToRGB) and from_scratch:
                module.modulated_conv.weight.data.mul_(0.1)

    def forward(
        self,
        lq: Tensor,
        warped_reference: Tensor,
        validity: Tensor,
        identity: Tensor,
        reference_present: Tensor | None = None,
        *,
        return_masks: bool = False,
    ) -> Any:
        """Restores pictures.

        Args:
            lq: Degraded pictures x_d, (B, 3, S, S), in [-1, 1].
            warped_reference: Reference y_w warped to the LQ, (B, 3, S, S), in [-1, 1].
            validity: 1 where the warped reference holds picture, 0 elsewhere, (B, 1, S, S). Invalid
                pixels are filled with the LQ.
            identity: Embedding I(y) of the reference, (B, identity_dim), unit norm.
            reference_present: False where a picture has no reference, (B,): its warped reference,
                validity and identity become zero.
            return_masks: Whether to return a `RefineOutput` with the fusion masks.

        Returns:
            Restored pictures (B, 3, S, S), about [-1, 1], not clamped; or a `RefineOutput`.
        """
        present = lq.new_ones(len(lq)) if reference_present is None else reference_present.to(lq.dtype)
        shown = present[:, None, None, None] * float(self.use_warped_reference)
        validity = validity.to(lq.dtype)
        reference = torch.lerp(lq, warped_reference.to(lq.dtype), validity) * shown
        parts = [lq, reference]
        if self.input_channels == 7:
            parts.append(validity * shown)
        features, style = self.encoder(torch.cat(parts, dim=1))
        known = identity.to(style.dtype) * present[:, None].to(style.dtype) * float(self.use_identity)
        # Unit norm would leave each entry tiny beside the style code's unit variance.
        style = self.style_layers(torch.cat([style, known * math.sqrt(self.identity_dim)], dim=1))

        masks: list[Tensor] = []
        image = self.prior.synthesise(style, inject=self._injections(features, masks))
        return RefineOutput(image, masks) if return_masks else image

    def _injections(self, features: list[Tensor], masks: list[Tensor]) -> list[Injection]:
        """One fusion per style convolution, deepest first; each notes its mask."""
        deepest_first = features[::-1]
        ordered = deepest_first[:1] + [level for level in deepest_first[1:] for _ in range(2)]

        def injection(fusion: nn.Module, encoded: Tensor) -> Injection:
            def fuse(decoded: Tensor) -> Tensor:
                fused, mask = fusion(encoded, decoded)
                masks.append(mask)
                return fused

            return fuse

        return [injection(fusion, level) for fusion, level in zip(self.fusions, ordered, strict=True)]

    def prior_parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters of the prior (paper: learning rate 4e-4)."""
        return (parameter for parameter in self.prior.parameters() if parameter.requires_grad)

    def new_parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters outside the prior (paper: learning rate 2e-3)."""
        return (
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("prior.")
        )
