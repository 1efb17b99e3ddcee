"""What a row's label has after the method's name, such as `+blind`, and the words of `bench run` behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence

# In the order in which labels name them; of two that share a word the one with more words comes first.
VARIANTS: dict[str, tuple[str, ...]] = {
    "+base": ("method.use_identity=false", "method.use_fir=false"),
    "+blind": ("method.reference=none",),
    "+unwarped": ("method.use_warped_reference=false",),
    "+no-identity": ("method.use_identity=false",),
    "+no-fir": ("method.use_fir=false",),
}
# What one method alone means by a suffix.
OF_METHOD: dict[str, dict[str, tuple[str, ...]]] = {
    "pfstorer": {
        "+base": ("method.personalisation.tunes=nothing",),
        "+dreambooth": ("method.personalisation.tunes=unet",),
        "+vico": ("method.personalisation.gamma=false",),
    }
}
# Suffixes with a number in them come after the others.
NUMBERS = {"+scale": "method.id_scale", "+gen": "method.personalisation.generative"}


def variant_suffix(words: Sequence[str], method: str = "") -> str | None:
    """What words of `bench run` add to a method's label; None where the words alone do not tell."""
    left = list(words)
    if len(set(left)) < len(left):
        return None
    found = ""
    for suffix, own in _known(method).items():
        if set(own) <= set(left):
            found += suffix
            left = [word for word in left if word not in own]
    for suffix, key in NUMBERS.items():
        word = next((word for word in left if word.startswith(f"{key}=")), "")
        if (value := _number(word.partition("=")[2])) is not None:
            found += f"{suffix}{value:g}"
            left.remove(word)
    return None if left else found


def variant_words(suffix: str, method: str = "") -> list[str] | None:
    """The words behind the suffix of a method's label, such as "+blind"; None where they cannot be told from it."""
    words: list[str] = []
    for part in suffix.split("+")[1:]:
        known = _known(method).get(f"+{part}") or _numbered(f"+{part}")
        if known is None:
            return None
        words += known
    return words if len(set(words)) == len(words) else None


def _known(method: str) -> dict[str, tuple[str, ...]]:
    return VARIANTS | OF_METHOD.get(method, {})


def _numbered(part: str) -> tuple[str, ...] | None:
    for suffix, key in NUMBERS.items():
        if part.startswith(suffix) and (value := _number(part.removeprefix(suffix))) is not None:
            return (f"{key}={value:g}",)
    return None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
