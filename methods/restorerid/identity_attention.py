"""Decoupled cross-attention with LoRA, for the attention layers of a stock diffusers UNet.

Source: RestorerID (arXiv 2411.14125), Eq. 2, after IP-Adapter:
Z = Attention(Q, K_text, V_text) + lambda * Attention(Q, K_id, V_id). The released model is FaceID-Plus,
which adds LoRA (rank 128, scale 1) on query, key, value and output of both self- and cross-attention.

diffusers' `IPAdapterAttnProcessor2_0` knows one lambda for the whole batch, fixed in the module, and its
LoRA goes through peft; here lambda is one number per picture of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdapterSet, AttentionSite, Conditions, repeat_to_batch
from methods.restorerid.position_code import CODE_WIDTH, position_code, start_at_the_same_place

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Start = Literal["zero", "text"]


class KeysAndValues(NamedTuple):
    """What an attention layer makes of tokens, each (B, heads, N, head width); None without identity tokens."""

    key: Tensor
    value: Tensor
    identity_key: Tensor | None
    identity_value: Tensor | None


class LowRankDelta(nn.Module):
    """x -> up(down(x)), added to a linear layer; zero at the start (Hu et al. 2021).

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        rank: Width between.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        return cast(Tensor, self.up(self.down(x)))


class IdentityAttention(nn.Module):
    """Attention with LoRA and, in cross-attention, identity tokens beside the text's.

    New weights change nothing: the LoRA starts at zero, and so does the identity's value layer.

    Args:
        site: The attention layer it is for.
        identity_width: Width of the identity tokens; None for a layer without them.
        rank: Rank of the LoRA; 0 for none.
        positions: Whether the identity's queries say where their cell stands, for tokens that end in a code of their
            own place (`position_code`); at the start each cell attends to the tokens of its place. Not in the paper.
    """

    def __init__(
        self, site: AttentionSite, identity_width: int | None, rank: int = 128, positions: bool = False
    ) -> None:
        super().__init__()
        self.lora = nn.ModuleDict()
        widths = {
            "q": (site.channels, site.inner_channels),
            "k": (site.context_channels, site.inner_channels),
            "v": (site.context_channels, site.inner_channels),
            "out": (site.inner_channels, site.channels),
        }
        for name, (inputs, outputs) in widths.items() if rank else ():
            self.lora[name] = LowRankDelta(inputs, outputs, rank)
        self.takes_identity = identity_width is not None
        if identity_width is not None:
            self.identity_key = nn.Linear(identity_width, site.inner_channels, bias=False)
            self.identity_value = nn.Linear(identity_width, site.inner_channels, bias=False)
            nn.init.zeros_(self.identity_value.weight)
        self.position_query: nn.Linear | None = None
        if identity_width is not None and positions:
            self.position_query = nn.Linear(CODE_WIDTH, site.inner_channels, bias=False)
            start_at_the_same_place(self.position_query, self.identity_key, site.heads)
        self._merged: dict[str, Tensor] = {}
        self._sums: tuple[object, dict[str, Tensor]] | None = None
        self._kept: KeysAndValues | None = None

    def forward(
        self,
        attention: Attention,
        hidden_states: Tensor,
        context: Tensor | None,
        attention_mask: Tensor | None,
        conditions: Conditions,
    ) -> Tensor:
        """Attends.

        Args:
            attention: The layer it serves.
            hidden_states: (B, L, channels).
            context: Text tokens, (B, T, context width), or None for self-attention.
            attention_mask: Mask over the text tokens as diffusers prepares it, or None.
            conditions: `identity_tokens`, (B', N, identity_width): without them, or with None, the text alone
                is attended to. `identity_scale`: weight lambda of the identity, one number or (B',); 1 if
                absent. B is B' or a multiple of it. `use_kept`: whether keys and values in cross-attention are those
                of `keep` rather than made of the tokens. `base_only`: whether to attend as the layer alone would.
                `lq_maps`, by (height, width): with a position code, what L cells are high and wide.

        Returns:
            (B, L, channels).
        """
        if conditions.get("base_only"):
            return AttnProcessor2_0()(attention, hidden_states, context, attention_mask)
        layers = _layers(attention)
        tokens = hidden_states if context is None else context
        query = _split(attention, self._project("q", layers["q"], hidden_states))
        if self._kept is not None and conditions.get("use_kept"):
            key, value, identity_key, identity_value = self._kept
        else:
            identity_tokens = conditions.get("identity_tokens") if self.takes_identity else None
            if identity_tokens is not None:
                identity_tokens = repeat_to_batch(identity_tokens, hidden_states.shape[0]).to(hidden_states.dtype)
            key, value, identity_key, identity_value = self._keys_and_values(attention, tokens, identity_tokens)
        if attention_mask is not None:
            attention_mask = attention.prepare_attention_mask(attention_mask, tokens.shape[1], tokens.shape[0])
            attention_mask = attention_mask.view(tokens.shape[0], attention.heads, -1, attention_mask.shape[-1])
        attended = _join(F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask))
        if identity_key is not None and identity_value is not None:
            scale = _scale(conditions.get("identity_scale"), attended)
            if self.position_query is not None:
                query = query + self._place(attention, hidden_states, conditions)
            attended = attended + scale * _join(F.scaled_dot_product_attention(query, identity_key, identity_value))
        attended = attention.to_out[1](self._project("out", layers["out"], attended))
        if attention.residual_connection:
            attended = attended + hidden_states
        return cast(Tensor, attended / attention.rescale_output_factor)

    @torch.no_grad()
    def keep(self, attention: Attention, text: Tensor, identity_tokens: Tensor | None) -> None:
        """Makes keys and values of tokens that do not change from call to call, for calls that `use_kept`.

        Nothing happens in self-attention. To be called again after weights or tokens have changed; `train()` drops
        them.

        Args:
            attention: The layer it serves.
            text: (B, T, context width).
            identity_tokens: (B, N, identity_width), or None.
        """
        if self.takes_identity:
            self._kept = self._keys_and_values(attention, text, identity_tokens)

    def drop_kept(self) -> None:
        """Undoes `keep`."""
        self._kept = None

    @torch.no_grad()
    def merge_lora(self, attention: Attention) -> None:
        """Adds the LoRA to copies of the layer's weights, for inference: two products fewer per projection.

        The layer's own weights stay as they are; after `unmerge_lora` and `train()` the copies are not used. They are
        made anew where the weights have changed, been loaded or moved since. To be called again after that.

        Args:
            attention: The layer it serves.
        """
        layers = _layers(attention) if self.lora else {}
        deltas = {name: cast(LowRankDelta, self.lora[name]) for name in layers}
        written = [
            (id(weight), weight.device, weight.dtype, 0 if weight.is_inference() else weight._version)
            for name, layer in layers.items()
            for weight in (layer.weight, deltas[name].up.weight, deltas[name].down.weight)
        ]
        if self._sums is None or self._sums[0] != written:
            with torch.autocast("cuda" if attention.to_q.weight.is_cuda else "cpu", enabled=False):
                sums = {
                    name: layer.weight + (deltas[name].up.weight @ deltas[name].down.weight).to(layer.weight)
                    for name, layer in layers.items()
                }
            self._sums = written, sums
        self._merged = self._sums[1]

    def unmerge_lora(self) -> None:
        """Undoes `merge_lora`."""
        self._merged = {}

    def train(self, mode: bool = True) -> IdentityAttention:
        """Sets the mode; training never uses merged weights."""
        if mode:
            self.unmerge_lora()
            self._sums = None
            self.drop_kept()
        return super().train(mode)

    def _keys_and_values(self, attention: Attention, tokens: Tensor, identity_tokens: Tensor | None) -> KeysAndValues:
        layers = _layers(attention)
        key = _split(attention, self._project("k", layers["k"], tokens))
        value = _split(attention, self._project("v", layers["v"], tokens))
        if identity_tokens is None:
            return KeysAndValues(key, value, None, None)
        identity_key = _split(attention, self.identity_key(identity_tokens))
        return KeysAndValues(key, value, identity_key, _split(attention, self.identity_value(identity_tokens)))

    def _place(self, attention: Attention, hidden_states: Tensor, conditions: Conditions) -> Tensor:
        assert self.position_query is not None
        count = hidden_states.shape[1]
        for height, width in conditions["lq_maps"]:
            if height * width == count:
                code = position_code(height, width, like=hidden_states)
                return _split(attention, self.position_query(code)[None])
        raise UsageError(f"No LQ map has {count} cells: with network.identity.positions each layer needs one.")

    def _project(self, name: str, layer: nn.Linear, x: Tensor) -> Tensor:
        if name in self._merged:
            return F.linear(x, self._merged[name], layer.bias)
        projected = cast(Tensor, layer(x))
        return projected + self.lora[name](x) if self.lora else projected


