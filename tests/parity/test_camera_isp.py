"""Camera noise: the released chain in numbers (source in the fixture's JSON), and what ours keeps of a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor

from bench.degradation import camera
from bench.degradation.operators.camera_isp import DARK_EXPONENT, WHITE_SLOPE, CameraISP, through_camera
from bench.errors import UsageError

HERE = Path(__file__).parent
FIXTURE = "fixture_isp_a"


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return load_file(HERE / f"{FIXTURE}.safetensors")


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((HERE / f"{FIXTURE}.json").read_text())["config"]
    return config


def _psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * torch.log10((one.double() - other.double()).square().mean()))


def _record(**changes: Any) -> dict[str, Any]:
    quiet = {"shot": 0.0, "read": 0.0, "mix": [0.1, 0.2, 0.3, 0.4], "pattern": "RGGB", "gains": [0.8, 0.9]}
    return {**quiet, "curve": None, "mode": "default", "seed": 3, **changes}


def _photograph() -> Tensor:
    from skimage.data import astronaut

    return torch.from_numpy(astronaut().transpose(2, 0, 1).copy()).double().div(255).unsqueeze(0)


def _smooth_picture(height: int = 96, width: int = 96) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    waves = [torch.sin(x / 17 + phase) * torch.cos(y / 23 - phase) for phase in (0.0, 0.7, 1.9)]
    return 0.5 + 0.3 * torch.stack(waves).unsqueeze(0)


def test_camera_matrices_are_those_of_the_released_code(released):
    torch.testing.assert_close(torch.tensor(camera.CAMERA_FROM_XYZ), released["in.camera_matrices"], atol=1e-6, rtol=0)
    cameras = camera.camera_matrices(released["in.cam_mix_raw"].unsqueeze(0))
    torch.testing.assert_close(cameras[0], released["inter.xyz2cam_matrix"], atol=1e-6, rtol=0)


def test_way_to_the_sensor_is_that_of_the_released_code(released, settings):
    inverse = (released["in.icrf_B"], released["in.icrf_I"])
    linear = camera.look_up(released["in.rgb"], *inverse, interpolate=False)
    torch.testing.assert_close(linear, released["inter.linear_after_icrf"], atol=1e-5, rtol=0)
    xyz = camera.mix_channels(camera.srgb_decode(linear), torch.tensor(camera.XYZ_FROM_RGB))
    torch.testing.assert_close(xyz, released["inter.xyz"], atol=1e-5, rtol=0)
    cameras = camera.camera_matrices(released["in.cam_mix_raw"].unsqueeze(0))
    raw = camera.unprocess(released["in.rgb"], cameras, inverse, released=True)
    torch.testing.assert_close(raw, released["inter.cam"], atol=1e-5, rtol=0)
    sites = camera.mosaic(raw, settings["pattern"])
    torch.testing.assert_close(sites, released["inter.mosaic"], atol=1e-5, rtol=0)
    gains = camera.site_gains(torch.tensor([[settings["fr"], settings["fb"]]]), settings["pattern"], 64, 64)
    torch.testing.assert_close(gains, released["inter.wb_mask"], atol=0, rtol=0)
    strengths = (torch.tensor([settings["sigma_s"]]), torch.tensor([settings["sigma_c"]]))
    noisy = camera.add_sensor_noise(sites * gains, released["in.noise"], *strengths, released=True)
    torch.testing.assert_close(noisy, released["inter.noisy_mosaic"], atol=1e-5, rtol=0)


def test_way_back_is_that_of_the_released_code(released, settings):
    curve = (released["in.crf_I"], released["in.crf_B"])
    cameras = released["inter.xyz2cam_matrix"].unsqueeze(0)
    gains = released["inter.wb_mask"]
    for kind, sites in (("noisy", released["inter.noisy_mosaic"]), ("noisefree", released["inter.mosaic"] * gains)):
        raw = camera.demosaic((sites / gains).clamp(0, 1), settings["pattern"], zero_border=True).clamp(0, 1)
        torch.testing.assert_close(raw, released[f"inter.demosaic_{kind}"], atol=1e-5, rtol=0)
        picture = camera.process(raw, cameras, curve, released=True)
        difference = (picture - released[f"out.{kind}"]).abs()
        # A last bit may choose the neighbouring entry of the curve.
        assert float(difference.max()) <= 1e-2
        assert int((difference > 1e-5).sum()) <= 5
    encoded = camera.process(released["inter.demosaic_noisy"], cameras, released=True)
    torch.testing.assert_close(encoded, released["inter.rgb_before_crf_noisy"], atol=1e-5, rtol=0)
    xyz = camera.mix_channels(released["inter.demosaic_noisy"], torch.linalg.inv(cameras)).clamp(0, 1)
    torch.testing.assert_close(xyz, released["inter.xyz_back_noisy"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pattern", camera.BAYER_PATTERNS)
@pytest.mark.parametrize("size", [(24, 32), (17, 23), (18, 21)])
def test_demosaicing_is_malvars_also_at_the_border(pattern, size):
    sites = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = _malvar(sites[0, 0].numpy(), pattern)
    torch.testing.assert_close(camera.demosaic(sites, pattern)[0], torch.from_numpy(expected), atol=1e-12, rtol=0)


def _malvar(sites: np.ndarray, pattern: str) -> np.ndarray:
    """The published filters, applied everywhere and picked by site (Malvar et al. 2004, figure 2)."""
    green = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
    row = np.array([[0, 0, 1, 0, 0], [0, -2, 0, -2, 0], [-2, 8, 10, 8, -2], [0, -2, 0, -2, 0], [0, 0, 1, 0, 0]]) / 16
    other = np.array([[0, 0, -3, 0, 0], [0, 4, 0, 4, 0], [-3, 0, 12, 0, -3], [0, 4, 0, 4, 0], [0, 0, -3, 0, 0]]) / 16
    at_colour, in_row, in_column, at_other = (
        ndimage.correlate(sites, kernel, mode="mirror") for kernel in (green, row, row.T, other)
    )
    result = np.empty((3, *sites.shape))
    for y in range(sites.shape[0]):
        letters = pattern[:2] if y % 2 == 0 else pattern[2:]
        for x in range(sites.shape[1]):
            here, beside = letters[x % 2], letters[1 - x % 2]
            for channel, letter in enumerate("RGB"):
                if letter == here:
                    source = sites
                elif letter == "G":
                    source = at_colour
                elif here == "G":
                    source = in_row if letter == beside else in_column
                else:
                    source = at_other
                result[channel, y, x] = source[y, x]
    return result


@pytest.mark.parametrize("pattern", camera.BAYER_PATTERNS)
def test_without_noise_only_the_demosaicings_loss_remains(pattern):
    picture = _photograph()
    """By construction: picture and noise pass the demosaicing apart. The independent Malvar is SciPy's."""
    channels = np.array([["RGB".index(pattern[2 * (y % 2) + x % 2]) for x in range(512)] for y in range(512)])
    sites = np.take_along_axis(picture[0].numpy(), channels[None], 0)[0]
    alone = torch.from_numpy(_malvar(sites, pattern)).clamp(0, 1).unsqueeze(0)
    through = through_camera(picture, [_record(pattern=pattern)])
    assert _psnr(alone, picture) == pytest.approx(34.6, abs=0.15)
    assert _psnr(through, picture) > _psnr(alone, picture) - 0.3


