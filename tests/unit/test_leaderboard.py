"""Entries and boards, from run folders to Markdown."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import re

import pandas as pd
import pytest

from bench.cli import leaderboard as verb
from bench.errors import UsageError
from bench.leaderboard.board import render_board, render_index
from bench.leaderboard.entry import (
    add,
    board_names,
    entry_from_run,
    extended_entry,
    read_entries,
    read_entry,
    same_scores_listed,
)
from bench.leaderboard.ranking import build_board
from bench.leaderboard.schema import (
    ACCEPTED,
    ACCEPTED_OPTIONAL,
    CLAIM,
    CLAIM_PAIR,
    ENTRY,
    METRIC,
    OPTIONAL,
    SET_METRIC,
    validate,
)
from bench.paths import resource_root
from bench.scores.statistics import holm, sign_flip_test
from tests.unit.run_folders import PROTOCOL_ID, make_run, score_frame

SET = {
    "identity": "kid@test@1",
    "title": "KID",
    "unit": "",
    "higher_is_better": False,
    "value": 0.1,
    "low": 0.05,
    "high": 0.2,
    "interval": "bootstrap over identities",
    "n": 60,
    "of": 60,
    "reason": None,
    "shown": True,
}


def cli(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four runs on one board."""
    boards = tmp_path / "boards"
    monkeypatch.setenv("BENCH_LEADERBOARDS", str(boards))
    monkeypatch.setattr("bench.leaderboard.entry.resource_root", lambda: tmp_path / "installed")
    for method, shift, seed in (("input", 0, 0), ("copy_reference", 9, 1), ("refine@demo", 1.5, 2), ("other", 1.48, 3)):
        run = make_run(tmp_path / "runs" / method, score_frame(method, shift, seed))
        path = add(run, boards)
        assert path.name == f"{method}@abc123def456{f'-seed{seed}' if seed else ''}.json"
    return boards


def test_entry_holds_what_paired_tests_need(tmp_path):
    frame = score_frame(missing={("s29/6", "id")})
    entry = entry_from_run(make_run(tmp_path / "run", frame), reported_by="somebody")
    assert entry["reported_by"] == "somebody"
    assert (entry["images"], entry["of"], entry["identity_images"]["s29"]) == (60, 60, 5)
    identity = entry["metrics"]["id"]
    assert (identity["n"], identity["of"], identity["by_identity"]["s29"]["n"]) == (59, 60, 4)
    rows = frame[(frame.metric == "id") & (frame.identity == "s30")]
    assert identity["by_identity"]["s30"] == {"mean": pytest.approx(rows.value.mean()), "n": 5}
    assert entry["metrics"]["niqe"]["by_identity"] == {}
    assert entry["metrics"]["niqe"]["reason"]
    assert json.loads(json.dumps(entry)) == entry


def test_a_published_reason_names_no_folder_of_this_machine(tmp_path):
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    missing = "Weights 'fid_inception' (FID) are not here. Looked in: /home/somebody/weights/fid.pth. Do this: …"
    summary["metrics"]["niqe"]["reason"] = missing
    summary["set_metrics"] = {"kid": {**SET, "value": None, "low": None, "high": None, "reason": missing}}
    (run / "summary.json").write_text(json.dumps(summary))
    entry = entry_from_run(run)
    assert (
        entry["metrics"]["niqe"]["reason"] == entry["set_metrics"]["kid"]["reason"] == "weights missing: fid_inception"
    )
    assert "/home/somebody" not in json.dumps(entry)


def test_edited_summary_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["metrics"]["psnr"]["mean"] += 0.01
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UsageError, match="disagree on psnr"):
        entry_from_run(run)