def identity_attention_adapters(
    unet: UNet2DConditionModel,
    identity_width: int | None = None,
    rank: int = 128,
    start: Start = "zero",
    positions: bool = False,
) -> AdapterSet:
    """Identity attention for every attention layer of a UNet; attach with `AdaptedUNet.attach("identity", ...)`.

    Args:
        unet: The UNet it is for.
        identity_width: Width of the identity tokens; that of the UNet's context by default.
        rank: Rank of the LoRA on q, k, v and output of self- and cross-attention; 0 for none, and then
            self-attention stays as it is.
        start: "zero" leaves the UNet bit by bit as it is; "text" starts the identity's key and value layers
            as copies of the text's, as IP-Adapter's training does.
        positions: See `IdentityAttention`.

    Raises:
        UsageError: `start` is "text" and the tokens are not as wide as the context, or end in a position code.
    """

    def build(site: AttentionSite) -> nn.Module | None:
        if not site.is_cross:
            return IdentityAttention(site, None, rank) if rank else None
        width = identity_width or site.context_channels
        adapter = IdentityAttention(site, width, rank, positions)
        attention = cast("Attention", unet.get_submodule(site.name))
        if width == site.context_channels and not positions:
            adapter.identity_key.load_state_dict({"weight": attention.to_k.weight.detach()})
        if start == "text":
            if width != site.context_channels or positions:
                raise UsageError(f"start=text needs identity tokens as wide as the context ({site.context_channels}).")
            adapter.identity_value.load_state_dict({"weight": attention.to_v.weight.detach()})
        return adapter

    return AdapterSet.for_attention(unet, build)


def _layers(attention: Any) -> dict[str, nn.Linear]:
    return {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}


def _split(attention: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _scale(scale: Tensor | float | None, features: Tensor) -> Tensor | float:
    if isinstance(scale, Tensor) and scale.dim():
        return repeat_to_batch(scale.to(features), features.shape[0]).view(-1, 1, 1)
    return 1.0 if scale is None else scale
