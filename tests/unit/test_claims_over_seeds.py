"""Claims tested over several trained seeds: the file, the tests, the card, and the mark on the board."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from bench.config import compose
from bench.errors import UsageError
from bench.leaderboard.board import BOARD
from bench.leaderboard.claim_marks import FIELD, MARK, claim_text, with_todays_claims
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
from bench.scores.claims_file import load_claims, read_results, results_path
from bench.scores.statistics import compare_identity_means
from tests.unit.run_folders import METRICS, PROTOCOL_ID, make_run, score_frame

CLAIMS = """
variants:
  base: {title: Base, words: [method.use_identity=false]}
  blind: {title: Blind, words: [method.reference=none], note: trained apart}
  whole: {title: The whole | of it}
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

    def made(variant: str, seeds: tuple[int, ...] = (0, 1, 2), settings: str = "", **fields: Any) -> Path:
        for seed in seeds:
            number = seed + 10 * list(SHIFTS).index(variant)
            frame = score_frame("refine@demo", SHIFTS[variant], number, **fields)
            run = make_run(folder / f"{variant}-{seed}-orl_heavy", frame, method_name="refine")
            (run / "config.yaml").write_text(configs[settings or variant])
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


def by_person(folder: Path, variant: str, metric: str) -> pd.Series:
    """Mean of each person over images and seeds, written another way than in the code under test."""
    frames = [pd.read_parquet(folder / f"{variant}-{seed}-orl_heavy" / "scores.parquet") for seed in range(3)]
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
    assert identity["pairs"][0]["images"] == 59, "one picture has no ID with one seed"
    shown = results["variants"]["whole"]["protocols"]["orl_heavy"]["metrics"]
    assert list(shown) == ["id", "lmd", "psnr"]
    assert (shown["id"]["n"], shown["id"]["of"], shown["id"]["identities"]) == (59, 60, 12)
    assert shown["psnr"]["mean"] == pytest.approx(by_person(runs, "whole", "psnr").mean())
    assert np.mean(shown["psnr"]["by_seed"]) == pytest.approx(shown["psnr"]["mean"])
    assert json.loads(json.dumps(results, allow_nan=False)) == results


@pytest.mark.parametrize(
    ("centre", "spread", "expected"),
    [
        (0.1, 0.01, {"better", "best_or_tied", "not_lost"}),
        (0.01, 0.001, {"better", "best_or_tied", "not_lost", "tied"}),
        (0.0, 0.01, {"best_or_tied", "not_lost", "tied"}),
        (-0.1, 0.01, set()),
        (0.0, 0.2, set()),
        (0.04, 0.07, {"not_lost"}),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_rules(centre: float, spread: float, expected: set[str], higher: bool) -> None:
    people = [f"s{number}" for number in range(12)]
    # Symmetric about the centre, so that nothing is left to chance.
    values = (centre + spread * np.linspace(-1, 1, 12)) * (1 if higher else -1)
    one = compare_identity_means(pd.Series(values, people), pd.Series(0.0, people), "id", higher, 12)
    assert {rule for rule in ("better", "tied", "best_or_tied", "not_lost") if holds(rule, one, 0.02)} == expected


@pytest.mark.usefixtures("method")
def test_margins_are_those_of_the_panel() -> None:
    claims = load_claims("refine").claims
    panel = yaml.safe_load((resource_root() / "configs" / "metrics" / "standard.yaml").read_text())
    assert claims["best"].margin == panel["tied"]["id"]
    assert claims["raises_id"].margin is None
    assert claims["best"].row == "refine@demo"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rule: best_or_tied", "rule: best", "rule"),
        ("against: [base, blind]", "against: [base, ghost]", "ghost"),
        ("against: [base, blind]", "against: [whole]", "other variants"),
        ("source: Table 3, ", "", "lacks source"),
        ("rule: better}", "rule: better, speed: 1}", "unknown speed"),
        ("rule: best_or_tied", "rule: tied", "of two variants"),
        ("words: [method.reference=none]", "words: [size=paper]", "no word method.key=value"),
        ("base,\n     rule: better, note", "base,\n     rule: tied, note", "no margin of lmd"),
        ("metrics: [psnr]", "seeds: [0, 0]", "different whole numbers"),
        ("variants:", "!!python/object/apply:os.getcwd []", "Cannot read"),
    ],
)  # fmt: skip
def test_a_claims_file_is_read_strictly(method: Path, old: str, new: str, message: str) -> None:
    assert old in CLAIMS
    (method / "claims.yaml").write_text(CLAIMS.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        load_claims("refine")


def test_runs_that_are_not_what_is_stated_are_refused(method: Path, make: Make) -> None:
    claims = load_claims("refine")
    with pytest.raises(UsageError, match="is no folder"):
        evaluate(claims, method / "ghost")
    make("base"), make("whole")
    with pytest.raises(UsageError, match="needs runs of blind on orl_heavy"):
        evaluate(claims, make("whole"))
    with pytest.raises(UsageError, match="train and run both with the same seeds"):
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
    make("blind")
    for name in ("scores.parquet", "summary.json"):
        (folder / "blind-0-orl_heavy" / name).write_bytes((folder / "base-0-orl_heavy" / name).read_bytes())
    with pytest.raises(UsageError, match="cannot stand for both"):
        evaluate(claims, folder)


def test_the_card_is_written_from_the_results(method: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refine", "--card"]) == 2
    assert "give --runs" in capsys.readouterr().err
    assert disagreements("refine") == []
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
    assert "**no**" in rows[6]
    assert "the cause was looked for" in printed
    assert "(59/60)" in rows[3]
    (method / "claims.yaml").write_text(CLAIMS.replace("Identity raises ID", "Identity never lowers ID"))
    assert "other claims than claims.yaml states now: raises_id" in disagreements("refine")[0]
    (method / "claims.yaml").write_text(CLAIMS.replace("title: Blind", "title: Without"))
    assert "other variants" in disagreements("refine")[0]
    results = read_results("refine")
    assert results is not None
    for text in ("no markers", f"{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"):
        with pytest.raises(UsageError, match="once each"):
            with_tables(text, results, "card")
    results_path("refine").write_text("{")
    with pytest.raises(UsageError, match="Cannot read"):
        read_results("refine")


def test_claims_results_and_cards_of_all_methods_agree() -> None:
    found = [name for name in method_targets() if results_path(name).is_file()]
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
    assert all("claims" not in message for message in verify(marked))
    assert FIELD not in with_todays_claims(entry_from_run(tmp_path / "input"))
    elsewhere = {**unmarked, "protocol": "orl_light"}
    assert with_todays_claims(elsewhere) == elsewhere, "tested on another protocol"
    theirs = {**unmarked, "accepted": {}}
    assert with_todays_claims(theirs) == theirs


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
    assert "3 seeds each" in text
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
        (text in line["remark"]) == (line["method"] == "refine@demo") for line in lines if line["source"] == "measured"
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
    assert (blind.state, blind.source) == ("measured", "claims.json of refine, mean of 3 seeds")
    results = read_results("refine")
    assert results is not None
    mean = results["variants"]["blind"]["protocols"]["orl_heavy"]["metrics"]["id"]["mean"]
    assert [value.ours for value in blind.values if value.name == "id"] == [mean]
    assert rows["minimum loss alone"].source is None, "weights of its own"
