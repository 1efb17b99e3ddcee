"""Who is trained on, who is validated on, who is tested."""

from __future__ import annotations

import hashlib

from bench.errors import UsageError, unknown_name
from bench.protocol.card import SPLITS, DatasetCard, natural_key

RULES = ("hashed", "all_test", "all_train")


def hashed_order(card: DatasetCard, identities: list[str]) -> list[str]:
    """Identities in the order of the SHA-256 of "<card>/<seed>/<identity>": random, and the same for everyone."""
    seed = card.splits.get("seed", 0)
    return sorted(identities, key=lambda name: hashlib.sha256(f"{card.name}/{seed}/{name}".encode()).hexdigest())


def split_identities(card: DatasetCard, identities: list[str]) -> dict[str, list[str]]:
    """Who belongs to which split.

    A card either lists its identities, or names a rule. `all_test` and `all_train` put everyone in
    one split. `hashed` takes identities in their hashed order: the first `test` of them are tested,
    the next `validation` validated, the rest trained on. It needs no list of a data set that cannot
    be shipped and gives everyone who has it the same split.

    Args:
        card: Data card.
        identities: Everyone who is present.

    Raises:
        UsageError: Unknown rule, or a listed identity stands in two splits.
    """
    splits = card.splits
    if "rule" in splits:
        if splits["rule"] not in RULES:
            raise unknown_name(f"split rule in the data card {card.name}", splits["rule"], RULES)
        ordered = hashed_order(card, identities)
        first, second = {
            "hashed": (splits.get("test", 0), splits.get("test", 0) + splits.get("validation", 0)),
            "all_test": (len(ordered), len(ordered)),
            "all_train": (0, 0),
        }[splits["rule"]]
        parts = {"test": ordered[:first], "validation": ordered[first:second], "train": ordered[second:]}
    else:
        parts = {name: [str(identity) for identity in splits.get(name, [])] for name in SPLITS}
        listed = [identity for part in parts.values() for identity in part]
        if len(listed) != len(set(listed)):
            raise UsageError(f"The data card {card.name} lists an identity in two splits.")
        present = set(identities)
        parts = {name: [identity for identity in part if identity in present] for name, part in parts.items()}
    return {name: sorted(parts[name], key=natural_key) for name in SPLITS}
