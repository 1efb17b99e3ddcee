"""What a row's label has after the method's name, such as `+blind`, and the words of `bench run` behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bench.registry import load_method, method_targets


def variant_suffix(words: Sequence[str], method: str) -> str | None:
    """What words of `bench run` add to a method's label; None where the words alone do not tell."""
    left = list(words)
    if len(set(left)) < len(left):
        return None
    found = ""
    variants, numbered = _declared(method)
    for suffix, own in variants.items():
        if set(own) <= set(left):
            found += suffix
            left = [word for word in left if word not in own]
    for suffix, key in numbered.items():
        word = next((word for word in left if word.startswith(f"{key}=")), "")
        if (value := _number(word.partition("=")[2])) is not None:
            found += f"{suffix}{value:g}"
            left.remove(word)
    return None if left else found


def variant_words(suffix: str, method: str) -> list[str] | None:
    """The words behind the suffix of a method's label, such as "+blind"; None where they cannot be told from it."""
    words: list[str] = []
    variants, numbered = _declared(method)
    for part in suffix.split("+")[1:]:
        known = variants.get(f"+{part}") or _with_number(f"+{part}", numbered)
        if known is None:
            return None
        words += known
    return words if len(set(words)) == len(words) else None


def _declared(method: str) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, str]]:
    """What a method declares in its `MethodSpec`; nothing where it is not known here."""
    if method not in method_targets():
        return {}, {}
    spec = load_method(method).spec
    return spec.variants, spec.numbered_variants


def _with_number(part: str, numbered: Mapping[str, str]) -> tuple[str, ...] | None:
    for suffix, key in numbered.items():
        if part.startswith(suffix) and (value := _number(part.removeprefix(suffix))) is not None:
            return (f"{key}={value:g}",)
    return None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
