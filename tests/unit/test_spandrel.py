"""Released networks: recognised, called in their authors' range, the same twice; files made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.cli.main import main
from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.runs.plan import build_method
from methods.spandrel.module import Spandrel
from methods.spandrel.ncnn import read_ncnn_rrdbnet, rrdbnet_shapes
from tests.unit.identity_network import identity_esrgan

pytest.importorskip("spandrel")


def batch(*sizes: int, count: int = 1) -> FaceBatch:
    generator = torch.Generator().manual_seed(0)
    lq = torch.nn.functional.avg_pool2d(torch.rand(count, 3, *sizes, generator=generator), 9, 1, 4)
    return FaceBatch(
        lq=lq * torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1),
        references=torch.zeros(count, 0, 3, *sizes),
        reference_mask=torch.zeros(count, 0, dtype=torch.bool),
        image_ids=[str(row) for row in range(count)],
        identities=["someone"] * count,
        seeds=list(range(count)),
    )


def built(file: Path, *words: str) -> Spandrel:
    method, _, _ = build_method(compose("run", ["method=spandrel", f"method.weights={file}", *words]))
    assert isinstance(method, Spandrel)
    return method


@pytest.fixture(scope="module")
def gfpgan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As TencentARC/GFPGAN releases it: a torch file with `params_ema`."""
    from spandrel.architectures.GFPGAN import GFPGAN

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("gfpgan") / "GFPGANv1.4.pth"
    torch.save({"params_ema": GFPGAN(num_mlp=8).state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def codeformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sczhou/CodeFormer releases it."""
    extra = pytest.importorskip("spandrel_extra_arches.architectures.CodeFormer")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("codeformer") / "codeformer.pth"
    torch.save({"params_ema": extra.CodeFormer().state_dict()}, file)
    return file


@pytest.mark.slow
@torch.inference_mode()
def test_gfpgan_reads_and_gives_minus_one_to_one_and_draws_no_noise(gfpgan: Path) -> None:
    method = built(gfpgan, "method.model=gfpgan")
    assert (method.label, method.native_size, method.any_size) == ("spandrel+gfpgan", 512, False)
    picture = batch(512, 512).lq
    network: Any = method.network
    read: list[Tensor] = []
    handle = network.conv_body_first.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    found = method.called(picture)
    handle.remove()
    assert torch.allclose(read[0], (picture - 0.5) / 0.5)
    assert torch.allclose(found, (network(picture * 2 - 1, randomize_noise=False)[0] + 1) / 2, atol=1e-5)
    assert torch.equal(method.called(picture), found), "the same twice"
    assert not torch.allclose(method._described(picture), found.clamp(0, 1), atol=0.05), "spandrel does not normalise"


@pytest.mark.slow
@torch.inference_mode()
def test_codeformer_has_a_fidelity(codeformer: Path) -> None:
    method = built(codeformer)
    assert method.label == "spandrel+codeformer"
    picture = batch(512, 512).lq
    network: Any = method.network
    found = method.called(picture)
    assert torch.allclose(found, (network((picture - 0.5) / 0.5, weight=0.5)[0] + 1) / 2, atol=1e-5)
    assert torch.equal(method.called(picture), found)
    nearest = built(codeformer, "method.fidelity=1.0")
    assert not torch.allclose(nearest.called(picture), found, atol=1e-3)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("esrgan") / "identity.pth"
    torch.save({"params_ema": identity_esrgan()}, file)
    return file


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [(48, 48), (100, 170)])
def test_a_super_resolution_network_takes_any_size_and_gives_it_back(identity: Path, sizes: tuple[int, int]) -> None:
    method = built(identity, "method.tile=64")
    assert (method.label, method.any_size) == ("spandrel+esrgan", True)
    given = batch(*sizes, count=2)
    restored = method.restore(given)
    assert restored.shape == given.lq.shape
    # Enlarged by repeating pixels and made smaller again, a smooth picture stays what it is; seams would show.
    assert (restored - given.lq).abs().max() < 0.02


def test_weights_that_are_none_are_refused(identity: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"method\.model=gfpgan, but the weights are those of esrgan"):
        built(identity, "method.model=gfpgan")
    torch.save({"params_ema": {"strange.weight": torch.zeros(3)}}, tmp_path / "strange.pth")
    with pytest.raises(UsageError, match="spandrel knows no network"):
        built(tmp_path / "strange.pth")
    (tmp_path / "broken.pth").write_bytes(b"no network")
    with pytest.raises(UsageError, match=r"broken\.pth"):
        built(tmp_path / "broken.pth")
    state = identity_esrgan()
    state.pop("conv_hr.weight")
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(UsageError):
        built(tmp_path / "half.pth")


@pytest.mark.parametrize("word", ["method.fidelity=2", "method.tile=10"])
def test_settings_that_make_no_sense_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match=word.partition("=")[0].partition(".")[2]):
        Spandrel(method_settings(compose("run", ["method=spandrel", word])["method"], None))


def test_without_a_file_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "method=spandrel", "data=orl_heavy_ci", "leaderboard=false"]) == 3
    assert "method.weights=FILE" in capsys.readouterr().err


def test_a_run_and_a_timing_with_a_released_file(
    identity: Path, tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=spandrel", f"method.weights={identity}", "data=orl_heavy_ci"]
    short = ["leaderboard=false", "metrics.names=[psnr_y]", "metrics.sets=[]", f"run_dir={tmp_path / 'run'}"]
    assert main(["run", *words, *short, "--json"]) == 0
    assert '"spandrel+esrgan"' in capsys.readouterr().out
    assert main(["perf", *words, "--seconds", "0.1", "trainer.accelerator=cpu"]) == 0
    assert "random weights" not in capsys.readouterr().out


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
        built(file)  # one block instead of 23
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
