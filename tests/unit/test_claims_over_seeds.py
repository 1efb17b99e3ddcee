"""Claims tested over several trained seeds: the file, the tests, the card, and the mark on the board."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import operator
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml

from bench.config import compose
from bench.errors import UsageError
from bench.leaderboard.board import BOARD
from bench.leaderboard.claim_marks import FIELD, MARK, claim_text, outdated_tests, with_todays_claims
from bench.leaderboard.claim_marks import main as mark_entries
from bench.leaderboard.entry import add, entry_from_run, read_entries, read_entry, same_scores_listed
from bench.leaderboard.papers import load_table
from bench.leaderboard.reproduce import reproduce
from bench.leaderboard.schema import validate
from bench.leaderboard.verify import verify
from bench.leaderboard.view import view
from bench.paths import resource_root
from bench.registry import method_targets
from bench.scores.claims import disagreements, evaluate, holds, main
from bench.scores.claims_card import BEGIN, END, tables, with_tables
from bench.scores.claims_file import CONTRADICTED, RULES, load_claims, read_results, results_path
from bench.scores.claims_runs import check_weights_across_protocols, variant_runs
from bench.scores.statistics import Comparison, compare_identity_means
from bench.weights.method_weights import write_tensors
from tests.unit.run_folders import METRICS, PROTOCOL_ID, make_run, score_frame

CLAIMS = """
variants:
  base: {title: Base, words: [method.use_identity=false], budget: 3200 batches of 4}
  blind: {title: Blind, words: [method.reference=none], budget: the weights of the whole}
  whole: {title: The whole | of it, budget: 3200 batches of 4}
metrics: [psnr]
claims:
  raises_id:
    {text: Identity raises ID, source: Table 3, protocol: orl_heavy, metric: id, variant: whole, against: base,
     rule: better}
  lowers_landmarks:
    {text: It lowers landmark error, source: Table 3, protocol: orl_heavy, metric: lmd, variant: blind, against: base,
     rule: better, note: the cause was looked for}
  best:
    {text: The whole is best or tied, source: Table 3, protocol: orl_heavy, metric: id, variant: whole,
     against: [base, blind], rule: best_or_tied}
