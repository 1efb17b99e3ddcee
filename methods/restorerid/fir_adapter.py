"""FIR-Adapter: rebalances LQ structure and identity after a ResBlock.

Source: RestorerID (arXiv 2411.14125), Sec. 3.3, Eqs. 4-7 and Fig. 2(b). The released code differs from
the paper in four places; both forms are here.

| | paper | released |
|---|---|---|
| enhanced features | LN(F_lq + Attn(F_lq; ID)) | F_lq + Attn(LN(F_lq); ID) |
| convolutions | shared, then G and B | shared, ReLU, then G and B |
| output | G * x + B | x + GN(x) * G + B |
| start that changes nothing | G = 1, B = 0 | G = 0, B = 0 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdapterSet, Conditions, map_of_size, repeat_to_batch

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Form = Literal["paper", "released_code"]
Initialisation = Literal["last_zero", "released_dead"]


class FIRAdapter(nn.Module):
    """Face ID rebalancing adapter of one ResBlock.

    Args:
        channels: Channels C of the ResBlock's output.
        lq_channels: Channels of the LQ features.
        identity_width: Width of the identity tokens.
        hidden: Channels between the convolutions.
        heads: Heads of the attention of LQ features to identity tokens.
        form: "paper" (Eqs. 4-7) or "released_code"; see the module's table.
        initialisation: "last_zero" starts as a change of nothing and every tensor learns: only the
            convolutions that make G and B start at zero. "released_dead" is the released code's: the
            shared convolution starts at zero as well, its ReLU then passes neither value nor
            gradient, and of the whole adapter only per-channel numbers ever learn. For reproduction.
        groups: Groups of the normalisation of x (released code).
    """

    def __init__(
        self,
        channels: int,
        lq_channels: int = 256,
        identity_width: int = 768,
        hidden: int = 128,
        heads: int = 8,
        form: Form = "released_code",
        initialisation: Initialisation = "last_zero",
        groups: int = 32,
    ) -> None:
        super().__init__()
        if lq_channels % heads:
            raise ValueError(f"{lq_channels} LQ channels cannot be split among {heads} heads")
        self.form: Form = form
        self.norm = nn.LayerNorm(lq_channels)
        self.attention = IdentityCrossAttention(lq_channels, identity_width, heads)
        self.shared = nn.Conv2d(lq_channels, hidden, 3, padding=1)
        self.gain = nn.Conv2d(hidden, channels, 3, padding=1)
        self.bias = nn.Conv2d(hidden, channels, 3, padding=1)
        if form == "released_code":
            self.feature_norm = nn.GroupNorm(groups, channels)
        _set_start(self, initialisation)

    def forward(self, features: Tensor, conditions: Conditions) -> Tensor:
        """Rebalances.

        Args:
            features: Output x of the ResBlock, (B, C, h, w).
            conditions: `lq_maps`: maps (B', lq_channels, h, w) by (h, w); `identity_tokens`: (B'', N,
                identity_width). B is a multiple of B' and of B''. `base_only`: whether to change nothing.

        Returns:
            (B, C, h, w).

        Raises:
            UsageError: No map has this size, or there are no identity tokens.
        """
        if conditions.get("base_only"):
            return features
        tokens = conditions.get("identity_tokens")
        if tokens is None:
            raise UsageError("The FIR-Adapter needs identity_tokens; without a reference give the unconditional ones.")
        tokens = repeat_to_batch(tokens, features.shape[0]).to(features.dtype)
        lq_map = map_of_size(conditions["lq_maps"], features)
        cells = lq_map.flatten(2).transpose(1, 2)
        if self.form == "paper":
            enhanced = self.norm(repeat_to_batch(cells, len(tokens)) + self.attention(cells, tokens))
        else:
            enhanced = repeat_to_batch(cells, len(tokens)) + self.attention(self.norm(cells), tokens)
        hidden = self.shared(enhanced.transpose(1, 2).unflatten(-1, lq_map.shape[-2:]))
        if self.form == "paper":
            # Features first: the result keeps their memory layout, on which the next layer's rounding depends.
            return features * self.gain(hidden) + self.bias(hidden)
        hidden = F.relu(hidden)
        return features + (self.feature_norm(features) * self.gain(hidden) + self.bias(hidden))


class IdentityCrossAttention(nn.Module):
    """Attention of LQ features to identity tokens (Eq. 4), with an output layer.

    Args:
        width: Width of the queries and of the output.
        identity_width: Width of the identity tokens.
        heads: Number of heads; together they are `width` wide.
    """

    def __init__(self, width: int, identity_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(identity_width, width, bias=False)
        self.to_v = nn.Linear(identity_width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, cells: Tensor, identity_tokens: Tensor) -> Tensor:
        """Maps cells (B', L, width) and tokens (B, N, identity_width) to (B, L, width); B is a multiple of B'."""
        queries = repeat_to_batch(self.to_q(cells), len(identity_tokens))
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (queries, self.to_k(identity_tokens), self.to_v(identity_tokens))
        )
        attended: Tensor = self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return attended


def fir_adapters(
    unet: UNet2DConditionModel,
    lq_channels: int = 256,
    identity_width: int | None = None,
    hidden: int = 128,
    heads: int = 8,
    form: Form = "released_code",
    initialisation: Initialisation = "last_zero",
) -> AdapterSet:
    """A FIR-Adapter after every `ResnetBlock2D`; attach with `AdaptedUNet.attach("fir", ...)`.

    Args:
        unet: The UNet it is for.
        lq_channels: Channels of the LQ maps.
        identity_width: Width of the identity tokens; that of the UNet's context by default.
        hidden: See `FIRAdapter`.
        heads: See `FIRAdapter`.
        form: See `FIRAdapter`.
        initialisation: See `FIRAdapter`.
    """
    width, groups = identity_width or int(unet.config["cross_attention_dim"]), int(unet.config["norm_num_groups"])
    return AdapterSet.for_blocks(
        unet,
        lambda site: FIRAdapter(site.channels, lq_channels, width, hidden, heads, form, initialisation, groups),
        place="output",
    )


def _set_start(adapter: FIRAdapter, initialisation: Initialisation) -> None:
    convolutions = [adapter.gain, adapter.bias]
    if initialisation == "released_dead":
        convolutions.append(adapter.shared)
    elif initialisation != "last_zero":
        raise ValueError(f"initialisation must be last_zero or released_dead, got {initialisation!r}")
    for convolution in convolutions:
        nn.init.zeros_(convolution.weight)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    if adapter.form == "paper":
        assert adapter.gain.bias is not None
        nn.init.ones_(adapter.gain.bias)
