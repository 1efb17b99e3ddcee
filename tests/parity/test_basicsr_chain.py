"""The same recorded degradations through our operators and through BasicSR's and OpenCV's functions.

What is compared is ours in double precision, by torch, with BasicSR's chain in single precision, by OpenCV. In single
precision ours calls OpenCV itself for small kernels, resizing, sharpening and colour-free medians: there the comparison
covers the parameters and the order of the steps, not the filters. Shared in both: the codec (given the same bytes), the
field of the recorded noise, torch's area interpolation, and the record that both read.
"""

from __future__ import annotations

from typing import Any

import basicsr_reference  # noqa: F401 - skips where BasicSR is absent
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from bench.config import read_preset
from bench.degradation.basicsr_chain import BasicsrChain
from bench.degradation.operators import OPERATORS, blur
from bench.degradation.operators.blur import KERNEL_NAMES
from bench.degradation.operators.kernels import gaussian_kernel
from bench.degradation.pipeline import DegradationPipeline, replay

FIRST_ORDER: list[dict[str, Any]] = [
    {"operator": "gaussian_blur", "sigma": [0.1, 10], "kernel_size": 41},
    {"operator": "downscale", "scale": [0.8, 8]},
    {"operator": "gaussian_noise", "sigma": [0, 20]},
    {"operator": "jpeg", "quality": [60, 100]},
    {"operator": "resize_back"},
]
SIZE = 128
COUNT = 48
# The lowest of 48 pictures was 54.4 dB (realesrgan), 65 dB and 69 dB (first order, gfpgan): a value on the edge between
# two levels moves a JPEG coefficient now and then.
LOWEST = 50.0


def _steps_of(preset: str) -> list[dict[str, Any]]:
    """A preset's steps, its rare ones as often as not, so that every operator is drawn."""
    steps = [dict(step) for step in read_preset("degradation", preset)["steps"]]
    return [{**step, "probability": 0.7} if step["operator"] == "maybe" else step for step in steps]


@pytest.fixture(scope="module")
def truths() -> list[np.ndarray]:
    """Crops of photographs, (3, H, W) float32 RGB on the 8-bit grid."""
    from skimage.data import astronaut, chelsea

    crops = []
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        photograph = (astronaut, chelsea)[index % 2]()
        top, left = (int(rng.integers(side - SIZE + 1)) for side in photograph.shape[:2])
        crop = photograph[top : top + SIZE, left : left + SIZE]
        crops.append(crop.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    return crops


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(max(np.square(one.astype(np.float64) - other).mean(), 1e-20)))


def _compare(
    name: str, steps: list[dict[str, Any]], truths: list[np.ndarray], preset_size: int, dtype: torch.dtype
) -> tuple[np.ndarray, Any]:
    """PSNR between the two results of each picture, and the Kolmogorov-Smirnov test of their PSNR to the truth."""
    pipeline = DegradationPipeline(name, steps, preset_size)
    thetas = pipeline.sample(range(len(truths)), (SIZE, SIZE))
    chain = BasicsrChain(recorded_noise=True)
    agreement, quality_ours, quality_theirs = [], [], []
    for truth, theta in zip(truths, thetas, strict=True):
        assert all(chain.supports(step) for step in theta["steps"])
        ours = replay(torch.from_numpy(truth).to(dtype).unsqueeze(0), [theta])[0].numpy()
        theirs = chain.apply(np.ascontiguousarray(truth[::-1].transpose(1, 2, 0)), theta["steps"])
        theirs = theirs[:, :, ::-1].transpose(2, 0, 1)
        agreement.append(_psnr(ours, theirs))
        quality_ours.append(_psnr(ours, truth))
        quality_theirs.append(_psnr(theirs, truth))
    test = ks_2samp(quality_ours, quality_theirs, method="asymp")
    print(  # noqa: T201 - the distance is a result
        f"\n{name}, {dtype}: PSNR between the chains: median {np.median(agreement):.1f} dB, "
        f"lowest {min(agreement):.1f} dB; KS distance of the PSNR to the truth {test.statistic:.3f} "
        f"(p = {test.pvalue:.2f})"
    )
    return np.array(agreement), test


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset_size", [512, SIZE])
def test_first_order_chain_agrees(truths: list[np.ndarray], preset_size: int, dtype: torch.dtype) -> None:
    agreement, test = _compare("first order", FIRST_ORDER, truths, preset_size, dtype)
    assert agreement.min() >= LOWEST
    assert test.statistic <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("preset", "preset_size"), [("gfpgan", SIZE), ("realesrgan", SIZE), ("realesrgan", 512)])
