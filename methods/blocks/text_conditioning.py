"""Text tokens of prompts, made once by a base model's text encoder and kept on disk.

A restoration model reads the same few prompts for every picture (mostly the empty one), so the text encoder is
loaded only when a prompt is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from bench.errors import MissingError, UsageError
from methods.blocks.base_models import TEXT_END, TEXT_START, BaseModel
from methods.blocks.latent_diffusion import TRANSFORMERS_MISSING, load_base, locate_base, weights_file
from methods.blocks.tensor_cache import cached_tensors, file_digest

TEXT_TOKENS = 77
OPEN_CLIP_PADDING = 0
#: Numbers of the words in prompts of RestorerID and Dual-Pivot Tuning, computed with CLIP's tokeniser, so that a
#: checkpoint, which brings no tokeniser, is enough. A word's numbers depend on that word alone.
KNOWN_WORDS = {
    "best": (949,),
    "quality": (3027,),
    ",": (267,),
    "high": (1400,),
    "cartoon": (7651,),
    "3": (274,),
    "d": (323,),
    "lowres": (1049, 934),
    "blurry": (21977,),
    "worst": (5719,),
    "low": (1042,),
    "a": (320,),
    "photo": (1125,),
    "of": (539,),
    "sks": (48136,),
    "person": (2533,),
    "man": (786,),
    "woman": (2308,),
    "boy": (1876,),
    "girl": (1611,),
}


def text_tokens(
    base: BaseModel,
    prompts: Sequence[str] = ("",),
    given: str | Path | None = None,
    tokeniser: str | Path | None = None,
) -> Tensor:
    """Tokens of prompts, from the cache where they are there.

    Args:
        base: The base model. The size `demo` has no text: its only prompt is "", one token of zeros.
        prompts: The prompts.
        given: Diffusers folder or single file, or None to look it up (`locate_base`).
        tokeniser: Folder of the tokeniser's files; `tokenizer` in the diffusers folder by default. Prompts of
            `KNOWN_WORDS`, such as the methods' own and the empty one, need none.

    Returns:
        (prompts, tokens, width), float32 on the CPU.

    Raises:
        MissingError: The text encoder or the tokeniser is not here.
        UsageError: The base model reads no text, and a prompt is not empty.
    """
    if base.text is None:
        if base.name != "demo" or any(prompts):
            raise UsageError(
                f"Base model {base.name!r} has no text encoder here; prompts {list(prompts)} cannot be read."
            )
        return torch.zeros(len(prompts), 1, base.text_width)
    path = locate_base(base, given, ("text",))
    content = {"weights": file_digest(weights_file(base, path, "text")), "base": base.name, "text": dict(base.text)}
    folder = Path(tokeniser) if tokeniser else path / "tokenizer"
    found = [
        cached_tensors("text", {**content, "prompt": prompt}, partial(_encode, base, path, folder, prompt))
        for prompt in prompts
    ]
    return torch.stack([tensors["tokens"] for tensors in found])


@torch.no_grad()
def _encode(base: BaseModel, path: Path, tokeniser: Path, prompt: str) -> dict[str, Tensor]:
    numbers = token_numbers(base, tokeniser, prompt)
    encoder = load_base(base, path, ["text"])["text"]
    return {"tokens": cast(Tensor, encoder(torch.tensor([numbers])).last_hidden_state[0])}


def known_numbers(prompt: str) -> list[int] | None:
    """Token numbers of a prompt that consists of `KNOWN_WORDS`; None for any other."""
    words = re.findall(r"[^\W\d_]+|\d|[^\s\w]+|_", prompt.lower())
    if not all(word in KNOWN_WORDS for word in words):
        return None
    return [number for word in words for number in KNOWN_WORDS[word]]


def token_numbers(base: BaseModel, tokeniser: Path, prompt: str) -> list[int]:
    """Token numbers of a prompt, padded to 77 as the base model was trained.

    Raises:
        MissingError: The prompt is not empty and the tokeniser's files are not there.
    """
    padding = OPEN_CLIP_PADDING if base.open_clip else TEXT_END
    numbers = known_numbers(prompt) or []
    if prompt and not numbers:
        if not (tokeniser / "merges.txt").is_file():
            raise MissingError(
                f"The tokeniser's files (vocab.json, merges.txt) are not in {tokeniser}, and prompt {prompt!r} needs "
                f"them. Get them with: hf download {base.hub_ids[0]} --include 'tokenizer/*' --local-dir FOLDER"
            )
        try:
            from transformers import CLIPTokenizer
        except ImportError as error:
            raise MissingError(TRANSFORMERS_MISSING) from error

        encoded = CLIPTokenizer.from_pretrained(str(tokeniser), local_files_only=True)(prompt)["input_ids"]
        numbers = list(encoded)[1:-1]
    numbers = [TEXT_START, *numbers[: TEXT_TOKENS - 2], TEXT_END]
    return numbers + [padding] * (TEXT_TOKENS - len(numbers))
