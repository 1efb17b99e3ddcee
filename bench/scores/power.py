"""Power: what the paired test can show at all with so many identities and so much spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bench.scores.statistics import Comparison

POWER = 0.8
LEVELS = (0.05, 0.01)
SIMULATED_BELOW = 12
SIMULATED_DRAWS = 5_000


@dataclass(frozen=True)
class Power:
    """What a paired test over `identities` identities can show, before any correction for several tests.

    Attributes:
        identities: Number of identities.
        deviation: Standard deviation of the differences of identity means, in the metric's unit; None
            with one identity.
        smallest_p: Smallest two-sided p-value the exact test can give: 2 / 2^identities.
        smallest_difference: For each level of `LEVELS` the smallest true mean difference that the test
            shows with 80 % power, in the metric's unit; None where no difference can reach the level.
    """

    identities: int
    deviation: float | None
    smallest_p: float
    smallest_difference: dict[float, float | None]

    def as_json(self) -> dict[str, Any]:
        """The same with text keys, for JSON."""
        differences = {f"{level:g}": value for level, value in self.smallest_difference.items()}
        return {"power": POWER, "smallest_p": self.smallest_p, "smallest_difference": differences}


def smallest_p(identities: int) -> float:
    """Smallest two-sided p-value of the sign-flip test: every identity on one side.

    The exact test gives 2 / 2^identities; above 20 identities random patterns end at 1 / 100,000.

    Raises:
        ValueError: No identity.
    """
    from bench.scores.statistics import EXACT_UP_TO, MONTE_CARLO_FLIPS

    if identities < 1:
        raise ValueError("no identities")
    return 2.0 ** (1 - identities) if identities <= EXACT_UP_TO else 1 / (MONTE_CARLO_FLIPS + 1)


@cache
def smallest_effect(identities: int, alpha: float, power: float = POWER) -> float | None:
    """Smallest standardised difference d_z that the two-sided test shows with the given power.

    For normal differences. From 12 identities on, the power of the t test (noncentral t distribution)
    at the level the exact test really attains, the largest multiple of 2 / 2^n up to alpha; it agrees
    with the sign-flip test's simulated power to 3 points. Below 12, the exact test itself on 5,000
    seeded draws.

    Args:
        identities: Number of identities.
        alpha: Level of the test in (0, 1).
        power: Wanted probability in (0, 1) that the difference is shown.

    Returns:
        Mean difference over the standard deviation of identity differences, or None where even a
        difference of the same sign on every identity cannot reach the level.
    """
    from scipy import optimize

    step = smallest_p(identities)
    if step > alpha * (1 + 1e-9):
        return None
    attained = math.floor(alpha / step + 1e-9) * step
    if identities < SIMULATED_BELOW:
        reached = _simulated_power(identities, alpha)
    else:
        reached = _noncentral_power(identities, attained)
    # Searched upwards: the noncentral t distribution is not computed far out.
    low, high = 0.0, 0.05
    while reached(high) < power:
        low, high = high, high * 1.25
    return float(optimize.bisect(lambda effect: reached(effect) - power, low, high, xtol=1e-4))


def paired_power(identities: int, deviation: float | None) -> Power:
    """Power of a paired comparison.

    Args:
        identities: Number of identities both methods have scored.
        deviation: Standard deviation of the differences of identity means.
    """
    effects = {level: smallest_effect(identities, level) for level in LEVELS}
    differences = {
        level: None if effect is None or deviation is None else effect * deviation for level, effect in effects.items()
    }
    return Power(identities, deviation, smallest_p(identities), differences)


def comparison_power(comparison: Comparison) -> Power:
    """Power of the test behind a comparison, with the spread it observed."""
    return paired_power(comparison.n_identities, comparison.deviation)


def protocol_power(comparisons: Sequence[Comparison]) -> dict[str, Power]:
    """What a protocol can show by each metric, judged by the pairs of methods measured on it.

    Args:
        comparisons: Any pairs of methods on one protocol, such as all of a board.

    Returns:
        By metric, for the median number of identities and the median spread of the pairs; pairs of one
        identity do not count.
    """
    by_metric: dict[str, list[Comparison]] = {}
    for one in comparisons:
        if one.deviation is not None:
            by_metric.setdefault(one.metric, []).append(one)
    return {
        metric: paired_power(
            int(np.median([one.n_identities for one in ones])),
            float(np.median([one.deviation for one in ones if one.deviation is not None])),
        )
        for metric, ones in by_metric.items()
    }


def _noncentral_power(identities: int, alpha: float) -> Callable[[float], float]:
    from scipy import special

    freedom = identities - 1
    critical = special.stdtrit(freedom, 1 - alpha / 2)
    return lambda effect: float(1 - special.nctdtr(freedom, effect * math.sqrt(identities), critical))


def _simulated_power(identities: int, alpha: float) -> Callable[[float], float]:
    noise = np.random.default_rng(0).standard_normal((identities, SIMULATED_DRAWS))
    # The mirrored patterns have the same absolute sums: the first sign stays fixed.
    signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=identities - 1)], dtype=np.float64)

    def reached(effect: float) -> float:
        sums = np.abs(signs @ (noise + effect))
        extreme = np.mean(sums >= sums[0] * (1 - 1e-12), axis=0)
        return float(np.mean(extreme <= alpha))

    return reached
