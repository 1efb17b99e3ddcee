"""Intervals and paired tests whose unit is the person: images of one person are not independent.

Every mean reported here is the mean over identity means. It equals the mean over images where each
identity has as many images as the others; where it does not, a person with many photographs counts
no more than one with few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

BOOTSTRAP_FROM = 30
EXACT_UP_TO = 20
RESAMPLES = 9_999
MONTE_CARLO_FLIPS = 99_999
ALPHA = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean over identity means with its confidence interval.

    Attributes:
        mean: Mean over identity means, in the unit of the metric.
        low: Lower bound, or None where one identity alone tells nothing about spread.
        high: Upper bound, or None likewise.
        method: How the bounds were made: "student-t", "bca" or "none".
        identities: Number of identity means.
    """

    mean: float
    low: float | None
    high: float | None
    method: str
    identities: int

    @property
    def description(self) -> str:
        """Method and number of identities in words, such as "student-t over 12 identities"."""
        noun = "identity" if self.identities == 1 else "identities"
        return f"{self.method} over {self.identities} {noun}"


@dataclass(frozen=True)
class Comparison:
    """Two methods on the images both have scored, A minus B.

    Attributes:
        metric: Name of the metric.
        higher_is_better: Direction of the metric; None where it is not ranked.
        mean_a: Mean of A over identity means of the shared images.
        mean_b: The same of B.
        mean_difference: `mean_a - mean_b`.
        low: Lower bound of the 95 % interval of the mean difference; None with one identity.
        high: Upper bound; None with one identity.
        interval: How the interval was made.
        p: Two-sided p-value of the sign-flip test on identity-mean differences.
        n_images: Images both have scored.
        n_identities: Identities of these images.
        effect_size: Cohen's d_z: mean difference of identity means over their standard deviation
            (n - 1); None where that is zero or unknown.
        p_adjusted: The p-value after Holm's correction, where several are shown together.
        deviation: Standard deviation (n - 1) of the identity-mean differences; None with one identity.
        a_better: Identities on which A has the better mean; None where the metric is not ranked.
    """

    metric: str
    higher_is_better: bool | None
    mean_a: float
    mean_b: float
    mean_difference: float
    low: float | None
    high: float | None
    interval: str
    p: float
    n_images: int
    n_identities: int
    effect_size: float | None
    p_adjusted: float | None = None
    deviation: float | None = None
    a_better: int | None = None

    @property
    def better(self) -> bool | None:
        """Whether A is better (True) or worse (False) at α = .05; None where no difference is shown."""
        return self.better_at(ALPHA)

    def better_at(self, alpha: float) -> bool | None:
        """`better` at another level; the adjusted p-value decides where there is one."""
        p = self.p if self.p_adjusted is None else self.p_adjusted
        if self.higher_is_better is None or p >= alpha or self.mean_difference == 0:
            return None
        return (self.mean_difference > 0) == self.higher_is_better


def identity_means(frame_one_metric: pd.DataFrame) -> pd.Series:
    """Mean value of each identity over its scored images.

    Args:
        frame_one_metric: Rows of one metric with the columns `identity` and `value`. Rows without
            a value do not count; an identity without any value is left out.

    Returns:
        One mean per identity, sorted by identity.
    """
    scored = frame_one_metric[frame_one_metric["value"].notna()]
    return scored.groupby("identity", sort=True)["value"].mean()


def mean_interval(values_by_identity: ArrayLike, level: float = 0.95, seed: int = 0) -> Interval:
    """Confidence interval of the mean over identity means.

    Student-t under 30 identities. From 30 on, the bias-corrected and accelerated bootstrap over
    identities (Efron 1987, "Better bootstrap confidence intervals") with 9,999 resamples.

    Args:
        values_by_identity: One mean per identity.
        level: Confidence level in (0, 1).
        seed: Seed of the resampling.

    Raises:
        ValueError: No value, or a value that is not finite.
    """
    from scipy import stats

    values = _finite(values_by_identity)
    count, mean = len(values), float(values.mean())
    if count == 1:
        return Interval(mean, None, None, "none", 1)
    method = "student-t" if count < BOOTSTRAP_FROM else "bca"
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, method, count)
    if method == "student-t":
        half = float(stats.t.ppf(0.5 + level / 2, count - 1) * values.std(ddof=1) / np.sqrt(count))
        return Interval(mean, mean - half, mean + half, method, count)
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2**20 // count),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(bound) for bound in result.confidence_interval)
    return Interval(mean, low, high, method, count)