@pytest.mark.parametrize("pattern", camera.BAYER_PATTERNS)
def test_the_physical_order_loses_more(pattern):
    """Mosaic and SciPy's Malvar in raw colours, between our colour steps, is what the mode raw makes."""
    picture = _photograph()
    record = _record(pattern=pattern, mode="raw")
    through = through_camera(picture, [record])
    assert _psnr(through, picture) == pytest.approx(30.1, abs=0.2)
    cameras = camera.camera_matrices(torch.tensor([record["mix"]], dtype=torch.float64))
    sites = camera.mosaic(camera.unprocess(picture, cameras), pattern)[0, 0].numpy()
    physical = camera.process(torch.from_numpy(_malvar(sites, pattern)).unsqueeze(0), cameras)
    torch.testing.assert_close(through, physical, atol=1e-6, rtol=0)


def test_noise_in_the_physical_order_is_that_of_the_sensor():
    """Where the picture is flat, both orders make the same picture of the same noise."""
    flat = torch.full((1, 3, 64, 64), 0.6, dtype=torch.float64)
    records = [_record(shot=5e-4, read=5e-5, mode=mode) for mode in ("default", "raw")]
    one, other = (through_camera(flat, [record]) for record in records)
    assert float((one - flat).abs().max()) > 0.02
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["default", "raw"])
@pytest.mark.parametrize("curve", [None, [0.68, -0.36]])
@pytest.mark.parametrize("size", [(96, 96), (95, 83)])
def test_a_smooth_picture_comes_back_borders_included(curve, size, mode):
    picture = _smooth_picture(*size)
    through = through_camera(picture, [_record(curve=curve, mode=mode)])
    assert _psnr(through, picture) > 45
    edge = torch.ones(picture.shape[2:], dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    assert _psnr(through[..., edge], picture[..., edge]) > 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponents", [None, [0.5, 0.5], [1.0, -0.7], [0.5, -0.2], [0.7, 0.0]])
def test_colours_come_back_without_the_mosaic(dtype, exponents):
    levels = torch.linspace(0, 1, 9, dtype=dtype)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 27)
    cameras = camera.camera_matrices(torch.tensor([[0.3, 0.1, 0.5, 0.1]], dtype=dtype))
    forward = inverse = None
    if exponents is not None:
        tables = camera.gamma_polynomial_curves(torch.tensor([exponents], dtype=dtype))
        forward, inverse = tables[:2], tables[2:]
    raw = camera.unprocess(colours, cameras, inverse)
    assert float(raw.max()) > 1
    assert _psnr(camera.process(raw, cameras, forward), colours) > 60


