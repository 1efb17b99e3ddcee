"""Two score tables compared by every metric they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.errors import UsageError, unknown_name
from bench.scores.statistics import Comparison, holm_comparisons, paired_comparison
from bench.scores.table import metric_identities

if TYPE_CHECKING:
    import pandas as pd


def compare_tables(
    a: pd.DataFrame, b: pd.DataFrame, metrics: list[str] | None, ranked: dict[str, bool | None]
) -> tuple[list[Comparison], dict[str, str]]:
    """Compares two runs, A minus B, with Holm's correction over all metrics compared.

    Args:
        a: Score table of A.
        b: Score table of B.
        metrics: Names; None for all that either has.
        ranked: For each metric whether higher is better; None or absent where it is not ranked.

    Returns:
        One comparison per metric, and the reason for each metric that could not be compared.

    Raises:
        UsageError: A metric asked for is in neither table, or the protocols differ.
    """
    ids = [sorted(table["protocol_id"].unique()) for table in (a, b)]
    if ids[0] != ids[1] or len(ids[0]) != 1:
        raise UsageError(
            f"The runs belong to different protocols ({', '.join(ids[0])} and {', '.join(ids[1])}): their numbers are "
            "not comparable. Run both on the same protocol."
        )
    in_a, in_b = metric_identities(a), metric_identities(b)
    known = sorted({*in_a, *in_b})
    for name in metrics or []:
        if name not in known:
            raise unknown_name("metric", name, known)
    names = list(dict.fromkeys(metrics or known))
    comparisons: list[Comparison] = []
    skipped: dict[str, str] = {}
    for name in names:
        if name not in in_a or name not in in_b:
            skipped[name] = f"only {'A' if name in in_a else 'B'} has it"
        elif in_a[name] != in_b[name]:
            skipped[name] = f"metric identities differ: {in_a[name]} and {in_b[name]}"
        elif not (_scored(a, name) & _scored(b, name)):
            skipped[name] = "no image has a value in both"
        else:
            comparisons.append(paired_comparison(a, b, name, ranked.get(name)))
    return holm_comparisons(comparisons), skipped


def _scored(frame: pd.DataFrame, metric: str) -> set[str]:
    return set(frame.loc[(frame["metric"] == metric) & frame["value"].notna(), "image_id"])
