"""Which identities two entries have both scored in full: the only ones whose means are of the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def scorable_images(entries: Sequence[dict[str, Any]], metric: str) -> dict[str, int]:
    """Images of each identity that can have a score.

    All of them, but for metrics that exist on one variant of the pictures of a probe (`mark_recall` where the mark
    is in the ground truth, `mark_false_copy` where it is not): there as many as any entry has scored.

    Args:
        entries: Entries of one protocol.
        metric: Name of a metric.
    """
    from bench.registry import metric_classes

    people: dict[str, int] = entries[0]["identity_images"]
    if getattr(metric_classes().get(metric), "variant", None) is None:
        return people
    cells = [entry["metrics"].get(metric, {}).get("by_identity", {}) for entry in entries]
    counts = {person: max(cell.get(person, {}).get("n", 0) for cell in cells) for person in people}
    return {person: count for person, count in counts.items() if count}


def complete_identities(a: dict[str, Any], b: dict[str, Any], metric: str, images: dict[str, int]) -> list[str]:
    """Identities of which both entries have scored every image that can have a score.

    Args:
        a: An entry that has scored the metric.
        b: Another one.
        metric: Name of the metric.
        images: From `scorable_images`.
    """
    return [
        person
        for person, count in images.items()
        if a["identity_images"].get(person) == b["identity_images"].get(person)
        and all(entry["metrics"][metric]["by_identity"].get(person, {}).get("n") == count for entry in (a, b))
    ]
