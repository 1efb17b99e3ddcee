"""Letters instead of ranks: rows share one exactly where the corrected tests do not separate them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.entry import add, read_entries
from bench.leaderboard.ranking import build_board, letter_groups
from bench.scores.statistics import holm, sign_flip_test
from tests.unit.run_folders import make_run, score_frame


def cliques(order: list[int], separated: set[tuple[int, int]]) -> set[frozenset[int]]:
    """All largest sets without a separated pair, by trying every set."""
    sets = [
        frozenset(some)
        for size in range(1, len(order) + 1)
        for some in itertools.combinations(order, size)
        if not any((a, b) in separated or (b, a) in separated for a, b in itertools.combinations(some, 2))
    ]
    return {one for one in sets if not any(one < other for other in sets)}


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_the_largest_sets_without_a_separated_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = [int(i) for i in rng.permutation(7)]
    separated = [pair for pair in itertools.combinations(order, 2) if rng.random() < 0.45]
    groups = letter_groups(order, separated)
    assert {frozenset(group) for group in groups} == cliques(order, set(separated))
    assert len(groups) == len(set(groups))
    assert groups == letter_groups(order, separated[::-1])
    assert order[0] in groups[0]
    for group in groups:
        assert list(group) == sorted(group, key=order.index)


def test_no_row_and_no_difference() -> None:
    assert letter_groups([], []) == []
    assert letter_groups([2, 0, 1], []) == [(2, 0, 1)]
    assert letter_groups([2, 0, 1], [(2, 0), (2, 1), (0, 1)]) == [(2,), (0,), (1,)]


@pytest.fixture
def board(tmp_path: Path):
    root = tmp_path / "boards"
    levels = {"clear": (3.0, 1), "near": (2.9, 2), "middle": (1.5, 3), "input": (0.0, 0), "copy_reference": (5.0, 4)}
    for name, (shift, seed) in levels.items():
        add(make_run(tmp_path / name, score_frame(name, shift, seed)), root)
    return build_board(read_entries(root / "orl_heavy"))


def test_letters_follow_the_holm_corrected_tests_of_the_column(board) -> None:
    methods = [entry["method"] for entry in board.entries]
    assert list(board.groups) == ["psnr", "id", "lmd"], "niqe has no value"
    for metric, groups in board.groups.items():
        assert methods.index("copy_reference") not in groups.letters
        ranked = list(groups.letters)
        pairs = list(itertools.combinations(ranked, 2))
        assert set(groups.comparisons) == set(pairs)
        p_values = []
        for pair in pairs:
            a, b = (
                pd.Series({k: v["mean"] for k, v in board.entries[i]["metrics"][metric]["by_identity"].items()})
                for i in pair
            )
            p_values.append(sign_flip_test((a - b).to_numpy()))
        for (i, j), p in zip(pairs, holm(p_values), strict=True):
            assert groups.comparisons[i, j].p_adjusted == pytest.approx(p)
            assert bool(set(groups.letters[i]) & set(groups.letters[j])) == (p >= 0.05)
        by_name = {methods[i]: letters for i, letters in groups.letters.items()}
        assert (by_name["middle"], by_name["input"]) == ("b", "c")
        assert {by_name["clear"], by_name["near"]} == {"a"}
        ranks = {methods[i]: rank for i, rank in groups.ranks.items()}
        assert ranks == {"clear": (1, 2), "near": (1, 2), "middle": (3, 3), "input": (4, 4)}
        assert groups.can_separate


def test_too_few_identities_separate_nothing_and_say_so(tmp_path: Path) -> None:
    for name, shift in (("clear", 9.0), ("input", 0.0)):
        add(make_run(tmp_path / name, score_frame(name, shift, identities=5)), tmp_path / "boards")
    groups = build_board(read_entries(tmp_path / "boards" / "orl_heavy")).groups["psnr"]
    assert set(groups.letters.values()) == {"a"}
    assert set(groups.ranks.values()) == {(1, 2)}
    assert not groups.can_separate


def test_pairs_without_a_complete_identity_are_not_separated(tmp_path: Path) -> None:
    every = [(f"s{person + 29}/{image}", "id") for person in range(12) for image in (6, 7)]
    for name, shift, missing in (("clear", 9.0, every), ("input", 0.0, ())):
        frame = score_frame(name, shift, missing=set(missing))
        add(make_run(tmp_path / name, frame), tmp_path / "boards", allow_incomplete=True)
    groups = build_board(read_entries(tmp_path / "boards" / "orl_heavy")).groups
    assert (groups["id"].untested, set(groups["id"].letters.values())) == ([(0, 1)], {"a"})
    assert set(groups["psnr"].letters.values()) == {"a", "b"}
