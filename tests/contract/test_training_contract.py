"""Training of every method that trains: resumes to the bit, counts batches, runs on two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.cli.main import main
from bench.method import RestorationMethod
from bench.registry import load_method, method_targets
from bench.weights.method_weights import read_weights

AUTHFACE = [
    "method.network.condition_channels=[8,8,8,8]",
    "method.discriminator.width=8",
    "method.training.cached_samples=8",
]
DUAL_PIVOT = [
    "method.base={name: demo, unet: {block_out_channels: [16, 16, 16]}}",
    "method.network.cleaner.channels=8",
    "method.training.cached_samples=8",
]
# Small networks; where stages learn in ways of their own, by method and stage.
SMALL = {
    "authface prior": [*AUTHFACE, "method.training.stage=prior"],
    "authface control": AUTHFACE,
    "dual_pivot cleaner": [*DUAL_PIVOT, "method.training.stage=cleaner"],
    "dual_pivot prior": [*DUAL_PIVOT, "method.training.stage=prior"],
    "dual_pivot control": DUAL_PIVOT,
    "autoencoder": ["method.network.block_out_channels=[8,8,8,8]"],
    "refine": [
        "method.network.narrow=0.0625",
        "method.network.style_dim=32",
        "method.discriminator.narrow=0.0625",
    ],
    "pfstorer": [
        "method.network.lq_encoder.channels=8",
        "method.network.lq_encoder.map_channels=8",
        "method.network.sft.hidden=8",
        "method.training.cached_samples=8",
    ],
    "restorerid": [
        "method.network.lq_encoder.channels=8",
        "method.network.lq_encoder.map_channels=8",
        "method.network.sft.hidden=8",
        "method.network.fir.hidden=8",
        "method.network.projection.depth=1",
        "method.training.stage=joint",
        "method.training.cached_samples=8",
    ],
}
COMMON = ["data=orl_heavy", "batch_size=2", "trainer.train_threads=1", "--json"]

# A training of ten batches is stopped after six. What a method changes on the way changes before and after that; the
# learning rate falls from the fifth batch on.
BATCHES, STOPPED_AFTER = 10, 6
SWITCHES = {
    "authface prior": [],
    "authface control": [],
    "dual_pivot cleaner": [],
    "dual_pivot prior": [],
    "dual_pivot control": [],
    "autoencoder": ["method.training.whole_from=8"],
    "refine": [
        "method.losses.adversarial_start=5",
        "method.losses.r1_every=4",
        "method.last_phase.from=8",
        "method.training.landmarks_alone_from=9",
    ],
    "pfstorer": [],
    "restorerid": [],
}
# Stage -> the one that it goes on from.
EARLIER = {
    "authface control": "authface prior",
    "dual_pivot prior": "dual_pivot cleaner",
    "dual_pivot control": "dual_pivot prior",
}
# The cheapest method stands for all where the engine is tested.
CHEAPEST = "autoencoder"

TRAINABLE = sorted(
    name for name in method_targets() if load_method(name).training_step is not RestorationMethod.training_step
)

# Writes the parameters that a process ends with, then trains as `bench train` does.
LAUNCHER = """
import sys
from pathlib import Path
import torch
from bench.cli.main import main
from bench.method import RestorationMethod

def keep(method):
    state = {name: value.detach() for name, value in method.named_parameters()}
    torch.save(state, Path(__file__).parent / f"rank{method.global_rank}.pt")

