import itertools

import pytest

from methods.blocks.learning_rate import learning_rate

OPTIONS = {"learning_rate": 2e-3, "warm_up": 10, "decay_after": 0.5}


def test_rises_stays_and_falls():
    rates = [learning_rate(OPTIONS, done, 100) for done in range(101)]
    assert rates[0] == pytest.approx(2e-4) and rates[9:51] == [2e-3] * 42
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[50:]))
    # Half way down the cosine lies half way between the height and its hundredth.
    assert rates[75] == pytest.approx(2e-3 * 0.505) and rates[100] == pytest.approx(2e-5)


def test_no_warm_up_and_no_fall():
    assert learning_rate({"learning_rate": 1.0, "warm_up": 0, "decay_after": 1.0}, 99, 100) == 1.0
