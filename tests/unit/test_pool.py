"""The pool of training pairs: rows move between batches, and never come apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.config import compose
from bench.data.pool import TrainingPairPool
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import UsageError
from bench.protocol.protocol import DataSettings

BATCH = 4
SETTINGS = TrainingSettings(batch_size=BATCH, size=32, pool=12, shared_degradation=True)


def _stream(settings: TrainingSettings, first_batch: int = 0) -> TrainingPairs:
    return TrainingPairs(DataSettings(**compose("train", ["method=refine"])["data"]), settings, first_batch=first_batch)


@pytest.mark.parametrize("rows", [4, 8, 12, 13, 180])
def test_every_row_is_used_once(rows: int) -> None:
    pool = TrainingPairPool(rows, BATCH, seed=3)
    steps = 2 * (rows // BATCH)
    used = [source for step in range(steps) for source in pool.sources(step)]
    assert sorted(used) == [(step, row) for step in range(steps) for row in range(BATCH)]


def test_without_a_pool_batches_stay_as_they_are() -> None:
    assert TrainingPairPool(0, BATCH, seed=3).sources(7) == [(7, row) for row in range(BATCH)]


def test_a_batch_of_the_pool_mixes_rows_of_several_batches() -> None:
    pool = TrainingPairPool(180, BATCH, seed=3)
    assert len({step for number in range(10) for step, _ in pool.sources(number)}) > 10


def test_a_pool_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="less than one batch"):
        TrainingPairPool(3, BATCH, seed=0)


def test_image_reference_identity_and_theta_of_a_row_stay_together() -> None:
    plain, pooled = _stream(replace(SETTINGS, pool=0)), _stream(SETTINGS)
    before = [plain.batch(step) for step in range(3)]
    for step in range(3):
        mixed = pooled.batch(step)
        for row, (source, position) in enumerate(pooled.pool.sources(step)):
            origin = before[source]
            assert torch.equal(mixed.lq[row], origin.lq[position])
            assert torch.equal(mixed.references[row], origin.references[position])
            assert mixed.gt is not None
            assert origin.gt is not None
            assert torch.equal(mixed.gt[row], origin.gt[position])
            assert mixed.identities[row] == origin.identities[position]
            assert mixed.degradation is not None
            assert origin.degradation is not None
            assert mixed.degradation[row] == origin.degradation[position]
            # θ with its row's own picture makes its row's own LQ.
            again = pooled.pipeline.apply(mixed.gt[row : row + 1], [mixed.degradation[row]])
            assert torch.equal(again[0], mixed.lq[row])


def test_a_shared_degradation_differs_in_its_noise_alone() -> None:
    theta = _stream(replace(SETTINGS, pool=0)).batch(0).degradation
    assert theta is not None
    without = [[{k: v for k, v in step.items() if k != "seed"} for step in one["steps"]] for one in theta]
    assert all(steps == without[0] for steps in without)
    seeds = [step["seed"] for one in theta for step in one["steps"] if "seed" in step]
    assert len(set(seeds)) == len(seeds) == BATCH


def test_a_resumed_stream_goes_on_with_the_same_batches() -> None:
    whole = iter(_stream(SETTINGS))
    expected = [next(whole) for _ in range(5)][-1]
    resumed = next(iter(_stream(SETTINGS, first_batch=4)))
    assert torch.equal(expected.lq, resumed.lq)
    assert expected.identities == resumed.identities


def test_training_needs_a_degradation() -> None:
    data = DataSettings(**compose("train", ["method=refine"])["data"])
    with pytest.raises(UsageError, match=r"data\.degradation=heavy"):
        TrainingPairs(replace(data, degradation=None), SETTINGS)
