"""Spatial feature transform (SFT): scales and shifts a UNet's features by maps made from the LQ picture.

Source: Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (StableSR), IJCV 2024, Eq. 3:
F' = (1 + alpha) * F + beta. The released code normalises F first (GroupNorm of 32 groups with an affine part), which
the paper does not print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from methods.blocks.adapted_unet import AdapterSet, Conditions, map_of_size, repeat_to_batch

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Form = Literal["paper", "released_code"]


class SpatialFeatureTransform(nn.Module):
    """SFT of one `ResnetBlock2D`, on its residual branch.

    Two forms, gamma and beta being convolutions of a shared ReLU(convolution) of the LQ map:

    - `paper`: (1 + gamma) * h + beta. New weights leave h bit by bit as it is, because the last convolutions start at
      zero: this is the form to train from scratch.
    - `released_code`: (1 + gamma) * GN(h) + beta, for released weights. No choice of weights makes this the identity
      (GN removes the scale of h); new weights start as GN(h).

    In both forms every tensor learns: gamma and beta from the first step, what is before them from the second.
    """

    def __init__(
        self, channels: int, map_channels: int = 256, hidden: int = 128, form: Form = "paper", groups: int = 32
    ) -> None:
        """Builds the transform with zero last convolutions.

        Args:
            channels: Channels of the features.
            map_channels: Channels of the LQ maps.
            hidden: Channels between.
            form: `paper` or `released_code`.
            groups: Groups of the normalisation (`released_code` only).
        """
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-5) if form == "released_code" else None
        self.shared = nn.Conv2d(map_channels, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)
        for last in (self.gamma, self.beta):
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, conditions: Conditions) -> Tensor:
        """Transforms features by the map of their size.

        Args:
            features: (B, channels, H, W).
            conditions: `lq_maps`: maps (B', map_channels, H, W) by (H, W). B is B' or a multiple of it: a guided call
                gives the maps once for all its branches.

        Returns:
            (B, channels, H, W).

        Raises:
            UsageError: No map has this size, or B is no multiple of B'.
        """
        shared = F.relu(self.shared(map_of_size(conditions["lq_maps"], features)))
        gamma = repeat_to_batch(self.gamma(shared), features.shape[0])
        beta = repeat_to_batch(self.beta(shared), features.shape[0])
        if self.norm is not None:
            features = self.norm(features)
        return features * (1 + gamma) + beta


def sft_adapters(
    unet: UNet2DConditionModel,
    map_channels: int = 256,
    hidden: int = 128,
    form: Form = "paper",
    groups: int | None = None,
) -> AdapterSet:
    """An SFT for every `ResnetBlock2D` of a UNet; attach it with `AdaptedUNet.attach("sft", ...)`.

    Args:
        unet: The UNet it is for.
        map_channels: Channels of the LQ maps.
        hidden: Channels between.
        form: See `SpatialFeatureTransform`.
        groups: Groups of the normalisation; the UNet's own by default.
    """
    groups = groups or int(unet.config["norm_num_groups"])
    return AdapterSet.for_blocks(
        unet, lambda site: SpatialFeatureTransform(site.channels, map_channels, hidden, form, groups)
    )
