"""`bench perf degradation=…`: what it reports, not how long anything takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.config import read_preset
from bench.degradation import benchmark
from bench.degradation.basicsr_chain import BasicsrChain
from bench.degradation.pipeline import DegradationPipeline
from bench.errors import MissingError


@pytest.fixture
def with_basicsr() -> None:
    try:
        BasicsrChain()
    except MissingError as error:
        pytest.skip(str(error))


def _perf(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["perf", *words, "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


@pytest.mark.usefixtures("with_basicsr")
def test_figures_of_a_preset_belong_together(capsys: pytest.CaptureFixture[str]) -> None:
    result = _perf(capsys, "degradation=gfpgan", "size=64", "images=3")
    assert (result["size"], result["images"], result["threads"], result["missing"]) == (64, 3, 1, None)
    (preset,) = result["presets"]
    assert preset["ours"] > 0
    assert 0 < preset["double"] != preset["ours"]
    assert preset["ratio"] == pytest.approx(preset["ours"] / preset["basicsr"])
    pipeline = DegradationPipeline("gfpgan", read_preset("degradation", "gfpgan")["steps"], 64)
    steps = [step["operator"] for theta in pipeline.sample(range(3), (64, 64)) for step in theta["steps"]]
    assert {one["name"]: one["calls"] for one in preset["operators"]} == {name: steps.count(name) for name in steps}
    assert sum(one["share"] for one in preset["operators"]) == pytest.approx(1)
    assert result["operators"] == preset["operators"]
    assert all(one["ours_ms"] > 0 and one["basicsr_ms"] > 0 for one in preset["operators"])


@pytest.mark.usefixtures("with_basicsr")
def test_a_step_without_counterpart_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    (preset,) = _perf(capsys, "degradation=restorerid", "size=64", "images=1")["presets"]
    assert (preset["basicsr"], preset["ratio"]) == (None, None)
    assert preset["without_counterpart"] == ["camera_isp"]
    figures = {one["name"]: one for one in preset["operators"]}
    assert figures["camera_isp"]["basicsr_ms"] is None
    assert figures["jpeg"]["basicsr_ms"] > 0


def test_without_basicsr_ours_is_timed_and_the_reason_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(recorded_noise: bool = False) -> BasicsrChain:
        raise MissingError("BasicSR cannot be imported.")

    monkeypatch.setattr(benchmark, "BasicsrChain", absent)
    result = _perf(capsys, "degradation=light", "size=32", "images=1")
    assert result["missing"] == "BasicSR cannot be imported."
    assert result["presets"][0]["ours"] > 0
    assert result["presets"][0]["basicsr"] is None
    assert main(["perf", "degradation=light", "size=32", "images=1"]) == 0
    printed = capsys.readouterr().out
    assert "BasicSR cannot be imported." in printed
    assert "gaussian_blur" in printed
    assert "float64 images/s" in printed


def test_threads_are_given_back() -> None:
    import cv2

    before = torch.get_num_threads(), cv2.getNumThreads()
    benchmark.measure_degradations("light", size=32, images=1, threads=2)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["degradation=gfpgann"], "gfpgan"),
        (["degradation=gfpgan", "image=3"], "images"),
        (["degradation=gfpgan", "size=large"], "whole number"),
        (["degradation=gfpgan", "images=0"], "at least 1"),
        (["degradation=gfpgan", "images=2", "images=3"], "given twice"),
        (["degradation=gfpgan", "64"], "expected key=value"),
        (["degradation="], "expected key=value"),
        (["degradation=gfpgan", "size="], "expected key=value"),
        (["degradation=gfpgan", "--seconds", "3"], "images=N"),
    ],
)
def test_mistakes_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", *words]) == 2
    assert message in capsys.readouterr().err
