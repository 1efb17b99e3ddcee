"""The presets' numbers against the published ones, and what a preset's file must be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import config
from bench.config import group_choices, read_preset
from bench.errors import UsageError

Step = dict[str, Any]
#: Blur widths, downscale factors, noise in levels of 255, JPEG qualities: of the released configurations (light and
#: heavy are FFHQ-Ref's). A width of 0 stands as 0.1 here, where a Gaussian is defined.
FIRST_ORDER = {
    "gfpgan": ([0.1, 10], [0.8, 8], [0, 20], [60, 100]),
    "bfrffusion": ([0.1, 10], [0.8, 8], [0, 20], [60, 100]),
    "codeformer_stage2": ([1, 15], [4, 30], [0, 20], [30, 80]),
    "codeformer_large": ([1, 15], [4, 30], [0, 20], [30, 80]),
    "codeformer_small": ([0.1, 10], [1, 12], [0, 15], [60, 100]),
    "stablesr_face": ([0.1, 15], [0.8, 32], [0, 20], [30, 100]),
    "diffbir": ([0.1, 12], [1, 12], [0, 15], [30, 100]),
    "dual_pivot": ([0.1, 10], [0.8, 8], [0, 20], [60, 100]),
    "faceme": ([0.2, 10], [1, 16], [0, 15], [30, 100]),
    "refldm_train": ([0.1, 16], [1, 32], [0, 20], [30, 100]),
    "ffhqref_moderate": ([0.1, 8], [1, 8], [0, 15], [60, 100]),
    "ffhqref_severe": ([8, 16], [8, 32], [0, 20], [30, 100]),
    "light": ([0.1, 8], [1, 8], [0, 15], [60, 100]),
    "heavy": ([8, 16], [8, 32], [0, 20], [30, 100]),
    "refine_severe": ([8, 16], [8, 32], [0, 20], [30, 100]),
}
UP_DOWN_KEEP_1, UP_DOWN_KEEP_2 = (0.2, 0.7, 0.1), (0.3, 0.4, 0.3)
MIXTURE = {
    "isotropic": 0.45,
    "anisotropic": 0.25,
    "generalised_isotropic": 0.12,
    "generalised_anisotropic": 0.03,
    "plateau_isotropic": 0.12,
    "plateau_anisotropic": 0.03,
}
#: Of both passes: widths, resize chances and ranges, Gaussian and Poisson noise, JPEG; then the shapes' ranges, the
#: chances of the second blur and of a clean picture, and what the second resize starts from.
SECOND_ORDER: dict[str, dict[str, Any]] = {
    "realesrgan": {
        "sigma": ([0.2, 3], [0.2, 1.5]),
        "chances": (UP_DOWN_KEEP_1, UP_DOWN_KEEP_2),
        "down": ([0.15, 1], [0.3, 1]),
        "up": ([1, 1.5], [1, 1.2]),
        "gaussian": ([1, 30], [1, 25]),
        "poisson": ([0.05, 3], [0.05, 2.5]),
        "jpeg": ([30, 95], [30, 95]),
        "beta": ([0.5, 4], [1, 2]),
        "second_blur": 0.8,
        "clean": None,
        "base": 4,
    },
    "stablesr": {
        "sigma": ([0.2, 1.5], [0.2, 1.0]),
        "chances": (UP_DOWN_KEEP_1, UP_DOWN_KEEP_2),
        "down": ([0.3, 1], [0.6, 1]),
        "up": ([1, 1.5], [1, 1.2]),
        "gaussian": ([1, 15], [1, 12]),
        "poisson": ([0.05, 2], [0.05, 1]),
        "jpeg": ([60, 95], [60, 100]),
        "beta": ([0.5, 2], [1, 1.5]),
        "second_blur": 0.5,
        "clean": 0.01,
        "base": 4,
    },
    "restorerid": {
        "sigma": ([0.2, 3], [0.2, 1.5]),
        "chances": ((0.1, 0.8, 0.1), (0.1, 0.8, 0.1)),
        "down": ([0.03, 1], [0.03, 1]),
        "up": ([1, 1.5], [1, 1.2]),
        "gaussian": (),
        "poisson": (),
        "jpeg": ([30, 95], [30, 95]),
        "beta": ([0.5, 4], [1, 2]),
        "second_blur": 0.8,
        "clean": None,
        "base": 1,
    },
}
SECOND_ORDER["pfstorer"] = {**SECOND_ORDER["stablesr"], "clean": 0.03}


def _every_step(steps: list[Step]) -> Iterator[Step]:
    """Steps in the order of the file, those inside others too."""
    for step in steps:
        yield step
        inside = [*step.get("steps", []), *step.get("otherwise", [])]
        inside += [own for choice in step.get("choices", []) for own in choice["steps"]]
        yield from _every_step(inside)


def _named(preset: str, operator: str) -> list[Step]:
    return [step for step in _every_step(read_preset("degradation", preset)["steps"]) if step["operator"] == operator]


@pytest.mark.parametrize("preset", sorted(FIRST_ORDER))
def test_first_order_presets_have_the_published_ranges(preset: str) -> None:
    names = ("gaussian_blur", "downscale", "gaussian_noise", "jpeg")
    (blur,), (down,), (noise,), (jpeg,) = (_named(preset, name) for name in names)
    assert (blur["sigma"], down["scale"], noise["sigma"], jpeg["quality"]) == FIRST_ORDER[preset]
    assert (blur["kernel_size"], blur["isotropic_probability"]) == (41, 0.5)
    assert len(_named(preset, "resize_back")) == 1


def test_gfpgan_changes_colours_as_published() -> None:
    chances = {step["steps"][0]["operator"]: step["probability"] for step in _named("gfpgan", "maybe")}
    assert chances == {"colour_shift": 0.3, "grey": 0.01, "colour_jitter": 0.3}
    assert _named("gfpgan", "colour_shift")[0]["shift"] == 20


@pytest.mark.parametrize("preset", sorted(SECOND_ORDER))
def test_second_order_presets_have_the_published_ranges(preset: str) -> None:
    published = SECOND_ORDER[preset]
    blurs = [step for step in _named(preset, "kernel_blur") if len(step["kernels"]) > 1]
    assert [step["sigma"] for step in blurs] == [*published["sigma"]]
    for blur in blurs:
        assert blur["kernels"] == pytest.approx({**{name: 0.9 * own for name, own in MIXTURE.items()}, "sinc": 0.1})
        assert (blur["kernel_size"], blur["beta_generalised"], blur["beta_plateau"]) == ([7, 21], *published["beta"])
    resizes = [step for step in _named(preset, "resize") if set(step["probabilities"]) != {"keep"}]
    assert [tuple(step["probabilities"][name] for name in ("up", "down", "keep")) for step in resizes] == [
        *published["chances"]
    ]
    assert [step["down"] for step in resizes] == [*published["down"]]
    assert [step["up"] for step in resizes] == [*published["up"]]
    assert [step.get("base", 1) for step in resizes] == [1, published["base"]]
    for operator, key, argument in (("gaussian_noise", "gaussian", "sigma"), ("poisson_noise", "poisson", "scale")):
        found = _named(preset, operator)
        assert [step[argument] for step in found] == [*published[key]]
        assert all(step["grey_probability"] == 0.4 for step in found)
    # The last compression stands in both orders.
    first, last = published["jpeg"]
    assert [step["quality"] for step in _named(preset, "jpeg")] == [first, last, last]
    chances = {step["steps"][0]["operator"]: step["probability"] for step in _named(preset, "maybe")}
    second = [step["probability"] for step in _named(preset, "maybe") if step["steps"][0] in blurs]
    assert second == [published["second_blur"]]
    sincs = [step for step in _named(preset, "maybe") if step["steps"][0].get("kernels") == {"sinc": 1}]
    assert [step["probability"] for step in sincs] == [0.8, 0.8]
    clean = [step["probability"] for step in _named(preset, "clean_pass_through")]
    assert clean == ([] if published["clean"] is None else [published["clean"]])
    assert ("camera_isp" in chances) == (preset == "pfstorer")


def test_restorerids_camera_noise_has_the_released_variances() -> None:
    cameras = _named("restorerid", "camera_isp")
    assert [(step["shot"], step["read"]) for step in cameras] == [([5e-5, 5e-4], [5e-6, 5e-5])] * 2


def test_other_presets_have_the_published_numbers() -> None:
    assert [step["photons"] for step in _named("bsrgan", "poisson_noise")][:1] == [[2, 4]]
    assert _named("bsrgan", "gaussian_noise")[0]["sigma"] == [2, 25]
    assert _named("bsrgan", "speckle_noise")[0]["sigma"] == [2, 25]
    assert {tuple(step["quality"]) for step in _named("bsrgan", "jpeg")} == {(30, 95)}
    assert {step["probability"] for step in _named("bsrgan", "maybe")} == {0.1}
    for factor in (4, 8, 16):
        assert _named(f"bicubic_x{factor}", "bicubic_downscale")[0]["factor"] == factor
    (grid,) = _named("diffface_grid", "gaussian_blur_grid")
    assert (grid["sigmas"], grid["angles"]) == ([4, 8, 12, 16], [0, 45, 90, 135])
    assert [step["scale"][0] for step in _named("diffface_grid", "downscale")] == list(range(4, 41, 4))
    assert [step["sigma"][0] for step in _named("diffface_grid", "gaussian_noise")] == [1, 5, 10, 15, 20]
    assert [step["quality"][0] for step in _named("diffface_grid", "jpeg")] == [30, 40, 50, 60, 70]


def test_redegnet_has_the_published_lengths_at_the_sources_size() -> None:
    """The source works at 256 px: sides 7 to 31, widths .3 to 1.3, factors 2 to 6; a preset is written for 512 px."""
    from bench.degradation.pipeline import DegradationPipeline

    pipeline = DegradationPipeline("redegnet", read_preset("degradation", "redegnet")["steps"], 256)
    steps = [step for theta in pipeline.sample(range(600), (256, 256)) for step in theta["steps"]]
    widths = [step["sigma_x"] for step in steps if step["operator"] == "kernel_blur"]
    sides = [step["kernel_size"] for step in steps if step["operator"] == "kernel_blur"]
    factors = [256 / step["height"] for step in steps if step["operator"] == "downscale"]
    assert (min(widths), max(widths)) == pytest.approx((0.3, 1.3), abs=0.02)
    assert (min(sides), max(sides)) == (7, 31)
    assert (min(factors), max(factors)) == pytest.approx((2, 6), abs=0.1)
    assert not [step for step in steps if "interpolation" in step]
    noise, jpeg = _named("redegnet", "gaussian_noise")[0], _named("redegnet", "jpeg")[0]
    assert (noise["sigma"], jpeg["quality"]) == ([3, 24], [30, 80])
    assert [step["probability"] for step in _named("redegnet", "maybe")] == [0.8, 0.8, 0.9, 0.9]


#: Ours, of one damage and one strength each; the operators beside what every preset ends with.
ONE_DAMAGE = {
    "blur_only": ["gaussian_blur"],
    "downscale_only": ["downscale", "resize_back"],
    "jpeg_only": ["jpeg"],
    "noise_only": ["gaussian_noise"],
}


@pytest.mark.parametrize("name", ONE_DAMAGE)
def test_presets_of_one_damage_have_no_other_and_no_range(name: str) -> None:
    steps = read_preset("degradation", name)["steps"]
    assert [step["operator"] for step in steps] == [*ONE_DAMAGE[name], "quantise"]
    ranges = [value for step in steps for value in step.values() if isinstance(value, list)]
    assert all(low == high for low, high in ranges)


def test_every_preset_is_compared() -> None:
    others = {"bsrgan", "bicubic_x4", "bicubic_x8", "bicubic_x16", "diffface_grid", "redegnet"}
    assert {*FIRST_ORDER, *SECOND_ORDER, *ONE_DAMAGE, *others} == set(group_choices("degradation"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps: [a: {b", "cannot be read"),
        (b"name: \xe9\n", "cannot be read"),
        (b"", "must be a degradation preset"),
        (b"- 1", "must be a degradation preset"),
        (b"steps: [{operator: grey}]", "must be a degradation preset"),
        (b"name: x\nsource: y\n", "must have a list of steps"),
        (b"name: none\nsteps:\n", "must have a list of steps"),
        (b"name: none\nsteps: 3\n", "must have a list of steps"),
        (b"name: none\nsteps: []\n", "must have a list of steps"),
    ],
)
def test_files_that_are_no_presets_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    folder = tmp_path / "configs" / "degradation"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_bytes(content)
    monkeypatch.setattr(config, "resource_root", lambda: tmp_path)
    with pytest.raises(UsageError, match=message):
        read_preset("degradation", "mine")


@pytest.mark.parametrize("name", ["../data/orl", "..", "", "light.yaml"])
def test_a_name_never_leaves_its_group(name: str) -> None:
    with pytest.raises(UsageError, match="Unknown degradation preset"):
        read_preset("degradation", name)
