"""Intervals, the sign-flip test and the summary, against scipy and enumeration by hand."""

from __future__ import annotations

import itertools
import json
import re
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.errors import UsageError
from bench.metrics.metric import Metric
from bench.scores import simulation
from bench.scores.statistics import (
    holm,
    holm_comparisons,
    identity_means,
    mean_interval,
    no_worse_than,
    paired_comparison,
    sign_flip_test,
    sign_flip_tests,
    tied,
)
from bench.scores.summary import summarise


def table(values, metric="psnr", protocol="p1", metric_id="psnr@1", images_per_identity=5):
    """Score table of one metric; images s1/0, s1/1, ... in the order of the values."""
    records = [
        {
            "protocol_id": protocol,
            "method": "m",
            "method_revision": "r",
            "seed": 0,
            "image_id": f"s{i // images_per_identity}/{i % images_per_identity}",
            "identity": f"s{i // images_per_identity}",
            "metric": metric,
            "metric_id": metric_id,
            "value": value,
            "reason": None if value is not None else "no face",
        }
        for i, value in enumerate(values)
    ]
    frame = pd.DataFrame.from_records(records)
    return frame.astype({"value": "float64"})


def by_hand(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(s >= observed - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("skewed", [False, True])
def test_sign_flip_equals_enumeration_and_scipy(size, skewed):
    rng = np.random.default_rng(size)
    differences = rng.exponential(size=size) ** 3 - 0.3 if skewed else rng.normal(0.4, 1, size)
    p = sign_flip_test(differences)
    assert p == by_hand(differences.tolist())
    if size > 1:
        reference = stats.permutation_test(
            (differences,),
            lambda x, axis: np.mean(x, axis=axis),
            permutation_type="samples",
            n_resamples=2**size,
            vectorized=True,
        )
        assert len(reference.null_distribution) == 2**size
        assert p == pytest.approx(reference.pvalue, abs=1e-12)


def test_sign_flip_counts_ties_and_zeros():
    assert sign_flip_test([0.1] * 12) == 2 / 2**12
    assert sign_flip_test([0.1, 0.2, 0.3, -0.6]) == 1.0
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0
    # 0.1 + 0.2 and 0.3 tie in mathematics, not in floating point.
    assert sign_flip_test([0.1, 0.2, 0.3, 0.0]) == by_hand([0.1, 0.2, 0.3, 0.0])
    for bad in ([], [1.0, np.nan], [np.inf]):
        with pytest.raises(ValueError, match=r"values"):
            sign_flip_test(bad)


def test_sign_flip_is_symmetric_and_scale_free():
    differences = np.random.default_rng(3).normal(size=12)
    assert sign_flip_test(differences) == sign_flip_test(-differences) == sign_flip_test(differences[::-1] * 1e-6)


def test_sign_flip_largest_exact_size_agrees_with_the_sampled_one():
    differences = np.random.default_rng(5).normal(0.45, 1, 20)
    exact = sign_flip_test(differences)
    # An added zero changes no sum, and takes the test to the sampled branch.
    sampled = sign_flip_test([*differences, 0.0])
    assert exact * 2**20 == int(exact * 2**20)
    assert abs(sampled - exact) < 4 * np.sqrt(exact * (1 - exact) / 99_999)
    assert sign_flip_test([*differences, 0.0]) == sampled
    assert sign_flip_test(np.ones(25)) == pytest.approx(1e-5, abs=2e-5)
    assert sign_flip_test(np.ones(25)) > 0


def test_false_positives_stay_at_the_level():
    rng = np.random.default_rng(0)
    rejected = sum(sign_flip_test(rng.normal(size=10)) <= 0.05 for _ in range(1500))
    assert 0.03 < rejected / 1500 < 0.067


@pytest.mark.parametrize("size", [1, 2, 12, 30])
def test_many_tests_at_once_are_the_single_ones(size):
    differences = np.random.default_rng(size).normal(0.3, 1, (5, size))
    differences[1] = 0
    differences[2] = 0.1
    assert sign_flip_tests(differences).tolist() == [sign_flip_test(row) for row in differences]


@pytest.mark.parametrize("identities", [10, 12, 20])
@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("shape", ["normal", "skewed", "strongly skewed"])
def test_simulated_false_positives_and_coverage(identities, correlation, shape):
    repetitions = 2000 if identities < 20 else 1000
    case = simulation.measure(identities, 5, correlation, shape, repetitions, seed=1)
    # The tolerance of the full measurement (10,000 repetitions), and three standard errors of this quick one.
    assert abs(case.false_positives - 0.05) <= 0.015 + 3 * np.sqrt(0.05 * 0.95 / repetitions)
    full = recorded(identities, 5, correlation, shape)
    assert abs(case.coverage - full.coverage) <= 3.5 * np.sqrt(2 * 0.1 * 0.9 / repetitions)
    if shape == "normal":
        assert abs(case.coverage - 0.95) <= 0.02


def recorded(identities, images, correlation, shape):
    key = (identities, images, correlation, shape)
    (case,) = [c for c in simulation.read_cases() if (c.identities, c.images, c.correlation, c.shape) == key]
    return case


def test_the_recorded_simulation_is_complete_and_holds():
    tested = [case for case in simulation.read_cases() if case.false_positives is not None]
    assert {(c.identities, c.correlation, c.shape) for c in tested if c.images == 5} == set(
        itertools.product(simulation.TESTED_IDENTITIES, simulation.CORRELATIONS, simulation.SHAPES)
    )
    for case in tested:
        assert abs(case.false_positives - 0.05) <= simulation.FALSE_POSITIVE_TOLERANCE, case
    for case in simulation.read_cases():
        assert case.method == ("student-t" if case.identities < 30 else "bca")
        note = simulation.coverage_note(case.identities, case.method, case.images)
        if abs(case.coverage - 0.95) > simulation.COVERAGE_TOLERANCE:
            assert f"for {case.shape}" in note, "a miss is printed beside the interval"
        assert case.shape != "normal" or abs(case.coverage - 0.95) <= simulation.COVERAGE_TOLERANCE
    assert simulation.coverage_note(1, "none") is None
    assert simulation.coverage_note(12, "student-t").startswith("simulated coverage 93 % for skewed, 89 % for strongly")


@pytest.mark.parametrize(("identities", "images", "nearest"), [(12, 5, 12), (13, 8, 12), (60, 5, 50), (12, 1, 12)])
def test_what_skewed_differences_do_to_the_test_is_said(identities, images, nearest):
    said = simulation.symmetry_note(identities, images)
    assert f"({nearest} identities)" in said
    assert "assumes symmetric differences" in said
    stated = dict(reversed(pair) for pair in re.findall(r"(\d+) % of ((?:strongly )?skewed)", said))
    for shape in ("skewed", "strongly skewed"):
        few = images < 5
        cases = [recorded(nearest, 1 if few else 5, one, shape) for one in ((0.0,) if few else (0.0, 0.2, 0.5))]
        worst = max(case.false_positives_skewed_differences for case in cases)
        assert stated.get(shape) == (f"{100 * worst:.0f}" if worst > 0.065 else None)


@pytest.mark.parametrize("count", [12, 30, 64])
def test_intervals_of_the_simulation_are_the_printed_ones(count):
    values = np.random.default_rng(count).lognormal(0, 1, (4, count))
    low, high, method = simulation.intervals(values)
    for row, bounds in zip(values, zip(low, high, strict=True), strict=True):
        one = mean_interval(row)
        assert one.method == method
        assert bounds == pytest.approx((one.low, one.high), rel=1e-9)


def test_simulated_scores_have_the_stated_spread_and_correlation():
    rng = np.random.default_rng(0)
    for shape in simulation.SHAPES:
        drawn = simulation.SHAPES[shape](rng, (400_000,))
        assert (drawn.mean(), drawn.std()) == pytest.approx((0, 1), abs=0.04), shape
        # Of an identity mean over 5 pictures: icc + (1 - icc) / 5.
        means = simulation.simulated_means(rng, shape, 4000, 12, 5, 0.5)
        assert means.var() == pytest.approx(0.6, rel=0.15)
    assert stats.skew(simulation.SHAPES["skewed"](rng, (400_000,))) == pytest.approx(2, abs=0.1)


def test_the_command_writes_every_case(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "IDENTITIES", (10, 30))
    assert simulation.main(["--repetitions", "20", "-o", str(tmp_path / "c.json")]) == 0
    written = simulation.read_cases(tmp_path / "c.json")
    assert len(written) == 2 * 3 * 4
    assert len(capsys.readouterr().out.splitlines()) == len(written) + 1
    assert [case.false_positives is None for case in written] == [False] * 12 + [True] * 12


@pytest.mark.parametrize("count", [2, 12, 29])
def test_student_interval_equals_scipy(count):
    values = np.random.default_rng(count).gamma(2, size=count)
    interval = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.description == f"student-t over {count} identities"


def test_bootstrap_from_thirty_identities():
    values = np.random.default_rng(1).lognormal(0, 1, 30)
    interval = mean_interval(values)
    assert interval.method == "bca"
    assert interval == mean_interval(values)
    assert interval.low < interval.mean < interval.high
    # Skewed to the right: the bias-corrected interval reaches further up than down.
    assert interval.high - interval.mean > interval.mean - interval.low
    symmetric = np.random.default_rng(2).normal(size=400)
    student = stats.ttest_1samp(symmetric, 0).confidence_interval(0.95)
    bca = mean_interval(symmetric)
    assert (bca.low, bca.high) == pytest.approx((student.low, student.high), abs=0.01)


def test_interval_of_one_and_of_equal_values():
    one = mean_interval([0.5])
    assert (one.mean, one.low, one.high, one.method) == (0.5, None, None, "none")
    for count in (3, 40):
        same = mean_interval([0.25] * count)
        assert (same.low, same.mean, same.high) == (0.25, 0.25, 0.25)


def test_reported_mean_is_over_identities():
    frame = table([1.0, 1.0, 1.0, 1.0, 5.0, 7.0], images_per_identity=4)
    means = identity_means(frame)
    assert means.to_dict() == {"s0": 1.0, "s1": 6.0}
    assert mean_interval(means).mean == 3.5
    balanced = table(list(range(10)))
    assert mean_interval(identity_means(balanced)).mean == pytest.approx(np.mean(range(10)))


def test_paired_comparison_uses_shared_images_only():
    rng = np.random.default_rng(0)
    b = rng.normal(25, 1, 60)
    a = b + rng.normal(0.8, 0.3, 60)
    a_values, b_values = a.tolist(), b.tolist()
    a_values[0] = None
    b_values[7] = None
    one = paired_comparison(table(a_values), table(b_values), "psnr", True)
    keep = [i for i in range(60) if i not in (0, 7)]
    differences = pd.Series((a - b)[keep]).groupby([i // 5 for i in keep]).mean()
    assert (one.n_images, one.n_identities) == (58, 12)
    assert one.mean_difference == pytest.approx(differences.mean())
    assert one.mean_a - one.mean_b == pytest.approx(one.mean_difference)
    assert one.p == by_hand(differences.tolist())
    assert one.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1))
    reference = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx(tuple(reference))
    assert one.deviation == pytest.approx(differences.std(ddof=1))
    assert one.a_better == int((differences > 0).sum())
    assert one.better is True
    assert paired_comparison(table(a_values), table(b_values), "psnr", False).better is False
    assert paired_comparison(table(a_values), table(b_values), "psnr", None).better is None
    assert no_worse_than(one, 0.5)
    assert not tied(one, 0.3)
    reverse = paired_comparison(table(b_values), table(a_values), "psnr", True)
    assert reverse.better is False
    assert not no_worse_than(reverse, 0.5)


def test_margins_follow_the_direction():
    rng = np.random.default_rng(4)
    b = rng.normal(5, 1, 60)
    a = b + rng.normal(0.0, 0.05, 60)
    lower = paired_comparison(table(a), table(b), "psnr", False)
    assert tied(lower, 0.3)
    assert no_worse_than(lower, 0.3)
    worse = paired_comparison(table(a + 1), table(b), "psnr", False)
    assert not no_worse_than(worse, 0.3)
    assert no_worse_than(paired_comparison(table(a - 1), table(b), "psnr", False), 0.3)
    single = paired_comparison(table(a[:5]), table(b[:5]), "psnr", True)
    assert (single.low, single.p, single.better) == (None, 1.0, None)
    assert not tied(single, 100)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table([1.0] * 10, protocol="p2"), "protocols differ"),
        (table([1.0] * 10, metric_id="psnr@2"), "identities of metric psnr differ"),
        (table([1.0] * 10, metric="ssim"), "no metric 'psnr'"),
        (table([None] * 10), "no image has a value"),
        (pd.concat([table([1.0] * 10)] * 2), "more than once"),
    ],
)
def test_incomparable_tables_are_refused(other, message):
    with pytest.raises(UsageError, match=message):
        paired_comparison(table([1.0] * 10), other, "psnr", True)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    rng = np.random.default_rng(0)
    b = rng.normal(size=60)
    pair = [paired_comparison(table(b + rng.normal(shift, 0.5, 60)), table(b), "psnr", True) for shift in (0.14, 1.0)]
    adjusted = holm_comparisons(pair)
    assert [one.p_adjusted for one in adjusted] == holm([one.p for one in pair])


