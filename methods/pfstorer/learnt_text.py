"""The text that a person is learnt with: one word of it is learnt, the others stay.

Sources: textual inversion (Gal et al., ICLR 2023), as ViCo (Hao et al., arXiv 2306.00971) uses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bench.seeds import derive_seed
from methods.blocks.base_models import TEXT_END, TEXT_START, BaseModel
from methods.blocks.latent_diffusion import load_base, locate_base
from methods.blocks.text_conditioning import OPEN_CLIP_PADDING, TEXT_TOKENS
from methods.pfstorer.personalisation_block import LearntText

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

#: "a photo of a", by the numbers of CLIP's tokeniser, and the word that a new person's word starts as: "face".
PROMPT, FIRST_WORD = (320, 1125, 539, 320), 1710
#: Of the demo's text: start, the person's word, end.
DEMO_TOKENS = 3


class DemoText(nn.Module):
    """A text of three tokens for base models without a text encoder: two are fixed, the person's is learnt.

    Args:
        width: Width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(derive_seed("text of the demo") % 2**63)
        fixed = torch.randn(DEMO_TOKENS, width, generator=generator)
        self.word = nn.Parameter(fixed[1].clone())
        self.register_buffer("fixed", fixed, persistent=False)

    def forward(self) -> LearntText:
        """The text as it is now."""
        fixed = cast(Tensor, self.fixed)
        return learnt_text(torch.stack([fixed[0], self.word, fixed[2]])[None], 1, 2)


class EncodedText(nn.Module):
    """A prompt with a word of its own, read by the base model's text encoder, which stays as it is.

    Args:
        encoder: transformers' `CLIPTextModel`.
        open_clip: Whether the encoder is OpenCLIP's, whose padding differs.
    """

    def __init__(self, encoder: nn.Module, open_clip: bool) -> None:
        super().__init__()
        # Kept out of the module's own: a person's state holds the word alone.
        self._encoder: list[Any] = [encoder.requires_grad_(False).eval()]
        embedding = self._encoder[0].get_input_embeddings()
        self.word = nn.Parameter(embedding.weight[FIRST_WORD].detach().clone())
        numbers = [TEXT_START, *PROMPT, FIRST_WORD, TEXT_END]
        self.placeholder, self.end = len(PROMPT) + 1, len(PROMPT) + 2
        padding = OPEN_CLIP_PADDING if open_clip else TEXT_END
        self.numbers = torch.tensor([numbers + [padding] * (TEXT_TOKENS - len(numbers))])

    def forward(self) -> LearntText:
        """The text as it is now; gradients reach the word alone."""
        encoder = self._encoder[0].to(self.word.device)

        def put_word(_module: nn.Module, _inputs: tuple[Any, ...], found: Tensor) -> Tensor:
            before, after = found[:, : self.placeholder], found[:, self.placeholder + 1 :]
            return torch.cat([before, self.word.to(found).expand(1, 1, -1), after], dim=1)

        hook: RemovableHandle = encoder.get_input_embeddings().register_forward_hook(put_word)
        try:
            tokens = encoder(self.numbers.to(self.word.device)).last_hidden_state
        finally:
            hook.remove()
        return learnt_text(tokens, self.placeholder, self.end)


def learnt_text(tokens: Tensor, placeholder: int, end: int) -> LearntText:
    """A text of which tokens (1, T, width) and the two positions are known."""
    positions = torch.tensor([[placeholder], [end]], device=tokens.device)
    return LearntText(tokens, positions[0], positions[1])


def new_text(base: BaseModel, given: str | Path | None) -> DemoText | EncodedText:
    """The text for a new person.

    Args:
        base: The base model.
        given: Where the base model lies, or None to look it up.

    Raises:
        MissingError: The text encoder is not here.
    """
    if base.text is None:
        return DemoText(base.text_width)
    path = locate_base(base, given, ("text",))
    return EncodedText(load_base(base, path, ("text",))["text"], base.open_clip)
