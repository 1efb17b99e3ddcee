"""What every degradation operator and every preset must do; new ones are picked up by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.config import group_choices, read_preset
from bench.degradation.operator import Operator
from bench.degradation.operators import OPERATORS, build_operator
from bench.degradation.operators.control import CleanPassThrough, Maybe, OneOf, Shuffle
from bench.degradation.pipeline import PRESET_SIZE, DegradationPipeline, replay
from bench.errors import UsageError

LEVEL = 1 / 255
SIZES = ((128, 128), (97, 131), (20, 20))
PRESETS = sorted(group_choices("degradation"))
NOISE = {"operator": "gaussian_noise", "sigma": [5, 9]}
JPEG = {"operator": "jpeg", "quality": [40, 60]}
KERNELS = {
    "isotropic": 1,
    "anisotropic": 1,
    "generalised_isotropic": 1,
    "generalised_anisotropic": 1,
    "plateau_isotropic": 1,
    "plateau_anisotropic": 1,
    "sinc": 1,
}
#: How each operator is asked for, with lengths for 512 px.
EXAMPLES: dict[str, dict[str, Any]] = {
    "bicubic_downscale": {"factor": 4},
    "camera_isp": {"shot": [1e-4, 1e-3], "read": [1e-5, 1e-4], "response_curve": "gamma_polynomial"},
    "clean_pass_through": {"probability": 0.3, "otherwise": [NOISE]},
    "colour_jitter": {},
    "colour_shift": {"shift": 20},
    "correlated_noise": {"sigma": [5, 25]},
    "downscale": {"scale": [2, 8], "interpolation": ["bilinear", "bicubic", "area"]},
    "gaussian_blur": {"sigma": [1, 10]},
    "gaussian_blur_grid": {"sigmas": [4, 16], "angles": [0, 45, 135]},
    "gaussian_noise": {"sigma": [1, 20], "grey_probability": 0.4},
    "grey": {},
    "jpeg": {"quality": [30, 95]},
    "kernel_blur": {"kernels": KERNELS, "sigma": [0.5, 4], "kernel_size": [7, 21]},
    "maybe": {"probability": 0.7, "steps": [NOISE]},
    "median_blur": {"kernel_size": [9, 21]},
    "motion_blur": {"length": [5, 40]},
    "one_of": {"choices": [{"weight": 1, "steps": [NOISE]}, {"weight": 2, "steps": [JPEG]}]},
    "poisson_noise": {"scale": [0.05, 3], "grey_probability": 0.4},
    "quantise": {},
    "resize": {"probabilities": {"up": 0.3, "down": 0.5, "keep": 0.2}, "down": [0.15, 1], "up": [1, 1.5]},
    "resize_back": {"interpolation": ["bilinear", "bicubic", "area"]},
    "shuffle": {"steps": [NOISE, JPEG]},
    "speckle_noise": {"sigma": [2, 25], "grey_probability": 0.4, "correlated_probability": 0.2},
    "usm_sharpen": {},
}
CHANGE_THE_SIZE = {"bicubic_downscale", "downscale", "resize"}
CONTROL = {cls.name for cls in (CleanPassThrough, Maybe, OneOf, Shuffle)}
# What colour jitter divides by and bicubic interpolation leaves as it is may lie a little outside.
MAY_LEAVE_THE_RANGE = {"bicubic_downscale", "downscale", "kernel_blur", "resize", "resize_back"}
SEEDS = (3, 4, 5, 6)


@cache
def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth, coloured, textured pictures on the 8-bit grid, (count, 3, H, W) float64; pure white and black inside."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phases = rng.uniform(0, 6, (count, 3, 1, 1))
    waves = 0.5 + 0.3 * np.sin(9 * x + phases) + 0.25 * np.cos(23 * y * x + 2 * phases)
    grain = rng.normal(0, 0.04, (count, 3, height, width))
    values = np.clip(waves + grain, 0, 1)
    values[..., : height // 8, : width // 8] = 1.0
    values[..., -(height // 8) :, -(width // 8) :] = 0.0
    return torch.from_numpy(np.rint(values * 255) / 255)


def operator_for(name: str, size: tuple[int, int]) -> Operator:
    return build_operator({"operator": name, **EXAMPLES[name]}).scaled(min(size) / PRESET_SIZE)


def preset_for(name: str, size: tuple[int, int]) -> DegradationPipeline:
    return DegradationPipeline(name, read_preset("degradation", name)["steps"], min(size))


def draw(operator: Operator, seeds: Sequence[int], size: tuple[int, int]) -> list[list[dict[str, Any]]]:
    return [operator.draw(seed, size) for seed in seeds]


def applied(images: Sequence[Tensor], steps: Sequence[list[dict[str, Any]]]) -> list[Tensor]:
    """Steps of each picture one after the other, without the pipeline's check of sizes."""
    results = []
    for image, own in zip(images, steps, strict=True):
        for step in own:
            parameters = {key: value for key, value in step.items() if key != "operator"}
            image = object.__new__(OPERATORS[step["operator"]]).apply([image], [parameters])[0]  # noqa: PLW2901
        results.append(image)
    return results


