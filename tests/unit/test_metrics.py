"""Metrics against independent implementations, on colour pictures and real faces."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.errors import BenchError
from bench.metrics.metric import Metric, Score, ScoringBatch
from bench.registry import load_metric

cv2 = pytest.importorskip("cv2")
skimage_data = pytest.importorskip("skimage.data")
skimage_metrics = pytest.importorskip("skimage.metrics")

SIZE = 128
TOP, LEFT, SPAN = 40, 160, 128


def truth_picture() -> np.ndarray:
    """(128, 128, 3) colour crop with one face."""
    return np.ascontiguousarray(skimage_data.astronaut()[TOP : TOP + SPAN, LEFT : LEFT + SPAN])


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


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
    restored: np.ndarray,
    landmarks: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    references: list[np.ndarray] | None = None,
) -> ScoringBatch:
    truth = truth_picture() if truth is None else truth
    references = references or []
    return ScoringBatch(
        image_ids=["a"],
        restored=restored[None],
        truth=truth[None],
        references=[references],
        landmarks=None if landmarks is None else landmarks[None],
        reference_landmarks=None if landmarks is None else [np.stack([landmarks] * max(1, len(references)))],
        valid=np.ones((1, *restored.shape[:2]), dtype=bool) if valid is None else valid[None],
    )


def score(name: str, batch: ScoringBatch) -> Score:
    metric = load_metric(name)()
    reason = metric.unavailable()
    if reason:
        pytest.skip(reason)
    return metric.score_batch(batch)[0]


def value(name: str, batch: ScoringBatch) -> float:
    found = score(name, batch)
    assert found.value is not None, found.reason
    return found.value


def luma(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float64) / 255 @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize("degrade", [lambda p: blurred(p, 2.0), lambda p: noisy(p, 20.0)])
def test_psnr_and_ssim_equal_skimage(degrade) -> None:
    truth = truth_picture()
    restored = degrade(truth)
    batch = batch_of(restored)
    unit = truth / 255.0, restored / 255.0
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    assert value("psnr_rgb", batch) == pytest.approx(
        skimage_metrics.peak_signal_noise_ratio(*unit, data_range=1.0), abs=1e-5
    )
    assert value("psnr_y", batch) == pytest.approx(
        skimage_metrics.peak_signal_noise_ratio(luma(truth), luma(restored), data_range=1.0), abs=1e-5
    )
    _, full = skimage_metrics.structural_similarity(*unit, channel_axis=2, **settings)
    assert value("ssim_rgb", batch) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)
    _, full = skimage_metrics.structural_similarity(luma(truth), luma(restored), **settings)
    assert value("ssim_y", batch) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)


def test_pyiqa_gives_the_same_luma_figures() -> None:
    psnr_arch = pytest.importorskip("pyiqa.archs.psnr_arch")
    ssim_arch = pytest.importorskip("pyiqa.archs.ssim_arch")
    restored = blurred(truth_picture(), 2.0)
    batch = batch_of(restored)
    # pyiqa rounds Y to whole numbers for SSIM and works in float32.
    pair = batch.restored_tensor, batch.truth_tensor
    assert value("psnr_y", batch) == pytest.approx(float(psnr_arch.PSNR(test_y_channel=True)(*pair)), abs=1e-3)
    assert value("ssim_y", batch) == pytest.approx(float(ssim_arch.SSIM(test_y_channel=True)(*pair)), abs=1e-3)


def test_one_wrong_colour_channel_shows_as_it_should() -> None:
    truth = np.full((SIZE, SIZE, 3), 100, np.uint8)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        restored = truth.copy()
        restored[..., channel] += 51
        batch = batch_of(restored, truth=truth)
        assert value("psnr_rgb", batch) == pytest.approx(-10 * math.log10(0.2**2 / 3), abs=1e-4)
        assert value("psnr_y", batch) == pytest.approx(-20 * math.log10(0.2 * weight), abs=1e-4)


def test_identical_pictures_have_the_ceiling() -> None:
    batch = batch_of(truth_picture())
    assert value("psnr_rgb", batch) == 100.0
    assert value("ssim_rgb", batch) == pytest.approx(1.0)
    assert value("haarpsi", batch) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb", "haarpsi"])
def test_pixels_outside_the_photograph_count_for_nothing(name: str) -> None:
    truth = truth_picture()
    restored = blurred(truth, 1.0)
    valid = np.ones((SIZE, SIZE), dtype=bool)
    valid[:, -9:] = False
    spoilt = restored.copy()
    spoilt[:, -9:] = 255 - spoilt[:, -9:]
    assert value(name, batch_of(spoilt, valid=valid)) == value(name, batch_of(restored, valid=valid))
    assert value(name, batch_of(spoilt)) < value(name, batch_of(restored))


def test_masked_psnr_and_ssim_are_those_of_the_cut_out_picture() -> None:
    truth = truth_picture()
    restored = noisy(truth, 15.0)
    valid = np.zeros((SIZE, SIZE), dtype=bool)
    valid[20:100, 10:110] = True
    cut = batch_of(restored[20:100, 10:110], truth=truth[20:100, 10:110])
    for name in ("psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"):
        assert value(name, batch_of(restored, valid=valid)) == pytest.approx(value(name, cut), abs=1e-9)


def test_nothing_valid_is_null_with_a_reason() -> None:
    valid = np.zeros((SIZE, SIZE), dtype=bool)
    for name in ("psnr_y", "ssim_y"):
        found = score(name, batch_of(truth_picture(), valid=valid))
        assert found.value is None
        assert "photograph" in (found.reason or "")


def test_haarpsi_is_piqs() -> None:
    piq = pytest.importorskip("piq")
    batch = batch_of(blurred(truth_picture(), 2.0))
    expected = float(piq.haarpsi(batch.restored_tensor.double(), batch.truth_tensor.double()))
    assert value("haarpsi", batch) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["psnr_y", "ssim_y", "haarpsi", "id", "id_sface"])
def test_more_degradation_scores_lower(name: str, points: np.ndarray) -> None:
    truth = truth_picture()
    found = [value(name, batch_of(blurred(truth, sigma), points)) for sigma in (0.8, 2.0, 5.0)]
    assert found == sorted(found, reverse=True)
    assert value(name, batch_of(noisy(truth, 10.0), points)) > value(name, batch_of(noisy(truth, 80.0), points))


@pytest.mark.parametrize("name", ["id", "id_detected", "id_sface", "ips"])
def test_a_person_is_like_themselves(name: str, points: np.ndarray) -> None:
    truth = truth_picture()
    own = batch_of(truth, points, references=[truth, truth])
    tolerance = 0.02 if name == "id_detected" else 1e-6
    assert value(name, own) == pytest.approx(1.0, abs=tolerance)


def test_id_is_symmetric(points: np.ndarray) -> None:
    truth, other = truth_picture(), blurred(truth_picture(), 3.0)
    for name in ("id", "id_sface"):
        there = value(name, batch_of(other, points))
        back = value(name, batch_of(truth, points, truth=other))
        assert there == pytest.approx(back, abs=1e-6)


def test_ips_is_the_mean_over_references(points: np.ndarray) -> None:
    truth = truth_picture()
    restored, far = blurred(truth, 2.0), blurred(truth, 4.0)
    single = [value("ips", batch_of(restored, points, references=[other])) for other in (truth, far)]
    both = value("ips", batch_of(restored, points, references=[truth, far]))
    assert both == pytest.approx(np.mean(single), abs=1e-9)


def test_ips_without_references_or_landmarks_is_null(points: np.ndarray) -> None:
    restored = truth_picture()
    assert score("ips", batch_of(restored, points)) == Score(None, "needs references")
    batch = batch_of(restored, points, references=[restored])
    batch.reference_landmarks = [np.full((1, 5, 2), np.nan)]
    assert score("ips", batch) == Score(None, "a reference has no known landmarks")


def test_colour_order_reaches_the_recognisers(points: np.ndarray) -> None:
    swapped = np.ascontiguousarray(truth_picture()[..., ::-1])
    for name in ("id", "id_sface"):
        assert value(name, batch_of(swapped, points)) < 0.999


def test_landmarks_of_the_truth_itself_are_near(points: np.ndarray) -> None:
    batch = batch_of(truth_picture(), points)
    assert value("lmd_px", batch) == pytest.approx(0.0, abs=1e-9)
    assert value("lmd_px", batch_of(truth_picture(), points + np.array([3.0, 4.0]))) == pytest.approx(5.0, abs=1e-9)
    assert value("detected", batch) == 1.0


def test_a_face_that_is_not_found_has_its_price(points: np.ndarray) -> None:
    flat = np.full((SIZE, SIZE, 3), 128, np.uint8)
    batch = batch_of(flat, points)
    assert score("lmd_px", batch) == Score(None, "no face detected")
    assert score("id_detected", batch) == Score(None, "no face detected")
    assert value("detected", batch) == 0.0
    eyes = float(np.hypot(*(points[1] - points[0])))
    assert value("lmd_capped", batch) == pytest.approx(0.25 * eyes)
    assert value("lmd_capped", batch_of(truth_picture(), points + np.array([500.0, 0.0]))) == pytest.approx(0.25 * eyes)


def test_correlation_is_conv2d_in_any_layout() -> None:
    import torch
    from torch.nn.functional import conv2d

    from bench.metrics.common import correlate

    interleaved = torch.rand(2, 30, 23, 3, dtype=torch.float64).permute(0, 3, 1, 2)
    for images in (interleaved, interleaved.contiguous(), interleaved[:, :1]):
        channels = images.shape[1]
        for kernel in (torch.rand(1, 11), torch.rand(11, 1), torch.rand(7, 7)):
            weights = kernel.double()
            expected = conv2d(images, weights.expand(channels, 1, *kernel.shape), groups=channels)
            torch.testing.assert_close(correlate(images, weights), expected, rtol=0, atol=1e-12)


def test_niqe_and_brisque_are_pyiqas() -> None:
    """In float64, on a picture whose sides are no multiple of the blocks, without the faster filter."""
    import torch
    from pyiqa.archs import func_util
    from pyiqa.archs.brisque_arch import brisque
    from pyiqa.archs.niqe_arch import niqe
    from pyiqa.matlab_utils import imfilter

    from bench.metrics.no_reference import read_support_vectors
    from bench.weights import catalogue

    picture = noisy(np.ascontiguousarray(skimage_data.astronaut()[:211, :301]), 5.0)
    batch = batch_of(picture, truth=picture)
    found = {name: value(name, batch) for name in ("niqe", "brisque")}
    assert func_util.imfilter is imfilter
    with np.load(catalogue.locate("niqe_pris"), allow_pickle=False) as stored:
        mean, covariance = (torch.from_numpy(stored[f"{name}_pris_param"]).double() for name in ("mu", "cov"))
    rounded = (batch.restored_luma * 255).round()
    assert found["niqe"] == pytest.approx(float(niqe(rounded, mean.reshape(1, -1), covariance[None])), abs=1e-9)
    coefficients, vectors, gamma, rho = read_support_vectors(catalogue.locate("brisque_allmodel"))
    support = {"sv_coef": torch.from_numpy(coefficients), "sv": torch.from_numpy(vectors), "gamma": gamma, "rho": rho}
    assert found["brisque"] == pytest.approx(float(brisque(batch.restored_double, **support)), abs=1e-9)


def test_brisque_punishes_blur_and_noise() -> None:
    picture = np.ascontiguousarray(skimage_data.astronaut()[:256, :256])
    pictures = (picture, blurred(picture, 4.0), noisy(picture, 40.0))
    clean, soft, grainy = (value("brisque", batch_of(own, truth=picture)) for own in pictures)
    assert clean < min(soft, grainy)


def test_niqe_is_null_on_small_pictures_and_real_on_large_ones() -> None:
    small = score("niqe", batch_of(truth_picture()))
    assert small.value is None
    assert "192" in (small.reason or "")
    large = np.ascontiguousarray(skimage_data.astronaut()[:256, :256])
    sharp, soft = (value("niqe", batch_of(p, truth=large)) for p in (large, blurred(large, 4.0)))
    assert 0 < sharp < soft


@pytest.mark.parametrize("name", ["niqe", "brisque"])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_picture_is_said_to_be_flat(name: str, level: int) -> None:
    flat = np.full((200, 200, 3), level, np.uint8)
    assert score(name, batch_of(flat, truth=flat)) == Score(None, "the picture is flat")


def test_brisque_names_its_smallest_size() -> None:
    small = noisy(np.full((15, 40, 3), 128, np.uint8), 40.0)
    found = score("brisque", batch_of(small, truth=small))
    assert found.value is None
    assert found.reason and "16 px" in found.reason and "40x15" in found.reason


class Picky(Metric):
    """Mean of the picture, by an implementation that cannot stand black."""

    name = "picky"
    title = "Picky"
    higher_is_better = True
    licence = "none"
    error: Exception = RuntimeError()

    def score(self, batch: ScoringBatch) -> list[Score]:
        if not batch.restored.any(axis=(1, 2, 3)).all():
            raise self.error
        return [Score(float(own)) for own in batch.restored.mean(axis=(1, 2, 3))]


def batch_with_black() -> ScoringBatch:
    pictures = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (7, 0, 9)])
    return ScoringBatch(list("abc"), pictures, pictures, [[]] * 3, None, None, np.ones((3, 4, 4), dtype=bool))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "AssertionError"),
        (IndexError("index 1 is out of bounds"), "index 1 is out of bounds"),
        (ValueError("first line\nsecond line"), "first line"),
        (ZeroDivisionError("division by zero"), "division by zero"),
        (np.linalg.LinAlgError("singular"), "singular"),
    ],
)
def test_one_picture_costs_no_other_its_score(error: Exception, said: str) -> None:
    metric = Picky()
    metric.error = error
    found = metric.score_batch(batch_with_black())
    assert found == [Score(7.0), Score(None, f"Picky could not be computed: {said}"), Score(9.0)]


@pytest.mark.parametrize("error", [NotImplementedError("no score"), TypeError("a slip"), BenchError("weights")])
def test_what_is_no_pictures_fault_is_raised(error: Exception) -> None:
    metric = Picky()
    metric.error = error
    with pytest.raises(type(error)):
        metric.score_batch(batch_with_black())
