"""What holds for every registered metric, present and future."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from bench.metrics.consistency import METRICS as CONSISTENCY_METRICS
from bench.metrics.consistency import ONE_DEGRADATION
from bench.metrics.metric import Score, ScoringBatch
from bench.metrics.planted_detail import NO_PROBE
from bench.protocol.probe import METRICS as PROBE_METRICS
from bench.registry import load_metric, metric_classes

SIZE = 128
POINTS = np.array([[39.5, 52.0], [87.5, 52.0], [63.5, 80.5], [43.0, 101.7], [84.0, 101.7]])

every_metric = pytest.mark.parametrize("name", sorted(metric_classes()))


def face(shift: float) -> np.ndarray:
    """A drawn colour face: real enough for filters and recognisers, without any data."""
    cv2 = pytest.importorskip("cv2")
    picture = np.full((SIZE, SIZE, 3), (60, 90, 120), np.uint8)
    cv2.ellipse(picture, (64, 70), (int(46 + shift), 60), 0, 0, 360, (225, 180, 150), -1)
    for x, y in POINTS[:2].astype(int):
        cv2.ellipse(picture, (int(x), int(y)), (10, 5), 0, 0, 360, (250, 250, 250), -1)
        cv2.circle(picture, (int(x), int(y)), 4, (70, 40, 20), -1)
    cv2.line(picture, (64, 56), (int(62 + shift), 82), (180, 120, 100), 3)
    cv2.ellipse(picture, (64, 102), (20, int(4 + shift)), 0, 0, 180, (170, 60, 70), -1)
    noise = np.random.default_rng(int(shift)).normal(0, 4, picture.shape)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 1.2) + noise, 0, 255).astype(np.uint8)


def batch_of(restored: list[np.ndarray]) -> ScoringBatch:
    count = len(restored)
    valid = np.ones((count, SIZE, SIZE), dtype=bool)
    valid[:, :3] = False
    return ScoringBatch(
        image_ids=[f"p{index}" for index in range(count)],
        restored=np.stack(restored),
        truth=np.stack([face(index) for index in range(count)]),
        references=[[face(index + 3), face(index + 4)] for index in range(count)],
        landmarks=np.stack([POINTS] * count),
        reference_landmarks=[np.stack([POINTS, POINTS])] * count,
        valid=valid,
        restorations=[[restored[index], face(index), face(index)] for index in range(count)],
    )


def blurred(count: int) -> list[np.ndarray]:
    cv2 = pytest.importorskip("cv2")
    return [cv2.GaussianBlur(face(index), (0, 0), 1.0 + index) for index in range(count)]


def check(scores: list[Score], count: int) -> None:
    assert len(scores) == count
    for value, reason in scores:
        if value is None:
            assert reason
        else:
            assert math.isfinite(value)
            assert reason is None


@every_metric
def test_declares_what_it_is(name: str) -> None:
    metric = load_metric(name)()
    assert metric.name == name
    assert metric.title
    assert metric.licence
    assert isinstance(metric.unit, str)
    assert metric.higher_is_better in (True, False, None)
    assert metric.cost in ("low", "medium", "high")
    assert type(metric).__doc__
    identity = metric.identity
    assert identity.startswith(f"{name}@")
    assert identity == load_metric(name)().identity
    assert "\n" not in identity


def test_identities_differ() -> None:
    identities = [metric().identity for metric in metric_classes().values()]
    assert len(set(identities)) == len(identities)


@every_metric
def test_one_picture_scores_as_in_a_batch(name: str) -> None:
    metric = load_metric(name)()
    pictures = blurred(3)
    together = metric.score_batch(batch_of(pictures))
    check(together, 3)
    alone = metric.score_batch(batch_of(pictures[:1]))
    check(alone, 1)
    if alone[0].value is None:
        assert together[0] == alone[0]
    else:
        assert together[0].value == pytest.approx(alone[0].value, abs=1e-6)


@every_metric
def test_order_changes_nothing(name: str) -> None:
    metric = load_metric(name)()
    batch = batch_of(blurred(3))
    turned = ScoringBatch(
        image_ids=batch.image_ids[::-1],
        restored=batch.restored[::-1].copy(),
        truth=batch.truth[::-1].copy() if batch.truth is not None else None,
        references=batch.references[::-1],
        landmarks=batch.landmarks[::-1].copy() if batch.landmarks is not None else None,
        reference_landmarks=batch.reference_landmarks,
        valid=batch.valid,
        restorations=None if batch.restorations is None else batch.restorations[::-1],
    )
    straight, reverse = metric.score_batch(batch), metric.score_batch(turned)[::-1]
    assert [s.reason for s in straight] == [s.reason for s in reverse]
    for first, second in zip(straight, reverse, strict=True):
        assert first.value == (None if second.value is None else pytest.approx(second.value, abs=1e-6))


@every_metric
def test_flat_pictures_never_raise(name: str) -> None:
    metric = load_metric(name)()
    flat = [np.full((SIZE, SIZE, 3), 128, np.uint8)] * 2
    check(metric.score_batch(batch_of(flat)), 2)
    batch = batch_of(flat)
    batch.truth = np.stack(flat)
    check(metric.score_batch(batch), 2)


@every_metric
@pytest.mark.parametrize("size", [1, 5, 8, 16, 200])
def test_black_white_and_tiny_pictures_never_raise(name: str, size: int) -> None:
    """Nor do they cost another picture of the batch its score, or warn."""
    metric = load_metric(name)()
    noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    restored = np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])
    for truth in (restored, restored[::-1].copy()):
        batch = ScoringBatch(
            image_ids=["black", "white", "noise"],
            restored=restored,
            truth=truth,
            references=[[noise]] * 3,
            landmarks=np.stack([POINTS * size / SIZE] * 3),
            reference_landmarks=[POINTS[None] * size / SIZE] * 3,
            valid=np.ones(restored.shape[:3], dtype=bool),
            restorations=[list(restored)] * 3,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            together = metric.score_batch(batch)
        check(together, 3)
        for row in range(3):
            alone = metric.score_batch(batch.alone(row))[0]
            assert together[row].reason == alone.reason
            expected = alone.value if alone.value is None else pytest.approx(alone.value, abs=1e-6)
            assert together[row].value == expected


@every_metric
def test_what_is_missing_is_said(name: str) -> None:
    metric = load_metric(name)()
    batch = batch_of(blurred(1))
    bare = ScoringBatch(batch.image_ids, batch.restored, None, [[]], None, None, batch.valid)
    scores = metric.score_batch(bare)
    check(scores, 1)
    if metric.needs and metric.unavailable() is None:
        words = {"truth": "a ground truth", "references": "references", "landmarks": "landmarks"}
        wanted = f"needs {' and '.join(words[need] for need in metric.needs)}"
        # Pictures without a probe lack the marks first of all, and those of one degradation the others.
        first = dict.fromkeys(PROBE_METRICS, NO_PROBE) | dict.fromkeys(CONSISTENCY_METRICS, ONE_DEGRADATION)
        assert scores == [Score(None, first.get(name, wanted))]


@every_metric
def test_the_truth_scores_no_worse_than_a_blur(name: str) -> None:
    metric = load_metric(name)()
    best = metric.score_batch(batch_of([face(0)]))[0].value
    worse = metric.score_batch(batch_of(blurred(1)))[0].value
    if best is None or worse is None or metric.higher_is_better is None or "truth" not in metric.needs:
        pytest.skip("needs a value and a ground truth")
    assert best >= worse if metric.higher_is_better else best <= worse
