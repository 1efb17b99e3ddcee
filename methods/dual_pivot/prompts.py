"""The texts of Dual-Pivot Tuning: a person's, that of their class, and none.

Sources: DreamBooth (Ruiz et al., CVPR 2023), as the released code uses it: "a photo of a sks man", "a photo of a man".
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.seeds import derive_seed

#: What the words of classes are in data cards, and "" for no class; samples keep a word by its place here.
CLASS_WORDS = ("", "person", "man", "woman", "boy", "girl")
#: Of the demo's text: a start, up to two words, an end.
SMALL_TOKENS = 4
START, END = "<start>", "<end>"


def class_prompt(class_word: str) -> str:
    """The text of a class, "" of none."""
    return f"a photo of a {class_word}" if class_word else ""


def known_word(class_word: str) -> str:
    """A class's word where only those of `CLASS_WORDS` mean anything: of any other, that of a person."""
    return CLASS_WORDS[class_number(class_word)]


def personal_prompt(token: str, class_word: str) -> str:
    """The text that a person is tuned around."""
    return f"a photo of a {token} {class_word}"


def class_number(class_word: str) -> int:
    """Place of a class's word in `CLASS_WORDS`; that of a person where the word is another."""
    return CLASS_WORDS.index(class_word if class_word in CLASS_WORDS else "person")


def small_text(prompt: str, width: int) -> Tensor:
    """Text tokens for base models without a text encoder: a fixed random vector for each word that matters.

    Args:
        prompt: One of the texts above.
        width: Width of a token.

    Returns:
        (SMALL_TOKENS, width), standard normal.
    """
    words = prompt.removeprefix("a photo of a ").split()[: SMALL_TOKENS - 2]
    words = [START, *words, *[END] * (SMALL_TOKENS - 1 - len(words))]
    return torch.stack([_vector(word, width) for word in words])


def _vector(word: str, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed("word of the demo's text", word) % 2**63)
    return torch.randn(width, generator=generator)
