"""The section "What the reference bought": which rows are compared, how, and where it is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.leaderboard.bought import HEADING, what_references_bought
from bench.leaderboard.ranking import build_board
from bench.leaderboard.render_html import board_html
from bench.leaderboard.render_markdown import board_markdown
from bench.leaderboard.view import view
from bench.registry import load_method, method_targets
from bench.scores.statistics import holm, sign_flip_test
from tests.unit.test_gate import ACCEPTED, BASE, entry

GAIN = np.linspace(0.01, 0.12, 12)


def rows(**changes: Any) -> list[dict[str, Any]]:
    """ReFine with a higher ID and a larger landmark error than without its reference."""
    ours = entry({"id": BASE + GAIN, "lmd_capped": BASE + GAIN, "ssim_y": BASE}, label="refine@demo")
    without = entry({"id": BASE, "lmd_capped": BASE, "ssim_y": BASE}, label="refine+blind@demo")
    for own in (ours, without):
        own["metrics"]["lmd_capped"]["higher_is_better"] = False
    return [ours | changes, without, entry({"id": BASE - 1}, label="input", revision="ccc")]


def test_a_method_is_compared_with_its_own_network_without_the_reference() -> None:
    columns, found = what_references_bought(build_board(rows()))
    assert [column.name for column in columns] == ["id", "lmd_capped"], "what people ask of a reference, and no more"
    (one,) = found
    assert (one.entry["method"], one.without["method"]) == ("refine@demo", "refine+blind@demo")
    assert one.tests["id"].mean_difference == pytest.approx(GAIN.mean())
    assert one.tests["id"].p == sign_flip_test(GAIN)
    adjusted = holm([one.tests[name].p for name in ("id", "lmd_capped")])
    assert [one.tests[name].p_adjusted for name in ("id", "lmd_capped")] == adjusted
    assert (one.tests["id"].better, one.tests["lmd_capped"].better) == (True, False)


@pytest.mark.parametrize(
    "change",
    [{"accepted": ACCEPTED}, {"seed": 1}, {"method": "refine@paper"}, {"method": "stranger@demo"}, {"metrics": {}}],
    ids=str,
)
def test_nothing_is_said_where_the_two_rows_are_not_there(change: dict[str, Any]) -> None:
    assert what_references_bought(build_board(rows(**change)))[1] == []


def test_the_latest_of_several_revisions_counts() -> None:
    newer = entry({"id": BASE + 1}, label="refine@demo", revision="bbb", created="2027-01")
    _, found = what_references_bought(build_board([*rows(), newer]))
    assert [one.entry["revision"] for one in found] == ["bbb"]


def test_both_boards_have_the_section_only_where_there_is_something_to_say() -> None:
    drawn = view(rows())
    for text in (board_markdown(drawn), board_html(drawn)):
        assert HEADING in text
        assert "refine+blind@demo" in text and "+0.0650" in text and ", worse" in text
    alone = view(rows()[:1])
    assert HEADING not in board_markdown(alone) + board_html(alone)


@pytest.mark.parametrize("name", sorted(method_targets()))
def test_the_variant_without_references_is_one_that_is_declared(name: str) -> None:
    spec = load_method(name).spec
    assert spec.without_reference is None or (spec.without_reference in spec.variants and spec.references != "none")
