"""FID and KID against independent implementations, on random weights and random features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from bench.errors import UsageError
from bench.metrics import distribution
from bench.metrics.distribution import (
    FidFfhq,
    FidTruth,
    GroupedKernels,
    KidTruth,
    build_inception,
    frechet_distance,
    frechet_distance_of_sets,
    inception_features,
    kernel_distance,
    read_statistics,
    statistics,
)
from bench.metrics.set_metric import FeatureSet, shown_on_boards
from bench.registry import load_set_metric, set_metric_classes


def two_sets(count: int, other: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    first = np.abs(rng.normal(size=(count, dimensions)) @ mixing)
    second = np.abs(rng.normal(size=(other, dimensions)) @ mixing * 1.2 + 0.1)
    return first.astype(np.float32), second.astype(np.float32)


def formula_of_clean_fid(first: np.ndarray, second: np.ndarray) -> float:
    """The published formula through scipy's matrix root, as clean-fid and pytorch-fid compute it."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    apart = first.mean(0) - second.mean(0)
    return float(apart @ apart + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(np.real(root)))


@pytest.mark.parametrize(("count", "other"), [(300, 260), (40, 55)])
def test_fid_is_the_formula(count: int, other: int) -> None:
    first, second = two_sets(count, other, 64)
    expected = formula_of_clean_fid(first, second)
    assert frechet_distance(*statistics(first), *statistics(second)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance_of_sets(first, second) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance_of_sets(first, first) == pytest.approx(0, abs=1e-6)


def test_fid_and_kid_equal_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    first, second = two_sets(200, 200, 48)
    expected = fid._compute_fid(*map(torch.from_numpy, (*statistics(first), *statistics(second))))
    assert frechet_distance_of_sets(first, second) == pytest.approx(float(expected), rel=1e-7)
    theirs = kid.poly_mmd(torch.from_numpy(first).double(), torch.from_numpy(second).double())
    assert kernel_distance(first, second) == pytest.approx(float(theirs), rel=1e-9)


def test_kid_is_the_same_however_it_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_sets(60, 60, 16)
    groups = np.random.default_rng(1).integers(0, 7, 60)
    whole = kernel_distance(first, second)
    monkeypatch.setattr(distribution, "_KERNEL_ROWS", 11)
    grouped = GroupedKernels.of(first, second, groups)
    assert grouped.sizes.sum() == 60
    assert grouped.distance(np.ones(7)) == pytest.approx(whole, rel=1e-10)
    without = np.ones(7)
    without[3] = 0
    kept = groups != 3
    assert grouped.distance(without) == pytest.approx(kernel_distance(first[kept], second[kept]), rel=1e-10)


def test_inception_equals_another_port_of_the_same_random_weights() -> None:
    theirs_module = pytest.importorskip("pyiqa.archs.inception")
    torch.manual_seed(0)
    from torchvision.models import Inception3

    state = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1)
    theirs = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    blocks = [theirs_module.FIDInceptionA(size, pool) for size, pool in ((192, 32), (256, 64), (288, 64))]
    blocks += [theirs_module.FIDInceptionC(768, size) for size in (128, 160, 160, 192)]
    blocks += [theirs_module.FIDInceptionE_1(1280), theirs_module.FIDInceptionE_2(2048)]
    for name, block in zip(("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"), blocks, strict=True):
        setattr(theirs, f"Mixed_{name}", block)
    theirs.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    theirs.eval()
    picture = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    ours = inception_features(build_inception(state), picture)
    tensor = torch.from_numpy(picture).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.inference_mode():
        expected = theirs(torch.nn.functional.interpolate(tensor, size=(299, 299), mode="bilinear"))
    assert ours.shape == (2, 2048)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4 * scale)
    alone = inception_features(build_inception(state), picture[1:])
    np.testing.assert_allclose(alone[0], ours[1], atol=1e-4 * scale)


def test_other_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="not pytorch-fid's"):
        build_inception({"nothing": torch.zeros(1)})


def test_statistics_in_the_layout_of_gfpgan(tmp_path: Path) -> None:
    first, _ = two_sets(50, 2, 12)
    mean, covariance = statistics(first)
    path = tmp_path / "inception_FFHQ_512.pth"
    content = {"name": "FFHQ_512", "size": 512, "mean": mean, "cov": covariance}
    for new_format in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        found = read_statistics(path, 12)
        np.testing.assert_array_equal(found[0], mean)
        np.testing.assert_array_equal(found[1], covariance)
    # As NumPy 1 wrote it.
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(old)
    np.testing.assert_array_equal(read_statistics(path, 12)[0], mean)
    with pytest.raises(UsageError, match="features have 2048"):
        read_statistics(path)
    torch.save({"mean": mean}, path)
    with pytest.raises(UsageError, match="mean and covariance"):
        read_statistics(path, 12)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('executed').touch()",)


def test_statistics_execute_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mean": _Evil(), "cov": 1}, tmp_path / "evil.pth")
    with pytest.raises(UsageError):
        read_statistics(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_absent_weights_are_null_with_a_reason() -> None:
    first, second = two_sets(10, 10, 2048)
    for name, metric in set_metric_classes().items():
        assert load_set_metric(name) is metric
        reason = metric().unavailable()
        score = metric().score_set(FeatureSet(first, second, ["a"] * 10))
        if reason:
            assert score.value is None
            assert score.reason == reason
            assert "Inception" in reason or "FFHQ" in reason
            assert "Without a network" in reason


def test_intervals_hold_the_value_and_say_how_they_were_made() -> None:
    first, second = two_sets(60, 60, 32)
    people = [f"p{index // 5}" for index in range(60)]
    for metric in (FidTruth(), KidTruth()):
        score = metric.score(FeatureSet(first, second, people))
        assert score.value is not None
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
        assert "12 identities" in str(score.interval)
        single = metric.score(FeatureSet(first, second, ["p"] * 60))
        assert single.low is None
        assert single.value == pytest.approx(score.value, rel=1e-9)
    assert "biased" in str(FidTruth().score(FeatureSet(first, second, people)).interval)
    assert KidTruth().score_set(FeatureSet(first, None, people)).value is None


def test_ffhq_score_uses_the_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_sets(80, 90, 24)
    mean, covariance = statistics(second)
    torch.save({"mean": mean, "cov": covariance, "name": "x"}, tmp_path / "s.pth")
    monkeypatch.setattr("bench.weights.catalogue.locate", lambda name: tmp_path / "s.pth")
    score = FidFfhq().score(FeatureSet(first, None, ["a"] * 80))
    assert score.value == pytest.approx(formula_of_clean_fid(second, first), rel=1e-5)
    assert score.low is None


def test_boards_show_fid_only_for_large_sets() -> None:
    classes = list(set_metric_classes().values())
    assert [metric.name for metric in shown_on_boards(classes, 2047)] == ["kid_gt"]
    assert {metric.name for metric in shown_on_boards(classes, 2048)} == {"fid_gt", "fid_ffhq", "kid_gt"}


def test_names_are_explained() -> None:
    with pytest.raises(UsageError, match="fid_gt"):
        load_set_metric("fid_gd")