"""
SHIFTS = {"base": 0.0, "blind": 0.0, "whole": 1.0}
SETTINGS: dict[str, list[str]] = {
    "base": ["method.use_identity=false"],
    "blind": ["method.reference=none"],
    "whole": [],
}
LABELS = {"base": "refine+no-identity@demo", "blind": "refine+blind@demo", "whole": "refine@demo"}
Make = Callable[..., Path]


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of ReFine's, with claims and a card."""
    folder = tmp_path / "refine"
    folder.mkdir()
    (folder / "claims.yaml").write_text(CLAIMS)
    (folder / "README.md").write_text(f"# ReFine\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    real = method_folder_of
    monkeypatch.setattr(
        "bench.scores.claims_file.method_folder", lambda name: folder if name == "refine" else real(name)
    )
    return folder


def method_folder_of(name: str) -> Path:
    """The folder of a method that is not replaced."""
    return resource_root() / "methods" / name


@pytest.fixture(scope="module")
def configs() -> dict[str, str]:
    """What `bench run` writes of each variant's settings."""
    return {
        name: yaml.safe_dump(compose("run", ["method=refine", "data=orl_heavy", *words]))
        for name, words in SETTINGS.items()
    }


def maker(folder: Path, configs: dict[str, str]) -> Make:
    """What writes the run folders of a variant: every seed has noise of its own on the people of the protocol."""

    def made(
        variant: str,
        seeds: tuple[int, ...] = (0, 1, 2),
        settings: str = "",
        weights: Path | None = None,
        revision: str = "",
        label: str = "",
        **fields: Any,
    ) -> Path:
        for seed in seeds:
            number = seed + 10 * list(SHIFTS).index(variant)
            frame = score_frame(label or LABELS[variant], SHIFTS[variant], number, **fields)
            frame["method_revision"] = revision or f"{variant}{seed}"
            run = make_run(folder / f"{variant}-{seed}-orl_heavy", frame, method_name="refine")
            text = configs.get(settings or variant, settings)
            (run / "config.yaml").write_text(
                text.replace("  weights: null", f"  weights: {weights}") if weights else text
            )
        return folder

    return made


@pytest.fixture
def make(tmp_path: Path, configs: dict[str, str]) -> Make:
    """Writes run folders of this test alone."""
    return maker(tmp_path / "runs", configs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, configs: dict[str, str]) -> Path:
    """Nine runs, of which the whole is a standard deviation better and the others are alike; not to be changed."""
    made = maker(tmp_path_factory.mktemp("made"), configs)
    made("base"), made("blind"), made("whole")
    return made("whole", (1,), missing={("s29/6", "id")})


def by_person(folder: Path, variant: str, metric: str, seeds: tuple[int, ...] = (0, 1, 2)) -> pd.Series:
    """Mean of each person over images and seeds, written another way than in the code under test."""
    frames = [pd.read_parquet(folder / f"{variant}-{seed}-orl_heavy" / "scores.parquet") for seed in seeds]
    wide = pd.concat([frame[frame.metric == metric].set_index("image_id")["value"] for frame in frames], axis=1)
    means = wide.mean(axis=1, skipna=False).dropna()
    return means.groupby([name.partition("/")[0] for name in means.index]).mean()


@pytest.mark.usefixtures("method")
def test_figures_are_those_of_every_sign_pattern_and_of_scipy(runs: Path) -> None:
    results = evaluate(load_claims("refine"), runs)
    claim = results["claims"]["lowers_landmarks"]
    (pair,) = claim["pairs"]
    differences = (by_person(runs, "blind", "lmd") - by_person(runs, "base", "lmd")).to_numpy()
    sums = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=12)]
    assert pair["p"] == pytest.approx(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12))
    known = scipy.stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert pair["p"] == pytest.approx(known.pvalue)
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    assert (pair["low"], pair["high"]) == pytest.approx((interval.low, interval.high))
    assert pair["difference"] == pytest.approx(differences.mean())
    assert claim["reproduced"] is False
    identity = results["claims"]["raises_id"]
    assert identity["reproduced"] is True
    assert (identity["seeds"], identity["protocol_id"]) == ([0, 1, 2], PROTOCOL_ID)
    assert identity["metric_identity"] == METRICS["id"][0]
    runs_of = results["variants"]["whole"]["protocols"]["orl_heavy"]
    assert (runs_of["label"], runs_of["revisions"]) == ("refine@demo", ["whole0", "whole1", "whole2"])
    each = [(by_person(runs, "blind", "lmd", (s,)) - by_person(runs, "base", "lmd", (s,))).mean() for s in range(3)]
    assert pair["by_seed"] == pytest.approx(each)
    assert identity["pairs"][0]["images"] == 59, "one picture has no ID with one seed"
    shown = results["variants"]["whole"]["protocols"]["orl_heavy"]["metrics"]
    assert list(shown) == ["id", "lmd", "psnr"]
    assert (shown["id"]["n"], shown["id"]["of"], shown["id"]["identities"]) == (59, 60, 12)
    assert shown["psnr"]["mean"] == pytest.approx(by_person(runs, "whole", "psnr").mean())
    assert np.mean(shown["psnr"]["by_seed"]) == pytest.approx(shown["psnr"]["mean"])
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def compared(values: np.ndarray, higher: bool) -> Comparison:
    people = [f"s{number}" for number in range(len(values))]
    first, second = pd.Series(values * (1 if higher else -1), people), pd.Series(0.0, people)
    return compare_identity_means(first, second, "id", higher, len(values))