@pytest.mark.parametrize("pattern", camera.BAYER_PATTERNS)
def test_flat_colours_and_greys_stay_what_they_are(pattern):
    for colour in ([0.5, 0.5, 0.5], [0.9, 0.1, 0.2], [0.1, 0.2, 0.9]):
        flat = torch.tensor(colour, dtype=torch.float64).reshape(1, 3, 1, 1).expand(1, 3, 13, 14)
        torch.testing.assert_close(through_camera(flat, [_record(pattern=pattern)]), flat, atol=1e-6, rtol=0)
    grey = _photograph().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    through = through_camera(grey, [_record(pattern=pattern)])
    spread = (through - through.mean(1, keepdim=True)).square().mean()
    assert float(spread) < float((through - grey).square().mean())
    assert float((through.mean((0, 2, 3)) - grey.mean((0, 2, 3))).abs().max()) < 1e-3


@pytest.mark.parametrize(("shot", "read"), [(5e-4, 5e-5), (0.0, 1e-3), (0.01, 0.0)])
@pytest.mark.parametrize("light", [0.2, 0.6])
def test_noise_has_the_stated_variance(shot, read, light):
    sites = torch.full((1, 1, 300, 300), light, dtype=torch.float64)
    normal = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 300, 300)))
    strengths = (torch.tensor([shot]).double(), torch.tensor([read]).double())
    for released_code in (False, True):
        noisy = camera.add_sensor_noise(sites, normal, *strengths, released=released_code)
        assert float((noisy - sites).var()) == pytest.approx(shot * light + read, rel=0.03)


