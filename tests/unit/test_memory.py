"""Estimates of memory, and what is said where it was not enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.batch import FaceBatch
from bench.cli.main import main
from bench.errors import UsageError
from bench.memory import is_out_of_memory, training_memory, training_out_of_memory
from bench.method import MethodSpec, RestorationMethod


def test_a_training_holds_weights_gradients_and_two_moments() -> None:
    network = torch.nn.Linear(1000, 1000, bias=False)
    frozen = torch.nn.Linear(1000, 500, bias=False).requires_grad_(False).half()
    held = training_memory([*network.parameters(), *frozen.parameters()])
    assert (held.weights, held.gradients, held.state, held.total) == (5.0, 4.0, 8.0, 17.0)
    assert training_memory(network.parameters(), "8bit").state == pytest.approx(2.1)


def method_of(gigabytes: float, **settings: Any) -> Any:
    with torch.device("meta"):
        network = torch.nn.Linear(1000, int(gigabytes * 1e6 / 4), bias=False)
    return SimpleNamespace(
        settings={"training": {"checkpointing": False}, "optimiser": {"kind": "fused"}, **settings},
        parameters=network.parameters,
        label="authface@paper",
        averaged=None,
    )


def test_settings_that_need_less_are_named_where_one_would_fit() -> None:
    said = str(training_out_of_memory(method_of(2), 12, 16e3, "32-true"))
    for part in (
        "batches of 12 holds about 8.0 GB",
        "the device has 16.0 GB",
        "batch_size=6",
        "checkpointing=true",
        "bf16-mixed",
        "kind=8bit (saves 3.0 GB)",
    ):
        assert part in said, part
    assert "bf16-mixed" not in str(training_out_of_memory(method_of(2), 12, 16e3, "bf16-mixed"))


def test_what_cannot_fit_is_said_to_be_hopeless() -> None:
    said = str(training_out_of_memory(method_of(10), 1, 16e3, "bf16-mixed"))
    assert "no setting makes it fit here" in said


class Greedy(RestorationMethod):
    """Wants more memory than there is."""

    spec = MethodSpec(name="greedy", title="Greedy", references="none")

    def restore(self, batch: FaceBatch) -> torch.Tensor:
        """Runs out of memory."""
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")


def test_a_picture_that_takes_too_much_says_what_needs_less() -> None:
    batch = FaceBatch(
        lq=torch.zeros(1, 3, 8, 8),
        references=torch.zeros(1, 0, 3, 8, 8),
        reference_mask=torch.zeros(1, 0, dtype=torch.bool),
        image_ids=["a"],
        identities=["a"],
        seeds=[0],
    )
    ((error, _),) = Greedy({"tiles_per_call": 4, "self_ensemble": True}).predict_step(batch)
    assert isinstance(error, UsageError)
    assert "a picture of 8x8 px alone. What helps: method.tiles_per_call=1; method.self_ensemble=false" in str(error)
    assert "Tried to allocate 7 GiB" in str(error.__cause__)


def test_other_errors_are_none_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_training_that_takes_too_much_says_what_needs_less(
    tmp_path: Path, orl_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from methods.autoencoder.module import Autoencoder

    def greedy(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Autoencoder, "training_step", greedy)
    words = ["method=autoencoder", "data=orl_heavy", f"run_dir={tmp_path}", "batch_size=8", "trainer.max_steps=1"]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "Out of memory: training autoencoder@demo with batches of 8" in said
    assert "batch_size=4" in said