def test_preset_agrees(truths: list[np.ndarray], preset: str, preset_size: int, dtype: torch.dtype) -> None:
    agreement, test = _compare(preset, _steps_of(preset), truths, preset_size, dtype)
    assert agreement.min() >= LOWEST
    assert test.statistic <= 0.1


@pytest.mark.parametrize("preset", ["gfpgan", "realesrgan"])
def test_every_operator_and_kernel_is_drawn(preset: str) -> None:
    pipeline = DegradationPipeline(preset, _steps_of(preset), SIZE)
    drawn = [step for theta in pipeline.sample(range(COUNT), (SIZE, SIZE)) for step in theta["steps"]]
    holders = {"maybe", "one_of"}
    assert {step["operator"] for step in drawn} == set(pipeline.specification()["versions"]) - holders
    if preset == "realesrgan":
        assert {step["kernel"] for step in drawn if "kernel" in step} == set(KERNEL_NAMES)
        assert {step["interpolation"] for step in drawn if "interpolation" in step} == {"area", "bilinear", "bicubic"}


def _flipped(size: int, sigma_x: float, sigma_y: float, angle: float) -> torch.Tensor:
    return gaussian_kernel(size, sigma_x, sigma_y, -angle)


def _without_plateau(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> torch.Tensor:
    return gaussian_kernel(size, sigma_x, sigma_y, angle)


@pytest.mark.parametrize(
    ("preset", "target", "name", "mistake"),
    [
        ("gfpgan", blur, "gaussian_kernel", _flipped),
        ("realesrgan", blur, "gaussian_kernel", _flipped),
        ("realesrgan", blur, "plateau_kernel", _without_plateau),
        ("gfpgan", OPERATORS["grey"], "apply", lambda self, images, parameters: list(images)),
    ],
    ids=["gfpgan-angle", "realesrgan-angle", "realesrgan-plateau", "gfpgan-grey"],
)
def test_the_bound_finds_a_mistake(
    truths: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, preset: str, target: Any, name: str, mistake: Any
) -> None:
    monkeypatch.setattr(target, name, mistake)
    agreement, _ = _compare(preset, _steps_of(preset), truths, SIZE, torch.float64)
    assert agreement.min() < LOWEST - 10


def test_a_different_degradation_does_not_agree(truths: list[np.ndarray]) -> None:
    """The bounds above can fail: other noise of the same strength is far from 40 dB."""
    pipeline = DegradationPipeline("noise", [{"operator": "gaussian_noise", "sigma": [10, 10]}], SIZE)
    (theta,) = pipeline.sample([1], (SIZE, SIZE))
    ours = replay(torch.from_numpy(truths[0]).unsqueeze(0), [theta])[0].numpy()
    theirs = BasicsrChain(recorded_noise=False).apply(
        np.ascontiguousarray(truths[0][::-1].transpose(1, 2, 0)), theta["steps"]
    )
    assert _psnr(ours, theirs[:, :, ::-1].transpose(2, 0, 1)) < 30


@pytest.mark.parametrize(("window", "tolerance"), [(1, 0.0), (3, 1e-6), (5, 1e-6), (7, 1e-6)])
def test_median_agrees(truths: list[np.ndarray], window: int, tolerance: float) -> None:
    """On the 8-bit grid OpenCV's median of any window is exact."""
    step = {"operator": "median_blur", "kernel_size": window}
    ours = replay(torch.from_numpy(truths[0]).unsqueeze(0), [{"steps": [step]}])[0].numpy()
    theirs = BasicsrChain().apply(np.ascontiguousarray(truths[0][::-1].transpose(1, 2, 0)), [step])
    np.testing.assert_allclose(ours, theirs[:, :, ::-1].transpose(2, 0, 1), atol=tolerance)
