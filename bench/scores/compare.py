"""Two score tables compared by every metric they share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, unknown_name
from bench.scores.statistics import (
    EXACT_UP_TO,
    Comparison,
    holm_comparisons,
    identity_means,
    mean_interval,
    no_worse_than,
    paired_comparison,
    tied,
)
from bench.scores.table import metric_identities

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AveragedRuns:
    """Several runs of one method that differ in seed or weights, as one.

    Attributes:
        runs: Score tables of the runs, in the order given.
        table: Score table with the mean over the runs of each image and metric; an image that lacks a value in one of
            the runs has none. Of one run, its own table.
        dropped: By metric the images that some of the runs, but not all, have a value of; only where there are any.
        skipped: Metrics that cannot be averaged, with the reason.
    """

    runs: list[pd.DataFrame]
    table: pd.DataFrame
    dropped: dict[str, int]
    skipped: dict[str, str]

    def by_run(self, metric: str, images: Collection[str]) -> list[float]:
        """Mean over identity means of each run, over these images."""
        chosen = [run[(run["metric"] == metric) & run["image_id"].isin(images)] for run in self.runs]
        return [float(identity_means(rows).mean()) for rows in chosen]


def average_runs(tables: Sequence[pd.DataFrame], side: str) -> AveragedRuns:
    """Averages the values of several runs per image and metric, so that a test over people has one value each.

    Args:
        tables: Score tables, one run each.
        side: What the runs are together, for messages.

    Raises:
        UsageError: The runs are not of one protocol and one row, are not over the same images, or two of them have
            the same seed and the same weights.
    """
    import pandas as pd

    if len(tables) == 1:
        return AveragedRuns(list(tables), tables[0], {}, {})
    _check_one_side(tables, side)
    identities = [metric_identities(table) for table in tables]
    dropped: dict[str, int] = {}
    skipped: dict[str, str] = {}
    averaged = []
    for name in sorted({*identities[0]}.union(*identities)):
        found = {own[name] for own in identities if name in own}
        having = sum(name in own for own in identities)
        if having < len(tables):
            skipped[name] = f"only {having} of the {len(tables)} runs of {side} have it"
        elif len(found) > 1:
            skipped[name] = f"metric identities differ among the runs of {side}: {', '.join(sorted(found))}"
        else:
            rows = pd.concat([table[table["metric"] == name] for table in tables])
            values = rows.groupby("image_id", sort=True)["value"]
            means, counts = values.mean(), values.count()
            own = tables[0][tables[0]["metric"] == name].copy()
            complete = own["image_id"].map(counts) == len(tables)
            own["value"] = own["image_id"].map(means).where(complete)
            own["reason"] = own["reason"].astype(object).where(~complete, None)
            own.loc[~complete & own["reason"].isna(), "reason"] = f"no value in one of the {len(tables)} runs"
            if partial := int(((counts > 0) & (counts < len(tables))).sum()):
                dropped[name] = partial
            averaged.append(own)
    if not averaged:
        raise UsageError(f"The runs of {side} have no metric in common.")
    return AveragedRuns(list(tables), pd.concat(averaged, ignore_index=True), dropped, skipped)


def _check_one_side(tables: Sequence[pd.DataFrame], side: str) -> None:
    """Refuses runs whose mean would say nothing."""
    for column, what in (("protocol_id", "protocol"), ("method", "row")):
        if len(found := sorted({str(value) for table in tables for value in table[column].unique()})) > 1:
            raise UsageError(
                f"The runs of {side} must be of one {what}, but they are of {', '.join(found)}: a mean over them "
                "says nothing. Give the runs of one method on one protocol."
            )
    made: dict[tuple[str, int], int] = {}
    for number, table in enumerate(tables, 1):
        if table.duplicated(["metric", "image_id"]).any():
            raise UsageError(f"Table {number} of {side} holds several runs: give one table for each run.")
        first = table.iloc[0]
        key = (str(first["method_revision"]), int(first["seed"]))
        if key in made:
            raise UsageError(
                f"Runs {made[key]} and {number} of {side} have the same weights, settings and seed (revision "
                f"{key[0]}, seed {key[1]}): one run counted twice. Give runs that differ in seed or weights."
            )
        made[key] = number
    people = [dict(zip(table["image_id"], table["identity"], strict=True)) for table in tables]
    for number, own in enumerate(people[1:], 2):
        if own != people[0]:
            odd = sorted(dict(own.items() ^ people[0].items()))
            raise UsageError(
                f"Runs 1 and {number} of {side} are not over the same images ({len(people[0])} and {len(own)}; "
                f"{odd[0]} is one that differs). Finish the shorter one with the same `bench run` command."
            )


def shared_images(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> set[str]:
    """Images that both tables have a value of."""
    return _scored(a, metric) & _scored(b, metric)


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
    names = list(dict.fromkeys(known if metrics is None else metrics))
    comparisons: list[Comparison] = []
    skipped: dict[str, str] = {}
    for name in names:
        if name not in in_a or name not in in_b:
            skipped[name] = f"only {'A' if name in in_a else 'B'} has it"
        elif in_a[name] != in_b[name]:
            skipped[name] = f"metric identities differ: {in_a[name]} and {in_b[name]}"
        elif not shared_images(a, b, name):
            skipped[name] = "no image has a value in both"
        else:
            comparisons.append(paired_comparison(a, b, name, ranked.get(name)))
    return holm_comparisons(comparisons), skipped


@dataclass(frozen=True)
class IdentityDifference:
    """A minus B for one identity.

    Attributes:
        identity: Who.
        difference: Mean over the pictures that both have scored.
        low: Lower bound of its 95 % interval over these pictures; None with one picture.
        high: Upper bound.
        images: Number of these pictures.
    """

    identity: str
    difference: float
    low: float | None
    high: float | None
    images: int


def identity_differences(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> list[IdentityDifference]:
    """Differences A - B of each identity, over the pictures that both have scored.

    The interval is of the pictures of this one person and says nothing about other people.

    Args:
        a: Score table of A, one run.
        b: Score table of B, one run.
        metric: Name of a metric that both have.
    """
    columns = ["image_id", "identity", "value"]
    first, second = (frame.loc[(frame["metric"] == metric) & frame["value"].notna(), columns] for frame in (a, b))
    both = first.merge(second, on=["image_id", "identity"], suffixes=("_a", "_b"))
    found = []
    for identity, rows in both.groupby("identity", sort=True):
        values = (rows["value_a"] - rows["value_b"]).to_numpy()
        interval = mean_interval(values)
        found.append(IdentityDifference(str(identity), interval.mean, interval.low, interval.high, len(values)))
    return found


CLAIM_LEVEL = 0.01


def claim_lines(comparisons: Sequence[Comparison], rules: dict[str, Any]) -> list[str]:
    """What may be claimed of A against B, by rules that were stated before anyone looked.

    Args:
        comparisons: Comparisons of A with B.
        rules: `claims` (metrics to win by the sign-flip test at alpha = .01, uncorrected), `not_lost` and
            `tied` (margins by metric), as in `configs/metrics/standard.yaml`.

    Returns:
        One sentence per rule that has its metric among the comparisons.
    """
    by_name = {one.metric: one for one in comparisons if one.higher_is_better is not None}
    lines = []
    for name in rules.get("claims", []):
        if (one := by_name.get(name)) is None:
            continue
        ahead = (one.mean_difference > 0) == one.higher_is_better and one.mean_difference != 0
        held = ahead and one.p < CLAIM_LEVEL
        kind = "exact p" if one.n_identities <= EXACT_UP_TO else "Monte Carlo p"
        lines.append(f"{name}: A {'beats' if held else 'is not shown to beat'} B ({kind} = {one.p:.2g}, alpha = .01)")
    for name, margin in rules.get("not_lost", {}).items():
        if (one := by_name.get(name)) is not None:
            verdict = "does not lose" if no_worse_than(one, margin) else "is not shown not to lose"
            lines.append(f"{name}: A {verdict} more than {margin:g} to B (95 % bound)")
    for name, margin in rules.get("tied", {}).items():
        if (one := by_name.get(name)) is not None and tied(one, margin):
            lines.append(f"{name}: A and B are tied within {margin:g} (95 % interval)")
    return lines


def _scored(frame: pd.DataFrame, metric: str) -> set[str]:
    return set(frame.loc[(frame["metric"] == metric) & frame["value"].notna(), "image_id"])