def test_noise_in_the_picture_is_that_of_the_sensor():
    """At a green site, with the colours undone, the whole chain's noise has the stated variance."""
    flat = torch.full((1, 3, 256, 256), 0.6, dtype=torch.float64)
    record = _record(shot=5e-4, read=5e-5)
    cameras = camera.camera_matrices(torch.tensor([record["mix"]], dtype=torch.float64))
    clean = camera.unprocess(flat, cameras)
    noise = camera.unprocess(through_camera(flat, [record]), cameras) - clean
    gains = {"R": (0, slice(0, None, 2), slice(0, None, 2), 0.8), "G": (1, slice(0, None, 2), slice(1, None, 2), 1.0)}
    for channel, rows, columns, gain in gains.values():
        light = float(clean[0, channel, 0, 0]) * gain
        measured = float(noise[0, channel, rows, columns].var()) * gain**2
        assert measured == pytest.approx(5e-4 * light + 5e-5, rel=0.04)


def test_noise_is_that_of_the_plain_chain():
    """Noise that passes the demosaicing apart from the picture gives what demosaicing the noisy mosaic gives."""
    picture = _smooth_picture()
    record = _record(shot=5e-4, read=5e-5)
    cameras = camera.camera_matrices(torch.tensor([record["mix"]], dtype=torch.float64))
    gains = camera.site_gains(torch.tensor([record["gains"]], dtype=torch.float64), "RGGB", *picture.shape[2:])
    normal = torch.from_numpy(np.random.default_rng(record["seed"]).standard_normal((1, 1, *picture.shape[2:])))
    sites = camera.mosaic(camera.unprocess(picture, cameras), "RGGB") * gains
    noisy = (sites + normal * (5e-4 * sites + 5e-5).sqrt()) / gains
    plain = camera.process(camera.demosaic(noisy, "RGGB"), cameras)
    through = through_camera(picture, [record])
    assert _psnr(through, plain) > _psnr(plain, picture) + 15