RestorationMethod.on_train_end = keep
sys.exit(main(sys.argv[1:]))
"""


def words(method: str, folder: Path, *more: str) -> list[str]:
    return ["train", f"method={method.partition(' ')[0]}", *COMMON, *SMALL[method], f"run_dir={folder}", *more]


def earlier(method: str, folder: Path, train: Any) -> list[str]:
    """Words for the weights of the stage before, where there is one; trained here for a batch."""
    if method not in EARLIER:
        return []
    return [f"method.training.start_from={train(EARLIER[method], folder, 'trainer.max_steps=1')['weights']}"]


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Any:
    """Trains in this process and returns the result that is printed."""

    def run(method: str, folder: Path, *more: str) -> dict[str, Any]:
        capsys.readouterr()
        code = main(words(method, folder, *more))
        said = capsys.readouterr()
        assert code == 0, said.err
        result: dict[str, Any] = json.loads(said.out.strip().splitlines()[-1])
        return result

    return run


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, averages and the optimisers' states of two trainings are the same bits."""
    mine, theirs = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, other))
    assert mine["batches_done"] == theirs["batches_done"]
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    different = [
        name for name, value in mine["state_dict"].items() if not torch.equal(value, theirs["state_dict"][name])
    ]
    assert not different, (len(different), different[:3])
    for own, its in zip(mine["optimizer_states"], theirs["optimizer_states"], strict=True):
        for key, state in own["state"].items():
            assert all(torch.equal(state[part], its["state"][key][part]) for part in state), key


def test_every_method_that_trains_is_tested() -> None:
    assert set(TRAINABLE) == {name.partition(" ")[0] for name in SMALL}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SMALL))
def test_a_stopped_training_ends_with_the_same_bits(method: str, tmp_path: Path, orl_root: Path, train: Any) -> None:
    words = [f"trainer.max_steps={BATCHES}", "method.optimiser.decay_after=0.5", *SWITCHES[method]]
    words += earlier(method, tmp_path / "earlier", train)
    whole = train(method, tmp_path / "whole", *words, f"checkpoint_every={STOPPED_AFTER}")
    assert (whole["resumed"], whole["batches"]) == (False, BATCHES)
    # As a training that was stopped after its checkpoint.
    (kept,) = (tmp_path / "whole/checkpoints").glob("step=*.ckpt")
    assert torch.load(kept, weights_only=True)["batches_done"] == STOPPED_AFTER
    (tmp_path / "stopped/checkpoints").mkdir(parents=True)
    shutil.copy(kept, tmp_path / "stopped/checkpoints/last.ckpt")
    rest = train(method, tmp_path / "stopped", *words)
    assert (rest["resumed"], rest["batches"]) == (True, BATCHES)
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")
    (one, _), (other, _) = (read_weights(Path(result["weights"])) for result in (whole, rest))
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SMALL))
def test_two_processes_train_together(method: str, tmp_path: Path, orl_root: Path, train: Any) -> None:
    launcher = tmp_path / "launch.py"
    launcher.write_text(LAUNCHER, "utf-8")
    # ReFine without discriminator, with it, and with its penalty too.
    batches = 3 if method == "refine" else 2
    more = [f"trainer.max_steps={batches}", *earlier(method, tmp_path / "earlier", train)]
    more += ["method.losses.r1_every=2", "method.losses.adversarial_start=1"] if method == "refine" else []
    environment = {key: value for key, value in os.environ.items() if key != "BENCH_RUN_DIR"}
    # A home of its own: where samples are kept on disk, both processes find none.
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(bench.__file__).parents[1]),
        "BENCH_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, str(launcher), *words(method, tmp_path / "two", *more, "trainer=ddp_cpu")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1, "the first process alone says how it ended"
    two = json.loads(printed[0])
    assert (two["world_size"], two["batches"]) == (2, batches)
    assert done.stderr.count("encoding training samples 0/") == ("method.training.cached_samples=8" in SMALL[method]), (
        "one process makes the samples"
    )
    weights, metadata = read_weights(Path(two["weights"]))
    assert (metadata["batches"], metadata["world_size"]) == (str(batches), "2")
    assert all(torch.isfinite(value.float()).all() for value in weights.values())

    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    different = [name for name, value in ranks[0].items() if not torch.equal(value, ranks[1][name])]
    assert not different, f"the processes end with different weights: {different[:3]}"

    if method == CHEAPEST:
        alone, _ = read_weights(Path(train(method, tmp_path / "one", *more)["weights"]))
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
