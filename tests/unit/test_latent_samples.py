"""Cached training samples: each is what encoding the pictures gives, and every pass has all of them once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.config import compose
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import UsageError
from bench.protocol.protocol import DataSettings
from methods.blocks.latent_samples import LatentSamples

COUNT, SIZE = 6, 4


class Encoder:
    """Means of the pictures in place of latents; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: FaceBatch) -> dict[str, Tensor]:
        self.calls += 1
        assert batch.gt is not None
        return {"truth": batch.gt.mean((1, 2, 3)), "reference": batch.references.mean((1, 2, 3, 4))}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    yield tmp_path


def pairs(root: Path, seed: int = 0, **changes: Any) -> TrainingPairs:
    words = ["method=refine", "data=orl_heavy", f"data.root={root}"]
    data = DataSettings(**compose("train", words)["data"])
    return TrainingPairs(data, TrainingSettings(batch_size=SIZE, size=32, seed=seed), **changes)


def test_rows_are_the_encoded_samples_and_made_once(home: Path, orl_root: Path) -> None:
    encode = Encoder()
    samples = LatentSamples(pairs(orl_root), encode, {"space": "a"}, COUNT)
    assert encode.calls == 2
    first = pairs(orl_root).batch(0)
    assert first.gt is not None
    assert torch.allclose(samples.tensors["truth"][:SIZE].float(), first.gt.mean((1, 2, 3)), atol=1e-3)
    assert torch.allclose(samples.tensors["reference"][:SIZE].float(), first.references.mean((1, 2, 3, 4)), atol=1e-3)

    again = Encoder()
    other_seed = LatentSamples(pairs(orl_root, seed=5), again, {"space": "a"}, COUNT)
    assert again.calls == 0, "trainings that differ in seed share the samples"
    assert torch.equal(other_seed.tensors["truth"], samples.tensors["truth"])
    LatentSamples(pairs(orl_root), again, {"space": "b"}, COUNT)
    assert again.calls == 2, "another network makes other latents"


def test_every_pass_holds_every_sample_once_in_its_own_order(home: Path, orl_root: Path) -> None:
    samples = LatentSamples(pairs(orl_root), Encoder(), {}, COUNT)
    rows = [float(value) for batch in islice(samples, 6) for value in batch["truth"]]
    passes = [rows[start : start + COUNT] for start in range(0, 24, COUNT)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    seeds = [seed for batch in islice(samples, 6) for seed in batch.seeds]
    assert len(set(seeds)) == len(seeds)


def test_ranks_share_the_stream_and_a_resumed_one_goes_on(home: Path, orl_root: Path) -> None:
    whole = LatentSamples(pairs(orl_root), Encoder(), {}, COUNT)
    ranks = [LatentSamples(pairs(orl_root, rank=r, world_size=2), Encoder(), {}, COUNT) for r in (0, 1)]
    for step in range(3):
        for rank, samples in enumerate(ranks):
            assert torch.equal(samples.batch(step)["truth"], whole.batch(2 * step + rank)["truth"])
    resumed = next(iter(LatentSamples(pairs(orl_root, first_batch=2), Encoder(), {}, COUNT)))
    assert torch.equal(resumed["truth"], whole.batch(2)["truth"])
    assert replace(resumed).to("cpu").seeds == whole.batch(2).seeds


def test_every_pass_of_two_processes_holds_every_sample_once(home: Path, orl_root: Path) -> None:
    ranks = [LatentSamples(pairs(orl_root, rank=r, world_size=2), Encoder(), {}, COUNT) for r in (0, 1)]
    batches = [ranks[rank].batch(step) for step in range(3) for rank in (0, 1)]
    rows = [float(value) for batch in batches for value in batch["truth"]]
    passes = [rows[start : start + COUNT] for start in range(0, len(rows), COUNT)]
    assert len(passes) == 4
    assert all(sorted(one) == sorted(ranks[0].tensors["truth"].tolist()) for one in passes)
    seeds = [seed for batch in batches for seed in batch.seeds]
    assert len(set(seeds)) == len(seeds)


def test_mixed_batches_share_a_cache_only_where_they_mix_alike(home: Path, orl_root: Path) -> None:
    def drawn(seed: int, batch_size: int) -> tuple[Tensor, int]:
        stream = pairs(orl_root)
        settings = TrainingSettings(batch_size=batch_size, size=32, seed=seed, pool=4, shared_degradation=True)
        encode = Encoder()
        samples = LatentSamples(TrainingPairs(stream.data, settings), encode, {}, COUNT)
        return samples.tensors["truth"], encode.calls

    first, calls = drawn(seed=5, batch_size=2)
    assert calls == 3
    (home / "kept").mkdir()
    (home / "cache").rename(home / "kept/cache")
    again, _ = drawn(seed=0, batch_size=2)
    assert torch.equal(first, again), "the seed of the first training to come decides nothing"
    assert drawn(seed=9, batch_size=2)[1] == 0
    assert drawn(seed=5, batch_size=4)[1] > 0


def test_too_few_samples_are_refused(home: Path, orl_root: Path) -> None:
    with pytest.raises(UsageError, match="too few"):
        LatentSamples(pairs(orl_root), Encoder(), {}, 0)
