"""What holds for every image operator: replay, batches, gradients, native sizes, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.config import group_choices, read_preset
from bench.degradation.operator import Operator
from bench.degradation.operators import OPERATORS, build_operator
from bench.degradation.operators.blur import KERNEL_NAMES, LARGEST_PARTITIONED, LARGEST_UNFOLDED, kernel_of
from bench.degradation.pipeline import DegradationPipeline, replay
from bench.errors import UsageError

FAMILIES = dict.fromkeys(KERNEL_NAMES, 1.0)
STEPS: list[dict[str, Any]] = [
    {"operator": "gaussian_blur", "sigma": [0.5, 4], "kernel_size": 21},
    {"operator": "kernel_blur", "kernels": FAMILIES, "sigma": [0.2, 3]},
    {"operator": "motion_blur", "length": [0, 12]},
    {"operator": "median_blur", "kernel_size": [3, 7]},
    {"operator": "downscale", "scale": [1, 3], "interpolation": ["bilinear", "area", "bicubic_antialiased"]},
    {"operator": "resize"},
    {"operator": "resize", "base": 2, "interpolations": "bicubic"},
    {"operator": "bicubic_downscale", "factor": 3},
    {"operator": "resize_back", "interpolation": ["bicubic", "area"]},
    {"operator": "gaussian_noise", "sigma": [1, 30], "grey_probability": 0.4},
    {"operator": "correlated_noise", "sigma": [25, 25]},
    {"operator": "speckle_noise", "sigma": [2, 25], "grey_probability": 0.4, "correlated_probability": 0.3},
    {"operator": "poisson_noise", "scale": [0.05, 3], "grey_probability": 0.4},
    {"operator": "poisson_noise", "photons": [2, 4], "grey_probability": 0.5},
    {"operator": "jpeg", "quality": [30, 95]},
    {"operator": "usm_sharpen", "radius": 21},
    {"operator": "colour_shift"},
    {"operator": "colour_jitter"},
    {"operator": "grey"},
    {"operator": "quantise"},
]
NAMES = [f"{position}-{step['operator']}" for position, step in enumerate(STEPS)]
every_step = pytest.mark.parametrize("step", STEPS, ids=NAMES)
SIZES = [(64, 64), (48, 72), (64, 64), (51, 37), (64, 64)]


def _pictures(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    rough = [torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64) for height, width in SIZES]
    return [torch.nn.functional.avg_pool2d(picture, 5, 1, 2)[0].mul(1.1).to(dtype) for picture in rough]


def _draws(operator: Operator, seed: int = 0) -> list[dict[str, Any]]:
    return [operator.sample(np.random.default_rng([seed, row]), size) for row, size in enumerate(SIZES)]


def _stateless(name: str) -> Operator:
    return object.__new__(OPERATORS[name])


@every_step
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replay_from_json_is_bit_equal(step: dict[str, Any], dtype: torch.dtype) -> None:
    operator, images = build_operator(step), _pictures(dtype)
    records = _draws(operator)
    first = operator.apply(images, records)
    again = _stateless(operator.name).apply(images, json.loads(json.dumps(records)))
    for image, one, other in zip(images, first, again, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == image.dtype
        assert one.shape[0] == 3
        assert torch.isfinite(one).all()
    assert records == _draws(operator)


@every_step
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_differing_sizes_equals_one_by_one(step: dict[str, Any], dtype: torch.dtype) -> None:
    operator, images = build_operator(step), _pictures(dtype)
    records = _draws(operator, seed=1)
    together = operator.apply(images, records)
    for image, record, found in zip(images, records, together, strict=True):
        assert torch.equal(found, operator.apply([image], [record])[0])


@every_step
def test_threads_do_not_change_a_bit(step: dict[str, Any]) -> None:
    operator, images = build_operator(step), _pictures()
    records = _draws(operator, seed=2)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(operator.apply(images, records))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@every_step
def test_the_gradient_is_finite_and_does_not_change_the_values(step: dict[str, Any]) -> None:
    operator, images = build_operator(step), [image.mul(0.7).add(0.1) for image in _pictures()]
    records = _draws(operator, seed=3)
    plain = operator.apply(images, records)
    leaves = [image.clone().requires_grad_() for image in images]
    results = operator.apply(leaves, records)
    assert all(torch.equal(one, other) for one, other in zip(plain, results, strict=True))
    torch.stack([result.square().sum() for result in results]).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert float(leaf.grad.abs().max()) > 0


EXACT = [
    ("kernel_blur", {"kernel": "sinc", "kernel_size": 7, "cutoff": 1.5}),
    ("motion_blur", {"length": 4.2, "angle": 0.7}),
    ("median_blur", {"kernel_size": 3}),
    ("resize", {"height": 17, "width": 21, "interpolation": "area"}),
    ("resize", {"height": 23, "width": 17, "interpolation": "bicubic"}),
    ("bicubic_downscale", {"factor": 4}),
    ("speckle_noise", {"sigma": 9.0, "grey": False, "seed": 3}),
    ("correlated_noise", {"sigma": 9.0, "mixing": [[0.4, 0.1, 0.2], [0.1, 0.3, 0.1], [0.2, 0.1, 0.5]], "seed": 3}),
    ("colour_shift", {"shift": [3.0, -4.0, 5.0]}),
    (
        "colour_jitter",
        {
            "order": ["hue", "contrast", "brightness", "saturation"],
            "brightness": 1.1,
            "contrast": 0.8,
            "saturation": 0.9,
            "hue": 0.05,
        },
    ),
    ("grey", {}),
]


@pytest.mark.parametrize(("name", "record"), EXACT, ids=[name for name, _ in EXACT])
def test_the_gradient_equals_finite_differences(name: str, record: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 18, 16, generator=generator, dtype=torch.float64).mul(0.4).add(0.3).requires_grad_()
    direction = torch.rand(3, 18, 16, generator=generator, dtype=torch.float64) - 0.5
    weights: list[Tensor] = []

    def value(picture: Tensor) -> Tensor:
        result = _stateless(name).apply([picture], [record])[0]
        if not weights:
            weights.append(torch.rand(result.shape, generator=generator, dtype=torch.float64))
        return (result * weights[0]).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    step = 1e-7
    with torch.no_grad():
        slope = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)


def test_shot_noise_passes_the_gradient_straight_through() -> None:
    image = torch.full((3, 20, 20), 0.5, dtype=torch.float64, requires_grad=True)
    record = {"photons": 1000.0, "grey": False, "seed": 1}
    (gradient,) = torch.autograd.grad(_stateless("poisson_noise").apply([image], [record])[0].sum(), image)
    assert torch.equal(gradient, torch.ones_like(image))


def test_shot_noise_hardly_depends_on_rounding() -> None:
    """A level that is rounded the other way moves its own pixel alone."""
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(0.9).add(0.05)
    other = image.clone()
    other[1, 3, 4] += 1 / 255
    record = {"photons": 500.0, "grey": False, "seed": 1}
    one, two = _stateless("poisson_noise").apply([image, other], [record, record])
    changed = (one - two).abs() > 1e-12
    assert int(changed.sum()) == 1
    assert float((one - two).abs().max()) < 0.03


def test_lengths_follow_the_native_size() -> None:
    def draws(step: dict[str, Any], factor: float, size: int) -> list[dict[str, Any]]:
        operator = build_operator(step).scaled(factor)
        return [operator.sample(np.random.default_rng(seed), (size, size)) for seed in range(60)]

    mixture = {"operator": "kernel_blur", "kernels": FAMILIES, "sigma": [0.2, 3], "kernel_size": [7, 21]}
    for full, quarter in zip(draws(mixture, 1, 512), draws(mixture, 0.25, 128), strict=True):
        assert full["kernel"] == quarter["kernel"]
        assert abs(quarter["kernel_size"] / 2 - full["kernel_size"] / 8) <= 1.5
        if full["kernel"] == "sinc":
            assert quarter["cutoff"] == pytest.approx(min(math.pi, 4 * full["cutoff"]))
        else:
            assert quarter["sigma_x"] == pytest.approx(full["sigma_x"] / 4)
            assert quarter["angle"] == full["angle"]
    motion = {"operator": "motion_blur", "length": [8, 20]}
    assert all(2 <= record["length"] <= 5 for record in draws(motion, 0.25, 128))
    median = {"operator": "median_blur", "kernel_size": [3, 9]}
    assert {record["kernel_size"] for record in draws(median, 1, 512)} == {3, 5, 7, 9}
    assert {record["kernel_size"] for record in draws(median, 0.25, 128)} == {1, 3}
    assert draws({"operator": "usm_sharpen", "radius": 50}, 1, 512)[0]["kernel_size"] == 51
    assert draws({"operator": "usm_sharpen", "radius": 50}, 0.25, 128)[0]["kernel_size"] == 13


@pytest.mark.parametrize("base", [1, 4])
@pytest.mark.parametrize(("factor", "size"), [(0.25, 128), (0.5, 256), (1, 512), (2, 1024)])
def test_the_smallest_picture_of_a_resize_keeps_its_size(base: int, factor: float, size: int) -> None:
    step = {"operator": "resize", "probabilities": {"down": 1}, "down": [0.2, 1], "base": base}
    operator = build_operator(step).scaled(factor)
    heights = [operator.sample(np.random.default_rng(seed), (size, size))["height"] for seed in range(400)]
    smallest = 512 * 0.2 / base
    assert smallest - 1 <= min(heights) < smallest * 1.05
    assert size / base * 0.9 < max(heights) or max(heights) > 0.9 * 512 / base
    assert max(heights) <= size


def test_resize_draws_its_directions_and_never_gets_too_small() -> None:
    operator = build_operator({"operator": "resize", "down": [0.01, 0.5], "up": [1.2, 1.5]})
    records = [operator.sample(np.random.default_rng(seed), (100, 200)) for seed in range(1000)]
    heights = np.array([record["height"] for record in records])
    assert (heights > 100).mean() == pytest.approx(0.2, abs=0.04)
    assert (heights == 100).mean() == pytest.approx(0.1, abs=0.03)
    assert heights.min() == 16
    assert {record["interpolation"] for record in records} == {"area", "bilinear", "bicubic"}


def test_super_resolution_keeps_its_factor_at_every_size() -> None:
    operator = build_operator({"operator": "bicubic_downscale", "factor": 4})
    for factor in (0.25, 1.0, 2.0):
        record = operator.scaled(factor).sample(np.random.default_rng(0), (128, 96))
        assert operator.apply([torch.rand(3, 128, 97)], [record])[0].shape == (3, 32, 25)


def test_an_interpolation_that_is_not_asked_for_leaves_the_draws_alone() -> None:
    plain = build_operator({"operator": "downscale", "scale": [1, 8]})
    named = build_operator({"operator": "downscale", "scale": [1, 8], "interpolation": "bicubic"})
    one, other = (operator.sample(np.random.default_rng(3), (512, 512)) for operator in (plain, named))
    assert set(one) == {"height", "width"}
    assert other == {**one, "interpolation": "bicubic"}


def test_bicubic_without_antialiasing_differs_from_it_and_both_keep_a_constant() -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    record = {"height": 20, "width": 20}
    results = [
        _stateless("resize_back").apply([picture], [{**record, "interpolation": name}])[0]
        for picture in (image, torch.full_like(image, 0.3))
        for name in ("bicubic", "bicubic_antialiased")
    ]
    assert float((results[0] - results[1]).abs().max()) > 0.1
    torch.testing.assert_close(results[2], results[3], atol=1e-6, rtol=0)


def test_noise_is_grey_as_often_as_asked() -> None:
    step = {"operator": "speckle_noise", "sigma": [2, 25], "grey_probability": 0.4, "correlated_probability": 0.2}
    operator = build_operator(step)
    records = [operator.sample(np.random.default_rng(seed), (64, 64)) for seed in range(1500)]
    assert np.mean([record["grey"] for record in records]) == pytest.approx(0.4, abs=0.04)
    correlated = [record for record in records if "mixing" in record]
    assert len(correlated) / 1500 == pytest.approx(0.2, abs=0.04)
    assert all(record["sigma"] == 25 and not record["grey"] for record in correlated)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_median_of_a_wide_window_is_taken_in_strips(gradient: bool) -> None:
    """Unfolded at once, these windows would hold 94 million numbers."""
    image = torch.rand(3, 181, 181, dtype=torch.float64)
    image.requires_grad_(gradient)
    found = _stateless("median_blur").apply([image], [{"kernel_size": 31}])[0].detach()
    image = image.detach()
    assert LARGEST_PARTITIONED < LARGEST_UNFOLDED
    assert 5 * LARGEST_UNFOLDED < 3 * 181 * 181 * 31**2
    assert found.shape == image.shape
    patch = image[1, 60:91, 70:101].flatten().sort().values
    assert float(found[1, 75, 85]) == float(patch[len(patch) // 2])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"operator": "kernel_blur", "kernels": {}}, "kernels must give weights"),
        ({"operator": "kernel_blur", "kernels": ["isotropic"]}, "kernels must give weights"),
        ({"operator": "kernel_blur", "kernels": {"isotropc": 1}}, "Did you mean 'isotropic'"),
        ({"operator": "kernel_blur", "kernels": {"sinc": -1}}, "at least 0"),
        ({"operator": "kernel_blur", "kernels": {"sinc": 0}}, "above 0"),
        ({"operator": "kernel_blur", "kernels": FAMILIES, "kernel_size": [7, 20]}, "odd"),
        ({"operator": "kernel_blur", "kernels": FAMILIES, "kernel_size": [21, 7]}, "low <= high"),
        ({"operator": "kernel_blur", "kernels": FAMILIES, "sigma": [3, 1]}, "kernel_blur.sigma"),
        ({"operator": "kernel_blur", "kernels": FAMILIES, "beta_plateau": [1.5, 2]}, "must have 1 inside"),
        ({"operator": "kernel_blur", "kernels": FAMILIES, "cutoff": [1, 4]}, "must not exceed pi"),
        ({"operator": "motion_blur", "length": [9, 3]}, "motion_blur.length"),
        ({"operator": "median_blur", "kernel_size": [2, 4]}, "odd"),
        ({"operator": "median_blur", "kernel_size": "three"}, "two numbers"),
        ({"operator": "resize", "down": [0.5, 1.5]}, "must not exceed 1"),
        ({"operator": "resize", "up": [0.5, 1.5]}, "resize.up"),
        ({"operator": "resize", "base": 0.5}, "resize.base"),
        ({"operator": "resize", "probabilities": {"sideways": 1}}, "sideways"),
        ({"operator": "resize", "probabilities": {"up": 2}}, "from 0 to 1"),
        ({"operator": "resize", "probabilities": {"up": 0}}, "above 0"),
        ({"operator": "resize", "interpolations": ["nearst"]}, "nearst"),
        ({"operator": "resize", "interpolations": []}, "at least one"),
        ({"operator": "downscale", "scale": [1, 2], "interpolation": "cubic"}, "bicubic"),
        ({"operator": "resize_back", "interpolation": "lanczos"}, "lanczos"),
        ({"operator": "bicubic_downscale", "factor": 0}, "at least 1"),
        ({"operator": "bicubic_downscale", "factor": 2.5}, "whole number"),
        ({"operator": "gaussian_noise", "sigma": [1, 2], "grey_probability": 1.5}, "from 0 to 1"),
        ({"operator": "poisson_noise"}, "either scale or photons"),
        ({"operator": "poisson_noise", "scale": [1, 2], "photons": [2, 4]}, "either scale or photons"),
        ({"operator": "poisson_noise", "photons": [2, 9]}, "at most 6"),
        ({"operator": "speckle_noise", "sigma": [5, 1]}, "speckle_noise.sigma"),
        (
            {"operator": "speckle_noise", "sigma": [1, 5], "grey_probability": 0.7, "correlated_probability": 0.7},
            "add up to more than 1",
        ),
        ({"operator": "correlated_noise", "sigma": [-1, 5]}, "correlated_noise.sigma"),
        ({"operator": "usm_sharpen", "radius": -5}, "usm_sharpen.radius"),
        ({"operator": "usm_sharpen", "weight": "much"}, "usm_sharpen.weight"),
        ({"operator": "colour_shift", "shift": [20, -20]}, "colour_shift.shift"),
        ({"operator": "colour_shift", "shift": -20}, "colour_shift.shift"),
        ({"operator": "colour_jitter", "hue": [-0.6, 0.1]}, "colour_jitter.hue"),
        ({"operator": "colour_jitter", "hue": [0, 0.6]}, "must not exceed 0.5"),
        ({"operator": "colour_jitter", "contrast": [2, 1]}, "colour_jitter.contrast"),
        ({"operator": "grey", "probability": 1}, "grey"),
        ({"operator": ["grey"]}, "Unknown degradation operator"),
        ({"operator": "gaussian_noise", "sigma": "08"}, "two numbers"),
        ({"operator": "gaussian_noise", "sigma": ["1", "2"]}, "two numbers"),
        ({"operator": "gaussian_noise", "sigma": [True, True]}, "two numbers"),
        ({"operator": "gaussian_blur", "sigma": [1, 2], "kernel_size": "41"}, "odd whole number"),
        ({"operator": "gaussian_blur", "sigma": [1, 2], "kernel_size": 41.5}, "odd whole number"),
        ({"operator": "gaussian_blur", "sigma": [1, 2], "kernel_size": math.inf}, "odd whole number"),
        ({"operator": "gaussian_blur_grid", "sigmas": "48", "angles": [0]}, "list of at least one number"),
        ({"operator": "gaussian_blur_grid", "sigmas": [4], "angles": ["0"]}, "gaussian_blur_grid.angles"),
        ({"operator": "kernel_blur", "kernels": FAMILIES, "kernel_size": True}, "two numbers"),
        ({"operator": "colour_shift", "shift": "20"}, "colour_shift.shift"),
        ({"operator": "resize", "base": True}, "resize.base"),
        ({"operator": "resize", "interpolations": 5}, "name or a list of names"),
        ({"operator": "camera_isp", "shot": [1, 2], "read": [1, 2], "log_uniform": "false"}, "true or false"),
        ({"operator": "camera_isp", "shot": [1, 2], "read": [1, 2], "patterns": 5}, "camera_isp.patterns"),
        ({"operator": "one_of", "choices": None}, "one_of.choices must be a list"),
        ({"operator": "one_of", "choices": ["ab"]}, "one_of.choices must be a list"),
        ({"operator": "one_of", "choices": {"weight": 1}}, "one_of.choices must be a list"),
        ({"operator": "one_of", "choices": [{"wieght": 3, "steps": []}]}, "Did you mean 'weight'"),
        ({"operator": "one_of", "choices": [{"weight": 3}]}, "has no steps"),
        ({"operator": "one_of", "choices": [{"weight": math.inf, "steps": []}]}, "choices.weight"),
        ({"operator": "one_of", "choices": [{"weight": math.nan, "steps": []}]}, "choices.weight"),
        ({"operator": "shuffle", "steps": [], "in_order": []}, "in_order"),
    ],
)
def test_wrong_arguments_are_explained(step: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_operator(step)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("motion_blur", "length"), ("resize", "down"), ("poisson_noise", "scale"), ("colour_jitter", "contrast")],
)
def test_ranges_that_hold_no_number_are_refused(name: str, argument: str) -> None:
    with pytest.raises(UsageError, match=argument):
        build_operator({"operator": name, argument: [0.5, math.nan]})


def test_a_sharpening_kernel_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        _stateless("usm_sharpen").apply([torch.rand(3, 20, 40)], [{"weight": 0.5, "kernel_size": 51, "threshold": 10}])


def test_a_blur_is_cut_off_where_it_reaches_further_than_the_picture() -> None:
    """Kernels grow with the native size, while a resize before them may leave 16 px."""
    image = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shape = {"kernel": "isotropic", "sigma_x": 9.0, "sigma_y": 9.0, "angle": 0.0}
    cut, whole = (_stateless("kernel_blur").apply([image], [{**shape, "kernel_size": side}])[0] for side in (81, 31))
    assert torch.equal(cut, whole)
    lines = [{"length": length, "angle": 0.3} for length in (200.0, 30.0)]
    cut, whole = (_stateless("motion_blur").apply([image], [line])[0] for line in lines)
    assert torch.equal(cut, whole)


@pytest.mark.parametrize("size", [1024, 2048])
@pytest.mark.parametrize("preset", sorted(group_choices("degradation")))
def test_no_kernel_of_a_preset_exceeds_its_picture(preset: str, size: int) -> None:
    """Follows the sizes through 1500 draws without pixels; the first kernel that was cut off is applied."""
    pipeline = DegradationPipeline(preset, read_preset("degradation", preset)["steps"], size)
    cut = []
    for theta in pipeline.sample(range(1500), (size, size)):
        height = width = size
        for step in theta["steps"]:
            parameters = {key: value for key, value in step.items() if key != "operator"}
            if "height" in step:
                height, width = step["height"], step["width"]
            elif "factor" in step:
                height, width = -(-height // step["factor"]), -(-width // step["factor"])
            elif step["operator"] == "kernel_blur":
                if step["kernel_size"] // 2 >= min(height, width):
                    cut.append((parameters, (height, width)))
                    assert kernel_of(parameters, (height, width)).shape[0] // 2 < min(height, width)
            elif step["operator"] == "motion_blur":
                assert step["length"] / 2 <= min(height, width) - 1
            elif step["operator"] != "median_blur":
                assert step.get("kernel_size", 1) // 2 < min(height, width), step
    for parameters, shape in cut[:1]:
        found = _stateless("kernel_blur").apply([torch.rand(3, *shape, dtype=torch.float64)], [parameters])[0]
        assert found.shape[1:] == shape
        assert torch.isfinite(found).all()
    if preset == "restorerid":
        assert cut


@pytest.mark.parametrize("preset", sorted(group_choices("degradation")))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_smallest_pictures_are_degraded_or_refused_with_a_reason(preset: str, size: int) -> None:
    pipeline = DegradationPipeline(preset, read_preset("degradation", preset)["steps"], size)
    image = torch.rand(1, 3, size, size, dtype=torch.float64)
    assert replay(image, pipeline.sample([1], (size, size))).shape == image.shape
    with pytest.raises(UsageError, match="too small"):
        pipeline.sample([1], (size, 1))


@pytest.mark.parametrize("steps", [None, "x", 5, {"operator": "grey"}, [None], ["grey"]])
def test_steps_that_are_no_list_of_steps_are_refused(steps: Any) -> None:
    with pytest.raises(UsageError, match="takes a list of steps"):
        DegradationPipeline("mine", steps)


@pytest.mark.parametrize("side", [3, 9, 15])
def test_the_fast_median_equals_torchs_bit_for_bit(side: int) -> None:
    image = torch.rand(3, 40, 33, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    fast = _stateless("median_blur").apply([image], [{"kernel_size": side}])[0]
    soft = _stateless("median_blur").apply([image.clone().requires_grad_()], [{"kernel_size": side}])[0]
    assert torch.equal(fast, soft.detach())