def test_other_protocols_and_partial_runs_are_refused(root, tmp_path):
    other = make_run(tmp_path / "other", score_frame("new", protocol_id="fedcba9876543210"))
    with pytest.raises(UsageError, match=rf"fedcba9876543210.*{PROTOCOL_ID}"):
        add(other, root)
    frame = score_frame("partial", 1)
    partial = make_run(tmp_path / "partial", frame[frame.image_id != "s29/6"], of=60)
    summary = json.loads((partial / "summary.json").read_text())
    for metric in summary["metrics"].values():
        metric["of"] = 60
    (partial / "summary.json").write_text(json.dumps(summary))
    protocol = json.loads((partial / "protocol.json").read_text())
    protocol["images"] = [{"identity": name.partition("/")[0]} for name in frame.image_id.unique()]
    (partial / "protocol.json").write_text(json.dumps(protocol))
    with pytest.raises(UsageError, match="59 of the protocol's 60"):
        add(partial, root)
    assert add(partial, root, allow_incomplete=True).is_file()
    rescored = score_frame("rescored")
    rescored["metric_id"] = rescored["metric_id"].str.replace("@1", "@2")
    with pytest.raises(UsageError, match="different identities are never compared"):
        add(make_run(tmp_path / "rescored", rescored), root)
    strange = score_frame("../../escape")
    with pytest.raises(UsageError, match="cannot name"):
        add(make_run(tmp_path / "strange", strange), root)
    none = {("s29/6", name) for name in ("psnr", "id", "lmd")}
    failed = make_run(tmp_path / "failed", score_frame("failed", missing=none), failed={"s29/6": "out of memory"})
    with pytest.raises(UsageError, match="59 of the protocol's 60"):
        add(failed, root)


def test_ties_are_the_holm_corrected_exact_test(root):
    board = build_board(read_entries(root / "orl_heavy"))
    assert [entry["method"] for entry in board.entries[2:]] == ["copy_reference", "input"]
    assert {entry["method"] for entry in board.entries[:2]} == {"refine@demo", "other"}
    assert [column.name for column in board.absent] == ["niqe"]
    methods = [entry["method"] for entry in board.entries]
    ranked = [i for i, method in enumerate(methods) if method != "copy_reference"]
    for metric in ("psnr", "id", "lmd"):
        means = [
            pd.Series({k: v["mean"] for k, v in entry["metrics"][metric]["by_identity"].items()})
            for entry in board.entries
        ]
        pairs = list(itertools.combinations(ranked, 2))
        p_values = holm([sign_flip_test((means[i] - means[j]).to_numpy()) for i, j in pairs])
        by_pair = dict(zip(map(frozenset, pairs), p_values, strict=True))
        (best,) = (i for i, name in board.marks if name == metric)
        letters = board.groups[metric].letters
        against_best = {i: test for (i, name), test in board.comparisons.items() if name == metric}
        assert set(against_best) == set(ranked) - {best}
        for i, test in against_best.items():
            assert test.p_adjusted == pytest.approx(by_pair[frozenset((best, i))])
            assert test.mean_difference == pytest.approx((means[best] - means[i]).mean())
            assert ("a" in letters[i]) == (test.p_adjusted >= 0.05), "what is said of the best is what the letters say"
        assert "a" not in letters[methods.index("input")], "input is worse"
        assert {letters[0], letters[1]} == {"a"}
        assert methods.index("copy_reference") not in {best, *letters, *against_best}, "copying is not ranked"


def test_direction_decides_the_best(root):
    board = build_board(read_entries(root / "orl_heavy"))
    for metric, choose in (("psnr", max), ("lmd", min)):
        means = {
            i: e["metrics"][metric]["mean"] for i, e in enumerate(board.entries) if e["method"] != "copy_reference"
        }
        assert board.marks[choose(means, key=means.get), metric] == "best"


def test_identities_that_are_not_complete_do_not_enter_the_test(root, tmp_path):
    add(make_run(tmp_path / "gaps", score_frame("gaps", 1.4, 5, missing={("s29/6", "id"), ("s30/6", "id")})), root)
    board = build_board(read_entries(root / "orl_heavy"))
    index = next(i for i, entry in enumerate(board.entries) if entry["method"] == "gaps")
    assert (board.comparisons[index, "id"].n_identities, board.comparisons[index, "id"].n_images) == (10, 50)
    assert board.comparisons[index, "psnr"].n_identities == 12
    assert "(58/60)" in render_board(root / "orl_heavy")


def test_markdown_is_deterministic_and_complete(root):
    text = render_board(root / "orl_heavy")
    assert text == render_board(root / "orl_heavy")
    for needed in (
        PROTOCOL_ID,
        "PSNR (dB) ↑",
        "Landmark distance (px) ↓",
        "psnr@test@1",
        "60 images of 12 identities",
        "<sup>a</sup>",
        "**",
    ):
        assert needed in text
    assert "IPS of `copy_reference` shows what copying scores" in text
    assert "n/a (covariance does not exist below 192 px)" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert table[0].count("|") == table[2].count("|")
    assert f"[orl_heavy](orl_heavy/README.md) | `{PROTOCOL_ID}` | 60 | 12 |" in render_index(root)


