"""Seeds that depend on what is drawn, never on the order it is drawn in."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | int) -> int:
    """Seed in [0, 2**63) from the names of what it is for.

    Args:
        parts: For instance protocol name, declared seed, image id and purpose. Each part is
            written with its length, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8")
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
