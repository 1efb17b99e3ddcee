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
    assert (method.label, method.native_size, method.any_size) == ("spandrel+gfpganv1.4", 512, False)
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
    assert (method.label, method.any_size) == ("spandrel+identity", True)
    given = batch(*sizes, count=2)
    restored = method.restore(given)
    assert restored.shape == given.lq.shape
    # Enlarged by repeating pixels and made smaller again, a smooth picture stays what it is; seams would show.
    assert (restored - given.lq).abs().max() < 0.02


def test_a_row_bears_the_name_of_its_file_or_the_one_it_is_given(identity: Path, tmp_path: Path) -> None:
    """Two releases of one architecture are two rows, and a name changes no picture."""
    renamed = tmp_path / "BestNet_V2.pth"
    renamed.write_bytes(identity.read_bytes())
    assert built(renamed).label == "spandrel+bestnet_v2"
    words = ["method=spandrel", f"method.weights={renamed}"]
    _, unnamed, _ = build_method(compose("run", words))
    named, revision, _ = build_method(compose("run", [*words, "method.system=gfpgan_v1.4"]))
    assert (named.label, revision) == ("spandrel+gfpgan_v1.4", unnamed)
    with pytest.raises(UsageError, match="is no name"):
        built(renamed, "method.system=No Name")


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
    assert '"spandrel+identity"' in capsys.readouterr().out
    assert main(["perf", *words, "--seconds", "0.1", "trainer.accelerator=cpu"]) == 0
    assert "random weights" not in capsys.readouterr().out
