"""The degradation chain: replay, seeds, gradients, and each operator against another implementation."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from bench.config import read_preset
from bench.degradation.basicsr_chain import import_basicsr
from bench.degradation.operators import build_operator
from bench.degradation.operators.blur import GaussianBlur
from bench.degradation.operators.jpeg import JPEG
from bench.degradation.operators.kernels import gaussian_kernel
from bench.degradation.operators.noise import GaussianNoise
from bench.degradation.operators.quantise import Quantise
from bench.degradation.operators.resize import Downscale, ResizeBack
from bench.degradation.pipeline import DegradationPipeline, replay
from bench.errors import MissingError, UsageError
from bench.image import read_image

SIZE = 64


def _pipeline(preset: str = "heavy", size: int = SIZE) -> DegradationPipeline:
    return DegradationPipeline(preset, read_preset("degradation", preset)["steps"], size)


def _pictures(count: int = 3, size: int = SIZE, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("preset", ["light", "heavy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replay_is_bit_equal_also_after_json(preset: str, dtype: torch.dtype) -> None:
    pipeline, images = _pipeline(preset), _pictures(dtype=dtype)
    thetas = pipeline.sample([1, 2, 3], (SIZE, SIZE))
    first = pipeline.apply(images, thetas)
    again = replay(images, json.loads(json.dumps(thetas)))
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert first.dtype == dtype
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


@pytest.mark.parametrize("preset", ["light", "heavy"])
def test_a_picture_is_degraded_alike_alone_and_in_a_batch(preset: str) -> None:
    pipeline, images = _pipeline(preset), _pictures(4)
    thetas = pipeline.sample([5, 6, 7, 8], (SIZE, SIZE))
    together = pipeline.apply(images, thetas)
    alone = torch.cat([pipeline.apply(images[row : row + 1], thetas[row : row + 1]) for row in range(4)])
    assert torch.equal(together, alone)


def test_parameters_depend_on_the_own_seed_alone() -> None:
    pipeline = _pipeline()
    together = pipeline.sample([11, 12, 13], (SIZE, SIZE))
    assert pipeline.sample([12], (SIZE, SIZE)) == [together[1]]
    assert pipeline.sample([13, 11], (SIZE, SIZE)) == [together[2], together[0]]
    assert together[0]["steps"] != together[1]["steps"]


def test_ranges_are_scaled_to_the_native_size_in_one_place() -> None:
    blur, downscale = _pipeline(size=128).operators[:2]
    assert isinstance(blur, GaussianBlur)
    assert isinstance(downscale, Downscale)
    assert blur.sigma == (2.0, 4.0)
    assert blur.kernel_size == 11
    assert downscale.scale == (2.0, 8.0)
    for seed in range(20):
        blur_record, down_record, *_ = _pipeline(size=128).sample([seed], (128, 128))[0]["steps"]
        assert 2 <= blur_record["sigma_x"] <= 4
        assert 16 <= down_record["height"] == down_record["width"] <= 64


@pytest.mark.parametrize(("sigma_x", "sigma_y", "angle"), [(2.0, 2.0, 0.0), (1.0, 3.5, 0.7), (4.0, 0.8, -2.4)])
def test_kernels_equal_basicsr(sigma_x: float, sigma_y: float, angle: float) -> None:
    try:
        degradations = import_basicsr("basicsr.data.degradations")
    except MissingError as error:
        pytest.skip(str(error))
    assert "torchvision.transforms.functional_tensor" not in sys.modules
    isotropic = sigma_x == sigma_y
    theirs = degradations.bivariate_Gaussian(21, sigma_x, sigma_y, angle, isotropic=isotropic)
    ours = gaussian_kernel(21, sigma_x, sigma_y, angle).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel_size", [5, 11, 41])
def test_blur_equals_opencv(kernel_size: int, dtype: torch.dtype) -> None:
    image = _pictures(1, dtype=dtype)[0]
    record = {"sigma_x": 1.5, "sigma_y": 3.0, "angle": 0.6, "kernel_size": kernel_size}
    blurred = _stateless(GaussianBlur).apply([image], [record])[0]
    kernel = gaussian_kernel(kernel_size, 1.5, 3.0, 0.6).numpy()
    expected = cv2.filter2D(_hwc(image), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(_hwc(blurred), expected, atol=tolerance, rtol=0)


def test_kernels_of_several_sizes_in_one_batch() -> None:
    images = list(_pictures(2))
    records = [{"sigma_x": 1.0, "sigma_y": 1.0, "angle": 0.0, "kernel_size": side} for side in (5, 13)]
    together = _stateless(GaussianBlur).apply(images, records)
    for image, record, found in zip(images, records, together, strict=True):
        torch.testing.assert_close(found, _stateless(GaussianBlur).apply([image], [record])[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(17, 23), (32, 32), (100, 80)])
def test_resize_equals_opencv_linear(height: int, width: int) -> None:
    image = _pictures(1)[0]
    resized = _stateless(Downscale).apply([image], [{"height": height, "width": width}])[0]
    expected = cv2.resize(_hwc(image), (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(_hwc(resized), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quality", [30, 75, 100])
def test_jpeg_equals_opencv(quality: int) -> None:
    image = _pictures(1)[0]
    compressed = _stateless(JPEG).apply([image], [{"quality": quality}])[0]
    bgr = np.rint(_hwc(image) * 255).astype(np.uint8)[..., ::-1]
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1] / 255.0
    np.testing.assert_allclose(_hwc(compressed), expected, atol=1e-12, rtol=0)


def test_noise_has_the_recorded_strength_and_may_be_grey() -> None:
    flat = torch.full((3, 200, 200), 0.5, dtype=torch.float64)
    records = [{"sigma": 10.0, "grey": grey, "seed": 4} for grey in (False, True)]
    coloured, grey = (_stateless(GaussianNoise).apply([flat], [record])[0] - flat for record in records)
    assert float(coloured.std()) * 255 == pytest.approx(10.0, rel=0.02)
    assert torch.equal(grey[0], grey[1])
    assert not torch.equal(coloured[0], coloured[1])


def _differentiable(images: Tensor) -> Tensor:
    """Blur, downscale, noise, resize back: the parts whose gradient is exact."""
    records: list[dict[str, Any]] = [
        {"sigma_x": 1.0, "sigma_y": 2.0, "angle": 0.4, "kernel_size": 5},
        {"height": 7, "width": 6},
        {"sigma": 2.0, "grey": False, "seed": 3},
        {"height": 12, "width": 12},
    ]
    pictures = list(images)
    for operator, record in zip((GaussianBlur, Downscale, GaussianNoise, ResizeBack), records, strict=True):
        pictures = _stateless(operator).apply(pictures, [record] * len(pictures))
    return torch.stack(pictures)


def test_gradient_equals_finite_differences() -> None:
    # Away from 0 and 1, where the noise step clips.
    images = _pictures(1, size=12).mul(0.4).add(0.3).requires_grad_()
    assert torch.autograd.gradcheck(_differentiable, (images,), eps=1e-6, atol=1e-6)


def test_gradient_through_the_whole_chain_is_finite_and_points_somewhere() -> None:
    pipeline = _pipeline("light")
    images = _pictures(2).mul(0.6).add(0.2).requires_grad_()
    pipeline.apply(images, pipeline.sample([1, 2], (SIZE, SIZE))).square().sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_jpeg_values_are_the_codecs_and_its_gradient_follows_brightness() -> None:
    """The differentiable rounding has slope 3 d^2 at distance d from a whole number: 1/4 on average."""
    image = _pictures(1)[0].mul(0.5).add(0.25).requires_grad_()
    compressed = _stateless(JPEG).apply([image], [{"quality": 80}])[0]
    with torch.no_grad():
        assert torch.equal(compressed, _stateless(JPEG).apply([image], [{"quality": 80}])[0])
    (gradient,) = torch.autograd.grad(compressed.mean(), image)
    assert torch.isfinite(gradient).all()
    assert 0.1 < float(gradient.sum()) < 1.1


def test_quantise_rounds_and_passes_the_gradient() -> None:
    image = _pictures(1)[0].requires_grad_()
    rounded = _stateless(Quantise).apply([image], [{}])[0]
    levels = rounded.detach() * 255
    assert float((levels - levels.round()).abs().max()) < 1e-9
    (gradient,) = torch.autograd.grad(rounded.sum(), image)
    assert torch.equal(gradient, torch.ones_like(image))


def test_light_is_milder_than_heavy_on_faces(orl_root: Path) -> None:
    def psnr(preset: str) -> list[float]:
        found = []
        for person in (1, 2, 3, 4, 5):
            clean = torch.from_numpy(read_image(orl_root / f"s{person}" / "1.pgm")).permute(2, 0, 1).double().div(255)
            pipeline = _pipeline(preset, 92)
            degraded = pipeline.apply(clean[None], pipeline.sample([person], tuple(clean.shape[1:])))[0]
            found.append(-10 * math.log10(float((degraded - clean).square().mean())))
        return found

    light, heavy = psnr("light"), psnr("heavy")
    assert float(np.mean(light)) > float(np.mean(heavy)) + 2
    assert all(one > other for one, other in zip(light, heavy, strict=True))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_channels_stay_in_order(channel: int) -> None:
    images = torch.full((1, 3, SIZE, SIZE), 0.2, dtype=torch.float64)
    images[:, channel] = 0.9
    pipeline = _pipeline()
    means = pipeline.apply(images, pipeline.sample([3], (SIZE, SIZE))).mean(dim=(0, 2, 3))
    assert int(means.argmax()) == channel
    others = [position for position in range(3) if position != channel]
    assert float(means[channel]) > float(means[others].max()) + 0.4


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"operator": "gaussian_blur", "sigma": [4, 2]}, r"gaussian_blur.sigma.*low <= high"),
        ({"operator": "downscale", "scale": [8, 1]}, r"downscale.scale"),
        ({"operator": "gaussian_noise", "sigma": [-1, 2]}, r"gaussian_noise.sigma"),
        ({"operator": "jpeg", "quality": [30, 101]}, r"must not exceed 100"),
        ({"operator": "jpeg", "quality": [30]}, r"two numbers"),
        ({"operator": "jpeg", "quality": "high"}, r"two numbers"),
        ({"operator": "gaussian_blur", "sigma": [1, 2], "kernel_size": 4}, r"odd"),
        ({"operator": "gaussian_blurr", "sigma": [1, 2]}, r"Did you mean 'gaussian_blur'"),
        ({"operator": "jpeg", "qualty": [1, 2]}, r"jpeg.*qualty"),
        ({"sigma": [1, 2]}, r"Unknown degradation operator"),
    ],
)
def test_wrong_presets_are_explained(step: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_operator(step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pictures_that_are_no_pictures_are_refused(value: float) -> None:
    pipeline, images = _pipeline(), _pictures(1)
    images[0, 1, 3, 3] = value
    with pytest.raises(UsageError, match="NaN or infinite"):
        pipeline.apply(images, pipeline.sample([1], (SIZE, SIZE)))


def test_records_that_do_not_fit_are_refused() -> None:
    light, images = _pipeline("light"), _pictures(2)
    thetas = light.sample([1, 2], (SIZE, SIZE))
    with pytest.raises(UsageError, match="2 pictures but 1 records"):
        light.apply(images, thetas[:1])
    unknown = {**thetas[1], "steps": [{"operator": "gausian_blur"}]}
    with pytest.raises(UsageError, match="gaussian_blur"):
        light.apply(images, [thetas[0], unknown])
    unfinished = {**thetas[1], "steps": [{"operator": "downscale", "height": 16, "width": 16}]}
    with pytest.raises(UsageError, match="resize_back"):
        light.apply(images, [thetas[0], unfinished])


def test_a_kernel_larger_than_the_picture_is_refused() -> None:
    record = {"sigma_x": 3.0, "sigma_y": 3.0, "angle": 0.0, "kernel_size": 41}
    with pytest.raises(UsageError, match="does not fit"):
        _stateless(GaussianBlur).apply([_pictures(1, size=16)[0]], [record])


def test_the_specification_names_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _pipeline().specification()["versions"]["jpeg"] == JPEG.version
    monkeypatch.setattr(JPEG, "version", 7)
    assert _pipeline().specification()["versions"]["jpeg"] == 7


def _stateless(operator: type) -> Any:
    """An operator whose ranges play no part: `apply` reads recorded parameters only."""
    return object.__new__(operator)


def _hwc(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.detach().permute(1, 2, 0).numpy())