@pytest.mark.parametrize(
    ("centre", "spread", "expected"),
    [
        (0.1, 0.01, {"better", "best_or_tied", "not_lost"}),
        (0.01, 0.001, {"better", "best_or_tied", "not_lost", "tied"}),
        (0.0, 0.01, {"best_or_tied", "not_lost", "tied"}),
        (-0.1, 0.01, set()),
        (0.0, 0.2, set()),
        (0.04, 0.07, {"best_or_tied", "not_lost"}),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_rules(centre: float, spread: float, expected: set[str], higher: bool) -> None:
    # Symmetric about the centre, so that nothing is left to chance.
    one = compared(centre + spread * np.linspace(-1, 1, 12), higher)
    seeds = [one.mean_difference] * 3
    assert {rule for rule in RULES if holds(rule, one, 0.02, seeds)} == expected


@pytest.mark.parametrize("higher", [True, False])
def test_better_asks_for_every_training_and_best_or_tied_for_no_more_than_no_loss(higher: bool) -> None:
    sign = 1 if higher else -1
    one = compared(0.1 + 0.01 * np.linspace(-1, 1, 12), higher)
    assert holds("better", one, None, [0.3 * sign, 0.02 * sign, 0.01 * sign])
    for odd in (0.0, -0.01 * sign):
        assert not holds("better", one, None, [0.2 * sign, 0.11 * sign, odd])
        assert holds("best_or_tied", one, 0.02, [0.2 * sign, 0.11 * sign, odd]), "no loss over people is asked"
    few = compared(0.1 + 0.01 * np.linspace(-1, 1, 5), higher)
    assert few.p > 0.01, "five people cannot show more"
    assert holds("best_or_tied", few, 0.02, [0.1 * sign])
    assert not holds("tied", few, 0.02, [0.1 * sign]), "better is no tie"


@pytest.mark.usefixtures("method")
def test_margins_are_those_of_the_panel() -> None:
    claims = load_claims("refine").claims
    panel = yaml.safe_load((resource_root() / "configs" / "metrics" / "standard.yaml").read_text())
    assert claims["best"].margin == panel["tied"]["id"]
    assert claims["raises_id"].margin is None
    assert claims["best"].row == "refine@demo"


#: What is stated in CLAIMS -> what could stand there instead, with what is said of it.
MISTAKES = {
    "claims.best.rule": {"best": "Unknown rule in", "tied": "of two variants"},
    "claims.best.against": {"[base, ghost]": "ghost", "[whole]": "other variants"},
    "claims.lowers_landmarks.rule": {"tied": "no margin of lmd"},
    "claims.raises_id.speed": {"1": "unknown speed"},
    "variants.base.budget": {"''": "how many batches"},
    "variants.blind.words": {"[size=paper]": "no word method.key=value"},
    "seeds": {"[0, 0]": "different whole numbers"},
}


def stated(path: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Content of CLAIMS; in it, the mapping that holds what a dotted path leads to; and the key there."""
    content = yaml.safe_load(CLAIMS)
    *above, key = path.split(".")
    return content, functools.reduce(operator.getitem, above, content), key


@pytest.mark.parametrize(("path", "mistakes"), MISTAKES.items())
def test_a_claims_file_is_read_strictly(method: Path, path: str, mistakes: dict[str, str]) -> None:
    for mistake, message in mistakes.items():
        content, owner, key = stated(path)
        owner[key] = yaml.safe_load(mistake)
        (method / "claims.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(UsageError, match=message):
            load_claims("refine")


@pytest.mark.parametrize("path", ["claims.raises_id.source", "variants.base.budget"])
def test_a_claims_file_lacks_nothing(method: Path, path: str) -> None:
    content, owner, key = stated(path)
    (method / "claims.yaml").write_text(yaml.safe_dump(content))
    load_claims("refine")
    del owner[key]
    (method / "claims.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=f"lacks {key}"):
        load_claims("refine")


def test_a_claims_file_runs_nothing(method: Path) -> None:
    (method / "claims.yaml").write_text(CLAIMS.replace("variants:", "!!python/object/apply:os.getcwd []", 1))
    with pytest.raises(UsageError, match="Cannot read"):
        load_claims("refine")


def test_runs_that_are_not_what_is_stated_are_refused(method: Path, make: Make) -> None:
    claims = load_claims("refine")
    with pytest.raises(UsageError, match="is no folder"):
        evaluate(claims, method / "ghost")
    make("base"), make("whole")
    with pytest.raises(UsageError, match="needs runs of blind on orl_heavy"):
        evaluate(claims, make("whole"))
    with pytest.raises(UsageError, match="make both with the same seeds"):
        evaluate(claims, make("blind", (0, 1)))
    folder = make("blind")
    with pytest.raises(UsageError, match="all seeds that were stated count"):
        evaluate(dataclasses.replace(claims, seeds=(0, 1)), folder)
    make("blind", settings="whole")
    with pytest.raises(UsageError, match=r"made with method\.reference closest_pose, but blind states none"):
        evaluate(claims, folder)
    make("blind", protocol_id="f" * 16)
    with pytest.raises(UsageError, match="protocols differ"):
        evaluate(claims, folder)
    make("blind")
    summary = json.loads((folder / "blind-0-orl_heavy" / "summary.json").read_text())
    for change, message in (
        ({"protocol": "orl_light"}, "has protocol 'orl_light'"),
        ({"method_name": "input"}, "has method_name 'input'"),
        ({"failed": {"s29/6": "killed"}}, "lacks 1 pictures"),
    ):
        (folder / "blind-0-orl_heavy" / "summary.json").write_text(json.dumps(summary | change))
        with pytest.raises(UsageError, match=message):
            evaluate(claims, folder)
    make("blind", (0,), revision="base2")
    with pytest.raises(UsageError, match="cannot stand for both"):
        evaluate(claims, folder)


@pytest.mark.usefixtures("method")
def test_one_training_sampled_twice_is_refused(make: Make, tmp_path: Path) -> None:
    claims = load_claims("refine")
    make("base"), make("blind")
    folder = make("whole", revision="aaaa")
    frames = [pd.read_parquet(folder / f"whole-{seed}-orl_heavy" / "scores.parquet") for seed in (0, 1)]
    assert frames[0]["seed"].iloc[0] != frames[1]["seed"].iloc[0], "sampled with other noise"
    with pytest.raises(UsageError, match="whole-0-orl_heavy and whole-1-orl_heavy have the same revision aaaa"):
        evaluate(claims, folder)
    files = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, file in enumerate(files):
        write_tensors(file, {"x": torch.ones(1)}, {"settings": {"seed": seed}})
        make("whole", (seed,), weights=file)
    evaluate(claims, folder)
    make("whole", (2,), weights=files[1])
    with pytest.raises(UsageError, match=r"1\.safetensors, which was trained with seed 1, not 2"):
        evaluate(claims, folder)
    for file in files:
        write_tensors(file, {"x": torch.ones(1)}, {})
    make("whole", (2,), weights=files[2])
    with pytest.raises(UsageError, match="have the same weights of SHA-256"):
        evaluate(claims, folder)
    for file in files:
        file.unlink()
    evaluate(claims, folder)


@pytest.mark.usefixtures("method")
def test_settings_that_no_word_names_must_agree_too(make: Make, configs: dict[str, str]) -> None:
    claims = load_claims("refine")
    make("base"), make("blind")
    for old, new, message in (
        ("  warp: tps", "  warp: similarity", r"method\.warp similarity, but whole states tps"),
        ("    landmark_jitter: 0.02\n", "    landmark_jitter: 0.5\n", r"method\.landmark_jitter 0\.5"),
        ("      reference_dropout: 0.15\n", "", r"method\.reference_dropout \(none\), but whole states 0\.15"),
    ):
        assert configs["whole"].count(old) == 1
        folder = make("whole", settings=configs["whole"].replace(old, new))
        with pytest.raises(UsageError, match=message):
            evaluate(claims, folder)
    make("whole", settings=configs["whole"].replace("max_steps: 3200", "max_steps: 10"))
    evaluate(claims, folder)
    make("whole", label="refine@paper")
    with pytest.raises(
        UsageError, match="but whole on orl_heavy was run as refine@paper: run every variant in the size"
    ):
        evaluate(claims, folder)
    make("whole", label="refine+other@demo")
    with pytest.raises(UsageError, match="run the variant that stands on the board too"):
        evaluate(claims, folder)


@pytest.mark.usefixtures("method")
def test_only_one_way_to_write_a_seed_counts(make: Make) -> None:
    make("base"), make("blind")
    folder = make("whole")
    results = evaluate(load_claims("refine"), folder)
    (folder / "whole-01-orl_heavy").mkdir()
    (folder / "whole-0_1-orl_heavy").mkdir()
    assert evaluate(load_claims("refine"), folder) == results


@pytest.mark.usefixtures("method")
def test_a_variant_has_one_training_for_each_seed_on_all_protocols(runs: Path) -> None:
    own = variant_runs(load_claims("refine"), runs, "whole", "orl_heavy")
    assert own is not None
    check_weights_across_protocols({("whole", "orl_heavy"): own, ("whole", "orl_light"): own})
    other = dataclasses.replace(own, revisions=["whole0", "new", "whole2"])
    with pytest.raises(UsageError, match="whole with seed 1 has the revision whole1 on orl_heavy and new on orl_light"):
        check_weights_across_protocols({("whole", "orl_heavy"): own, ("whole", "orl_light"): other})


@pytest.mark.usefixtures("method")
def test_a_difference_that_goes_the_other_way_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("blind"), make("base")
    monkeypatch.setitem(SHIFTS, "whole", -1.0)
    results = evaluate(load_claims("refine"), make("whole"))
    assert results["claims"]["raises_id"]["pairs"][0]["verdict"] == CONTRADICTED
    assert results["claims"]["lowers_landmarks"]["pairs"][0]["verdict"] == "not shown"
    assert f"**no**: {CONTRADICTED}" in tables(results)
    assert "**no**: not shown" in tables(results)


def test_the_card_is_written_from_the_results(method: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refine", "--card"]) == 2
    assert "give --runs" in capsys.readouterr().err
    assert disagreements("refine") == []
    card = (method / "README.md").read_text()
    (method / "README.md").write_text("no markers")
    assert main(["refine", "--runs", str(runs), "--card"]) == 2
    assert "once each" in capsys.readouterr().err
    assert not results_path("refine").exists(), "nothing is written by half"
    (method / "README.md").write_text(card)
    assert main(["refine", "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "README.md does not show" in disagreements("refine")[0]
    assert main(["refine", "--card"]) == 0
    card = (method / "README.md").read_text()
    assert card == f"# ReFine\n\nBefore.\n\n{BEGIN}\n{printed}{END}\n\nAfter.\n"
    assert disagreements("refine") == []
    rows = [line for line in printed.splitlines() if line.startswith("| ") and "---" not in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| variant", "| Base", "| Blind", "| The whole \\| of it",
        "| claim", "| Identity raises ID", "| It lowers landmark error", "| The whole is best or tied", "| ",
    ]  # fmt: skip
    assert "**yes**" in rows[5]
    assert "**no**: not shown" in rows[6]
    assert "**With these 3 trainings of each variant.**" in printed
    assert "- Base: 3200 batches of 4\n" in printed
    results = read_results("refine")
    assert results is not None
    differences = results["claims"]["raises_id"]["pairs"][0]["by_seed"]
    assert ", ".join(f"+{value:.4f}" for value in differences) in rows[5]
    assert "the cause was looked for" in printed
    assert "(59/60)" in rows[3]
    (method / "claims.yaml").write_text(CLAIMS.replace("Identity raises ID", "Identity never lowers ID"))
    assert "other claims than claims.yaml states now: raises_id" in disagreements("refine")[0]
    (method / "claims.yaml").write_text(CLAIMS.replace("title: Blind", "title: Without"))
    assert "other variants" in disagreements("refine")[0]
    for text in ("no markers", f"{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"):
        with pytest.raises(UsageError, match="once each"):
            with_tables(text, results, "card")
    results_path("refine").write_text("{")
    with pytest.raises(UsageError, match="Cannot read"):
        read_results("refine")


def test_claims_results_and_cards_of_all_methods_agree() -> None:
    found = [name for name in method_targets() if results_path(name).is_file()]
    folders = {name: method_folder_of(name) for name in method_targets()}
    files = ("claims.yaml", "weights/demo.safetensors")
    assert found == [name for name, own in folders.items() if all((own / file).is_file() for file in files)]
    for name in found:
        assert disagreements(name) == []
        results = read_results(name)
        assert results is not None
        assert tables(results) in (results_path(name).parent / "README.md").read_text("utf-8")
    for name in method_targets():
        if results_path(name).with_suffix(".yaml").is_file():
            load_claims(name)


@pytest.fixture
def marked(method: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board whose row ReFine was listed on before its claims were tested."""
    monkeypatch.setattr("bench.protocol.freeze.committed_path", lambda name: tmp_path / f"{name}.json")
    boards = tmp_path / "boards"
    add(runs / "whole-0-orl_heavy", boards)
    add(make_run(tmp_path / "input", score_frame("input", 0, 50)), boards)
    assert main(["refine", "--runs", str(runs)]) == 0
    return boards


def row(boards: Path) -> Path:
    return next((boards / "orl_heavy").glob("refine@demo*.json"))


def test_a_claim_that_does_not_hold_marks_its_row(marked: Path, tmp_path: Path, runs: Path) -> None:
    unmarked = read_entry(row(marked))
    assert FIELD not in unmarked
    validate(unmarked, "an old entry")
    assert verify(marked)[0].count("lowers_landmarks (or other figures)") == 1
    summary = json.loads((runs / "whole-0-orl_heavy" / "summary.json").read_text())
    assert not same_scores_listed(summary, [marked]), "the mark is new"
    add(runs / "whole-0-orl_heavy", marked)
    assert same_scores_listed(summary, [marked])
    entry = read_entry(row(marked))
    (claim,) = entry[FIELD]
    assert (claim["claim"], claim["source"], claim["seeds"]) == ("lowers_landmarks", "Table 3", [0, 1, 2])
    results = read_results("refine")
    assert results is not None
    assert claim["pairs"][0]["p"] == results["claims"]["lowers_landmarks"]["pairs"][0]["p"]
    assert claim["pairs"][0]["variant"] == "Blind"
    assert claim["pairs"][0]["verdict"] == "not shown"
    assert all("claims" not in message for message in verify(marked))
    assert FIELD not in with_todays_claims(entry_from_run(tmp_path / "input"))
    elsewhere = {**unmarked, "protocol": "orl_light"}
    assert with_todays_claims(elsewhere) == elsewhere, "tested on another protocol"
    theirs = {**unmarked, "accepted": {}}
    assert with_todays_claims(theirs) == theirs


def test_claims_tested_with_other_weights_or_pictures_mark_nothing_and_are_named(marked: Path, method: Path) -> None:
    mark_entries([str(marked)])
    entry = read_entry(row(marked))
    assert outdated_tests(entry) is None
    other = {**entry, "revision": "retrained"}
    assert FIELD not in with_todays_claims(other)
    assert "claims were tested with other weights: its revision is retrained, claims.json has whole0, whole1" in str(
        outdated_tests(other)
    )
    assert outdated_tests({**other, "accepted": {}}) is None
    assert outdated_tests({**other, "protocol": "orl_light"}) is None
    assert outdated_tests({**other, "method": "refine+blind@demo"}) is None
    results = json.loads(results_path("refine").read_text("utf-8"))
    apart = {"revision": "retrained", "budget": "9000 batches of 4"}
    results_path("refine").write_text(json.dumps({**results, "row_trained_apart": apart}))
    assert outdated_tests(other) is None
    (mark,) = with_todays_claims(other)[FIELD]
    assert mark == {**entry[FIELD][0], "row_trained_apart": True}
    assert "trained apart" in claim_text(mark) and "trained apart" not in claim_text(entry[FIELD][0])
    validate(with_todays_claims(other), "this entry")
    again = {**entry, "revision": "once more"}
    assert FIELD not in with_todays_claims(again)
    assert "its revision is once more" in str(outdated_tests(again))
    assert "own training" in " ".join(disagreements("refine"))
    results_path("refine").write_text(json.dumps(results))
    frozen_again = {**entry, "protocol_id": "f" * 16}
    assert FIELD not in with_todays_claims(frozen_again)
    assert "were tested on orl_heavy 0123456789abcdef, this row is of ffff" in str(outdated_tests(frozen_again))
    text = results_path("refine").read_text()
    results_path("refine").write_text(text.replace('"whole0"', '"elsewhere"'))
    said = " ".join(verify(marked))
    assert "claims were tested with other weights" in said
    assert "python -m bench.scores.claims refine" in said


def test_entries_follow_changed_results(marked: Path, method: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark_entries([str(marked)])
    assert "lowers_landmarks" in capsys.readouterr().out
    mark_entries([str(marked)])
    assert not capsys.readouterr().out
    results = read_results("refine")
    assert results is not None
    results["claims"]["lowers_landmarks"]["reproduced"] = True
    results_path("refine").write_text(json.dumps(results))
    mark_entries([str(marked)])
    assert "not reproduced: none" in capsys.readouterr().out
    assert FIELD not in read_entry(row(marked))
    results_path("refine").unlink()
    assert with_todays_claims(read_entry(row(marked))) == read_entry(row(marked))


def test_every_format_shows_the_mark_with_the_figures(marked: Path) -> None:
    before = {form: draw(view(read_entries(marked / "orl_heavy"))) for form, draw in BOARD.items()}
    mark_entries([str(marked)])
    shown = view(read_entries(marked / "orl_heavy"))
    text = claim_text(read_entry(row(marked))[FIELD][0])
    results = read_results("refine")
    assert results is not None
    pair = results["claims"]["lowers_landmarks"]["pairs"][0]
    assert f"difference {'−' if pair['difference'] < 0 else '+'}{abs(pair['difference']):.4f}" in text
    assert "It lowers landmark error (Table 3)" in text
    assert "tested over people, for these 3 trainings of each variant" in text
    assert "not shown (tested" in text
    number = shown.footnotes.index(text) + 1
    after = {form: draw(shown) for form, draw in BOARD.items()}
    assert f"**{MARK}** <sup>{number}</sup>" in after["md"]
    assert f"{MARK}<sup>{number}</sup>" in after["html"]
    assert f"\\emph{{{MARK}}}$^{{{number}}}$" in after["latex"]
    for form in ("md", "html", "latex"):
        assert "It lowers landmark error (Table 3)" in after[form]
        assert MARK not in before[form]
    lines = list(csv.DictReader(io.StringIO(after["csv"])))
    assert all(
        (text in line["remark"]) == ((line["method"], line["metric"]) == ("refine@demo", "lmd"))
        for line in lines
        if line["source"] == "measured"
    )
    assert after["bibtex"] == before["bibtex"]
    for form, lines_before in ((form, before[form].splitlines()) for form in ("md", "latex")):
        changed = [line for line in lines_before if line not in after[form].splitlines()]
        assert len(changed) <= 2, "nothing but the row and, in LaTeX, the caption"


@pytest.mark.usefixtures("marked")
def test_schema_of_a_mark_is_strict(runs: Path) -> None:
    entry = entry_from_run(runs / "whole-0-orl_heavy")
    good = entry[FIELD][0]
    for broken, message in (
        ([], "must be a list, not empty"),
        ([{**good, "speed": 1}], "unknown speed"),
        ([{**good, "seeds": ["0"]}], "a list of seeds"),
        ([{**good, "pairs": [{**good["pairs"][0], "p": None}]}], r"pairs\.0\.p must be"),
    ):
        with pytest.raises(UsageError, match=message):
            validate({**entry, FIELD: broken}, "entry")


@pytest.mark.usefixtures("marked")
def test_a_papers_table_finds_the_ablations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "none"))
    monkeypatch.setattr("bench.leaderboard.reproduce._board", lambda protocol: [])
    rows = {one.method: one for one in reproduce(load_table("refine/figure7"), "orl_heavy").rows}
    blind = rows["blind (no reference)"]
    assert (blind.state, blind.source) == ("measured", "claims.json of refine, mean of 3 trainings of blind")
    assert blind.reason.startswith("refine+blind@demo in claims.json")
    results = read_results("refine")
    assert results is not None
    mean = results["variants"]["blind"]["protocols"]["orl_heavy"]["metrics"]["id"]["mean"]
    assert [value.ours for value in blind.values if value.name == "id"] == [mean]
    assert rows["minimum loss alone"].source is None, "weights of its own"
    frozen = tmp_path / "orl_heavy.json"
    frozen.write_text(json.dumps({"id": "f" * 16}))
    rows = {one.method: one for one in reproduce(load_table("refine/figure7"), "orl_heavy").rows}
    assert rows["blind (no reference)"].source is None, "tested on other pictures"
    frozen.unlink()
