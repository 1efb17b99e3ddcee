"""`size=auto` takes the paper size only when all it needs is here; what is absent ends a run before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_restorerid_checkpoint import CLIP, SMALL, small_release, small_settings

from bench.cli.main import main
from bench.config import compose
from bench.errors import MissingError
from bench.files import sha256_file
from bench.runs.check import check_run
from bench.runs.plan import build_method, choose_size
from bench.weights.method_weights import read_metadata, read_weights, weights_path, write_tensors
from methods.restorerid.release import main as convert_checkpoint

WORDS = ["method=restorerid", "data=orl_heavy_ci"]
# The encoders and the estimator that need files of others, replaced by those that ship.
SHIPPED = [
    "method.sizes.paper.face_encoder=sface",
    "method.sizes.paper.quality=bands",
    "method.sizes.paper.network.projection.identity_dim=128",
    "method.sizes.paper.network.projection.image_dim=512",
    "method.id_scale=0.75",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"BENCH_HOME": "home", "HF_HUB_CACHE": "hub", "BENCH_RUNS": "runs", "HOME": "user"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


def test_auto_takes_no_size_that_lacks_something(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tensors(home / "weights" / "restorerid_demo.safetensors", {"x": torch.ones(1)}, {})
    config = compose("run", WORDS)
    assert choose_size(config)[0] == "demo"
    said = capsys.readouterr().err
    assert "no paper-size weights of restorerid here" in said
    assert "hf download YingJiacheng/RestorerID" in said
    write_tensors(home / "weights" / "restorerid_paper.safetensors", {"x": torch.ones(1)}, {})
    assert choose_size(config)[0] == "demo"
    said = capsys.readouterr().err
    assert "restorerid@paper lacks sd15 vae, sd15 text, arcface_w600k_r50, clip_vit_h14, musiq" in said
    assert "bench check method=restorerid size=paper" in said


def test_absent_parts_end_a_run_before_it_starts(
    home: Path, capsys: pytest.CaptureFixture[str], orl_root: Path
) -> None:
    write_tensors(home / "weights" / "restorerid_paper.safetensors", {"x": torch.ones(1)}, {})
    assert main(["run", *WORDS, "size=paper", "run_dir=" + str(home / "run")]) == 3
    said = capsys.readouterr().err
    for name in ("sd15 vae", "arcface_w600k_r50", "clip_vit_h14", "musiq"):
        assert said.count(f"{name}: ") == 1, name
    assert not (home / "run").exists()
    with pytest.raises(MissingError, match="hf download YingJiacheng/RestorerID"):
        (home / "weights" / "restorerid_paper.safetensors").unlink()
        build_method(compose("run", [*WORDS, "size=paper"]))


def test_where_neither_size_can_run_both_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(home / "weights" / "restorerid_paper.safetensors", {"x": torch.ones(1)}, {})
    real = weights_path
    monkeypatch.setattr(
        "bench.runs.plan.weights_path",
        lambda name, size, given=None: None if size == "demo" else real(name, size, given),
    )
    with pytest.raises(MissingError) as caught:
        choose_size(compose("run", WORDS))
    said = str(caught.value)
    assert "Neither size can run: restorerid@paper lacks sd15 vae, sd15 text" in said
    assert "bench check method=restorerid size=paper" in said
    assert "The weights of restorerid@demo are not here" in said


def test_a_method_without_a_paper_size_is_not_told_to_train_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_size(compose("run", ["method=autoencoder", "data=orl_heavy_ci"]))[0] == "demo"
    assert not capsys.readouterr().err


def test_the_check_says_once_what_the_paper_size_lacks_and_under_which_licence(orl_root: Path) -> None:
    found = [one for one in check_run([*WORDS, "size=paper"]) if one.state == "error"]
    assert "restorerid_paper" in [one.name for one in found]
    assert "method" not in [one.name for one in found]
    for one in found:
        assert one.exit_code == 3
    with pytest.raises(MissingError, match=r"Licence: Apache-2\.0 as the code's"):
        choose_size(compose("run", [*WORDS, "size=paper"]))


@pytest.mark.parametrize("metadata", [{}, {"ü": 'a "quoted" name\n\u2028/é', **{f"key{n}": [n] for n in range(8)}}])
def test_the_same_weights_are_written_as_the_same_bytes(tmp_path: Path, metadata: dict[str, object]) -> None:
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "ü": torch.zeros(1)}
    files = [tmp_path / f"{number}.safetensors" for number in range(6)]
    for file in files:
        write_tensors(file, tensors, metadata)
    assert len({sha256_file(file) for file in files}) == 1
    state, stored = read_weights(files[0])
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert stored == read_metadata(files[0])
    assert stored == {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def test_from_the_checkpoint_alone_to_a_run(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], orl_root: Path
) -> None:
    small_release(tmp_path / "RestorerIDFull.ckpt", SHIPPED)
    assert convert_checkpoint([str(tmp_path / "RestorerIDFull.ckpt")], small_settings(SHIPPED), CLIP) == 0
    words = [*WORDS, *SMALL, *SHIPPED]
    assert choose_size(compose("run", words))[0] == "paper"
    capsys.readouterr()
    code = main(
        ["run", *words, "metrics.names=[psnr_y]", "metrics.sets=[]", "leaderboard=false", "--json",
         f"run_dir={tmp_path / 'run'}"]
    )  # fmt: skip
    said = capsys.readouterr()
    assert said.out, said.err
    summary = json.loads(said.out)
    assert (code, summary["images"], summary["failed"]) == (0, 12, {})
    assert summary["method"] == "restorerid+scale0.75@paper"
