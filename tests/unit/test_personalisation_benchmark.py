"""`bench perf … against=plain`: how a person is learnt, beside the same learning without any saving."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from bench.cli.main import main
from bench.config import compose
from bench.runs import personalisation_benchmark
from bench.runs.plan import build_method
from methods.pfstorer.module import PFStorer
from methods.pfstorer.timing import PlainPersonalTraining

P = "method.personalisation"
WORDS = ["method=pfstorer", f"{P}.iterations=3", f"{P}.samples=4", f"{P}.batch_size=2"]


@pytest.fixture
def references() -> Tensor:
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def test_the_benchmark_prints_both_sides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(personalisation_benchmark, "SHORT", {"iterations": 2, "samples": 2})
    monkeypatch.setattr(personalisation_benchmark, "ROUNDS", 1)
    monkeypatch.setattr(personalisation_benchmark, "PLAIN_ITERATIONS", 1)
    assert main(["perf", *WORDS, "against=plain", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (one,) = result["sizes"]
    assert one["ratio"] == pytest.approx(one["plain"] / one["ours"])
    assert one["seconds_per_person"] == pytest.approx(3 * one["ours"])
    assert set(one["by_people"]) == {"1", "2", "4"}
    assert set(one["by_references"]) == {"1", "3", "5"}
    assert 0 < one["state_bytes"] < 1e6
    assert main(["perf", *WORDS, "against=plain"]) == 0
    said = capsys.readouterr().out
    assert "plain s/iteration" in said
    assert "by number of people (2 iterations each): 1: " in said


@pytest.mark.parametrize("words", [["method=refine"], ["method=pfstorer", f"{P}.tunes=nothing"]])
def test_methods_that_learn_no_one_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", *words, "against=plain"]) == 2
    assert "leave out against=plain" in capsys.readouterr().err


def test_plain_learns_what_ours_learns(references: Tensor) -> None:
    """From the same samples with the same noise, the plain loss is ours."""
    method, _, _ = build_method(compose("run", WORDS))
    assert isinstance(method, PFStorer)
    plain = PlainPersonalTraining(method, references, seed=5)
    with torch.no_grad():
        for block in plain.own.parts.blocks:  # type: ignore[union-attr]
            block.gamma.fill_(0.2)
    before = [value.clone() for value in plain.own.parts.parameters()]  # type: ignore[union-attr]
    rows, lq_latent, references_read, noised = plain.draw()
    assert references_read.shape == lq_latent.shape == noised.latent.shape
    ours = method.personal_training(references, 5)
    ours.parts.load_state_dict(plain.own.parts.state_dict())  # type: ignore[union-attr]
    ours.samples, ours.options = plain.samples, {**ours.options, "samples": 0}
    shown = plain.samples.draw_references(rows, torch.Generator().manual_seed(5))
    assert torch.allclose(plain.samples.references[shown], references_read, atol=1e-5)
    predicted, person = ours._predict(rows, noised, shown, with_null=True)
    expected = ours._sum(predicted, noised.target, person)
    assert float(plain.loss(lq_latent, references_read, noised)) == pytest.approx(float(expected), rel=1e-4)
    plain.step()
    plain.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, plain.own.parts.parameters(), strict=True)]  # type: ignore[union-attr]
    assert all(moved)


def test_perf_times_a_new_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", *WORDS, "--seconds", "0.1", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["sizes"]
    assert any("nobody was learnt" in note for note in one["notes"])
    assert one["gflops"] > 0
