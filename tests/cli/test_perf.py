"""`bench perf`: what it reports, not how long anything takes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import bench.registry
from bench.batch import FaceBatch
from bench.cli.main import main
from bench.method import MethodSpec, RestorationMethod
from bench.runs.performance import random_batch


class OneConvolution(RestorationMethod):
    """A method whose cost is known: one 3x3 convolution, 3 to 5 channels, at 32 px, and one back."""

    spec = MethodSpec(name="input", title="Two convolutions", references="several")
    native_size = 32

    def __init__(self, settings: dict[str, object] | None = None) -> None:
        super().__init__(settings)
        self.forth, self.back = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

    def restore(self, batch: FaceBatch) -> Tensor:
        assert batch.gt is None
        assert batch.references.shape[1] == 2
        return self.back(self.forth(batch.lq)).sigmoid()


def _perf(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["perf", *words, "--seconds", "0.1", "--json"]) == 0
    content: dict[str, object] = json.loads(capsys.readouterr().out)
    return content


def test_counts_of_a_known_network(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runs.performance.load_method", lambda name: OneConvolution)
    result = _perf(capsys, "method=input", "trainer.accelerator=cpu")
    (one,) = result["sizes"]  # type: ignore[misc]
    assert one["parameters"] == (3 * 5 * 9 + 5) + (5 * 3 * 9 + 3)
    # A multiplication and an addition for each weight and pixel.
    assert one["gflops"] == pytest.approx(2 * (3 * 5 * 9) * 2 * 32 * 32 / 1e9)
    assert one["side"] == 32
    assert one["dtype"] == "float32"
    assert one["latency_ms"]["n"] >= 5
    assert 0 < one["latency_ms"]["p50"] <= one["latency_ms"]["p95"]
    assert one["throughput"]["images_per_second"] == max(one["by_batch_size"].values())
    assert one["peak_memory_mb"] > one["memory_growth_mb"] >= 0
    assert any("random weights" in note for note in one["notes"])
    assert (result["threads"], result["precision"], result["device"]) == (1, "32-true", "cpu")
    assert result["hardware"]["cores"] >= 1  # type: ignore[index]
    assert "torch" in result["versions"]  # type: ignore[operator]


def test_a_method_without_weights_has_nothing_to_say_about_them(capsys: pytest.CaptureFixture[str]) -> None:
    result = _perf(capsys, "method=copy_reference", "trainer.accelerator=cpu")
    (one,) = result["sizes"]  # type: ignore[misc]
    assert (one["parameters"], one["gflops"], one["notes"]) == (0, None, [])


def test_the_table_names_machine_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "method=input", "trainer.accelerator=cpu", "--seconds", "0.1"]) == 0
    text = capsys.readouterr().out
    for word in ("thread", "precision 32-true", "latency p50", "images/s", "peak memory", "parameters", "input"):
        assert word in text


def test_refine_at_demo_size(capsys: pytest.CaptureFixture[str]) -> None:
    result = _perf(capsys, "method=refine", "size=demo", "trainer.accelerator=cpu")
    (one,) = result["sizes"]  # type: ignore[misc]
    assert (one["size"], one["side"]) == ("demo", 128)
    assert one["parameters"] > 1e6
    assert one["gflops"] > 1


@pytest.mark.gpu
def test_a_gpu_is_timed_by_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runs.performance.load_method", lambda name: OneConvolution)
    result = _perf(capsys, "method=input")
    (one,) = result["sizes"]  # type: ignore[misc]
    assert result["device"] == torch.cuda.get_device_name(0)
    assert one["peak_memory_mb"] < 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=refine", "size=papr"], "Did you mean 'paper'"),
        (["method=refin"], "Did you mean 'refine'"),
        (["method=input", "trainer.precision=64-true"], "precision"),
        (["method=input", "trainer.accelerator=tpux"], "not known"),
    ],
)
def test_mistakes_are_explained(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["perf", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_random_batch_holds_what_the_method_reads() -> None:
    method = bench.registry.load_method("copy_reference")({"name": "copy_reference", "size": None})
    batch = random_batch(method, 3, 16, torch.device("cpu"))
    assert batch.lq.shape == (3, 3, 16, 16)
    assert batch.references.shape[1] == (1 if method.spec.references == "one" else 2)
    assert batch.gt is None and batch.landmarks is None and batch.degradation is None
    assert bool(batch.reference_mask.all())


TINY = [
    "method=restorerid",
    "size=demo",
    "against=pipeline",
    "trainer.accelerator=cpu",
    "method.sizes.demo.sampling.steps=1",
    "method.sizes.demo.network.lq_encoder.channels=8",
    "method.sizes.demo.network.lq_encoder.map_channels=8",
    "method.sizes.demo.network.sft.hidden=8",
    "method.sizes.demo.network.fir.hidden=8",
    "method.sizes.demo.training.batch_size=2",
    "method.weights=null",
]


def test_a_diffusion_method_beside_the_loop_of_diffusers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runs.performance.weights_path", lambda *_: None)
    result = _perf(capsys, *TINY, "images=4")
    (one,) = result["sizes"]  # type: ignore[misc]
    sides = {side["name"]: side for side in one["sides"]}
    assert list(sides) == ["diffusers", "ours", "fast preset"]
    assert sides["ours"]["largest_difference_255"] < 2
    assert sides["fast preset"]["largest_difference_255"] is None
    assert one["fast_ratio"] is None and any("are not compared" in note for note in one["notes"])
    assert all(side["seconds_per_image"] > 0 and side["rounds"] >= 3 for side in sides.values())
    assert (one["flat"]["images"], one["flat"]["ends"]) == (4, 2)
    assert one["training"]["samples_per_second"] > 0
    assert one["training"]["faster_than_diffusers"] is None
    assert one["training"]["gflops"] > 0.1
    assert one["training"]["model_flops_utilisation"] is None
    assert any("random weights" in note for note in one["notes"])
    assert "scheduler.step(" in one["pattern"]
    assert result["command"].startswith("bench perf method=restorerid")  # type: ignore[attr-defined]
    assert main(["perf", *TINY, "images=0", "--seconds", "0.1"]) == 0
    text = capsys.readouterr().out
    for word in ("bench perf", "× diffusers", "/255", "scheduler.set_timesteps", "fast preset", "samples/s", "batch 1"):
        assert word in text


def test_a_control_net_beside_diffusers_pipeline_and_training_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runs.performance.weights_path", lambda *_: None)
    words = [
        *("method=authface", "size=demo", "against=pipeline", "trainer.accelerator=cpu", "images=0"),
        *("method.sampling.steps=2", "method.sampling.guidance=3", "method.training.batch_size=2"),
        *("method.prompts={positive:sharp focus,negative:soft focus}", "method.network.condition_channels=[8,8,8,8]"),
        *("method.sampling.preset=restorerid_paper", "method.discriminator.width=8"),
    ]
    result = _perf(capsys, *words)
    (one,) = result["sizes"]  # type: ignore[misc]
    ours = next(side for side in one["sides"] if side["name"] == "ours")
    assert ours["largest_difference_255"] < 2
    assert "StableDiffusionXLControlNetPipeline" in one["pattern"]
    assert one["training"]["faster_than_diffusers"] > 0
    assert one["training"]["stage"] == "control"
    assert main(["perf", *words, "--seconds", "0.1"]) == 0
    assert "controlnet_cond=lq" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=refine", "against=pipeline", "size=demo"], "no counterpart"),
        (["method=restorerid", "against=pipelin"], "Did you mean 'pipeline'"),
        (["method=restorerid", "against=pipeline", "images=ten"], "whole number"),
    ],
)
def test_mistakes_in_the_comparison_are_explained(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["perf", *words]) == 2
    assert message in capsys.readouterr().err
