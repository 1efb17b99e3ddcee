"""Region, 68-point, reference and published identity metrics, and the goldens of SSIM's two colour conventions."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import BenchError
from bench.faces.remembered import Remembered, picture_key
from bench.metrics.metric import Score, ScoringBatch
from bench.registry import load_metric

cv2 = pytest.importorskip("cv2")
skimage_data = pytest.importorskip("skimage.data")

SIZE = 192


def truth_picture(size: int = SIZE) -> np.ndarray:
    """(size, size, 3) colour crop with one face."""
    crop = skimage_data.astronaut()[40:168, 160:288]
    return np.ascontiguousarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_CUBIC))


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    from bench.faces.detector import detect_main_face

    try:
        face = detect_main_face(truth_picture())
    except BenchError as error:
        pytest.skip(str(error))
    assert face is not None
    return face.points


def batch_of(
    restored: list[np.ndarray], points: np.ndarray | None = None, references: list[np.ndarray] | None = None
) -> ScoringBatch:
    count, (height, width) = len(restored), restored[0].shape[:2]
    given = references or []
    return ScoringBatch(
        image_ids=[str(index) for index in range(count)],
        restored=np.stack(restored),
        truth=np.stack([truth_picture(height)] * count),
        references=[given] * count,
        landmarks=None if points is None else np.stack([points] * count),
        reference_landmarks=None if points is None else [np.stack([points] * max(1, len(given)))] * count,
        valid=np.ones((count, height, width), dtype=bool),
    )


def scored(name: str, batch: ScoringBatch) -> list[Score]:
    metric = load_metric(name)()
    if reason := metric.unavailable():
        pytest.skip(reason)
    return metric.score_batch(batch)


def values(name: str, batch: ScoringBatch) -> list[float]:
    found = []
    for value, reason in scored(name, batch):
        assert value is not None, reason
        found.append(value)
    return found


def test_ms_ssim_agrees_with_three_packages() -> None:
    """piq to 1e-6, torchmetrics to 1e-3 (it treats borders otherwise), pyiqa, which rounds the luma, to 5e-4."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    pyiqa_ssim = pytest.importorskip("pyiqa.archs.ssim_arch")
    truth = truth_picture(256)
    batch = batch_of([blurred(truth, 1.5), blurred(truth, 4.0)])
    found = values("ms_ssim", batch)
    piq = pytest.importorskip("piq")
    piqs = piq.multi_scale_ssim(batch.restored_luma, batch.truth_luma, data_range=1.0, reduction="none")
    assert found == pytest.approx(piqs.flatten().tolist(), abs=1e-6)
    theirs = [
        float(
            functional.multiscale_structural_similarity_index_measure(
                restored[None], true[None], data_range=1.0, gaussian_kernel=True, sigma=1.5, normalize="relu"
            )
        )
        for restored, true in zip(batch.restored_luma, batch.truth_luma, strict=True)
    ]
    assert found == pytest.approx(theirs, abs=1e-3)
    pyiqas = pyiqa_ssim.MS_SSIM(test_y_channel=True)(batch.restored_tensor, batch.truth_tensor).tolist()
    assert found == pytest.approx(pyiqas, abs=5e-4)
    assert 1 > found[0] > found[1] > 0
    odd = batch_of([blurred(truth_picture(253), 2.0)])
    theirs = piq.multi_scale_ssim(odd.restored_luma, odd.truth_luma, data_range=1.0)
    assert values("ms_ssim", odd) == pytest.approx([float(theirs)], abs=1e-6)


def test_ms_ssim_is_null_where_its_fifth_scale_does_not_fit() -> None:
    value, reason = scored("ms_ssim", batch_of([truth_picture(160)]))[0]
    assert value is None
    assert "161" in (reason or "")


