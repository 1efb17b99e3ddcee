"""Claims follow rules that were stated beforehand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.scores.compare import claim_lines, compare_tables
from bench.scores.table import ScoreRow, rows_to_frame

RULES = {"claims": ["id"], "not_lost": {"psnr_y": 0.5}, "tied": {"psnr_y": 0.3}}


def table(method: str, values: dict[str, list[float]]) -> pd.DataFrame:
    return rows_to_frame(
        ScoreRow("p", method, "r", 0, f"s{person}/1", f"s{person}", metric, f"{metric}@1", value, None)
        for metric, column in values.items()
        for person, value in enumerate(column)
    )


def lines(identity: np.ndarray, psnr: np.ndarray) -> list[str]:
    zero = np.zeros(len(identity))
    a = table("a", {"id": identity.tolist(), "psnr_y": psnr.tolist()})
    b = table("b", {"id": zero.tolist(), "psnr_y": zero.tolist()})
    comparisons, _ = compare_tables(a, b, None, {"id": True, "psnr_y": True})
    return claim_lines(comparisons, RULES)


def test_twelve_people_all_better_is_a_claim() -> None:
    found = lines(np.linspace(0.01, 0.2, 12), np.linspace(-0.1, 0.1, 12))
    assert found[0].startswith("id: A beats B (exact p = 0.00049")
    assert found[1].startswith("psnr_y: A does not lose")
    assert found[2].startswith("psnr_y: A and B are tied")


def test_seven_people_can_never_reach_the_level() -> None:
    assert "is not shown to beat" in lines(np.full(7, 0.2), np.zeros(7))[0]


def test_worse_is_no_claim_however_significant() -> None:
    assert "is not shown to beat" in lines(-np.linspace(0.1, 0.2, 12), np.zeros(12))[0]


def test_a_small_mean_loss_with_a_wide_interval_is_not_shown_to_be_no_loss() -> None:
    noisy = np.array([-3.0, 3.0] * 6) - 0.2
    found = lines(np.linspace(0.01, 0.2, 12), noisy)
    assert "is not shown not to lose" in found[1]
    assert len(found) == 2


def test_beyond_twenty_people_the_p_value_is_called_what_it_is() -> None:
    many = lines(np.linspace(0.01, 0.2, 21), np.zeros(21))
    assert many[0].startswith("id: A beats B (Monte Carlo p = 1e-05")
