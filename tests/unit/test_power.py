"""Power against the exact test itself on drawn differences."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from bench.scores.power import comparison_power, paired_power, protocol_power, smallest_effect, smallest_p
from bench.scores.statistics import compare_identity_means, sign_flip_test, sign_flip_tests


@pytest.mark.parametrize(("identities", "alpha"), list(itertools.product((7, 10, 12, 20), (0.05, 0.01))))
def test_the_exact_test_has_the_stated_power(identities: int, alpha: float) -> None:
    effect = smallest_effect(identities, alpha)
    if effect is None:
        assert (identities, alpha) == (7, 0.01)
        return
    draws = np.random.default_rng(identities).normal(effect, 1, (2000, identities))
    assert np.mean(sign_flip_tests(draws) <= alpha) == pytest.approx(0.8, abs=0.045)


def test_all_on_one_side_is_the_only_way_with_six_identities() -> None:
    # p <= .05 means 2/64 here: every difference has one sign, with probability Phi(d)^6 (+ a tiny other tail).
    effect = smallest_effect(6, 0.05)
    assert effect is not None
    assert norm.cdf(effect) ** 6 == pytest.approx(0.8, abs=0.02)
    assert smallest_effect(5, 0.05) is None


def test_smallest_p_is_what_the_test_gives_at_best() -> None:
    for identities in (1, 2, 7, 12, 20, 21, 50):
        best = sign_flip_test(np.ones(identities))
        if identities <= 20:
            assert smallest_p(identities) == best
        else:
            assert smallest_p(identities) <= best
    with pytest.raises(ValueError, match="no identities"):
        smallest_p(0)


def test_more_identities_or_less_spread_show_smaller_differences() -> None:
    effects = [smallest_effect(identities, 0.01) for identities in (8, 9, 10, 12, 20, 50, 200)]
    assert all(effect is not None for effect in effects)
    assert effects == sorted(effects, reverse=True)
    wide, narrow = paired_power(12, 2.0), paired_power(12, 1.0)
    assert wide.smallest_difference[0.05] == pytest.approx(2 * narrow.smallest_difference[0.05])
    assert narrow.smallest_difference[0.01] > narrow.smallest_difference[0.05]
    assert paired_power(1, None).smallest_difference == {0.05: None, 0.01: None}
    assert narrow.as_json()["smallest_p"] == 2 / 4096


def test_power_of_pairs_and_of_a_protocol() -> None:
    rng = np.random.default_rng(0)
    people = [f"s{i}" for i in range(12)]
    zero = pd.Series(0.0, index=people)
    pairs = [
        compare_identity_means(pd.Series(rng.normal(0, spread, 12), index=people), zero, "psnr", True, 60)
        for spread in (0.5, 1.0, 4.0)
    ]
    assert pairs[1].deviation is not None
    one = comparison_power(pairs[1])
    assert one.smallest_difference[0.05] == pytest.approx(smallest_effect(12, 0.05) * pairs[1].deviation)
    assert protocol_power(pairs) == {"psnr": one}
    alone = compare_identity_means(zero[:1], zero[:1], "id", True, 5)
    assert "id" not in protocol_power([*pairs, alone])
