"""`bench compare` from run folders and from score tables."""

from __future__ import annotations

import argparse
import json

import pytest

from bench.cli import compare as verb
from bench.errors import UsageError
from bench.scores.statistics import holm, identity_means, sign_flip_test
from bench.scores.table import write_table
from tests.unit.run_folders import make_run, score_frame


def compare(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def runs(tmp_path):
    """A method that is better, the input, and their tables."""
    frames = [score_frame("refine@demo", 1.5, 2, missing={("s29/6", "id")}), score_frame("input", 0, 0)]
    folders = [
        make_run(tmp_path / name, frame) for name, frame in zip(("l'été, a=b [1]", "input"), frames, strict=True)
    ]
    return folders, frames


def test_json_holds_the_exact_test(runs, capsys):
    folders, frames = runs
    assert compare(*folders, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["a"]["method"], result["b"]["method"]) == ("refine@demo", "input")
    expected = {}
    for name in ("id", "lmd", "psnr"):
        a, b = (frame[(frame.metric == name) & ~((frame.image_id == "s29/6") & (name == "id"))] for frame in frames)
        expected[name] = sign_flip_test((identity_means(a) - identity_means(b)).to_numpy())
    assert {name: one["p"] for name, one in result["metrics"].items()} == expected
    adjusted = holm(list(expected.values()))
    assert [result["metrics"][name]["p_adjusted"] for name in expected] == adjusted
    assert [result["metrics"][name]["better"] for name in expected] == [True] * 3
    assert result["metrics"]["lmd"]["mean_difference"] < 0
    assert (result["metrics"]["id"]["n_images"], result["metrics"]["psnr"]["n_images"]) == (59, 60)
    assert result["not_compared"] == {"niqe": "no image has a value in both"}


def test_table_for_people(runs, capsys):
    folders, _ = runs
    assert compare(folders[1], folders[0], "--metrics", "psnr, niqe") == 0
    out = capsys.readouterr().out
    assert "worse" in out
    assert "lmd" not in out
    assert "niqe: not compared" in out
    assert compare(folders[0], folders[0]) == 0
    assert "no difference shown" in capsys.readouterr().out


def test_score_tables_are_accepted(runs, tmp_path, capsys):
    folders, frames = runs
    table = tmp_path / "theirs.parquet"
    write_table(frames[1], table)
    assert compare(folders[0], table, "--json", "--metrics", "psnr") == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == ["psnr"]


def test_what_cannot_be_compared_is_said(runs, tmp_path):
    folders, _ = runs
    other = make_run(tmp_path / "other", score_frame(protocol_id="fedcba9876543210"))
    with pytest.raises(UsageError, match="different protocols"):
        compare(folders[0], other)
    with pytest.raises(UsageError, match="'psnr'"):
        compare(*folders, "--metrics", "pnsr")
    with pytest.raises(UsageError, match="does not exist"):
        compare(folders[0], tmp_path / "nothing")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UsageError, match="Cannot read"):
        compare(folders[0], tmp_path / "text.parquet")
