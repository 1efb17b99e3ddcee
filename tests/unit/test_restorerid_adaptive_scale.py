"""Adaptive ID-scale: the published formula, the sweep's curves and the fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.errors import UsageError
from methods.restorerid.adaptive_scale import (
    IntervalCurve,
    SweepRow,
    adaptive_id_scale,
    fit_alpha_beta,
    interval_curves,
    quality_edges,
    sweep_scales,
)


def test_formula_and_forms():
    assert adaptive_id_scale(9.5) == 1.0
    assert adaptive_id_scale(0.0) == pytest.approx(2.5857, abs=1e-4)
    assert adaptive_id_scale(75.0) == pytest.approx(0.0014, abs=5e-5)
    assert adaptive_id_scale(0.0, clip_max=1.5) == 1.5
    tensor = adaptive_id_scale(torch.tensor([9.5, 0.0, 75.0]), clip_max=2.0)
    torch.testing.assert_close(tensor, torch.tensor([1.0, 2.0, math.exp(-6.55)]))
    assert adaptive_id_scale(50.0, alpha=50.0, beta=3.0) == 1.0


def test_sweep_is_the_papers():
    scales = sweep_scales()
    assert len(scales) == 51
    assert scales[0] == 0.0
    assert scales[1] == 0.04
    assert scales[-1] == 2.0


def _sweep(alpha: float, beta: float, pictures: int = 60) -> list[SweepRow]:
    """Similarity is a parabola around the lambda that Eq. 9 gives, with a height of its own per picture."""
    rng = np.random.default_rng(0)
    rows = []
    for picture in range(pictures):
        quality = float(rng.uniform(5, 45))
        best, height = math.exp((alpha - quality) / beta), float(rng.uniform(0.3, 0.8))
        rows += [
            SweepRow(f"p{picture}", quality, scale, height - 0.1 * (scale - best) ** 2) for scale in sweep_scales()
        ]
    return rows


def test_calibration_finds_the_parameters_that_made_the_sweep():
    rows = _sweep(9.5, 10.0)
    edges = quality_edges([row.quality for row in rows], 10)
    curves = interval_curves(rows, edges)
    assert [curve.pictures for curve in curves] == [6] * 10
    assert [curve.best_scale for curve in curves] == sorted((curve.best_scale for curve in curves), reverse=True)
    fit = fit_alpha_beta(curves)
    assert fit.alpha == pytest.approx(9.5, abs=0.6)
    assert fit.beta == pytest.approx(10.0, rel=0.08)
    assert fit.residual < 0.05


def test_curve_is_the_mean_of_its_pictures_and_edges_belong_to_one_interval():
    rows = [
        SweepRow("a", 10.0, 0.0, 0.2),
        SweepRow("a", 10.0, 1.0, 0.4),
        SweepRow("b", 20.0, 0.0, 0.6),
        SweepRow("b", 20.0, 1.0, 0.1),
        SweepRow("c", 30.0, 1.0, 0.5),
        SweepRow("c", 30.0, 0.0, 0.3),
    ]
    low, high = interval_curves(rows, [10.0, 20.0, 30.0])
    assert (low.pictures, high.pictures) == (1, 2)
    assert low.best_scale == 1.0
    assert high.similarities == pytest.approx((0.45, 0.3))
    assert high.best_scale == 0.0
    assert high.quality == 25.0


def test_incomplete_sweep_is_refused():
    rows = [SweepRow("a", 1.0, 0.0, 0.1), SweepRow("a", 1.0, 0.5, 0.1), SweepRow("b", 2.0, 0.0, 0.1)]
    with pytest.raises(UsageError, match=r"lacks 'b' at lambda 0\.5"):
        interval_curves(rows, [0.0, 3.0])
    with pytest.raises(UsageError, match="twice"):
        interval_curves([*rows, rows[0]], [0.0, 3.0])


def _curve(quality: float, best: float, pictures: int = 5) -> IntervalCurve:
    return IntervalCurve(quality - 1, quality + 1, quality, pictures, (0.0, 0.04, 2.0), (0.1, 0.1, 0.1), best)


def test_fit_takes_a_best_scale_of_zero_and_refuses_what_does_not_fall():
    fit = fit_alpha_beta([_curve(5, 1.6), _curve(15, 0.6), _curve(40, 0.0), _curve(70, 0.0)])
    assert adaptive_id_scale(5.0, fit.alpha, fit.beta) == pytest.approx(1.6, abs=0.1)
    assert adaptive_id_scale(70.0, fit.alpha, fit.beta) < 0.02
    with pytest.raises(UsageError, match="does not fall"):
        fit_alpha_beta([_curve(5, 0.2), _curve(15, 0.6)])
    with pytest.raises(UsageError, match="two intervals"):
        fit_alpha_beta([_curve(5, 0.2)])
    with pytest.raises(UsageError, match="distinct"):
        quality_edges([1.0, 1.0, 1.0], 3)
