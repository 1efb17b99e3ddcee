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

# The learning rate's decay depends on the length of the training, which differs between the two.
STEADY = ["method.optimiser.decay_after=1.0"]


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
    whole = train(tmp_path / "whole", "trainer.max_steps=20", *STEADY)
    assert whole["batches"] == 20
    assert whole["last_loss"] < whole["first_loss"]
    train(tmp_path / "parts", "trainer.max_steps=10", *STEADY)
    rest = train(tmp_path / "parts", "trainer.max_steps=20", *STEADY)
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
def test_two_processes_train_together(tmp_path: Path, orl_root: Path) -> None:
    words = ["trainer.max_steps=8", "method.losses.r1_every=2", "method.optimiser.decay_after=1.0"]
    two = train(tmp_path / "two", *words, "trainer=ddp_cpu")
    assert two["world_size"] == 2
    assert two["batches"] == 8
    assert two["last_loss"] < two["first_loss"]
    weights, metadata = read_weights(Path(two["weights"]))
    assert metadata["batches"] == "8"
    assert all(torch.isfinite(value.float()).all() for value in weights.values())
    one = train(tmp_path / "one", *words)
    alone, _ = read_weights(Path(one["weights"]))
    assert any(not torch.equal(alone[name], value) for name, value in weights.items()), (
        "the second process changed nothing"
    )


def test_ranks_share_the_stream_without_overlap(orl_root: Path) -> None:
    """Two processes with two pictures each see what one process with four would."""
    from bench.config import compose
    from bench.data.training import TrainingPairs, TrainingSettings
    from bench.protocol.protocol import DataSettings

    data = DataSettings(**compose("train", ["method=refine"])["data"])
    parts = [TrainingPairs(data, TrainingSettings(batch_size=2), rank, 2).batch(3) for rank in (0, 1)]
    whole = TrainingPairs(data, TrainingSettings(batch_size=4)).batch(3)
    assert torch.equal(torch.cat([part.gt for part in parts]), whole.gt)
    assert torch.equal(torch.cat([part.lq for part in parts]), whole.lq)
    assert [seed for part in parts for seed in part.seeds] == whole.seeds
    assert whole.identities == [path.split("/")[0] for path in whole.image_ids]
    test_people = {f"s{number}" for number in range(25, 41)}
    assert not test_people & set(whole.identities)


def test_a_checkpoint_of_another_training_or_at_its_end_is_refused(tmp_path: Path) -> None:
    from bench.errors import UsageError
    from bench.runs.training import _check_checkpoint

    settings = {"losses": {"cycle": 1}, "training": {"max_steps": 10, "data": "orl_heavy"}}
    content = {"batches_done": 10, "hyper_parameters": {"settings": settings}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="already been trained"):
        _check_checkpoint(tmp_path / "last.ckpt", settings, 10)
    _check_checkpoint(tmp_path / "last.ckpt", {**settings, "training": {"max_steps": 20, "data": "orl_heavy"}}, 20)
    with pytest.raises(UsageError, match="losses"):
        _check_checkpoint(tmp_path / "last.ckpt", {**settings, "losses": {"cycle": 0}}, 20)
