"""PFStorer's personalisation block: tokens of the picture attend to a learnt text and to a reference.

Source: PFStorer (Varanka et al., CVPR 2024), Sec. 3.2, Eq. 3 and Fig. 3 right, "consisting of cross-attentions", after
ViCo (Hao et al., arXiv 2306.00971), whose block is a whole transformer block that attends to the reference alone and
takes the features' place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import unknown_name

Form = Literal["cross_attentions", "text_and_transformer", "vico"]
#: Thresholds that Otsu's method chooses among, as in ViCo's release.
OTSU_CANDIDATES = 10


@dataclass(frozen=True)
class TextMaps:
    """Where tokens attend to two words of the learnt text, each (B, L), mean over heads.

    Attributes:
        placeholder: To the word that stands for the person.
        end: To the token at the text's end.
    """

    placeholder: Tensor
    end: Tensor


@dataclass(frozen=True)
class LearntText:
    """The text that a person is learnt with.

    Attributes:
        tokens: (B, T, width).
        placeholder: Position of the word that stands for the person, (B,).
        end: Position of the token at the text's end, (B,).
    """

    tokens: Tensor
    placeholder: Tensor
    end: Tensor

    def rows(self, count: int) -> LearntText:
        """The text for `count` pictures."""
        if len(self.tokens) == count:
            return self
        tokens = self.tokens[:1].expand(count, -1, -1)
        return LearntText(tokens, self.placeholder[:1].expand(count), self.end[:1].expand(count))


class PersonalisationBlock(nn.Module):
    """F + gamma * P(F, F_ref) of Eq. 3, with P a transformer block's output less its input.

    gamma starts at zero: a new block changes nothing. P itself does not start at zero, or nothing could be learnt.

    Args:
        channels: Width of the tokens.
        heads: Number of heads.
        text_width: Width of the learnt text's tokens.
        form: `cross_attentions` attends to the text and then to the reference; `text_and_transformer` has ViCo's whole
            transformer block in the place of the second; `vico` is that block alone.
        use_gamma: Whether gamma is there; False takes P as it is (Base + ViCo of Table 2).
        feed_forward: Width of a transformer block's feed-forward, in widths of the tokens.

    Raises:
        UsageError: There is no such form.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        text_width: int,
        form: Form = "cross_attentions",
        use_gamma: bool = True,
        feed_forward: int = 4,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise unknown_name("form of the personalisation block", form, get_args(Form))
        self.text: TextAttention | None = None if form == "vico" else TextAttention(channels, heads, text_width)
        self.image: nn.Module
        if form == "cross_attentions":
            self.image = ReferenceAttention(channels, heads)
        else:  # ViCo's block: self-attention, attention to the reference, feed-forward
            self.image = BasicTransformerBlock(
                channels, heads, channels // heads, cross_attention_dim=channels, ff_inner_dim=feed_forward * channels
            )
        self.gamma = nn.Parameter(torch.zeros(channels)) if use_gamma else None

    def forward(
        self, tokens: Tensor, reference: Tensor, text: LearntText | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Personalises tokens.

        Args:
            tokens: F, (B, L, channels).
            reference: F_ref, (B, M, channels).
            text: The learnt text; unused with form `vico`.
            mask: Which of the reference's tokens are attended to, bool (B, M); all by default.

        Returns:
            (B, L, channels).
        """
        changed = tokens
        if self.text is not None:
            assert text is not None
            changed, _ = self.text(tokens, text)
        changed = self.image(changed, encoder_hidden_states=reference, encoder_attention_mask=_additive(mask, tokens))
        if self.gamma is None:
            return cast(Tensor, changed)
        return tokens + self.gamma * (changed - tokens)


class ReferenceAttention(nn.Module):
    """Cross-attention of tokens to a reference's.

    Args:
        channels: Width of the tokens.
        heads: Number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, heads, dim_head=channels // heads)

    def forward(
        self, tokens: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None
    ) -> Tensor:
        """Attends; arguments and result as those of a transformer block, the input added."""
        attended = self.attention(self.norm(tokens), encoder_hidden_states, attention_mask=encoder_attention_mask)
        return tokens + cast(Tensor, attended)


class TextAttention(nn.Module):
    """Cross-attention of tokens to a text, which also tells where they attended to.

    Args:
        channels: Width of the tokens.
        heads: Number of heads.
        text_width: Width of the text's tokens.
    """

    def __init__(self, channels: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(text_width, channels, bias=False)
        self.to_v = nn.Linear(text_width, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, text: LearntText) -> tuple[Tensor, TextMaps]:
        """Attends.

        Args:
            tokens: (B, L, channels).
            text: The text.

        Returns:
            (B, L, channels), the input added; and the maps.
        """
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in (
                (self.to_q, self.norm(tokens)),
                (self.to_k, text.tokens),
                (self.to_v, text.tokens),
            )
        )
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        attended = self.to_out((weights @ value).transpose(1, 2).flatten(2))
        return tokens + attended, text_maps(weights.mean(1), text)


def text_maps_of(attention: TextAttention, tokens: Tensor, text: LearntText) -> TextMaps:
    """Where tokens (B, L, channels) attend to the two words."""
    return attention(tokens, text)[1]  # type: ignore[no-any-return]


def text_maps(attention: Tensor, text: LearntText) -> TextMaps:
    """Columns of the two words.

    Args:
        attention: Attention of tokens to the text, mean over heads, (B, L, T).
        text: The text.
    """
    rows = torch.arange(len(attention), device=attention.device)
    return TextMaps(attention[rows, :, text.placeholder], attention[rows, :, text.end])


def otsu_mask(attention: Tensor, candidates: int = OTSU_CANDIDATES) -> Tensor:
    """Keys that belong to the person: attention from Otsu's threshold on, each picture on its own.

    Args:
        attention: (B, L), not negative.
        candidates: Thresholds that are tried, at even distances from the smallest attention on.

    Returns:
        bool (B, L). Values at the threshold are kept, and so is everything where all values are the same.
    """
    attention = attention.detach().float()
    low, high = attention.amin(1, keepdim=True), attention.amax(1, keepdim=True)
    scaled = (attention - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    thresholds = torch.arange(candidates, device=attention.device) / candidates
    above = scaled[:, None] >= thresholds[:, None]  # (B, candidates, L)
    share = above.float().mean(2)
    mean_above = (scaled[:, None] * above).sum(2) / above.sum(2).clamp_min(1)
    mean_below = (scaled[:, None] * ~above).sum(2) / (~above).sum(2).clamp_min(1)
    between = share * (1 - share) * (mean_above - mean_below).square()
    return scaled >= thresholds[between.argmax(1)][:, None]


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A key mask (B, M) as what is added to attention, (B, 1, M); None without one."""
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, torch.finfo(like.dtype).min)[:, None]


def attention_regulariser(maps: TextMaps) -> Tensor:
    """L_pers of one block: the person's word should attend where the end of the text does (ViCo, Eq. 5).

    Args:
        maps: Of the reference's tokens, as in ViCo's release.

    Returns:
        Mean squared difference of the maps, each divided by its largest value; one number.
    """
    end = maps.end.detach()
    scaled, target = (x / x.amax(1, keepdim=True) for x in (maps.placeholder, end))
    return F.mse_loss(scaled, target)
