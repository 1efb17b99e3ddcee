"""The page of degradations: up to date with the configurations, and right about light and heavy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.config import group_choices, read_preset
from bench.degradation import gallery
from bench.degradation.words import in_words
from bench.image import read_image

MEASURED = gallery.read_measured()
STRIPS = gallery.folder() / "strips"


def test_the_page_is_up_to_date() -> None:
    hint = "run python -m bench.degradation.gallery --only PRESET, or --page where only words changed"
    assert set(MEASURED["presets"]) == set(group_choices("degradation")), hint
    changed = [name for name, kept in MEASURED["presets"].items() if kept["steps"] != gallery.steps_hash(name)]
    assert not changed, hint
    written = (gallery.folder() / "README.md").read_text("utf-8")
    assert written == gallery.page(MEASURED), hint
    for name in group_choices("degradation"):
        assert f"Source: {read_preset('degradation', name)['source']}." in written


def test_every_preset_has_a_small_strip_and_no_strip_is_left_over() -> None:
    assert {path.stem for path in STRIPS.glob("*.jpg")} == set(group_choices("degradation"))
    for path in [*STRIPS.glob("*.jpg"), *STRIPS.glob("*.png")]:
        assert path.stat().st_size <= 60_000, path
    assert read_image(STRIPS / "heavy.jpg").shape == (336, 840, 3)


@pytest.mark.parametrize("name", ["light", "pfstorer"])
def test_a_strip_shows_its_preset(name: str) -> None:
    pytest.importorskip("skimage", reason="the face comes from scikit-image")
    error = read_image(STRIPS / f"{name}.jpg").astype(float) - gallery.strip(name)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 27
    assert np.array_equal(read_image(STRIPS / "face.png"), gallery.face())


@pytest.mark.parametrize("metric", gallery.METRICS)
def test_light_lies_above_heavy_on_the_page(metric: str) -> None:
    light, heavy = (MEASURED["presets"][name][metric]["five"] for name in ("light", "heavy"))
    assert all(above > below for above, below in zip(light[1:4], heavy[1:4], strict=True))
    assert MEASURED["light_above_heavy"][metric] > 0.9 * MEASURED["n"]


@pytest.fixture(scope="module")
def photos(orl_root: object) -> Any:
    return gallery.training_photos(per_identity=1)


@pytest.mark.parametrize("metric", gallery.METRICS)
def test_light_lies_above_heavy_measured_anew(photos: Any, metric: str) -> None:
    from bench.registry import load_metric

    if reason := load_metric(metric)().unavailable():
        pytest.skip(reason)
    light, heavy = (gallery.measure(name, photos, [metric])[metric] for name in ("light", "heavy"))
    assert len(light) == 24
    assert np.median(light) > np.median(heavy)
    assert (light > heavy).mean() > 0.8
    kept = MEASURED["presets"]["heavy"][metric]["five"]
    assert kept[0] - 1e-3 <= np.median(heavy) <= kept[4] + 1e-3


def test_steps_in_words() -> None:
    jpeg = {"operator": "jpeg", "quality": [30, 95]}
    steps = [
        {"operator": "maybe", "probability": 0.3, "steps": [{"operator": "grey"}]},
        {"operator": "maybe", "probability": 0.5, "steps": [jpeg, {"operator": "quantise"}]},
        {"operator": "one_of", "choices": [{"steps": [{**jpeg, "quality": [q, q]}]} for q in (30, 40, 50)]},
        {
            "operator": "one_of",
            "choices": [{"weight": 3, "steps": [jpeg]}, {"weight": 1, "steps": [{"operator": "grey"}]}],
        },
        {"operator": "kernel_blur", "kernels": {"plateau_isotropic": 0.5, "sinc": 1}, "kernel_size": [7, 21]},
    ]
    assert in_words(steps) == [
        "1. with probability 0.3: `grey`",
        "2. with probability 0.5:",
        "   1. `jpeg` quality 30 to 95",
        "   2. `quantise`",
        "3. `jpeg` quality 30, 40 or 50",
        "4. one of:",
        "   - 75 %: `jpeg` quality 30 to 95",
        "   - 25 %: `grey`",
        "5. `kernel_blur` kernels (plateau isotropic 0.5, sinc 1), kernel size 7 to 21",
    ]


def test_the_same_steps_in_random_order_are_said_once() -> None:
    both = [{"operator": "grey"}, {"operator": "quantise"}]
    choices = [{"steps": both}, {"steps": [{"operator": "shuffle", "steps": both}]}]
    words = in_words([{"operator": "one_of", "choices": choices}])
    assert words[-1] == "   - 50 %: the same steps in random order"
    assert sum("grey" in line for line in words) == 1


def test_the_hash_is_of_the_steps_alone() -> None:
    assert gallery.steps_hash("heavy") == gallery.steps_hash("ffhqref_severe") == gallery.steps_hash("refine_severe")
    assert gallery.steps_hash("light") != gallery.steps_hash("heavy")
