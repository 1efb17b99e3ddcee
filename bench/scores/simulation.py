"""Does what we print hold? False positives of the paired test and coverage of the intervals, simulated.

`python -m bench.scores.simulation` measures both on made-up scores whose truth is known and writes
`coverage.json` beside this file; `coverage_note` reads it, and boards and summaries print the note
beside intervals whose coverage is off by more than two points. `symmetry_note` says beside tests what
they do where the differences are skewed, which the sign-flip test assumes they are not.

A score is `sqrt(icc) * person + sqrt(1 - icc) * picture`, both parts independent, with mean 0 and
standard deviation 1, and `icc` the intra-class correlation of pictures of one person. Three shapes:
"normal"; "skewed" (exponential, skewness 2); "strongly skewed" (log-normal with sigma 1, skewness 6.2).
The test and the intervals are the very functions of `bench.scores.statistics`, on identity means.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.scores.statistics import ALPHA, BOOTSTRAP_FROM, RESAMPLES, sign_flip_tests

if TYPE_CHECKING:
    from numpy.random import Generator

COVERAGE_FILE = Path(__file__).with_name("coverage.json")
LEVEL = 0.95
COVERAGE_TOLERANCE = 0.02
FALSE_POSITIVE_TOLERANCE = 0.015
TESTED_IDENTITIES = (10, 12, 20, 50)
IDENTITIES = (5, *TESTED_IDENTITIES, 30, 100)
CORRELATIONS = (0.0, 0.2, 0.5)
IMAGES = (5, 1)
REPETITIONS = 10_000

SHAPES: dict[str, Callable[[Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda generator, size: generator.standard_normal(size),
    "skewed": lambda generator, size: generator.standard_exponential(size) - 1,
    "strongly skewed": lambda generator, size: (
        (generator.lognormal(0, 1, size) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    ),
}


@dataclass(frozen=True)
class Case:
    """What was measured for one kind of scores.

    Attributes:
        identities: Number of identities.
        images: Pictures of each.
        correlation: Intra-class correlation; without meaning where there is one picture each.
        shape: A key of `SHAPES`.
        method: "student-t" or "bca", as `mean_interval` chooses.
        coverage: Share of 95 % intervals of a method's mean that hold the true mean.
        false_positives: Share of paired tests of two equally good methods with p <= .05: both have
            scores of this shape, so that their difference is symmetric.
        false_positives_skewed_differences: The same where the differences themselves have this shape
            and mean zero. The sign-flip test assumes symmetry, so this is beyond its promise. Both
            shares are None at the sizes that are measured for the intervals only.
    """

    identities: int
    images: int
    correlation: float
    shape: str
    method: str
    coverage: float
    false_positives: float | None
    false_positives_skewed_differences: float | None


def simulated_means(
    generator: Generator, shape: str, repetitions: int, identities: int, images: int, correlation: float
) -> np.ndarray:
    """Identity means of simulated scores, (repetitions, identities), of true mean 0."""
    person = SHAPES[shape](generator, (repetitions, identities))
    picture = SHAPES[shape](generator, (repetitions, identities, images)).mean(axis=2)
    return np.sqrt(correlation) * person + np.sqrt(1 - correlation) * picture


def intervals(values: np.ndarray, level: float = LEVEL, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """`mean_interval` of every row at once, with the same resamples.

    Args:
        values: (rows, identities).
        level: Confidence level.
        seed: Seed of the resampling, shared by all rows.

    Returns:
        Lower bounds, upper bounds (rows,) and the method.
    """
    from scipy import stats

    count = values.shape[1]
    if count >= BOOTSTRAP_FROM:
        return (*_bca(values, level, seed), "bca")
    half = stats.t.ppf(0.5 + level / 2, count - 1) * values.std(axis=1, ddof=1) / np.sqrt(count)
    mean = values.mean(axis=1)
    return mean - half, mean + half, "student-t"


def measure(
    identities: int, images: int, correlation: float, shape: str, repetitions: int, seed: int = 0, tests: bool = True
) -> Case:
    """Simulates one case.

    Args:
        identities: Number of identities, at least 2.
        images: Pictures of each.
        correlation: Intra-class correlation in [0, 1].
        shape: A key of `SHAPES`.
        repetitions: Simulated studies.
        seed: Seed of the scores.
        tests: Whether to measure the paired test, too; it takes the most time.
    """
    generator = np.random.default_rng(
        [seed, identities, images, round(100 * correlation), list(SHAPES).index(shape), repetitions]
    )

    def draw() -> np.ndarray:
        return simulated_means(generator, shape, repetitions, identities, images, correlation)

    a, b = draw(), draw()
    low, high, method = intervals(a)
    coverage = float(np.mean((low <= 0) & (high >= 0)))
    alike = _false_positives(a - b) if tests else None
    skewed = alike if shape == "normal" else _false_positives(a) if tests else None
    return Case(identities, images, correlation, shape, method, coverage, alike, skewed)


def coverage_note(identities: int, method: str, images_per_identity: float = 5) -> str | None:
    """What to print beside a 95 % interval whose measured coverage is not 95 ± 2 %.

    Args:
        identities: Identities behind the interval; the nearest simulated number counts.
        method: "student-t" or "bca", as in `Interval.method`.
        images_per_identity: Scored pictures per identity; under 5 the cases with one picture count,
            in which nothing averages the skewness out.

    Returns:
        Such as "simulated coverage 91 % for skewed, 83 % for strongly skewed values (12 identities)",
        the lowest over intra-class correlations of 0, .2 and .5, or None where all is within 2 points.
    """
    images = max(IMAGES) if images_per_identity >= max(IMAGES) else min(IMAGES)
    cases = [case for case in read_cases() if case.method == method and case.images == images]
    if not cases:
        return None
    nearest = min({case.identities for case in cases}, key=lambda count: (abs(count - identities), count))
    off = []
    for shape in SHAPES:
        worst = max(
            (case.coverage for case in cases if case.identities == nearest and case.shape == shape),
            key=lambda coverage: abs(coverage - LEVEL),
        )
        if abs(worst - LEVEL) > COVERAGE_TOLERANCE:
            off.append(f"{100 * worst:.0f} % for {shape}")
    return f"simulated coverage {', '.join(off)} values ({nearest} identities)" if off else None


def symmetry_note(identities: int, images_per_identity: float = 5) -> str | None:
    """What to print beside sign-flip tests: how often they find a difference where skewed ones have mean zero.

    Args:
        identities: Identities behind the test; the nearest simulated number counts.
        images_per_identity: Scored pictures per identity, as for `coverage_note`.

    Returns:
        A sentence with the largest shares over intra-class correlations of 0, .2 and .5, or None where none was
        measured, or all are within 1.5 points of 5 %.
    """
    images = max(IMAGES) if images_per_identity >= max(IMAGES) else min(IMAGES)
    cases = [(case, case.false_positives_skewed_differences) for case in read_cases() if case.images == images]
    tested = [(case, share) for case, share in cases if share is not None]
    if not tested:
        return None
    nearest = min({case.identities for case, _ in tested}, key=lambda count: (abs(count - identities), count))
    off = []
    for shape in SHAPES:
        worst = max(
            (share for case, share in tested if (case.identities, case.shape) == (nearest, shape)),
            key=lambda share: abs(share - ALPHA),
        )
        if abs(worst - ALPHA) > FALSE_POSITIVE_TOLERANCE:
            off.append(f"{100 * worst:.0f} % of {shape}")
    if not off:
        return None
    return (
        "The sign-flip test assumes symmetric differences: simulated, a single test at α = .05 finds a difference in "
        f"{' and '.join(off)} differences whose true mean is zero ({nearest} identities)."
    )


@cache
def read_cases(path: Path = COVERAGE_FILE) -> tuple[Case, ...]:
    """The measured cases that come with the package."""
    return tuple(Case(**case) for case in json.loads(path.read_text(encoding="utf-8"))["cases"])


def _false_positives(differences: np.ndarray) -> float:
    return float(np.mean(sign_flip_tests(differences) <= ALPHA))


def _bca(values: np.ndarray, level: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """BCa interval of each row's mean (Efron 1987, sections 3 and 6), all rows with the same resamples."""
    from scipy import special

    count = values.shape[1]
    picks = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    weights = np.stack([np.bincount(pick, minlength=count) for pick in picks]) / count
    bounds = np.empty((2, len(values)))
    for start in range(0, len(values), 256):
        block = values[start : start + 256]
        means = block.mean(axis=1, keepdims=True)
        resampled = np.sort(block @ weights.T, axis=1)
        bias = special.ndtri((np.mean(resampled < means, axis=1) + np.mean(resampled <= means, axis=1)) / 2)
        centred = block - means
        acceleration = (centred**3).sum(axis=1) / 6 / (centred**2).sum(axis=1) ** 1.5
        for side, share in enumerate((0.5 - level / 2, 0.5 + level / 2)):
            moved = bias + special.ndtri(share)
            position = special.ndtr(bias + moved / (1 - acceleration * moved)) * (RESAMPLES - 1)
            left = np.clip(position.astype(int), 0, RESAMPLES - 2)
            rows = np.arange(len(block))
            step = resampled[rows, left + 1] - resampled[rows, left]
            bounds[side, start : start + 256] = resampled[rows, left] + (position - left) * step
    return bounds[0], bounds[1]


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scores.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="simulated studies of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=COVERAGE_FILE)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measures every case, prints a line for each and writes the file; some minutes on one core."""
    from bench.files import write_json

    arguments = _arguments(words)
    cases: list[dict[str, Any]] = []
    began = time.monotonic()
    for identities in sorted(IDENTITIES):
        for images in IMAGES:
            for shape in SHAPES:
                for correlation in CORRELATIONS if images > 1 else (0.0,):
                    tests = identities in TESTED_IDENTITIES
                    case = measure(
                        identities, images, correlation, shape, arguments.repetitions, arguments.seed, tests=tests
                    )
                    cases.append(asdict(case))
                    shares = (case.coverage, case.false_positives, case.false_positives_skewed_differences)
                    figures = "  ".join("     " if share is None else f"{100 * share:5.2f}" for share in shares)
                    sys.stdout.write(
                        f"{identities:3d} x {images}  icc {correlation:.1f}  {shape:15s}  {case.method:9s}  {figures}\n"
                    )
                    sys.stdout.flush()
    content = {"schema": 1, "level": LEVEL, "alpha": ALPHA, "repetitions": arguments.repetitions}
    write_json(arguments.output, {**content, "seed": arguments.seed, "cases": cases})
    sys.stdout.write(f"{arguments.output}: {len(cases)} cases in {time.monotonic() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
