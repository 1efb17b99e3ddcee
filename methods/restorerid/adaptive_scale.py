"""Adaptive ID-scale: how strongly the identity is injected, from the quality of the LQ picture.

Source: RestorerID (arXiv 2411.14125), Sec. 3.4, Eq. 9 and Fig. 5. The paper restores 150 LQ pictures
with lambda from 0 to 2 in steps of 0.04, averages the identity similarity within intervals of quality,
takes the best lambda of each and sets alpha and beta by hand; here they are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from bench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Quality = TypeVar("Quality", "float", "Tensor")

ALPHA, BETA = 9.5, 10.0


def adaptive_id_scale(
    musiq: Quality, alpha: float = ALPHA, beta: float = BETA, clip_max: float | None = None
) -> Quality:
    """Weight of the identity, lambda = exp((alpha - quality) / beta) (Eq. 9).

    Args:
        musiq: Quality of the LQ picture, one number or a tensor of any shape; higher is better. With
            the default alpha and beta it is MUSIQ (KonIQ) of the LQ at 512 px, and lambda is about
            0.001 at 75, 0.05 at 40, 1 at 9.5 and 2.6 at 0. For another estimator alpha and beta are
            fitted anew (`fit_alpha_beta`).
        alpha: Quality at which lambda is 1.
        beta: Points of quality over which lambda falls by the factor e.
        clip_max: Largest lambda; unlimited as published if None.

    Returns:
        lambda, in the form of `musiq`.
    """
    import torch

    if isinstance(musiq, torch.Tensor):
        scale = torch.exp((alpha - musiq) / beta)
        return scale if clip_max is None else scale.clamp(max=clip_max)
    number = math.exp((alpha - musiq) / beta)
    return number if clip_max is None else min(number, clip_max)


@dataclass(frozen=True)
class SweepRow:
    """One picture restored with one weight of the identity.

    Attributes:
        image_id: Which LQ picture.
        quality: The estimator's value of the LQ picture.
        scale: Weight lambda it was restored with.
        similarity: Identity similarity of the restored picture to its ground truth.
    """

    image_id: str
    quality: float
    scale: float
    similarity: float


@dataclass(frozen=True)
class IntervalCurve:
    """One curve of the paper's Fig. 5: the pictures of one interval of quality.

    Attributes:
        low: Least quality, included.
        high: Largest quality, excluded except in the last interval.
        quality: Mean quality of the pictures.
        pictures: How many there are.
        scales: The weights swept, rising, (S,).
        similarities: Mean identity similarity at each, (S,).
        best_scale: The weight with the largest mean similarity, the smallest of them on a tie.
    """

    low: float
    high: float
    quality: float
    pictures: int
    scales: tuple[float, ...]
    similarities: tuple[float, ...]
    best_scale: float


def sweep_scales(largest: float = 2.0, step: float = 0.04) -> list[float]:
    """The weights that the paper sweeps: 0, 0.04, ... 2."""
    return [round(index * step, 10) for index in range(round(largest / step) + 1)]


def quality_edges(qualities: Sequence[float], intervals: int) -> list[float]:
    """Edges of intervals that hold equally many pictures, `intervals` + 1 of them.

    The paper does not say where its intervals begin; equal counts make every curve equally certain.

    Raises:
        UsageError: There are fewer distinct qualities than intervals.
    """
    import numpy as np

    edges = np.quantile(np.asarray(qualities, dtype=float), np.linspace(0.0, 1.0, intervals + 1))
    if intervals < 1 or len(np.unique(edges)) != intervals + 1:
        raise UsageError(
            f"{len(set(qualities))} distinct qualities cannot be split into {intervals} intervals. "
            "Sweep more pictures or ask for fewer intervals."
        )
    return [float(edge) for edge in edges]


def interval_curves(rows: Sequence[SweepRow], edges: Sequence[float]) -> list[IntervalCurve]:
    """Mean identity similarity over lambda within each interval of quality (Fig. 5).

    Args:
        rows: The sweep; every picture with every lambda exactly once.
        edges: Edges of the intervals, rising. Pictures outside are left out, empty intervals too.

    Returns:
        Curves by rising quality.

    Raises:
        UsageError: A picture lacks a lambda or has one twice, or comes with two qualities.
    """
    import numpy as np

    scales = sorted({row.scale for row in rows})
    table: dict[str, dict[float, float]] = {}
    quality: dict[str, float] = {}
    for row in rows:
        seen = table.setdefault(row.image_id, {})
        if row.scale in seen or quality.setdefault(row.image_id, row.quality) != row.quality:
            raise UsageError(f"The sweep holds {row.image_id!r} twice at lambda {row.scale}, or with two qualities.")
        seen[row.scale] = row.similarity
    for image_id, values in table.items():
        if len(values) != len(scales):
            lacking = sorted(set(scales) - set(values))
            raise UsageError(f"The sweep lacks {image_id!r} at lambda {', '.join(f'{scale:g}' for scale in lacking)}.")
    curves = []
    for index, (low, high) in enumerate(pairwise(edges)):
        last = index == len(edges) - 2
        inside = [name for name, value in quality.items() if low <= value < high or (last and value == high)]
        if not inside:
            continue
        mean = np.mean([[table[name][scale] for scale in scales] for name in inside], axis=0)
        curves.append(
            IntervalCurve(
                low=float(low),
                high=float(high),
                quality=float(np.mean([quality[name] for name in inside])),
                pictures=len(inside),
                scales=tuple(scales),
                similarities=tuple(float(value) for value in mean),
                best_scale=scales[int(np.argmax(mean))],
            )
        )
    return curves


@dataclass(frozen=True)
class ScaleFit:
    """Result of the calibration.

    Attributes:
        alpha: See `adaptive_id_scale`.
        beta: See `adaptive_id_scale`.
        residual: Root of the mean squared difference of lambda to the best ones.
    """

    alpha: float
    beta: float
    residual: float


def fit_alpha_beta(curves: Sequence[IntervalCurve]) -> ScaleFit:
    """Alpha and beta that come nearest to the best lambda of each interval.

    Least squares in lambda, each interval weighted by its pictures, because a best lambda of 0 has no
    logarithm; started from the line through the logarithms, with half a step of the sweep for 0.

    Raises:
        UsageError: There are fewer than two intervals, or the best lambda does not fall with rising
            quality, so that Eq. 9 says nothing about these pictures.
    """
    import numpy as np
    from scipy.optimize import least_squares

    if len(curves) < 2:
        raise UsageError(f"Alpha and beta need at least two intervals of quality, there are {len(curves)}.")
    quality = np.array([curve.quality for curve in curves])
    best = np.array([curve.best_scale for curve in curves])
    weight = np.sqrt(np.array([curve.pictures for curve in curves], dtype=float))
    steps = np.diff(curves[0].scales)
    floor = float(steps.min()) / 2 if len(steps) else 1e-3
    slope, intercept = np.polyfit(quality, np.log(np.maximum(best, floor)), 1, w=weight)
    if slope >= -1e-9:
        raise UsageError(
            "The best lambda does not fall as the quality rises ("
            + ", ".join(f"{curve.best_scale:g} at {curve.quality:.3g}" for curve in curves)
            + "), so alpha and beta cannot be fitted. Use a fixed lambda, more pictures or another estimator."
        )

    def scale(parameters: np.ndarray) -> np.ndarray:
        # Parameters are log(beta), which keeps beta positive, and alpha / beta, which scales the curve.
        return np.asarray(np.exp(np.clip(parameters[1] - quality * np.exp(-parameters[0]), -50.0, 50.0)))

    found = least_squares(lambda p: weight * (scale(p) - best), x0=[-np.log(-slope), intercept])
    beta = float(np.exp(found.x[0]))
    residual = float(np.sqrt(np.average((scale(found.x) - best) ** 2, weights=weight**2)))
    return ScaleFit(alpha=float(found.x[1]) * beta, beta=beta, residual=residual)
