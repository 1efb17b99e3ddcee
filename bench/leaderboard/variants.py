"""What a row's label has after the method's name, such as `+blind`, and the words of `bench run` behind it."""

from __future__ import annotations

from collections.abc import Sequence

# In the order in which labels name them.
VARIANTS = {
    "+blind": "method.reference=none",
    "+unwarped": "method.use_warped_reference=false",
    "+no-identity": "method.use_identity=false",
}


def variant_suffix(words: Sequence[str]) -> str | None:
    """What words of `bench run` add to a label; None where the words alone do not tell."""
    if set(words) - set(VARIANTS.values()) or len(set(words)) < len(words):
        return None
    return "".join(suffix for suffix, word in VARIANTS.items() if word in words)


def variant_words(suffix: str) -> list[str] | None:
    """The words behind a label's suffix, such as "+blind"; None where they cannot be told from it."""
    parts = [f"+{part}" for part in suffix.split("+")[1:]]
    if any(part not in VARIANTS for part in parts):
        return None
    return [VARIANTS[part] for part in parts]
