"""Training: resumes to the bit, counts batches, runs on two processes, and reaches every tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.weights.method_weights import read_weights

SMALL = [
    "method=refine",
    "data=orl_heavy",
    "batch_size=2",
    "method.network.narrow=0.0625",
    "method.network.style_dim=32",
    "method.discriminator.narrow=0.0625",
    "method.losses.adversarial_start=5",
]


def train(folder: Path, *words: str) -> dict:
    environment = {key: value for key, value in os.environ.items() if key != "BENCH_RUN_DIR"} | {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "bench",
        "train",
        *SMALL,
        f"run_dir={folder}",
        "trainer.train_threads=1",
        *words,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result: dict = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.slow
def test_ten_and_ten_more_equal_twenty(tmp_path: Path, orl_root: Path) -> None:
    whole = train(tmp_path / "whole", "trainer.max_steps=20", "method.optimiser.decay_after=1.0")
    assert whole["batches"] == 20
    assert whole["last_loss"] < whole["first_loss"]
    train(tmp_path / "parts", "trainer.max_steps=10", "method.optimiser.decay_after=1.0")
    rest = train(tmp_path / "parts", "trainer.max_steps=20", "method.optimiser.decay_after=1.0")
    assert rest["resumed"] is True
    assert rest["batches"] == 20
    one = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    other = torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for mine, theirs in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for key, state in mine["state"].items():
            assert all(torch.equal(state[part], theirs["state"][key][part]) for part in state), key


@pytest.mark.slow
def test_two_processes_train_as_one_would_on_twice_the_pictures(tmp_path: Path, orl_root: Path) -> None:
    # No adversarial loss: minibatch deviation sees other pictures when the batch is divided.
    words = ["trainer.max_steps=6", "method.losses.adversarial=0"]
    two = train(tmp_path / "two", *words, "trainer=ddp_cpu")
    assert two["world_size"] == 2
    assert two["batches"] == 6
    assert two["last_loss"] < two["first_loss"] * 1.5
    weights, metadata = read_weights(Path(two["weights"]))
    assert metadata["batches"] == "6"
    assert all(torch.isfinite(value.float()).all() for value in weights.values())


def test_a_finished_training_is_not_resumed_beyond_its_end(tmp_path: Path, orl_root: Path) -> None:
    from bench.errors import UsageError
    from bench.runs.training import _continue_schedule

    torch.save({"batches_done": 10}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="already been trained"):
        _continue_schedule(tmp_path / "last.ckpt", 10)
    _continue_schedule(tmp_path / "last.ckpt", 11)
