"""The cache by content: nothing twice, nothing stale, two writers at once, bounded, and off when asked."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from bench.errors import UsageError
from bench.image import write_png
from bench.metrics.metric import Score
from bench.metrics.set_metric import FeatureNetwork
from bench.scores.feature_cache import LIMIT_VARIABLE, ScoreCache, content_key
from bench.scores.folders import score_folders


class Means(FeatureNetwork):
    """A network whose features are the means of the rows of blocks: quick, and different for different pictures."""

    dimensions = 12
    calls: ClassVar[list[int]] = []
    name = "means 1"

    @property
    def identity(self) -> str:
        return self.name

    def features(self, pictures: np.ndarray) -> np.ndarray:
        self.calls.append(len(pictures))
        return pictures.reshape(len(pictures), 12, -1).mean(axis=2).astype(np.float32)


@pytest.fixture
def network() -> Means:
    Means.calls.clear()
    return Means()


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(count)]


def test_features_are_computed_once(tmp_path: Path, network: Means) -> None:
    shown = pictures(20)
    keys = [content_key(index) for index in range(20)]
    first = ScoreCache(tmp_path).features(network, keys[:18], shown.__getitem__)
    assert Means.calls == [16, 2]
    cache = ScoreCache(tmp_path)
    again = cache.features(network, keys, shown.__getitem__)
    assert Means.calls == [16, 2, 2]
    assert (cache.hits, cache.misses) == (18, 2)
    np.testing.assert_array_equal(first, again[:18])
    np.testing.assert_array_equal(again, Means().features(np.stack(shown)))

    class Other(Means):
        name = "means 2"

    ScoreCache(tmp_path).features(Other(), keys, shown.__getitem__)
    assert sum(Means.calls) == 60  # another network shares nothing


def test_pictures_of_different_sizes_and_broken_entries(tmp_path: Path, network: Means) -> None:
    shown = [*pictures(2), np.zeros((12, 24, 3), np.uint8)]
    keys = [content_key("picture", index) for index in range(3)]
    cache = ScoreCache(tmp_path)
    first = cache.features(network, keys, shown.__getitem__)
    for path in tmp_path.glob("features/*/*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(ScoreCache(tmp_path).features(network, keys, shown.__getitem__), first)


def test_values_add_up_and_survive_damage(tmp_path: Path) -> None:
    key = content_key("a", "b")
    cache = ScoreCache(tmp_path)
    assert cache.values(key) == {}
    cache.add_values(key, {"m@1": Score(0.1 + 0.2)})
    cache.add_values(key, {"n@1": Score(None, "no face")})
    assert ScoreCache(tmp_path).values(key) == {"m@1": Score(0.1 + 0.2), "n@1": Score(None, "no face")}
    (path,) = tmp_path.glob("values/*/*.json")
    path.write_text("{")
    assert ScoreCache(tmp_path).values(key) == {}
    assert content_key("ab") != content_key("a", "b")


def test_inactive_reads_and_writes_nothing(tmp_path: Path, network: Means) -> None:
    ScoreCache(tmp_path).add_values("k" * 64, {"m": Score(1.0)})
    before = sorted(tmp_path.rglob("*"))
    cache = ScoreCache(tmp_path, active=False)
    assert cache.values("k" * 64) == {}
    cache.add_values("k" * 64, {"n": Score(1.0)})
    cache.features(network, ["a"], lambda index: pictures(1)[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_least_recently_used_goes_first(tmp_path: Path, network: Means, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.005")
    shown = pictures(40)
    keys = [content_key(index) for index in range(40)]
    cache = ScoreCache(tmp_path)
    cache.features(network, keys, shown.__getitem__)
    stored = sorted(tmp_path.glob("features/*/*.npy"))
    for position, path in enumerate(stored):
        os.utime(path, (position, position))
    cache.values("x")
    cache.prune()
    left = sorted(tmp_path.glob("features/*/*.npy"))
    assert left == stored[-len(left) :]
    assert 0 < sum(path.stat().st_size for path in left) <= 5000
    kept = ScoreCache(tmp_path)
    kept.features(network, keys, shown.__getitem__)
    assert kept.hits == len(left)
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(UsageError, match="megabytes"):
        ScoreCache(tmp_path)


def _write(folder: str, number: int) -> None:
    cache = ScoreCache(Path(folder))
    for step in range(60):
        cache.add_values(content_key(step), {f"metric {number}": Score(float(step)), "shared": Score(float(step))})
        assert cache.values(content_key(step))["shared"].value == step


def test_two_writers_leave_only_whole_entries(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = ScoreCache(tmp_path)
    assert [cache.values(content_key(step))["shared"].value for step in range(60)] == list(range(60))
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_second_scoring_computes_nothing(tmp_path: Path, network: Means, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.metrics.distribution import KidTruth
    from bench.metrics.fidelity import PsnrRgb

    monkeypatch.setattr(KidTruth, "network", network)
    restored, truth = tmp_path / "restored", tmp_path / "truth"
    rng = np.random.default_rng(1)
    for index, picture in enumerate(pictures(8)):
        name = f"p{index // 2}/{index % 2}.png"
        write_png(truth / name, picture)
        write_png(restored / name, np.clip(picture + rng.integers(-20, 21, picture.shape), 0, 255).astype(np.uint8))

    def score(metrics: list[str]) -> tuple[int, int, object, object]:
        found = score_folders(restored, truth, None, metrics, cache=ScoreCache(tmp_path / "cache"))
        return found.computed, found.reused, found.table.to_dict("list"), found.sets.to_dict("list")

    metrics = ["psnr_rgb", "kid_gt"]
    first = score(metrics)
    assert first[:2] == (8 + 16, 0)
    forbidden = pytest.MonkeyPatch()
    with forbidden.context() as patch:
        patch.setattr(PsnrRgb, "score", None)
        patch.setattr(Means, "features", None)
        second = score(metrics)
    assert second[:2] == (0, 24)
    assert repr(second[2:]) == repr(first[2:])
    # A picture that changed, and a metric that is new, are computed; the rest is not.
    write_png(restored / "p0/0.png", np.zeros((24, 24, 3), np.uint8))
    assert score(metrics)[:2] == (2, 22)
    assert score([*metrics, "psnr_y"])[:2] == (8, 24)
    identity = PsnrRgb.identity.fget(PsnrRgb())  # type: ignore[attr-defined]
    monkeypatch.setattr(PsnrRgb, "identity", identity + " changed")
    assert score(metrics)[:2] == (8, 16)
    # Renaming changes no content.
    (restored / "p3").rename(restored / "q3")
    (truth / "p3").rename(truth / "q3")
    assert score(metrics)[:2] == (0, 24)