def test_ssim_of_luma_is_not_ssim_of_rgb() -> None:
    """Goldens of one picture pair by scikit-image: papers mix the two conventions, and the numbers tell them apart."""
    generator = np.random.default_rng(0)
    noisy = np.clip(truth_picture() + generator.normal(0, 15, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    batch = batch_of([noisy])
    golden = {"ssim_y": 0.7086, "ssim_rgb": 0.5617, "psnr_y": 28.2234, "psnr_rgb": 24.7867}
    found = {name: values(name, batch)[0] for name in ("ssim_y", "ssim_rgb", "psnr_y", "psnr_rgb")}
    assert found == pytest.approx(golden, abs=1e-4)


def test_psnr_of_a_region_sees_that_region_alone(points: np.ndarray) -> None:
    from bench.faces.regions import region_masks

    truth = truth_picture()
    masks = region_masks(points, SIZE, SIZE)
    assert not (masks["eyes"] & masks["mouth"]).any()
    assert not (masks["skin"] & (masks["eyes"] | masks["mouth"])).any()
    for region in ("eyes", "mouth", "skin"):
        spoilt = truth.copy()
        spoilt[masks[region]] = 255 - spoilt[masks[region]]
        batch = batch_of([spoilt], points)
        for other in ("eyes", "mouth", "skin"):
            found = values(f"psnr_{other}", batch)[0]
            assert (found < 40) if other == region else found == 100.0
        luma = [picture[masks[region]] / 255 @ (0.299, 0.587, 0.114) for picture in (spoilt, truth)]
        expected = -10 * np.log10(np.mean((luma[0] - luma[1]) ** 2))
        assert values(f"psnr_{region}", batch)[0] == pytest.approx(expected, abs=1e-5)


def test_regions_follow_the_points_and_turn_with_the_face(points: np.ndarray) -> None:
    from bench.faces.regions import region_masks

    turned = np.stack([SIZE - 1 - points[:, 1], points[:, 0]], axis=1)
    upright, aside = region_masks(points, SIZE, SIZE), region_masks(turned, SIZE, SIZE)
    for name, mask in upright.items():
        assert (np.rot90(mask, -1) != aside[name]).mean() < 0.002
    larger = region_masks(points * 2 + 0.5, 2 * SIZE, 2 * SIZE)
    for name, mask in upright.items():
        assert larger[name].sum() == pytest.approx(4 * mask.sum(), rel=0.03)


@pytest.mark.parametrize("region", ["eyes", "mouth", "skin"])
def test_sharpness_is_one_for_the_truth_and_falls_with_blur(region: str, points: np.ndarray) -> None:
    truth = truth_picture()
    found = values(f"sharpness_{region}", batch_of([truth, blurred(truth, 1.5), blurred(truth, 4.0)], points))
    assert found[0] == pytest.approx(1.0, abs=1e-12)
    assert 1 > found[1] > found[2] > 0


def test_sharpness_is_the_ratio_of_sobel_gradients(points: np.ndarray) -> None:
    from bench.faces.regions import region_masks

    truth, soft = truth_picture(), blurred(truth_picture(), 2.0)
    mask = region_masks(points, SIZE, SIZE)["eyes"]
    energies = []
    for picture in (soft, truth):
        luma = picture / 255 @ np.array([0.299, 0.587, 0.114])
        slopes = [cv2.Sobel(luma, cv2.CV_64F, *axis, borderType=cv2.BORDER_REPLICATE) for axis in ((1, 0), (0, 1))]
        energies.append(float(sum(slope[mask] ** 2 for slope in slopes).sum()))
    expected = np.sqrt(energies[0] / energies[1])
    assert values("sharpness_eyes", batch_of([soft], points))[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("level", [0, 60, 128, 200, 255])
def test_sharpness_against_a_flat_truth_is_null(level: int, points: np.ndarray) -> None:
    """Rounding leaves a flat ground truth's gradients tiny, not zero; a step of one level still counts."""
    batch = batch_of([truth_picture()], points)
    flat = np.full((1, SIZE, SIZE, 3), level, np.uint8)
    value, reason = scored("sharpness_skin", replace(batch, truth=flat))[0]
    assert value is None
    assert reason and "flat" in reason
    stepped = flat.copy()
    stepped[:, :, : SIZE // 2, 2] ^= 1
    assert values("sharpness_skin", replace(batch, truth=stepped))[0] > 1


def test_dlib_is_named_whoever_built_it(points: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.faces import dlib_judge, points68
    from bench.metrics import common

    if points68.unavailable():
        pytest.skip("needs dlib")
    installed = {"dlib": "19.24.9"}
    monkeypatch.setattr(common, "version", lambda name: installed.get(name, "absent"))
    assert "dlib 19.24.9" in points68.predictor_identity()
    assert "dlib 19.24.9" in dlib_judge.judge_identity()
    assert dlib_judge.unavailable() is None
    installed.clear()
    for reason in (points68.unavailable(), dlib_judge.unavailable()):
        assert reason and "dlib-bin" in reason


def test_68_points_lie_where_the_five_do(points: np.ndarray) -> None:
    from bench.faces import points68

    if reason := points68.unavailable():
        pytest.skip(reason)
    found = points68.points_68(truth_picture(), points)
    assert found.shape == (68, 2)
    eyes = np.linalg.norm(points[1] - points[0])
    five = np.stack([found[36:42].mean(0), found[42:48].mean(0), found[30], found[48], found[54]])
    assert np.linalg.norm(five - points, axis=1).max() < 0.2 * eyes


def test_68_point_distances_are_zero_for_the_truth_and_squared_where_named(points: np.ndarray) -> None:
    truth = truth_picture()
    batch = batch_of([truth, blurred(truth, 3.0)], points)
    distances, squares = values("lmd_dlib68", batch), values("lmse_dlib68", batch)
    assert distances[0] == pytest.approx(0.0, abs=1e-9)
    assert squares[0] == pytest.approx(0.0, abs=1e-9)
    assert distances[1] > 0
    assert squares[1] >= distances[1] ** 2
    flat = np.full_like(truth, 128)
    assert scored("lmd_dlib68", batch_of([flat], points)) == [Score(None, "no face detected")]


def fake_facer(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """FaRL's files are not to be had without a network: a package of its form, to test what is asked of it."""
    import torch

    class Detector:
        def __call__(self, images: Any) -> dict[str, Any]:
            assert images.dtype == torch.uint8
            assert images.shape[1] == 3
            if images.float().std() < 1:
                empty = torch.zeros(0)
                return {"rects": empty, "points": empty, "scores": empty, "image_ids": empty}
            boxes = torch.tensor([[0.0, 0, 9, 9], [10.0, 10, 90, 90]])
            return {
                "rects": boxes,
                "points": torch.zeros(2, 5, 2),
                "scores": torch.ones(2),
                "image_ids": torch.zeros(2, dtype=torch.long),
            }

    class Aligner:
        def __call__(self, images: Any, faces: dict[str, Any]) -> dict[str, Any]:
            assert faces["rects"].tolist() == [[10.0, 10, 90, 90]]
            offset = shift * float(images.float().mean() < 100)
            return {"alignment": torch.arange(136.0).reshape(1, 68, 2) + torch.tensor([0.0, offset])}

    module = types.ModuleType("facer")
    module.face_detector = lambda name, **_: {"retinaface/mobilenet": Detector()}[name]  # type: ignore[attr-defined]
    module.face_aligner = lambda name, **_: {"farl/ibug300w/448": Aligner()}[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "facer", module)
    from bench.faces import farl

    farl._networks.cache_clear()
    monkeypatch.setattr(farl, "_found", Remembered())
    monkeypatch.setattr(farl, "unavailable", lambda: None)
    monkeypatch.setattr("bench.weights.catalogue.locate", Path)


def test_farl_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_facer(monkeypatch, 3.0)
    dark = (truth_picture() // 3).astype(np.uint8)
    truth = np.maximum(truth_picture(), 110)
    batch = replace(batch_of([dark, np.full_like(dark, 7)]), truth=np.stack([truth] * 2))
    assert scored("lmd_farl", batch) == [Score(pytest.approx(3.0)), Score(None, "no face detected")]
    assert scored("lmse_px2", batch)[0] == Score(pytest.approx(9.0))
    flat = replace(batch_of([dark]), truth=np.full((1, SIZE, SIZE, 3), 9, np.uint8))
    assert scored("lmse_px2", flat) == [Score(None, "no face detected in the ground truth")]


def test_farl_without_its_package_or_files_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    value, reason = load_metric("lmse_px2")().score_batch(batch_of([truth_picture()]))[0]
    assert value is None
    assert reason and "pyfacer" in reason


def test_ips_sface_is_the_mean_over_references(points: np.ndarray) -> None:
    truth = truth_picture()
    soft, far = blurred(truth, 2.0), blurred(truth, 5.0)
    single = [values("ips_sface", batch_of([soft], points, [own]))[0] for own in (truth, far)]
    assert values("ips_sface", batch_of([soft], points, [truth, far]))[0] == pytest.approx(np.mean(single), abs=1e-9)
    assert values("ips_sface", batch_of([truth], points, [truth]))[0] == pytest.approx(1.0, abs=1e-6)
    # With the ground truth as the only reference, IPS is ID.
    assert single[0] == pytest.approx(values("id_sface", batch_of([soft], points))[0], abs=1e-6)


@pytest.fixture
def recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Writes an ONNX recogniser with random weights where w600k_r50 is looked for."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(side: int) -> Path:
        from onnx import TensorProto, helper, numpy_helper

        generator = np.random.default_rng(0)
        kernel = generator.normal(0, 0.2, (16, 3, 7, 7)).astype(np.float32)
        head = generator.normal(0, 0.2, (16 * 4, 512)).astype(np.float32)
        steps = [
            helper.make_node("Conv", ["input.1", "kernel"], ["a"], strides=[4, 4]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[13, 13], strides=[13, 13]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("MatMul", ["d", "head"], ["683"]),
        ]
        graph = helper.make_graph(
            steps,
            "recogniser",
            [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["None", 3, side, side])],
            [helper.make_tensor_value_info("683", TensorProto.FLOAT, ["None", 512])],
            [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(head, "head")],
        )
        path = tmp_path / "weights" / "w600k_r50.onnx"
        path.parent.mkdir(exist_ok=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, str(path))
        return path

    return write


def test_buffalo_is_insightfaces_own_call(points: np.ndarray, recogniser: Callable[[int], Path]) -> None:
    arcface = pytest.importorskip("insightface.model_zoo.arcface_onnx")
    face_align = pytest.importorskip("insightface.utils.face_align")
    path = recogniser(112)
    theirs = arcface.ArcFaceONNX(model_file=str(path))
    truth, soft = truth_picture(), blurred(truth_picture(), 3.0)

    def embed(picture: np.ndarray) -> np.ndarray:
        crop = face_align.norm_crop(np.ascontiguousarray(picture[..., ::-1]), points.astype(np.float32), 112)
        return theirs.get_feat(crop).flatten()

    expected = float(theirs.compute_sim(embed(soft), embed(truth)))
    assert values("id_buffalo_l", batch_of([soft], points))[0] == pytest.approx(expected, abs=1e-5)
    found = values("ips_buffalo_l", batch_of([soft], points, [truth, soft]))[0]
    assert found == pytest.approx((expected + 1) / 2, abs=1e-5)


def test_a_network_that_is_no_recogniser_is_refused(points: np.ndarray, recogniser: Callable[[int], Path]) -> None:
    path = recogniser(96)
    value, reason = load_metric("id_buffalo_l")().score_batch(batch_of([truth_picture()], points))[0]
    assert value is None
    assert reason and "w600k_r50.onnx" in reason and str(path) in reason


def test_buffalo_without_its_file_says_how_to_get_it(
    points: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    value, reason = load_metric("id_buffalo_l")().score_batch(batch_of([truth_picture()], points))[0]
    assert value is None
    assert reason and "non-commercial" in reason and ".insightface" in reason


def test_what_is_remembered_does_not_grow() -> None:
    store: Remembered[int] = Remembered(capacity=3)
    keys = [picture_key(np.full((2, 2), number)) for number in range(5)]
    for number, key in enumerate(keys[:3]):
        store[key] = number
    assert store[keys[0]] == 0
    store[keys[3]] = 3
    assert len(store) == 3
    assert keys[0] in store
    assert keys[1] not in store
    assert picture_key(np.zeros((1, 4))) != picture_key(np.zeros((4, 1)))


def test_a_batch_converts_each_picture_once() -> None:
    calls = []
    batch = batch_of([truth_picture()])
    assert batch.restored_tensor is batch.restored_tensor
    assert batch.restored_luma is batch.restored_luma
    assert batch.once("key", lambda: calls.append(1) or 7) == 7
    assert batch.once("key", lambda: calls.append(1) or 8) == 7
    assert len(calls) == 1
    assert replace(batch, restored=batch.restored.copy()).once("key", lambda: 9) == 9


def test_noise_is_measured_for_the_metrics_as_they_are() -> None:
    from bench.metrics.noise_check import bettered_by_noise, noise_effects

    effects = noise_effects()
    assert {"niqe", "brisque"} <= set(effects)
    for name, entry in effects.items():
        metric = load_metric(name)()
        if metric.unavailable() is None:
            assert bettered_by_noise(name, metric.identity) is entry["bettered"]
        assert bettered_by_noise(name, "another") is None
        worse = not metric.higher_is_better
        gains = [(own["before"] - own["after"]) * (1 if worse else -1) for own in entry["measured"].values()]
        assert entry["bettered"] == any(gain > 0 for gain in gains)


@pytest.mark.parametrize("name", ["full", "no_reference", "regions", "standard"])
def test_metric_sets_name_what_exists(name: str) -> None:
    from bench.config import read_preset
    from bench.registry import metric_classes

    content = read_preset("metrics", name)
    assert set(content["names"]) <= set(metric_classes())
    assert len(set(content["names"])) == len(content["names"])
    for key in ("claims", "not_lost", "tied"):
        assert set(content[key]) <= set(content["names"])
        assert all(metric_classes()[own].higher_is_better is not None for own in content[key])