def sign_flip_test(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided sign-flip permutation test that the differences are symmetric about zero.

    Exact up to 20 differences: all 2^n sign patterns are enumerated, and p is the share of patterns
    whose absolute sum is at least the observed one. Beyond that, 99,999 seeded random patterns and
    p = (b + 1) / (n + 1) (Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Args:
        differences: One difference of identity means per identity.
        seed: Seed of the random patterns.

    Returns:
        p in (0, 1].

    Raises:
        ValueError: No difference, or one that is not finite.
    """
    return float(sign_flip_tests(_finite(differences)[None], seed)[0])


def sign_flip_tests(differences: ArrayLike, seed: int = 0) -> np.ndarray:
    """`sign_flip_test` of each row of a table of differences.

    Args:
        differences: (tests, identities), finite.
        seed: Seed of the random patterns, which all rows share.

    Returns:
        (tests,) p-values in (0, 1].
    """
    values = np.asarray(differences, dtype=np.float64)
    # Patterns that tie mathematically differ in rounding; they must count as ties.
    thresholds = np.abs(values.sum(axis=1)) - 1e-12 * np.abs(values).sum(axis=1)
    if values.shape[1] <= EXACT_UP_TO:
        return np.array([_exact_p(row, threshold) for row, threshold in zip(values, thresholds, strict=True)])
    extreme = np.zeros(len(values), dtype=np.int64)
    for signs in _random_signs(values.shape[1], seed):
        rows = max(1, 2**24 // len(signs))
        for start in range(0, len(values), rows):
            sums = np.abs(signs @ values[start : start + rows].T)
            extreme[start : start + rows] += np.count_nonzero(sums >= thresholds[start : start + rows], axis=0)
    return (extreme + 1) / (MONTE_CARLO_FLIPS + 1)


def _exact_p(values: np.ndarray, threshold: float) -> float:
    """Share of all sign patterns whose absolute sum reaches the threshold.

    A pattern is one of the first half of the values joined to one of the second half, so the pairs are
    counted in the sorted sums of the halves and never written out.
    """
    if threshold <= 0:
        return 1.0
    # A pattern and its mirror image have the same absolute sum: the first sign can stay fixed.
    first, second = values[:1], np.zeros(1)
    for value in values[1 : len(values) // 2 + 1]:
        first = np.concatenate([first + value, first - value])
    for value in values[len(values) // 2 + 1 :]:
        second = np.concatenate([second + value, second - value])
    first = np.sort(first)
    above = len(first) - np.searchsorted(first, threshold - second, side="left")
    below = np.searchsorted(first, -threshold - second, side="right")
    return float((above.sum() + below.sum()) / (len(first) * len(second)))


def _random_signs(count: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of the random sign patterns, (patterns, count) of ±1."""
    generator = np.random.default_rng(seed)
    left = MONTE_CARLO_FLIPS
    while left:
        block = min(left, max(1, 2**22 // count))
        yield generator.integers(0, 2, size=(block, count), dtype=np.int8) * 2.0 - 1.0
        left -= block


def compare_identity_means(
    a: pd.Series, b: pd.Series, metric: str, higher_is_better: bool | None, n_images: int
) -> Comparison:
    """Compares two methods by the identity means they share.

    Args:
        a: Means of A, indexed by identity.
        b: Means of B, over the same images.
        metric: Name of the metric.
        higher_is_better: Its direction.
        n_images: Images behind the shared identities.

    Raises:
        UsageError: They share no identity.
    """
    shared = a.index.intersection(b.index).sort_values()
    if shared.empty:
        raise UsageError(f"Nothing to compare by {metric}: the two share no scored identity.")
    differences = (a[shared] - b[shared]).to_numpy(dtype=np.float64)
    interval = mean_interval(differences)
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return Comparison(
        metric=metric,
        higher_is_better=higher_is_better,
        mean_a=float(a[shared].mean()),
        mean_b=float(b[shared].mean()),
        mean_difference=interval.mean,
        low=interval.low,
        high=interval.high,
        interval=interval.description,
        p=sign_flip_test(differences),
        n_images=n_images,
        n_identities=len(shared),
        effect_size=interval.mean / deviation if deviation > 0 else None,
        deviation=deviation if len(differences) > 1 else None,
        a_better=None
        if higher_is_better is None
        else int(np.count_nonzero((differences > 0) if higher_is_better else (differences < 0))),
    )


def paired_comparison(
    frame_a: pd.DataFrame, frame_b: pd.DataFrame, metric: str, higher_is_better: bool | None
) -> Comparison:
    """Compares two score tables by one metric, on the images both have scored.

    Args:
        frame_a: Score table of A, one run.
        frame_b: Score table of B, one run.
        metric: Name of the metric.
        higher_is_better: Its direction; None where it is not ranked.

    Raises:
        UsageError: The protocol or metric identities differ, a table holds several runs, or the two
            share no scored image.
    """
    a, b = _one_run(frame_a, metric, "A"), _one_run(frame_b, metric, "B")
    for column, what in (("protocol_id", "protocols"), ("metric_id", f"identities of metric {metric}")):
        first, second = a[column].iloc[0], b[column].iloc[0]
        if first != second:
            raise UsageError(
                f"The {what} differ, so the values are not comparable: A has {first!r}, B has {second!r}. "
                f"Score both {'under one protocol' if column == 'protocol_id' else 'with the same metric'}."
            )
    merged = a.merge(b, on="image_id", suffixes=("_a", "_b"))
    merged = merged[merged["value_a"].notna() & merged["value_b"].notna()]
    if merged.empty:
        raise UsageError(f"Nothing to compare by {metric}: no image has a value in both tables.")
    if (moved := merged[merged["identity_a"] != merged["identity_b"]]).size:
        raise UsageError(
            f"Image {moved['image_id'].iloc[0]!r} shows {moved['identity_a'].iloc[0]!r} in A "
            f"but {moved['identity_b'].iloc[0]!r} in B."
        )
    means = merged.groupby("identity_a", sort=True)[["value_a", "value_b"]].mean()
    return compare_identity_means(means["value_a"], means["value_b"], metric, higher_is_better, len(merged))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    count = len(p_values)
    adjusted = [1.0] * count
    largest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def holm_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm-adjusted p-values over all that are shown together."""
    adjusted = holm([comparison.p for comparison in comparisons])
    return [replace(one, p_adjusted=p) for one, p in zip(comparisons, adjusted, strict=True)]


def no_worse_than(comparison: Comparison, margin: float) -> bool:
    """Whether A loses less than `margin` to B: the 95 % bound on the bad side stays within it.

    For PSNR and a margin of .5 dB: the lower bound of the mean difference lies above −.5 dB.

    Raises:
        ValueError: The metric has no direction.
    """
    if comparison.higher_is_better is None:
        raise ValueError(f"{comparison.metric} has no direction")
    if comparison.low is None or comparison.high is None:
        return False
    return comparison.low > -margin if comparison.higher_is_better else comparison.high < margin


def tied(comparison: Comparison, margin: float) -> bool:
    """Whether A and B are equivalent: the whole 95 % interval of the difference lies within ±`margin`.

    A large p-value alone is no tie: it may come from too few identities.
    """
    if comparison.low is None or comparison.high is None:
        return False
    return comparison.low > -margin and comparison.high < margin


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array):
        raise ValueError("no values")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite; leave unscored images out")
    return array


def _one_run(frame: pd.DataFrame, metric: str, name: str) -> pd.DataFrame:
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise UsageError(
            f"Table {name} has no metric {metric!r}. It has: {', '.join(sorted(frame['metric'].unique())) or '(none)'}."
        )
    if rows["image_id"].duplicated().any():
        raise UsageError(f"Table {name} holds {metric} more than once for an image: compare single runs.")
    for column in ("protocol_id", "metric_id"):
        if rows[column].nunique() > 1:
            raise UsageError(f"Table {name} mixes {column}s for {metric}: {', '.join(sorted(rows[column].unique()))}.")
    return rows
