"""When the gate fires: a shown loss beyond the tolerance, or a value that is no more."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.files import write_json
from bench.leaderboard.entry import entry_path
from bench.leaderboard.gate import Change, Gate, board_data, find_baseline, gate, shipped_jobs
from bench.leaderboard.gate_table import MARKER, markdown, verdict
from bench.leaderboard.ranking import build_board
from bench.leaderboard.schema import validate
from bench.leaderboard.variants import variant_suffix, variant_words
from bench.paths import resource_root
from bench.registry import load_method
from bench.scores.statistics import holm, sign_flip_test
from bench.weights import catalogue

ACCEPTED = {"pictures_sha256": "0", "recomputed": 1, "largest_differences": {}, "not_recomputed": {}}
TOLERANCES = {"default": {"absolute": 0.0, "relative": 0.01}, "psnr": {"absolute": 0.05, "relative": 0.0}}
BASE = np.linspace(20.0, 30.0, 12)
DIRECTIONS = {"psnr": True, "lmd": False, "sharpness": None}


def entry(
    values: dict[str, Any], label: str = "m@demo", revision: str = "aaa", identity: str = "1", created: str = "2026-01"
) -> dict[str, Any]:
    """A valid entry from the identity means of some metrics; None where an identity has no value."""
    size = max((len(list(v)) for v in values.values()), default=0)
    metrics = {}
    for name, column in values.items():
        cells = {f"s{i}": {"mean": float(v), "n": 1} for i, v in enumerate(column) if v is not None}
        metrics[name] = {
            "identity": f"{name}@{identity}",
            "title": name.upper(),
            "unit": "dB" if name == "psnr" else "",
            "higher_is_better": DIRECTIONS.get(name, True),
            "mean": float(np.mean([cell["mean"] for cell in cells.values()])) if cells else None,
            "low": None,
            "high": None,
            "interval": None,
            "n": len(cells),
            "of": size,
            "identities": len(cells),
            "reason": None if cells else "no face found",
            "by_identity": cells,
        }
    made = {
        "schema": 1,
        "protocol": "tiny",
        "protocol_id": "p1",
        "method": label,
        "title": label,
        "revision": revision,
        "seed": 0,
        "images": size,
        "of": size,
        "identity_images": {f"s{i}": 1 for i in range(size)},
        "metrics": metrics,
        "seconds_per_image": None,
        "peak_memory_mb": None,
        "parameters": None,
        "hardware": {},
        "versions": {},
        "code_revision": None,
        "licence": None,
        "paper": None,
        "reported_by": "a test",
        "created": created,
    }
    validate(made, "test")
    return made


def outcome(after: dict[str, Any], before: dict[str, Any], **options: Any) -> dict[str, Change]:
    return {one.metric: one for one in gate(entry(after), entry(before), TOLERANCES, **options).changes}


NOISE = np.random.default_rng(0).normal(0, 0.02, 12)


@pytest.mark.parametrize(
    ("shift", "status"), [(-0.2, "regression"), (0.2, "improvement"), (-0.04, "unchanged"), (0.04, "unchanged")]
)
def test_both_the_test_and_the_tolerance_have_to_say_so(shift: float, status: str) -> None:
    found = outcome({"psnr": BASE + shift + NOISE / 10}, {"psnr": BASE})["psnr"]
    assert found.status == status
    assert found.p == 2 / 4096, "all twelve on one side, also where the tolerance covers it"
    assert found.difference == pytest.approx(shift + NOISE.mean() / 10)
    assert bool(found.why) == (status == "unchanged")


def test_a_large_loss_that_the_test_does_not_show_is_no_regression() -> None:
    noisy = BASE + np.array([-3.0, 2.5] * 6)
    found = outcome({"psnr": noisy}, {"psnr": BASE})["psnr"]
    assert (found.status, found.difference) == ("unchanged", pytest.approx(-0.25))


def test_direction_and_relative_tolerance() -> None:
    lmd = {"lmd": BASE}
    assert outcome({"lmd": BASE * 1.05}, lmd)["lmd"].status == "regression"
    assert outcome({"lmd": BASE * 0.95}, lmd)["lmd"].status == "improvement"
    assert outcome({"lmd": BASE * 1.009}, lmd)["lmd"].status == "unchanged"
    assert outcome({"lmd": BASE}, lmd)["lmd"].tolerance == pytest.approx(0.01 * BASE.mean())


def test_holm_over_the_gated_metrics() -> None:
    shifts = {f"m{i}": BASE + NOISE * i - 0.01 for i in range(1, 5)}
    found = outcome(shifts, dict.fromkeys(shifts, BASE))
    expected = holm([sign_flip_test(shifts[name] - BASE) for name in found])
    assert [one.p for one in found.values()] == pytest.approx(expected)
    alone = outcome(shifts, dict.fromkeys(shifts, BASE), metrics=["m1"])
    assert list(alone) == ["m1"]
    assert alone["m1"].p == pytest.approx(sign_flip_test(shifts["m1"] - BASE))


def test_what_was_there_and_is_no_more_is_a_regression() -> None:
    before = {"psnr": BASE, "lmd": BASE}
    gone = outcome({"psnr": BASE}, before)["lmd"]
    assert (gone.status, gone.fails) == ("missing", True)
    null = outcome({"psnr": BASE, "lmd": [None] * 12}, before)["lmd"]
    assert (null.status, null.why, null.fails) == ("missing", "no face found", True)
    # One face less, although the values that are left improved.
    fewer = outcome({"psnr": BASE, "lmd": [None, *(BASE[1:] - 5)]}, before)["lmd"]
    assert (fewer.status, fewer.why) == ("regression", "lost coverage: 11/12, was 12/12")
    new = outcome(before, {"psnr": BASE})["lmd"]
    assert (new.status, new.fails) == ("new", False)
    more = outcome(before, {"psnr": BASE, "lmd": [None, *BASE[1:]]})["lmd"]
    assert (more.status, more.coverage) == ("unchanged", "12/12, was 11/12")
    unranked = outcome({"psnr": BASE, "sharpness": BASE * 0}, {"psnr": BASE, "sharpness": BASE})["sharpness"]
    assert unranked.status == "not ranked"
    assert "lmd" not in outcome({"psnr": BASE, "lmd": [None] * 12}, {"psnr": BASE, "lmd": [None] * 12})


def test_what_is_not_comparable_is_refused() -> None:
    after, before = entry({"psnr": BASE}), entry({"psnr": BASE})
    with pytest.raises(UsageError, match="different identities are never compared"):
        gate(entry({"psnr": BASE}, identity="2"), before, TOLERANCES)
    with pytest.raises(UsageError, match="not comparable"):
        gate(after | {"protocol_id": "p2"}, before, TOLERANCES)
    with pytest.raises(UsageError, match="Did you mean 'psnr'"):
        gate(after, before, TOLERANCES, metrics=["pnsr"])
    with pytest.raises(UsageError, match="absolute: NUMBER"):
        gate(after, before, {"psnr": {"absolute": -1, "relative": 0}})
    with pytest.raises(UsageError, match="absolute: NUMBER"):
        gate(after, before, {"psnr": {"absolute": 1}})


def test_a_gate_that_could_never_fire_is_refused() -> None:
    five = {"psnr": BASE[:5]}
    with pytest.raises(UsageError, match="no loss could ever fail"):
        outcome(five, five)
    assert outcome({"psnr": BASE[:5] - 1}, five, alpha=0.07)["psnr"].status == "regression"
    many = {f"m{i}": BASE[:10] for i in range(30)}
    with pytest.raises(UsageError, match="30 tested metrics"):
        outcome(many, many)
    holes = outcome({"psnr": BASE, "lmd": [*BASE[:4], *[None] * 8]}, {"psnr": BASE, "lmd": [*BASE[:4], *[None] * 8]})
    assert (holes["psnr"].status, holes["lmd"].status) == ("unchanged", "untested")


def test_scores_of_the_whole_set_go_by_their_intervals() -> None:
    before = entry({"psnr": BASE})
    before["set_metrics"] = {
        "kid": {
            **{key: before["metrics"]["psnr"][key] for key in ("unit", "reason", "n", "of")},
            "identity": "kid@1",
            "title": "KID",
            "higher_is_better": False,
            "value": 10.0,
            "low": 9.0,
            "high": 11.0,
            "interval": "bootstrap",
            "smallest": 0,
        }
    }
    for value, status in ((14.0, "regression"), (6.0, "improvement"), (11.5, "unchanged")):
        after = copy.deepcopy(before)
        after["set_metrics"]["kid"] |= {"value": value, "low": value - 1, "high": value + 1}
        found = {one.metric: one for one in gate(after, before, TOLERANCES).changes}
        assert found["kid"].status == status
    after = copy.deepcopy(before)
    del after["set_metrics"]
    assert gate(after, before, TOLERANCES).failed


def test_the_baseline_is_found_by_method(tmp_path: Path) -> None:
    entries = [
        entry({"psnr": BASE}),
        entry({"psnr": BASE - 1}, revision="bbb", created="2026-02"),
        entry({"psnr": BASE - 2}, label="input", revision="ccc"),
    ]
    for one in entries:
        write_json(entry_path(one, tmp_path), one)
    board = tmp_path / "tiny"
    assert find_baseline(board, entries[0])["revision"] == "aaa", "the run's own revision"
    assert find_baseline(board, entries[0] | {"revision": "new"})["revision"] == "bbb", "else the latest"
    assert find_baseline(board / "input", entries[0])["revision"] == "ccc"
    assert find_baseline(board / "m@demo@aaa", entries[2])["revision"] == "aaa"
    assert find_baseline(board / "input@ccc.json", entries[0])["revision"] == "ccc"
    with pytest.raises(UsageError, match="input, m@demo"):
        find_baseline(board, entries[0] | {"method": "other"})
    with pytest.raises(UsageError, match="nothing to compare with"):
        find_baseline(tmp_path / "nowhere" / "at" / "all", entries[0])
    assert shipped_jobs(board) == ({"input": ["method=input"]}, {"m@demo": "no method of this version has this name"})
    with pytest.raises(UsageError, match="nothing to compare with"):
        find_baseline(tmp_path / "nowhere", entries[0])


def test_a_folder_that_is_no_board_is_not_read_for_a_path_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(UsageError, match="nothing to compare with"):
        find_baseline(tmp_path / "nope", entry({"psnr": BASE}))


def test_results_of_others_stand_in_for_no_baseline_of_ours(tmp_path: Path) -> None:
    ours = entry({"psnr": BASE})
    theirs = entry({"psnr": BASE - 9}, revision="zzz", created="2030") | {"accepted": ACCEPTED}
    alone = entry({"psnr": BASE}, label="theirs", revision="ttt") | {"accepted": ACCEPTED}
    for one in (ours, theirs, alone):
        write_json(entry_path(one, tmp_path), one)
    assert find_baseline(tmp_path / "tiny", ours | {"revision": "new"})["revision"] == "aaa"
    assert find_baseline(tmp_path / "tiny", alone)["revision"] == "ttt"


def test_every_row_of_ours_is_run_again_and_the_others_are_named(tmp_path: Path) -> None:
    for label in ("refine@demo", "refine+blind@demo", "refine+unwarped+no-identity@demo", "refine+other@demo", "input"):
        write_json(entry_path(one := entry({"psnr": BASE}, label=label), tmp_path), one)
    theirs = entry({"psnr": BASE}, label="theirs") | {"accepted": ACCEPTED}
    write_json(entry_path(theirs, tmp_path), theirs)
    jobs, left_out = shipped_jobs(tmp_path / "tiny")
    assert jobs == {
        "input": ["method=input"],
        "refine@demo": ["method=refine", "size=demo"],
        "refine+blind@demo": ["method=refine", "method.reference=none", "size=demo"],
        "refine+unwarped+no-identity@demo": [
            "method=refine", "method.use_warped_reference=false", "method.use_identity=false", "size=demo",
        ],
    }  # fmt: skip
    assert list(left_out) == ["refine+other@demo", "theirs"]
    shipped, missing = shipped_jobs(resource_root() / "leaderboards" / "orl_heavy")
    assert "refine+blind@demo" in shipped
    assert set(missing) <= {"realesrgan"}
    assert board_data(resource_root() / "leaderboards" / "orl_light") == ["data=orl_light"]


def test_a_row_whose_weights_come_from_a_package_is_run_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(entry_path(one := entry({"psnr": BASE}, label="realesrgan"), tmp_path), one)
    monkeypatch.setattr(catalogue, "missing", lambda name: None)
    assert shipped_jobs(tmp_path / "tiny") == ({"realesrgan": ["method=realesrgan"]}, {})
    monkeypatch.setattr(catalogue, "missing", lambda name: f"Weights {name!r} are not here.\nInstall them.")
    jobs, left_out = shipped_jobs(tmp_path / "tiny")
    assert not jobs
    assert left_out == {"realesrgan": "not shipped with this repository: Weights 'realesrgan_x4plus' are not here."}


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("", []),
        ("+base", ["method.use_identity=false", "method.use_fir=false"]),
        ("+no-fir", ["method.use_fir=false"]),
        ("+scale0.75", ["method.id_scale=0.75"]),
        ("+no-fir+scale0.75", ["method.use_fir=false", "method.id_scale=0.75"]),
        ("+scale1", ["method.id_scale=1"]),
    ],
)
def test_labels_and_words_stand_for_each_other(tmp_path: Path, suffix: str, words: list[str]) -> None:
    assert variant_words(suffix, "restorerid") == words
    assert variant_suffix(words[::-1], "restorerid") == suffix
    one = entry({"psnr": BASE}, label=f"restorerid{suffix}@demo")
    write_json(entry_path(one, tmp_path), one)
    assert shipped_jobs(tmp_path / "tiny")[0] == {one["method"]: ["method=restorerid", *words, "size=demo"]}


def test_the_labels_are_those_of_the_method() -> None:
    """The label is made by the method, which has no word of how boards read it."""
    restorerid = load_method("restorerid")
    for suffix in ("", "+base", "+blind", "+no-fir", "+scale0.75", "+no-fir+scale0.75"):
        words = variant_words(suffix, "restorerid")
        assert words is not None
        settings = method_settings(compose("run", ["method=restorerid", *words])["method"], "demo")
        # Without building the network.
        own = restorerid.__new__(restorerid)
        object.__setattr__(own, "settings", settings)
        object.__setattr__(own, "size", "demo")
        assert own.label == f"restorerid{suffix}@demo"


def test_words_that_no_label_tells_are_not_guessed() -> None:
    assert variant_suffix(["method.id_scale=1.0"], "restorerid") == "+scale1"
    for words in (["method.id_scale=adaptive"], ["method.id_scale=0.5", "method.id_scale=1"], ["method.seed=1"]):
        assert variant_suffix(words, "restorerid") is None
    for suffix in ("+scale", "+scale-1", "+scale.5", "+scalex", "+other", "+base+no-fir"):
        assert variant_words(suffix, "restorerid") is None
    # A word of one method is none of another.
    assert variant_words("+no-identity", "refine") == ["method.use_identity=false"]
    assert variant_suffix(["method.use_identity=false"], "restorerid") is None
    assert variant_words("+blind", "a method of somebody else") is None
    assert variant_suffix([], "a method of somebody else") == ""


def test_a_board_of_planted_marks_is_run_with_its_probe(tmp_path: Path) -> None:
    one = entry({"psnr": BASE}) | {"protocol": "orl_heavy_marks"}
    write_json(entry_path(one, tmp_path), one)
    assert board_data(tmp_path / "orl_heavy_marks") == ["data=orl_heavy", "probe=marks"]


def test_few_identities_count_beside_clear_losses_of_other_metrics() -> None:
    """Holm steps down: p of seven identities is compared with alpha itself once all others are rejected."""
    names = [f"m{i}" for i in range(9)]
    before = dict.fromkeys(names, BASE) | {"lmd": [*BASE[:7], *[None] * 5]}
    after = dict.fromkeys(names, BASE - 1) | {"lmd": [*(BASE[:7] + 5), *[None] * 5]}
    found = outcome(after, before)["lmd"]
    assert found.p == pytest.approx(2 / 2**7)
    assert (found.status, found.fails) == ("regression", True)
    calm = outcome({**before, "lmd": after["lmd"]}, before)["lmd"]
    assert calm.p == pytest.approx(min(1.0, 10 * 2 / 2**7))
    assert (calm.status, calm.fails) == ("untested", False)


def _with_counts(made: dict[str, Any], images: int, counts: list[int]) -> dict[str, Any]:
    """The same entry with so many images per identity, of which so many are scored by `id`."""
    made = copy.deepcopy(made)
    made["identity_images"] = dict.fromkeys(made["identity_images"], images)
    made["images"] = made["of"] = 12 * images
    for name, metric in made["metrics"].items():
        for cell, count in zip(metric["by_identity"].values(), counts, strict=True):
            cell["n"] = count if name == "id" else images
        metric["n"], metric["of"] = sum(cell["n"] for cell in metric["by_identity"].values()), 12 * images
    validate(made, "test")
    return made


def test_coverage_that_moved_from_one_identity_to_another_is_a_loss() -> None:
    both = {"psnr": BASE, "id": BASE}
    before = _with_counts(entry(both), 5, [2, *[5] * 11])
    after = _with_counts(entry(both), 5, [5, 2, *[5] * 10])
    found = {one.metric: one for one in gate(after, before, TOLERANCES).changes}
    assert (found["psnr"].status, found["id"].status) == ("unchanged", "regression")
    assert found["id"].why == "lost coverage of s1: 2, was 5"


def test_a_metric_that_no_identity_has_in_full_is_tested_all_the_same() -> None:
    for counts in ([4] * 12, [5, *[4] * 11]):
        before = _with_counts(entry({"psnr": BASE, "id": BASE}), 5, counts)
        after = _with_counts(entry({"psnr": BASE, "id": BASE - 5}), 5, counts)
        found = {one.metric: one for one in gate(after, before, TOLERANCES).changes}["id"]
        assert (found.status, found.difference) == ("regression", pytest.approx(-5))
        assert "over all 12 that both have scored" in found.why


def test_the_comment_names_what_changed_and_folds_the_rest() -> None:
    before = entry({"psnr": BASE, "lmd": BASE, "id": BASE})
    result = gate(entry({"psnr": BASE - 1, "lmd": BASE * 0.9, "id": BASE}, revision="bbb"), before, TOLERANCES)
    assert result.failed
    assert verdict([result]) == "failed: 1 regression, 1 improvement"
    text = markdown([result])
    assert text == markdown([result])
    head, folded = text.split("<details>")
    assert text.startswith(f"{MARKER}\n### Gate failed: 1 regression")
    assert "| PSNR (dB) ↑ | 25.00 | 24.00 | -1 [-1, -1] | 0.05 | 0.0015 | **regression** |" in head
    assert "improvement" in head
    assert "| ID ↑ |" in folded
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["failed"] is True
    same = gate(before, before, TOLERANCES)
    assert not same.failed
    assert isinstance(same, Gate)
    assert "Gate passed" in markdown([same])


def test_the_workflow_finds_the_comment_by_its_marker() -> None:
    workflow = yaml.safe_load((resource_root() / ".github" / "workflows" / "gate.yml").read_text("utf-8"))
    steps = workflow["jobs"]["gate"]["steps"]
    script = next(step for step in steps if step.get("uses", "").startswith("actions/github-script@"))["with"]["script"]
    assert MARKER in script
    assert any("make gate" in step.get("run", "") for step in steps)
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_every_tolerance_is_understood() -> None:
    stated = yaml.safe_load((resource_root() / "configs" / "metrics" / "standard.yaml").read_text("utf-8"))["tolerance"]
    for name in stated:
        before = {name: BASE}
        assert outcome(before, before)[name].status == "unchanged"
        gate(entry(before), entry(before), stated)
    assert "default" in stated


def test_metrics_of_one_variant_of_the_pictures_are_complete_on_it() -> None:
    """Planted marks: recall exists on half of the pictures, and no row can have more."""
    recall = np.linspace(0.2, 0.8, 12)
    rows = []
    for label, loss in (("ours", 0.0), ("theirs", 0.3), ("input", 0.6)):
        made = _with_counts(entry({"psnr": BASE, "id": recall - loss}, label=label, revision=label), 10, [5] * 12)
        made["metrics"]["mark_recall"] = made["metrics"].pop("id")
        rows.append(made)
    after, before = rows[1], rows[0]
    found = {one.metric: one for one in gate(after, before, TOLERANCES).changes}["mark_recall"]
    assert (found.status, found.difference, found.why) == ("regression", pytest.approx(-0.3), "")
    board = build_board(rows)
    groups = board.groups["mark_recall"]
    assert not groups.untested
    assert sorted(groups.letters.values()) == ["a", "b", "c"]
    assert {test.n_images for test in groups.comparisons.values()} == {60}
    # A row that lacks a picture is incomplete for that person alone.
    rows[2]["metrics"]["mark_recall"]["by_identity"]["s0"]["n"] = 4
    again = build_board(rows).groups["mark_recall"].comparisons
    assert sorted(test.n_identities for test in again.values()) == [11, 11, 12]