class Psnr(Metric):
    name = "psnr"
    title = "PSNR"
    higher_is_better: ClassVar[bool | None] = True
    unit = "dB"
    licence = "BSD"


def test_summary_carries_coverage_and_reasons():
    values = [None, *np.linspace(20, 30, 59)]
    niqe = table([None] * 60, metric="niqe", metric_id="niqe@1")
    niqe.loc[:3, "reason"] = "rare"
    frame = pd.concat([niqe, table(values)], ignore_index=True)
    summary = summarise(frame, {"psnr": Psnr})
    assert list(summary) == ["psnr", "niqe"]
    psnr = summary["psnr"]
    assert (psnr["title"], psnr["unit"], psnr["higher_is_better"]) == ("PSNR", "dB", True)
    assert (psnr["n"], psnr["of"], psnr["identities"]) == (59, 60, 12)
    assert psnr["interval"] == "student-t over 12 identities"
    assert psnr["reason"] == "no face"
    assert psnr["mean"] == pytest.approx(pd.Series(values, dtype=float).groupby(np.arange(60) // 5).mean().mean())
    assert summary["niqe"] == {
        "identity": "niqe@1",
        "title": "niqe",
        "unit": "",
        "higher_is_better": None,
        "mean": None,
        "low": None,
        "high": None,
        "interval": None,
        "n": 0,
        "of": 60,
        "identities": 0,
        "reason": "no face",
    }
    json.dumps(summary, allow_nan=False)
    assert summarise(frame, {"psnr": Psnr}, of=70)["psnr"]["of"] == 70
