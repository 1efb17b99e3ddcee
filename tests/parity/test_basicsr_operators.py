"""Every degradation operator against an independent implementation: BasicSR, OpenCV, SciPy, torchvision."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
from torch import Tensor

from bench.degradation.operators import OPERATORS
from bench.degradation.operators.blur import kernel_of
from bench.degradation.operators.kernels import motion_kernel
from tests.parity.basicsr_reference import USMSharp, degradations, filter2D, functional, imresize, usm_sharp

DTYPES = [torch.float32, torch.float64]
SHAPES = [(2.0, 2.0, 0.0), (1.0, 3.5, 0.7), (4.0, 0.8, -2.4), (0.2, 0.3, 1.0)]


def _apply(name: str, image: Tensor, **record: Any) -> Tensor:
    return object.__new__(OPERATORS[name]).apply([image], [record])[0]


def _picture(height: int = 96, width: int = 80, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth areas, edges and texture."""
    rng = np.random.default_rng(5)
    smooth = cv2.resize(rng.random((7, 6, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    smooth[height // 3 : height // 2, width // 4 :] += 0.3
    textured = np.clip(smooth + rng.normal(0, 0.05, smooth.shape), 0, 1)
    return torch.from_numpy(textured).permute(2, 0, 1).contiguous().to(dtype)


def _hwc(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.detach().permute(1, 2, 0).numpy())


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.parametrize("size", [7, 21])
@pytest.mark.parametrize(("sigma_x", "sigma_y", "angle"), SHAPES)
@pytest.mark.parametrize(
    ("family", "reference", "beta"),
    [
        ("anisotropic", "bivariate_Gaussian", None),
        ("generalised_anisotropic", "bivariate_generalized_Gaussian", 0.5),
        ("generalised_anisotropic", "bivariate_generalized_Gaussian", 3.7),
        ("plateau_anisotropic", "bivariate_plateau", 1.0),
        ("plateau_anisotropic", "bivariate_plateau", 1.9),
    ],
)
def test_kernels_equal_basicsr(
    family: str, reference: str, beta: float | None, sigma_x: float, sigma_y: float, angle: float, size: int
) -> None:
    record = {"kernel": family, "kernel_size": size, "sigma_x": sigma_x, "sigma_y": sigma_y, "angle": angle}
    shape = () if beta is None else (beta,)
    for isotropic in (False, True):
        if isotropic:
            record |= {"kernel": family.replace("anisotropic", "isotropic"), "sigma_y": sigma_x, "angle": 0.0}
        theirs = getattr(degradations, reference)(size, sigma_x, sigma_y, angle, *shape, isotropic=isotropic)
        np.testing.assert_allclose(kernel_of({**record, "beta": beta}).numpy(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize("cutoff", [math.pi / 5, math.pi / 3, 2.0, math.pi])
def test_sinc_kernel_equals_basicsr(size: int, cutoff: float) -> None:
    ours = kernel_of({"kernel": "sinc", "kernel_size": size, "cutoff": cutoff}).numpy()
    np.testing.assert_allclose(ours, degradations.circular_lowpass_kernel(cutoff, size), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("length", "angle"), [(0.0, 1.0), (1.0, 0.0), (2.5, 0.4), (9.0, 2.9), (6.3, math.pi / 2)])
def test_motion_kernel_equals_the_mean_along_its_path(length: float, angle: float) -> None:
    """SciPy interpolates an impulse at 20,001 points of the path."""
    kernel = motion_kernel(length, angle).numpy()
    half = kernel.shape[0] // 2
    steps = np.linspace(-0.5, 0.5, 20001) * length
    impulse = np.zeros((2 * half + 5, 2 * half + 5))
    impulse[half + 2, half + 2] = 1
    for y in range(-half, half + 1):
        for x in range(-half, half + 1):
            path = [half + 2 + steps * math.sin(angle) - y, half + 2 + steps * math.cos(angle) - x]
            mean = np.trapezoid(scipy.ndimage.map_coordinates(impulse, path, order=1)) / (len(steps) - 1)
            assert kernel[half + y, half + x] == pytest.approx(mean, abs=2e-4)
    assert kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 7, 11, 13, 21, 31])
@pytest.mark.parametrize("family", ["isotropic", "generalised_anisotropic", "sinc"])
def test_blur_equals_opencv_and_basicsr(family: str, size: int, dtype: torch.dtype) -> None:
    image = _picture(dtype=dtype)
    record = {"kernel": family, "kernel_size": size, "sigma_x": 2.0, "sigma_y": 3.0, "angle": 0.5, "beta": 0.8}
    record |= {"cutoff": 1.3, **({"sigma_y": 2.0, "angle": 0.0} if family == "isotropic" else {})}
    kernel = kernel_of(record)
    blurred = _apply("kernel_blur", image, **record)
    expected = cv2.filter2D(_hwc(image.double()), -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    np.testing.assert_allclose(_hwc(blurred), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(blurred[None], filter2D(image[None], kernel.to(image)[None]), atol=3e-6, rtol=0)


def test_motion_blur_equals_opencv() -> None:
    image = _picture()
    expected = cv2.filter2D(_hwc(image), -1, motion_kernel(12.4, 0.8).numpy(), borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(_hwc(_apply("motion_blur", image, length=12.4, angle=0.8)), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_median_equals_scipy_and_opencv(size: int, dtype: torch.dtype) -> None:
    image = _picture(dtype=dtype)
    found = _hwc(_apply("median_blur", image, kernel_size=size))
    expected = scipy.ndimage.median_filter(_hwc(image), size=(size, size, 1), mode="nearest")
    # Windows above 5 px are taken of 8 bits in float32: half a level.
    half_level = 0.5 / 255 + 1e-7 if size > 5 and dtype == torch.float32 else 0
    np.testing.assert_allclose(found, expected, atol=half_level, rtol=0)
    if size in (3, 5) and dtype == torch.float32:
        np.testing.assert_array_equal(found, cv2.medianBlur(_hwc(image), size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(17, 23), (48, 40), (96, 80), (150, 121)])
@pytest.mark.parametrize(("name", "code"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
def test_resize_equals_opencv(name: str, code: int, height: int, width: int, dtype: torch.dtype) -> None:
    image = _picture(dtype=dtype)
    found = _apply("resize", image, height=height, width=width, interpolation=name)
    expected = cv2.resize(_hwc(image), (width, height), interpolation=code)
    np.testing.assert_allclose(_hwc(found), expected, atol=2e-6 if dtype == torch.float64 else 1e-5, rtol=0)


@pytest.mark.parametrize("divisor", [2, 4, 5])
def test_area_resize_by_a_whole_factor_equals_opencv(divisor: int) -> None:
    image = _picture(100, 80)
    found = _apply("resize", image, height=100 // divisor, width=80 // divisor, interpolation="area")
    expected = cv2.resize(_hwc(image), (80 // divisor, 100 // divisor), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(_hwc(found), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["area", "bilinear", "bicubic"])
def test_resize_is_the_call_real_esrgan_makes(name: str) -> None:
    image = _picture()
    found = _apply("resize", image, height=61, width=33, interpolation=name)
    expected = torch.nn.functional.interpolate(image[None], size=(61, 33), mode=name)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(96, 80), (97, 83)])
def test_bicubic_downscale_equals_basicsrs_imresize(factor: int, height: int, width: int) -> None:
    image = _picture(height, width)
    found = _apply("bicubic_downscale", image, factor=factor)
    expected = imresize(image.float(), 1 / factor)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [51, 13])
def test_usm_sharpen_equals_basicsr(radius: int, dtype: torch.dtype) -> None:
    """Detail within rounding of the threshold may be masked otherwise: a pixel's share of the soft mask is small."""
    image = _picture(dtype=dtype)
    found = _apply("usm_sharpen", image, weight=0.5, kernel_size=radius, threshold=10)
    assert float((found - image).abs().max()) > 0.02
    np.testing.assert_allclose(_hwc(found), usm_sharp(_hwc(image), radius=radius), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.float()[None], USMSharp(radius)(image.float()[None]), atol=1e-5, rtol=0)


def test_gaussian_noise_has_basicsrs_strength() -> None:
    """Mean within 4 standard errors, standard deviation and the correlation of the channels within 1 %."""
    flat = torch.full((3, 256, 256), 0.5, dtype=torch.float64)
    for grey in (False, True):
        noise = (_apply("gaussian_noise", flat, sigma=12.0, grey=grey, seed=3) - flat).numpy()
        np.random.seed(0)  # noqa: NPY002 - BasicSR draws from the global generator
        theirs = degradations.generate_gaussian_noise(_hwc(flat).astype(np.float32), 12.0, grey).transpose(2, 0, 1)
        assert abs(noise.mean()) < 4 * noise.std() / 256
        assert noise.std() == pytest.approx(theirs.std(), rel=0.01)
        np.testing.assert_allclose(np.corrcoef(noise.reshape(3, -1)), np.corrcoef(theirs.reshape(3, -1)), atol=0.02)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_poisson_noise_has_basicsrs_distribution(grey: bool, scale: float) -> None:
    """Kolmogorov-Smirnov distance below the 0.1 % level, and no fewer photons: both noises live on the same lattice."""
    ramp = torch.linspace(0.2, 0.8, 200, dtype=torch.float64).mul(255).round().div(255)
    image = ramp.expand(3, 200, 200).contiguous()
    ours = (_apply("poisson_noise", image, scale=scale, grey=grey, seed=3) - image).numpy()
    torch.manual_seed(0)
    theirs = degradations.generate_poisson_noise_pt(image[None].float(), scale, float(grey))[0].numpy()
    if grey:
        np.testing.assert_array_equal(np.diff(theirs, axis=0), 0)
        np.testing.assert_allclose(np.diff(ours, axis=0), 0, atol=1e-15)
        ours, theirs = ours[:1], theirs[:1]
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    jitter = np.random.default_rng(0).uniform(-1, 1, (2, ours.size)) * scale / 1024
    result = scipy.stats.ks_2samp(ours.ravel() + jitter[0], theirs.ravel() + jitter[1])
    assert result.pvalue > 1e-3


@pytest.mark.parametrize("photons", [100.0, 3000.0])
def test_photon_counts_follow_the_poisson_distribution(photons: float) -> None:
    """Each level's counts against SciPy's distribution function: Kolmogorov-Smirnov distance below the 0.1 % level."""
    levels = np.array([0, 30, 64, 90, 125])
    image = torch.from_numpy(levels / 255).repeat_interleave(40).expand(3, 100, 200).contiguous()
    found = _apply("poisson_noise", image, photons=photons, grey=False, seed=9).numpy()
    assert float(found[..., :40].max()) == 0
    for position in range(1, 5):
        counts = np.rint(found[..., 40 * position : 40 * (position + 1)] * photons)
        grid = np.arange(int(counts.max()) + 1)
        shares = np.cumsum(np.bincount(counts.astype(int).ravel())) / counts.size
        distance = np.abs(shares - scipy.stats.poisson.cdf(grid, levels[position] / 255 * photons)).max()
        assert distance < 1.95 / math.sqrt(counts.size)


def test_photon_counts_equal_scipys_quantiles() -> None:
    from bench.degradation.operators.noise import _poisson_noise

    rng = np.random.default_rng(2)
    values, white = np.array([0.0, 0.004, 0.1, 0.5, 1.0]), 700.0
    uniform, rows = rng.random(4000), rng.integers(5, size=4000)
    counts = _poisson_noise(uniform, rows, values, white) * white + values[rows] * white
    np.testing.assert_allclose(counts, scipy.stats.poisson.ppf(uniform, values[rows] * white), atol=1e-8)


def _kair_covariance(seed: int) -> tuple[np.ndarray, list[list[float]]]:
    """The record's mixing matrix, and what NumPy's sampler makes of KAIR's matrix for the same draws."""
    record = OPERATORS["correlated_noise"](sigma=[25, 25]).sample(np.random.default_rng(seed), (8, 8))  # type: ignore[call-arg]
    rng = np.random.default_rng(seed)
    rng.uniform(25, 25)
    variances, raw = rng.random(3), rng.random((3, 3))
    basis = scipy.linalg.orth(raw)
    matrix = np.abs(basis.T @ np.diag(variances) @ basis)
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(3), matrix, 200_000, check_valid="ignore")
    return np.cov(draws.T), record["mixing"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correlated_noise_has_kairs_covariance(seed: int) -> None:
    """Within 2 % of the largest variance."""
    expected, mixing = _kair_covariance(seed)
    flat = torch.full((3, 300, 300), 0.5, dtype=torch.float64)
    noise = (_apply("correlated_noise", flat, sigma=10.0, mixing=mixing, seed=1) - flat).reshape(3, -1).numpy()
    found = np.cov(noise) * (255 / 10) ** 2
    np.testing.assert_allclose(found, expected, atol=0.02 * expected.max())


def test_speckle_noise_grows_with_the_picture() -> None:
    """KAIR's x + x n: the standard deviation is sigma times the brightness, within 1 %."""
    for brightness in (0.2, 0.6):
        flat = torch.full((3, 200, 200), brightness, dtype=torch.float64)
        noise = _apply("speckle_noise", flat, sigma=20.0, grey=False, seed=1) - flat
        assert float(noise.std()) == pytest.approx(brightness * 20 / 255, rel=0.01)
        grey = _apply("speckle_noise", flat, sigma=20.0, grey=True, seed=1) - flat
        torch.testing.assert_close(grey[0], grey[2], atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_equals_opencv_given_the_same_bytes(quality: int, dtype: torch.dtype) -> None:
    image = _picture(dtype=dtype)
    pixels = np.rint(_hwc(image) * 255).astype(np.uint8)
    _, content = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
    found = _hwc(_apply("jpeg", image, quality=quality))
    np.testing.assert_array_equal(np.rint(found * 255), expected)
    np.testing.assert_allclose(found, expected / 255, atol=1e-7, rtol=0)


def test_jpeg_is_close_to_basicsr() -> None:
    """BasicSR hands the codec floating point, which OpenCV casts itself: at least 45 dB between the two."""
    image = _picture()
    theirs = degradations.add_jpg_compression(_hwc(image)[..., ::-1].astype(np.float32), 75)[..., ::-1]
    assert _psnr(_hwc(_apply("jpeg", image, quality=75)), theirs) > 45


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("amount", [-0.3, 0.1, 0.4])
def test_colour_jitter_equals_torchvision(name: str, amount: float) -> None:
    image = _picture()
    factor = amount if name == "hue" else 1 + amount
    found = _apply("colour_jitter", image, order=[name], **{name: factor})
    expected = getattr(functional, f"adjust_{name}")(image, factor)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_colour_jitter_in_order_equals_torchvision() -> None:
    image = _picture()
    record = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.4, "hue": -0.08}
    for order in (["hue", "brightness", "saturation", "contrast"], ["contrast", "saturation", "brightness", "hue"]):
        expected = image
        for name in order:
            expected = getattr(functional, f"adjust_{name}")(expected, record[name])
        torch.testing.assert_close(_apply("colour_jitter", image, order=order, **record), expected, atol=1e-6, rtol=0)


def test_grey_equals_opencv() -> None:
    image = _picture(dtype=torch.float32)
    expected = cv2.cvtColor(_hwc(image), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(_hwc(_apply("grey", image)), np.tile(expected[:, :, None], [1, 1, 3]), atol=1e-6)


def test_kernel_families_are_drawn_as_often_as_basicsr_draws_them() -> None:
    """Shares within 0.03, and the shape falls below 1 half of the time."""
    weights = {"isotropic": 0.45, "generalised_anisotropic": 0.35, "sinc": 0.2}
    blur = OPERATORS["kernel_blur"](weights, sigma=[0.2, 3])  # type: ignore[call-arg]
    records = [blur.sample(np.random.default_rng(seed), (512, 512)) for seed in range(2000)]
    for name, weight in weights.items():
        assert sum(record["kernel"] == name for record in records) / 2000 == pytest.approx(weight, abs=0.03)
    shapes = [record["beta"] for record in records if "beta" in record]
    assert np.mean(np.array(shapes) < 1) == pytest.approx(0.5, abs=0.06)
    sides = [record["kernel_size"] for record in records]
    assert set(sides) == set(range(7, 22, 2))
    cutoffs = [(record["kernel_size"], record["cutoff"]) for record in records if "cutoff" in record]
    assert all((math.pi / 3 if side < 13 else math.pi / 5) <= cutoff <= math.pi for side, cutoff in cutoffs)
    assert min(cutoff for _, cutoff in cutoffs) < math.pi / 4