def test_saturation_keeps_colours_that_no_noise_moved():
    sites = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2], dtype=torch.float64).reshape(1, 1, 1, 5)
    strengths = (torch.tensor([0.0]).double(), torch.tensor([4.0]).double())
    up = camera.add_sensor_noise(sites, torch.ones_like(sites), *strengths)
    down = camera.add_sensor_noise(sites, -torch.ones_like(sites), *strengths)
    assert up.flatten().tolist() == [1.0, 1.0, 1.0, 1.0, 1.2]
    assert down.flatten().tolist() == [-0.1, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("dark", DARK_EXPONENT)
@pytest.mark.parametrize("white", WHITE_SLOPE)
@pytest.mark.parametrize("released_code", [False, True])
def test_response_curves_rise_and_follow_their_formula(dark, white, released_code):
    irradiance, brightness, levels, inverse = camera.gamma_polynomial_curves(
        torch.tensor([[dark, white - dark]], dtype=torch.float64), released_code
    )
    assert bool((brightness.diff() > 0).all())
    assert (float(brightness[0, 0]), float(brightness[0, -1])) == (0, 1)
    light = torch.linspace(0.001, 1, 777, dtype=torch.float64).unsqueeze(0)
    exact = light ** (dark + (white - dark) * light)
    tolerance = 1e-2 if released_code else 1e-4
    found = camera.look_up(light, irradiance, brightness, interpolate=not released_code)
    torch.testing.assert_close(found, exact, atol=tolerance, rtol=0)
    torch.testing.assert_close(camera.look_up(exact, levels, inverse), light, atol=tolerance, rtol=0)


def test_ranges_of_the_family_hold_a_measured_curve(released):
    """The least-squares fit of the fixture's curve, one of the measured ones, lies within the ranges."""
    from scipy.optimize import curve_fit

    irradiance, brightness = (released[name].double().numpy()[1:] for name in ("in.crf_I", "in.crf_B"))
    (dark, change), _ = curve_fit(lambda x, a0, a1: x ** (a0 + a1 * x), irradiance, brightness, p0=(0.7, 0.0))
    assert np.abs(irradiance ** (dark + change * irradiance) - brightness).max() < 0.03
    assert DARK_EXPONENT[0] <= dark <= DARK_EXPONENT[1]
    assert WHITE_SLOPE[0] <= dark + change <= WHITE_SLOPE[1]


def test_records_decide_alone_and_batches_change_nothing():
    operator = CameraISP(shot=[5e-5, 5e-4], read=[5e-6, 5e-5], response_curve="gamma_polynomial")
    pictures = list(torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    pictures.append(torch.rand(3, 21, 33, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    records = [operator.sample(np.random.default_rng(seed), (32, 32)) for seed in range(6)]
    assert len({record["pattern"] for record in records}) > 1
    records = json.loads(json.dumps(records))
    stateless = object.__new__(CameraISP)
    together = stateless.apply(pictures, records)
    for picture, record, result in zip(pictures, records, together, strict=True):
        assert torch.equal(stateless.apply([picture], [record])[0], result)
        assert result.shape == picture.shape
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
        single = stateless.apply([picture.float()], [record])[0]
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), result, atol=2e-3, rtol=0)


@pytest.mark.parametrize("mode", ["default", "raw", "released_code"])
@pytest.mark.parametrize("curve", [None, [0.7, -0.3]])
def test_gradient_is_that_of_the_chain(mode, curve):
    picture = (_smooth_picture(12, 11) * 0.8 + 0.1).requires_grad_()
    record = _record(shot=1e-4, read=1e-5, mode=mode, curve=curve)
    through_camera(picture, [record]).square().sum().backward()
    assert picture.grad is not None
    assert bool(torch.isfinite(picture.grad).all())
    assert float(picture.grad.abs().mean()) > 0.1
    if mode != "released_code":
        inner = picture.detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda image: through_camera(image, [record]), (inner,), atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_gradient_is_finite_at_black_and_white(level):
    picture = torch.full((1, 3, 8, 8), level, dtype=torch.float64, requires_grad=True)
    through_camera(picture, [_record(curve=[0.7, -0.3])]).sum().backward()
    assert picture.grad is not None
    assert bool(torch.isfinite(picture.grad).all())


def test_strengths_follow_their_ranges():
    plain = CameraISP(shot=[5e-5, 5e-4], read=[5e-6, 5e-5], patterns=["GRBG"])
    logarithmic = CameraISP(shot=[1e-4, 0.16], read=[1e-4, 0.06], log_uniform=True)
    drawn = [plain.sample(np.random.default_rng(seed), (8, 8)) for seed in range(300)]
    assert all(5e-5 <= one["shot"] <= 5e-4 and 5e-6 <= one["read"] <= 5e-5 for one in drawn)
    assert {one["pattern"] for one in drawn} == {"GRBG"}
    assert all(0.75 <= gain <= 1 for one in drawn for gain in one["gains"])
    logged = [logarithmic.sample(np.random.default_rng(seed), (8, 8)) for seed in range(300)]
    assert np.median([one["shot"] for one in logged]) == pytest.approx(4e-3, rel=0.5)
    assert {one["pattern"] for one in logged} == set(camera.BAYER_PATTERNS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patterns": ["RGBG"]},
        {"patterns": []},
        {"response_curve": "measured"},
        {"mode": "released"},
        {"shot": [0, 1e-4], "log_uniform": True},
        {"read": [1e-3, 1e-4]},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(UsageError, match=r"camera_isp.*(pattern|response_curve|mode|log_uniform|read)"):
        CameraISP(**{"shot": [5e-5, 5e-4], "read": [5e-6, 5e-5], **wrong})


def test_a_picture_too_small_is_refused():
    with pytest.raises(UsageError, match="3x9 px"):
        through_camera(torch.zeros(1, 3, 3, 9), [_record()])