def test_missing_comparison_rows_are_named(tmp_path):
    add(make_run(tmp_path / "run", score_frame("refine@demo", 1)), tmp_path / "boards")
    text = render_board(tmp_path / "boards" / "orl_heavy")
    assert "| `input` | not measured yet |" in text
    assert "| `copy_reference` | not measured yet |" in text


def test_render_check_finds_edits(root, capsys):
    assert cli("render", "--check") == 1
    assert cli("render") == 0
    assert cli("render", "all", "--check") == 0
    readme = root / "orl_heavy" / "README.md"
    readme.write_text(readme.read_text().replace("0.3", "0.4", 1))
    capsys.readouterr()
    assert cli("render", "orl_heavy", "--check") == 1
    assert "orl_heavy/README.md does not match" in capsys.readouterr().out
    with pytest.raises(UsageError, match="orl_heavy"):
        cli("render", "orl_hevy")


def test_show_and_add_from_the_command_line(root, tmp_path, capsys):
    run = make_run(tmp_path / "new", score_frame("new", 1, 7))
    assert cli("add", run, "--reported-by", "a lab") == 0
    capsys.readouterr()
    assert cli("render", "--check") == 0, "adding draws the board again"
    assert cli("show", "orl_heavy") == 0
    shown = capsys.readouterr().out
    assert "new@abc123" in shown
    assert PROTOCOL_ID in shown
    assert cli("show", "orl_heavy", "--json") == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert len(entries) == 5
    assert next(e for e in entries if e["method"] == "new")["reported_by"] == "a lab"
    with pytest.raises(UsageError, match=r"no leaderboard 'nothing'.*orl_heavy"):
        cli("show", "nothing")
    assert board_names(root) == ["orl_heavy"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema must be 1"),
        (("seed",), True, "seed must be a whole number"),
        (("revision",), "", "revision must be text"),
        (("extra",), 1, "unknown extra"),
        (("metrics", "psnr", "mean"), 30.0, "identity means give"),
        (("metrics", "psnr", "mean"), float("nan"), "finite"),
        (("metrics", "psnr", "n"), 59, "do not match"),
        (("metrics", "psnr", "by_identity", "s29"), {"mean": 1.0}, "lacks n"),
        (("metrics", "psnr", "by_identity", "s29", "n"), 6, "between 1 and its images"),
        (("metrics", "niqe", "reason"), None, "no value and no reason"),
        (("metrics", "niqe", "low"), 3.0, "has bounds but no value"),
        (("of",), 61, "of is 61, but identity_images has 60"),
        (("images",), 61, "images is 61, more than the 60"),
        (("images",), 59, "psnr.n is 60, but only 59 images"),
        (("metrics", "niqe", "of"), 55, "niqe.of is 55, but the protocol has 60"),
        (("identity_images", "s29"), 6, "of is 60, but identity_images has 61"),
        (("set_metrics",), {"kid": {**SET, "of": 61}}, "set_metrics.kid.of is 61"),
        (("set_metrics",), {"kid": {**SET, "value": None, "reason": "x"}}, "has bounds but no value"),
    ],
)
def test_schema_is_strict(tmp_path, path, value, message):
    entry = entry_from_run(make_run(tmp_path / "run"))
    validate(entry, "entry")
    broken = copy.deepcopy(entry)
    target = broken
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(UsageError, match=message):
        validate(broken, "entry")
    with pytest.raises(UsageError, match="lacks protocol_id"):
        validate({k: v for k, v in entry.items() if k != "protocol_id"}, "entry")
    with pytest.raises(UsageError, match="must be an object"):
        validate([], "entry")


def test_unreadable_and_misnamed_entries_are_said(root):
    folder = root / "orl_heavy"
    good = folder / "input@abc123def456.json"
    (folder / "other@ffff.json").write_text(good.read_text())
    with pytest.raises(UsageError, match="rename or remove"):
        read_entries(folder)
    good.write_text("{")
    with pytest.raises(UsageError, match="Cannot read"):
        read_entry(good)


