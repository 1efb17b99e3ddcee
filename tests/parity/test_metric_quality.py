"""HaarPSI, NIQE and BRISQUE computed a second time: from the papers in numpy, and by BasicSR, piq and scikit-learn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from metric_pictures import astronaut, batch_of, blurred, skimage_data, value
from scipy.signal import convolve2d

from bench.weights import catalogue


def _same(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """MATLAB's `conv2(..., 'same')`; scipy's keeps the other middle where the kernel's sides are even."""
    return np.rot90(convolve2d(np.rot90(picture, 2), np.rot90(kernel, 2), mode="same"), 2)


def _halved(channel: np.ndarray) -> np.ndarray:
    return _same(channel, np.full((2, 2), 0.25))[::2, ::2]


def _haar(luma: np.ndarray, scale: int, turn: bool) -> np.ndarray:
    kernel = np.full((2**scale, 2**scale), 2.0**-scale)
    kernel[: 2 ** (scale - 1)] *= -1
    return np.abs(_same(luma, kernel.T if turn else kernel))


def _alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (2 * one * other + 30.0) / (one**2 + other**2 + 30.0)


def haarpsi(truth: np.ndarray, restored: np.ndarray) -> float:
    """Reisenhofer et al. 2018, equations 9 to 14, with C = 30 and alpha = 4.2 on pictures of 0 to 255."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    one, other = ([_halved(channel) for channel in np.moveaxis(p @ to_yiq.T, 2, 0)] for p in (truth, restored))
    similarities, weights = [], []
    for turn in (False, True):
        pairs = [(_haar(one[0], scale, turn), _haar(other[0], scale, turn)) for scale in (1, 2, 3)]
        similarities.append((_alike(*pairs[0]) + _alike(*pairs[1])) / 2)
        weights.append(np.maximum(*pairs[2]))
    mean = np.full((2, 2), 0.25)
    colours = [_alike(np.abs(_same(one[i], mean)), np.abs(_same(other[i], mean))) for i in (1, 2)]
    similarities.append((colours[0] + colours[1]) / 2)
    weights.append((weights[0] + weights[1]) / 2)
    squashed = 1 / (1 + np.exp(-4.2 * np.stack(similarities)))
    pooled = (squashed * np.stack(weights)).sum() / np.stack(weights).sum()
    return float((np.log(pooled / (1 - pooled)) / 4.2) ** 2)


@pytest.mark.parametrize("size", [128, 127])
@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_haarpsi_is_the_papers(size: int, sigma: float) -> None:
    truth = astronaut(size)
    restored = blurred(truth, sigma)
    assert value("haarpsi", batch_of(restored, truth)) == pytest.approx(haarpsi(truth, restored), abs=5e-5)


def whole_luma(picture: np.ndarray) -> np.ndarray:
    """(H, W) float64 luma in whole levels, halves up, by whole numbers alone."""
    return ((picture.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000).astype(np.float64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "tolerance"), [("astronaut", 5e-3), ("soft", 2e-2), ("coffee", 5e-3)])
def test_niqe_is_basicsrs(name: str, tolerance: float) -> None:
    """BasicSR's numpy program on the same luma; it filters with `scipy` and stores a window of its own.

    Shapes are looked up on a grid of .001: where a picture is soft, the last bit of the window moves NIQE by .001.
    """
    from bench.degradation.basicsr_chain import import_basicsr
    from bench.errors import MissingError

    try:
        theirs = import_basicsr("basicsr.metrics.niqe")
    except MissingError as error:
        pytest.skip(str(error))
    picture = {
        "astronaut": skimage_data.astronaut()[:300, 60:450],
        "soft": blurred(skimage_data.astronaut()[:300, 60:450], 1.5),
        "coffee": skimage_data.coffee()[60:360, 100:490],
    }[name]
    picture = np.ascontiguousarray(picture)
    found = value("niqe", batch_of(picture, picture))
    with np.load(catalogue.locate("niqe_pris"), allow_pickle=False) as stored:
        parameters = [stored[own] for own in ("mu_pris_param", "cov_pris_param", "gaussian_window")]
    assert found == pytest.approx(theirs.niqe(whole_luma(picture), *parameters), abs=tolerance)


@pytest.mark.parametrize("name", ["astronaut", "soft", "coffee"])
def test_brisque_is_the_regression_on_its_features(name: str) -> None:
    """Luma in whole levels of the full range, features by piq, support vectors and kernel by scikit-learn.

    The studio range of 16 to 235 would be off by more than the tolerance on these pictures.
    """
    torch = pytest.importorskip("torch")
    brisque = pytest.importorskip("piq.brisque")
    imresize = pytest.importorskip("pyiqa.matlab_utils").imresize
    datasets = pytest.importorskip("sklearn.datasets")
    rbf_kernel = pytest.importorskip("sklearn.metrics.pairwise").rbf_kernel
    picture = {
        "astronaut": skimage_data.astronaut()[:256, :256],
        "soft": blurred(skimage_data.astronaut()[:256, :256], 1.5),
        "coffee": skimage_data.coffee()[100:356, 100:356],
    }[name]
    picture = np.ascontiguousarray(picture)
    found = value("brisque", batch_of(picture, picture))
    lines = catalogue.locate("brisque_allmodel").read_text("ascii").partition("\nSV\n")[2]
    vectors, coefficients = datasets.load_svmlight_file(io.BytesIO(lines.encode("ascii")), n_features=36)

    def regression(luma: np.ndarray) -> float:
        whole = torch.from_numpy(luma)[None, None]
        scales = [brisque._natural_scene_statistics(own) for own in (whole, imresize(whole, 0.5, antialiasing=True))]
        features = brisque._scale_features(torch.cat(scales, dim=-1)).numpy()
        return float((rbf_kernel(features, vectors.toarray(), gamma=0.05) @ coefficients).item() + 153.591)

    full = picture @ np.array([0.299, 0.587, 0.114])
    assert found == pytest.approx(regression(np.floor(full + 0.5)), abs=0.1)
    assert abs(found - regression(np.floor(16 + full * 219 / 255 + 0.5))) > 0.2