def psnr(first: Tensor, second: Tensor) -> float:
    return float(-10 * (first.double() - second.double()).square().mean().clamp_min(1e-12).log10())


def test_every_operator_has_an_example() -> None:
    assert set(EXAMPLES) == set(OPERATORS)


def test_every_preset_of_the_papers_is_there() -> None:
    wanted = """gfpgan bfrffusion codeformer_stage2 codeformer_small codeformer_large stablesr_face diffbir faceme
        refldm_train ffhqref_moderate ffhqref_severe realesrgan stablesr restorerid pfstorer bsrgan refine_severe
        bicubic_x4 bicubic_x8 bicubic_x16 diffface_grid redegnet light heavy"""
    assert set(wanted.split()) <= set(PRESETS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_replay_bit_equal_from_their_record(name: str, size: tuple[int, int]) -> None:
    steps = draw(operator_for(name, size), SEEDS, size)
    images = list(pictures(len(SEEDS), *size))
    first = applied(images, steps)
    again = applied(images, json.loads(json.dumps(steps, allow_nan=False)))
    for image, one, other in zip(images, first, again, strict=True):
        assert torch.equal(one, other)
        assert torch.isfinite(one).all()
        assert one.dtype == torch.float64
        assert one.shape[0] == 3
        if name not in CHANGE_THE_SIZE:
            assert one.shape == image.shape
        slack = 0.2 if name in MAY_LEAVE_THE_RANGE else 1e-9
        assert float(one.min()) >= -slack
        assert float(one.max()) <= 1 + slack
    assert all(torch.equal(image, other) for image, other in zip(images, pictures(len(SEEDS), *size), strict=True))


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - CONTROL))
def test_operators_treat_a_batch_as_they_treat_one_picture(name: str) -> None:
    size = (64, 80)
    steps = draw(operator_for(name, (256, 256)), SEEDS, size)
    images = list(pictures(len(SEEDS), *size))
    records = [{key: value for key, value in own[0].items() if key != "operator"} for own in steps]
    stateless = object.__new__(OPERATORS[name])
    together = stateless.apply(images, records)
    for one, other in zip(together, applied(images, steps), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_single_precision_stays_within_a_level(name: str) -> None:
    size = (72, 96)
    steps = draw(operator_for(name, (256, 256)), SEEDS, size)
    images = pictures(len(SEEDS), *size)
    double, single = applied(list(images), steps), applied(list(images.float()), steps)
    for own, one, other in zip(steps, double, single, strict=True):
        assert other.dtype == torch.float32
        if name in CONTROL and len(own) > 1:
            assert psnr(one, other) > 45
        else:
            assert float((one - other.double()).abs().max()) <= LEVEL + 1e-6


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gradients_are_finite_and_reach_the_picture(name: str) -> None:
    size = (48, 56)
    steps = draw(operator_for(name, (256, 256)), SEEDS, size)
    images = [image.clone().requires_grad_(True) for image in pictures(len(SEEDS), *size)]
    sum(result.square().sum() for result in applied(images, steps)).backward()
    for image in images:
        assert image.grad is not None
        assert torch.isfinite(image.grad).all()
        assert float(image.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_upside_down_ranges_are_refused(name: str) -> None:
    ranges = {
        key: value
        for key, value in EXAMPLES[name].items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(bound, int | float) for bound in value)
    }
    lists = {"sigmas"}
    for key, (low, high) in ranges.items():
        if key in lists:
            continue
        with pytest.raises(UsageError, match=f"{name}.{key}"):
            build_operator({"operator": name, **EXAMPLES[name], key: [high, low]})
    with pytest.raises(UsageError, match=name):
        build_operator({"operator": name, **EXAMPLES[name], "no_such_argument": 1})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_shape_and_range_and_replay_bit_equal(preset: str, size: tuple[int, int]) -> None:
    pipeline, images = preset_for(preset, size), pictures(len(SEEDS), *size)
    thetas = pipeline.sample(SEEDS, size)
    degraded = pipeline.apply(images, thetas)
    assert torch.equal(degraded, replay(images, json.loads(json.dumps(thetas, allow_nan=False))))
    assert degraded.shape == images.shape
    assert torch.isfinite(degraded).all()
    assert 0 <= float(degraded.min()) <= float(degraded.max()) <= 1
    assert torch.allclose(degraded * 255, (degraded * 255).round(), atol=1e-9)
    assert not torch.equal(degraded, images)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_depend_neither_on_batch_nor_on_order(preset: str) -> None:
    size = (96, 96)
    pipeline, images = preset_for(preset, size), pictures(len(SEEDS), *size)
    thetas = pipeline.sample(SEEDS, size)
    together = pipeline.apply(images, thetas)
    for row in reversed(range(len(SEEDS))):
        alone = pipeline.sample([SEEDS[row]], size)
        assert alone == [thetas[row]]
        assert torch.equal(pipeline.apply(images[row : row + 1], alone)[0], together[row])
    order = [2, 0, 3, 1]
    assert torch.equal(pipeline.apply(images[order], [thetas[row] for row in order]), together[order])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_alike_in_single_precision(preset: str) -> None:
    size = (96, 96)
    pipeline, images = preset_for(preset, size), pictures(len(SEEDS), *size)
    thetas = pipeline.sample(SEEDS, size)
    double, single = pipeline.apply(images, thetas), pipeline.apply(images.float(), thetas)
    # A value on the edge between two levels flips a DCT coefficient now and then, nothing more.
    assert all(psnr(one, other) >= 45 for one, other in zip(double, single, strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_finite_gradients(preset: str) -> None:
    size = (64, 64)
    pipeline, images = preset_for(preset, size), pictures(2, *size).clone().requires_grad_(True)
    pipeline.apply(images, pipeline.sample([1, 2], size)).square().sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert float(images.grad.abs().sum()) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_shift_no_picture(preset: str) -> None:
    """A picture that equals its mirror stays, on average over draws, where it is: no half pixel, no border's pull."""
    size = (96, 96)
    y, x = np.mgrid[0:96, 0:96].astype(np.float64)
    blob = 0.2 + 0.6 * np.exp(-((x - 47.5) ** 2 + (y - 47.5) ** 2) / (2 * 12.0**2))
    images = torch.from_numpy(blob).expand(12, 3, 96, 96)
    pipeline = preset_for(preset, size)
    mean = pipeline.apply(images, pipeline.sample(range(12), size)).mean((0, 1)).numpy() - 0.2
    weights = np.clip(mean, 0.1, None) - 0.1
    centre = float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())
    assert centre == pytest.approx((47.5, 47.5), abs=0.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_their_source_in_one_line(preset: str) -> None:
    content = read_preset("degradation", preset)
    assert content["name"] == preset
    assert len(content["source"].splitlines()) == 1
    assert set(content) == {"name", "source", "steps"}
    assert content["steps"][-1] == {"operator": "quantise"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite_are_refused(value: float) -> None:
    pipeline, images = preset_for("gfpgan", (64, 64)), pictures(1, 64, 64).clone()
    images[0, 1, 5, 6] = value
    with pytest.raises(UsageError, match="NaN"):
        pipeline.apply(images, pipeline.sample([1], (64, 64)))


@pytest.mark.parametrize(
    ("written", "meant"), [("realesrgn", "realesrgan"), ("bicubic_8x", "bicubic_x8"), ("gfp_gan", "gfpgan")]
)
def test_an_unknown_preset_names_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"Did you mean .*'{meant}'"):
        read_preset("degradation", written)


def test_a_clean_picture_passes_with_its_probability() -> None:
    pipeline = preset_for("pfstorer", (128, 128))
    thetas = pipeline.sample(range(2000), (128, 128))
    clean = sum(len(theta["steps"]) == 1 for theta in thetas) / len(thetas)
    assert clean == pytest.approx(0.03, abs=0.012)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_agree_between_processors(name: str) -> None:
    size = (128, 128)
    steps = draw(operator_for(name, size), SEEDS, size)
    for images in (pictures(len(SEEDS), *size).float(), off_the_grid(len(SEEDS), *size)):
        host, device = applied(list(images), steps), applied(list(images.cuda()), steps)
        for own, one, other in zip(steps, host, device, strict=True):
            assert other.is_cuda
            agree(name, own, one, other.cpu())


def off_the_grid(count: int, height: int, width: int) -> Tensor:
    """Pictures off the 8-bit levels, as a resize leaves them, float32; doubling puts many halfway between two."""
    small = pictures(count, height // 2, width // 2).float()
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")


def agree(name: str, steps: list[dict[str, Any]], one: Tensor, other: Tensor) -> None:
    """Within a level; a photon count and a rounding may fall to the other side in a few values of a thousand."""
    difference = (one - other).abs()
    if name in CONTROL and len(steps) > 1:
        assert psnr(one, other) >= 45
    elif name == "poisson_noise":
        assert float((difference > LEVEL + 1e-6).float().mean()) < 3e-3
        assert psnr(one, other) >= 45
    elif name == "jpeg":
        # The codec is given what rounding makes of the picture: one level in one value moves its block.
        assert psnr(one, other) >= 45
    else:
        assert float(difference.max()) <= LEVEL + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(set(OPERATORS) - CONTROL))
def test_operators_treat_a_batch_on_the_gpu_as_one_picture(name: str) -> None:
    size = (64, 80)
    steps = draw(operator_for(name, (256, 256)), SEEDS, size)
    images = list(off_the_grid(len(SEEDS), *size).cuda())
    records = [{key: value for key, value in own[0].items() if key != "operator"} for own in steps]
    together = object.__new__(OPERATORS[name]).apply(images, records)
    for own, one, other in zip(steps, together, applied(images, steps), strict=True):
        agree(name, own, one.cpu(), other.cpu())


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - CONTROL))
def test_rounding_as_small_as_another_processors_changes_little(name: str) -> None:
    """Stands for a GPU where there is none: the same pictures, off the 8-bit grid, with 1e-7 of noise."""
    size = (128, 128)
    steps = draw(operator_for(name, size), SEEDS, size)
    images = off_the_grid(len(SEEDS), *size)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    host, device = applied(list(images), steps), applied(list(images + noise * 1.2e-7), steps)
    for own, one, other in zip(steps, host, device, strict=True):
        agree(name, own, one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_agree_between_processors(preset: str) -> None:
    size = (256, 256)
    pipeline, images = preset_for(preset, size), pictures(len(SEEDS), *size).float()
    thetas = pipeline.sample(SEEDS, size)
    host, device = pipeline.apply(images, thetas), pipeline.apply(images.cuda(), thetas)
    assert all(psnr(one, other) >= 45 for one, other in zip(host, device.cpu(), strict=True))
    assert torch.equal(device, pipeline.apply(images.cuda(), thetas))