def test_the_documented_fields_are_the_checked_ones():
    text = (resource_root() / "leaderboards" / "ENTRY.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    checked = (ENTRY, METRIC, OPTIONAL, SET_METRIC, ACCEPTED, ACCEPTED_OPTIONAL, CLAIM, CLAIM_PAIR)
    assert documented == {name for fields in checked for name in fields}


def test_second_seeds_and_sets_are_valid_entries(tmp_path):
    run = make_run(tmp_path / "run", set_metrics={"kid": SET})
    entry = entry_from_run(run)
    assert entry["set_metrics"] == {"kid": SET}
    broken = copy.deepcopy(entry)
    broken["set_metrics"]["kid"]["value"] = None
    with pytest.raises(UsageError, match="either a value or a reason"):
        validate(broken, "entry")


def _summary(run):
    return json.loads((run / "summary.json").read_text())


def test_scores_of_sets_and_reasons_are_part_of_what_is_listed(tmp_path):
    run = make_run(tmp_path / "run", set_metrics={"kid": SET})
    boards = tmp_path / "boards"
    path = add(run, boards)
    summary = _summary(run)
    assert same_scores_listed(summary, [tmp_path / "none", boards])
    without = {**summary, "set_metrics": {}}
    assert not same_scores_listed(without, [boards]), "fewer"
    assert not same_scores_listed({**summary, "set_metrics": {"kid": SET, "fid": SET}}, [boards]), "more"
    assert not same_scores_listed({**summary, "set_metrics": {"kid": {**SET, "value": 0.2}}}, [boards])
    absent = {**SET, "value": None, "low": None, "high": None, "reason": "Weights 'w' (x) are not here"}
    assert not same_scores_listed({**summary, "set_metrics": {"kid": absent}}, [boards])
    other = copy.deepcopy(summary)
    other["metrics"]["niqe"]["reason"] = "another reason"
    assert not same_scores_listed(other, [boards])
    assert extended_entry({**summary, "set_metrics": {"kid": SET, "fid": SET}}, [boards]) == path
    assert extended_entry({**summary, "set_metrics": {"kid": absent}}, [boards]) == path
    other["metrics"]["psnr"]["mean"] += 1
    assert extended_entry(other, [boards]) is None
    assert extended_entry({**summary, "method_revision": "new"}, [boards]) is None


def test_time_may_come_from_an_earlier_measurement(root, tmp_path, capsys):
    quiet = root / "orl_heavy" / "refine@demo@abc123def456-seed2.json"
    busy = make_run(
        tmp_path / "busy", score_frame("refine@demo", 1.5, 2), seconds_per_image=9.9, set_metrics={"k": SET}
    )
    assert cli("add", busy, "--speed-of", quiet) == 0
    entry = read_entry(quiet)
    assert (entry["seconds_per_image"], entry["peak_memory_mb"]) == (0.1234, 900.0)
    assert entry["hardware"]["speed of"] == "orl_heavy, 2026-11-21T03:00:00+00:00"
    assert entry["hardware"]["cpu"] == "a CPU"
    assert "speed of orl_heavy, 2026-11-21" in render_board(root / "orl_heavy")
    other = make_run(tmp_path / "marks", score_frame("refine@demo", 1.5, 2), protocol="orl_marks")
    assert cli("add", other, "--speed-of", quiet) == 0
    taken = read_entry(root / "orl_marks" / quiet.name)["hardware"]["speed of"]
    assert taken == "orl_heavy, 2026-11-21T03:00:00+00:00", "where it was measured, not where it was copied from"
    with pytest.raises(UsageError, match="the time of another method says nothing"):
        cli("add", make_run(tmp_path / "x", score_frame("x", 1)), "--speed-of", quiet)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "m"], "--method belongs to results of others"),
        (["--title", "t", "--seconds", "1"], "--title, --seconds belong to results of others"),
        (["--sample", "all"], "--sample belongs to results of others"),
    ],
)
def test_options_that_would_be_ignored_are_refused(root, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        cli("add", make_run(tmp_path / "run"), *words)
    with pytest.raises(UsageError, match="--speed-of belongs to runs"):
        cli("add", "--protocol", "orl_heavy_ci", "--restored", tmp_path, "--speed-of", "x.json")
