"""Claims whose seeds are those of runs: one set of weights, everyone learnt anew in each run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.leaderboard.claim_marks import claim_text
from bench.leaderboard.schema import CLAIM_OPTIONAL
from bench.scores.claims import disagreements, evaluate, main
from bench.scores.claims_card import tables
from bench.scores.claims_file import load_claims
from tests.unit import test_claims_over_seeds as over_seeds
from tests.unit.test_claims_over_seeds import CLAIMS, Make

configs, make = over_seeds.configs, over_seeds.make


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of ReFine's, whose claims are over runs."""
    folder: Path = over_seeds.method.__wrapped__(tmp_path, monkeypatch)  # type: ignore[attr-defined]
    (folder / "claims.yaml").write_text(f"seeds: [0, 1, 2]\nseeds_of: run\n{CLAIMS}")
    return folder


@pytest.fixture
def runs(make: Make) -> Path:
    """Three runs of each variant; those of one variant have one revision."""
    for variant in ("base", "blind", "whole"):
        folder = with_seeds(make(variant, revision=f"{variant}-weights"), variant)
    return folder


def with_seeds(folder: Path, variant: str, shift: int = 0) -> Path:
    """Writes into the summaries which seed each run had."""
    for seed in (0, 1, 2):
        path = folder / f"{variant}-{seed}-orl_heavy" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": seed + shift}))
    return folder


@pytest.mark.usefixtures("method")
def test_runs_of_the_same_weights_count(runs: Path) -> None:
    results = evaluate(load_claims("refine"), runs)
    assert results["seeds_of"] == "run"
    claim = results["claims"]["raises_id"]
    assert claim["seeds"] == [0, 1, 2]
    assert claim["reproduced"]
    assert len(set(results["variants"]["whole"]["protocols"]["orl_heavy"]["revisions"])) == 1
    said = tables(results)
    assert "these 3 runs of each variant with the same weights, in which whoever is learnt was learnt anew" in said
    assert "they speak of these runs" in said
    assert "training" not in said
    lowers = results["claims"]["lowers_landmarks"] | {"seeds_of": "run"}
    lowers["pairs"] = [pair | {"variant": "Blind"} for pair in lowers["pairs"]]
    assert "these 3 runs of each variant" in claim_text(lowers)
    assert CLAIM_OPTIONAL["seeds_of"][1]("run")
    assert not CLAIM_OPTIONAL["seeds_of"][1]("training")


@pytest.mark.usefixtures("method")
def test_runs_of_other_weights_are_refused(runs: Path, make: Make, tmp_path: Path) -> None:
    with_seeds(make("whole", (0, 1), revision="other"), "whole")
    with pytest.raises(UsageError, match=r"revisions other, whole-weights.*differ in seed alone"):
        evaluate(load_claims("refine"), runs)
    own = tmp_path / "own.safetensors"
    with_seeds(make("whole", revision="whole-weights", weights=own), "whole")
    with pytest.raises(UsageError, match=r"method.weights=.*own.safetensors.*shipped weights"):
        evaluate(load_claims("refine"), runs)


@pytest.mark.usefixtures("method")
def test_a_run_of_another_seed_than_its_name_says_is_refused(runs: Path) -> None:
    with_seeds(runs, "blind", shift=1)
    with pytest.raises(UsageError, match="was run with seed 1, not 0"):
        evaluate(load_claims("refine"), runs)


def test_results_of_trainings_are_not_those_of_runs(method: Path, runs: Path) -> None:
    assert main(["refine", "--runs", str(runs), "--card"]) == 0
    assert disagreements("refine") == []
    path = method / "claims.yaml"
    path.write_text(path.read_text().replace("seeds_of: run\n", ""))
    assert any("what seeds stand for" in sentence for sentence in disagreements("refine"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seeds_of: weeks", "seeds_of"),
        ("seeds_of: run\nrow_trained_apart: {revision: a, budget: b}", "leave out row_trained_apart"),
    ],
)
def test_what_seeds_stand_for_is_read_strictly(method: Path, line: str, message: str) -> None:
    (method / "claims.yaml").write_text(f"{line}\n{CLAIMS}")
    with pytest.raises(UsageError, match=message):
        load_claims("refine")
