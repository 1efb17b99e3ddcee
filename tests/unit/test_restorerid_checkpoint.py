"""RestorerID's released checkpoint becomes the weights folder, and comes back."""

from __future__ import annotations

import collections
import contextlib
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.weights import catalogue
from bench.weights.method_weights import read_weights, write_tensors
from methods.blocks.base_models import base_model
from methods.blocks.checkpoints.accounting import read_checkpoint, restore
from methods.blocks.latent_diffusion import load_base, locate_base
from methods.blocks.text_conditioning import text_tokens
from methods.restorerid.face_encoders import clip_weights
from methods.restorerid.module import RestorerID
from methods.restorerid.release import (
    CLIP_FILE,
    LEFT_OUT_FILE,
    NETWORK_FILE,
    convert_release,
    empty_modules,
    main,
    paper_settings,
    restore_release,
)

PARITY = Path(__file__).parents[1] / "parity"
UNET = (
    "{sample_size: 8, block_out_channels: [8, 8], layers_per_block: 1, norm_num_groups: 4, cross_attention_dim: 8, "
    "attention_head_dim: 2, down_block_types: [CrossAttnDownBlock2D, DownBlock2D], "
    "up_block_types: [UpBlock2D, CrossAttnUpBlock2D]}"
)
VAE = (
    "{block_out_channels: [8, 8], down_block_types: [DownEncoderBlock2D, DownEncoderBlock2D], "
    "up_block_types: [UpDecoderBlock2D, UpDecoderBlock2D], layers_per_block: 1, norm_num_groups: 4}"
)
TEXT = "{hidden_size: 8, intermediate_size: 8, num_hidden_layers: 2, num_attention_heads: 2}"
LQ = (
    "{channels: 8, multipliers: [1, 1], layers_per_level: 1, attention_levels: [0], heads: 2, map_channels: 8, "
    "groups: 4}"
)
#: The published size in small: the same classes, under the same names.
SMALL = [
    "method.sizes.paper.native_size=64",
    f"method.sizes.paper.base={{name: sd15, unet: {UNET}, vae: {VAE}, text: {TEXT}}}",
    f"method.sizes.paper.network.lq_encoder={LQ}",
    "method.sizes.paper.network.sft.hidden=8",
    "method.sizes.paper.network.identity.rank=2",
    "method.sizes.paper.network.projection.image_dim=16",
    "method.sizes.paper.network.projection.depth=1",
    "+method.sizes.paper.network.projection.head_width=4",
    "method.sizes.paper.network.fir={hidden: 8, heads: 2, form: released_code}",
    "method.sizes.paper.sampling.steps=2",
]
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 56,
    "image_size": 224,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


def small_settings(words: Sequence[str] = ()) -> dict[str, Any]:
    return method_settings(compose("run", ["method=restorerid", *SMALL, *words])["method"], "paper")


def small_release(path: Path, words: Sequence[str] = ()) -> dict[str, Tensor]:
    """A released checkpoint of random numbers, and the file of it; the ID model in half precision, as released."""
    _, modules = empty_modules(small_settings(words), CLIP)
    generator = torch.Generator().manual_seed(5)
    parts = modules.parts()
    networks = {part.name: getattr(modules, part.name) for part in parts}
    for module in networks.values():
        module.to_empty(device="cpu")
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    left_out = {"betas": torch.linspace(0, 1, 5), "alphas_cumprod": torch.rand(5)}
    checkpoint = restore({name: module.state_dict() for name, module in networks.items()}, parts, left_out)
    checkpoint = {name: value.half() if name.startswith("Adapter.") else value for name, value in checkpoint.items()}
    torch.save({"state_dict": checkpoint, "global_step": 3}, path)
    return checkpoint


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_there_and_back_is_exact(tmp_path: Path, home: Path, suffix: str) -> None:
    released = small_release(tmp_path / "RestorerIDFull.ckpt")
    folder = home / "weights"
    written = convert_release(tmp_path / "RestorerIDFull.ckpt", folder, small_settings(), CLIP)
    assert {path.relative_to(folder).as_posix() for path in written} == {
        NETWORK_FILE, CLIP_FILE, LEFT_OUT_FILE,
        "stable-diffusion-v1-5/vae/diffusion_pytorch_model.safetensors",
        "stable-diffusion-v1-5/text_encoder/model.safetensors",
    }  # fmt: skip
    assert not list(folder.rglob(".partial-*"))
    restore_release(tmp_path / f"back{suffix}", folder, small_settings(), CLIP)
    back = read_checkpoint(tmp_path / f"back{suffix}")
    assert back.keys() == released.keys()
    for name, tensor in released.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name


def test_a_network_trained_here_goes_back_too(tmp_path: Path, home: Path) -> None:
    released = small_release(tmp_path / "RestorerIDFull.ckpt")
    convert_release(tmp_path / "RestorerIDFull.ckpt", home / "weights", small_settings(), CLIP)
    state, _ = read_weights(home / "weights" / NETWORK_FILE)
    own = {name: tensor + 1 for name, tensor in state.items()}
    write_tensors(tmp_path / "own.safetensors", own, {})
    words = [str(tmp_path / "mine.ckpt"), "--back", "--network", str(tmp_path / "own.safetensors")]
    assert main(words, small_settings(), CLIP) == 0
    back = read_checkpoint(tmp_path / "mine.ckpt")
    for name, tensor in released.items():
        in_network = name.startswith(("model.", "structcond_stage_model.", "Adapter.image_proj_model."))
        assert torch.equal(back[name], tensor + 1 if in_network else tensor), name


def test_bench_finds_all_that_the_checkpoint_brings(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = small_release(tmp_path / "RestorerIDFull.ckpt")
    assert main([str(tmp_path / "RestorerIDFull.ckpt")], small_settings(), CLIP) == 0
    assert "bench check method=restorerid size=paper" in capsys.readouterr().out
    settings = small_settings()
    base = base_model(settings["base"])
    assert locate_base(base, parts=("vae", "text")) == home / "weights" / "stable-diffusion-v1-5"
    with pytest.raises(MissingError, match=r"\(unet, vae\) are not here"):
        locate_base(base, parts=("unet", "vae"))
    stored = load_base(base, parts=("vae", "text"))
    key = "first_stage_model.decoder.up.0.block.0.conv1.weight"
    assert torch.equal(stored["vae"].state_dict()["decoder.up_blocks.1.resnets.0.conv1.weight"], released[key])
    tokens = text_tokens(base, [settings["prompts"]["positive"], ""])
    assert tokens.shape == (2, 77, 8)
    assert not torch.equal(tokens[0], tokens[1])
    assert clip_weights() == "restorerid_clip_vit_h14"
    assert catalogue.missing("restorerid_clip_vit_h14") is None
    method = RestorerID(settings)
    state, metadata = read_weights(home / "weights" / NETWORK_FILE)
    method.load_weights_state(state)
    assert metadata["method"] == "restorerid"
    assert json.loads(metadata["settings"])["network"] == settings["network"]
    assert len(metadata["source_sha256"]) == 64


def test_a_stage_of_training_goes_on_from_the_converted_release(tmp_path: Path, home: Path) -> None:
    small_release(tmp_path / "RestorerIDFull.ckpt")
    convert_release(tmp_path / "RestorerIDFull.ckpt", home / "weights", small_settings(), CLIP)
    path = home / "weights" / NETWORK_FILE
    state, metadata = read_weights(path)
    assert not {"training", "optimiser", "losses", "dropout", "weights"} & json.loads(metadata["settings"]).keys()
    words = ["method.sizes.paper.training.stage=fir", f"method.sizes.paper.training.start_from={path}"]
    method = RestorerID(small_settings(words))
    method.prepare_training()
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in method.network.state_dict().items())


def test_an_interrupted_conversion_is_finished_the_next_time(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_release(tmp_path / "RestorerIDFull.ckpt")
    folder = home / "weights"

    def stops(path: Path, *arguments: Any) -> None:
        if path.parent.name == "vae":
            raise KeyboardInterrupt
        write_tensors(path, *arguments)

    with monkeypatch.context() as context:
        context.setattr("methods.blocks.checkpoints.base_parts.write_tensors", stops)
        with pytest.raises(KeyboardInterrupt):
            convert_release(tmp_path / "RestorerIDFull.ckpt", folder, small_settings(), CLIP)
    assert not (folder / NETWORK_FILE).exists(), "the paper size is not here yet"
    convert_release(tmp_path / "RestorerIDFull.ckpt", folder, small_settings(), CLIP)
    assert (folder / NETWORK_FILE).is_file()
    for part, file in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        place = folder / "stable-diffusion-v1-5" / part
        assert (place / "config.json").is_file()
        assert (place / f"{file}.safetensors").is_file()


def test_what_is_there_of_stable_diffusion_is_kept(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_release(tmp_path / "RestorerIDFull.ckpt")
    kept = home / "weights" / "stable-diffusion-v1-5" / "vae" / "diffusion_pytorch_model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    assert main([str(tmp_path / "RestorerIDFull.ckpt")], small_settings(), CLIP) == 0
    assert kept.read_bytes() == b"mine"
    assert "left as it is" in capsys.readouterr().out


def test_another_folder_is_named_with_what_to_do(tmp_path: Path, home: Path, capsys) -> None:
    small_release(tmp_path / "RestorerIDFull.ckpt")
    assert main([str(tmp_path / "RestorerIDFull.ckpt"), "-o", str(tmp_path / "other")], small_settings(), CLIP) == 0
    assert f"Copy them into {home / 'weights'}" in capsys.readouterr().out
    assert (tmp_path / "other" / NETWORK_FILE).is_file()
    assert not (home / "weights").exists()


def test_a_wrong_checkpoint_says_what_is_missing_and_what_was_expected(tmp_path: Path, home: Path, capsys) -> None:
    released = small_release(tmp_path / "RestorerIDFull.ckpt")
    base = {name: tensor for name, tensor in released.items() if "IDBalance" not in name}
    torch.save({"state_dict": base}, tmp_path / "basemodel.ckpt")
    assert main([str(tmp_path / "basemodel.ckpt")], small_settings(), CLIP) == 2
    message = capsys.readouterr().err
    assert "basemodel.ckpt is not the expected checkpoint (RestorerIDFull.ckpt)" in message
    assert "keys are missing: model.diffusion_model.input_blocks" in message
    assert "IDBalance" in message
    torch.save({"state_dict": {"net.weight": torch.ones(1)}}, tmp_path / "other.ckpt")
    assert main([str(tmp_path / "other.ckpt")], small_settings(), CLIP) == 2
    assert "1 keys are unexpected: net.weight" in capsys.readouterr().err
    assert not (home / "weights" / NETWORK_FILE).exists()


def test_absent_files_say_what_brings_them(tmp_path: Path, home: Path, capsys) -> None:
    assert main([str(tmp_path / "nowhere.ckpt")]) == 3
    assert "nowhere.ckpt is not there" in capsys.readouterr().err
    assert main([]) == 3
    message = capsys.readouterr().err
    assert "hf download YingJiacheng/RestorerID RestorerIDFull.ckpt" in message
    assert "Licence:" in message
    assert main([str(tmp_path / "mine.ckpt"), "--back"], small_settings(), CLIP) == 3
    assert NETWORK_FILE in capsys.readouterr().err
    write_tensors(home / "weights" / NETWORK_FILE, {"x": torch.ones(1)}, {})
    write_tensors(home / "weights" / CLIP_FILE, {"x": torch.ones(1)}, {})
    assert main([str(tmp_path / "mine.ckpt"), "--back"], small_settings(), CLIP) == 2
    assert "tensors are missing" in capsys.readouterr().err
    with pytest.raises(MissingError, match=r"GB are free"):
        from methods.restorerid.release import _require_room

        _require_room(tmp_path / "a" / "b", 10**18)


def test_the_download_is_found_in_the_cache_of_the_hub(tmp_path: Path, home: Path, capsys) -> None:
    snapshot = tmp_path / "hub" / "models--YingJiacheng--RestorerID" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    small_release(snapshot / "RestorerIDFull.ckpt")
    assert main([], small_settings(), CLIP) == 0
    assert "unverified, locked to sha256" in capsys.readouterr().err
    assert (home / "weights" / NETWORK_FILE).is_file()


def test_training_checkpoints_are_read_without_their_classes(tmp_path: Path) -> None:
    class Callback:
        def __init__(self) -> None:
            self.best = 1

    Callback.__module__, Callback.__qualname__ = "somewhere_else", "Callback"
    module = types.ModuleType("somewhere_else")
    module.Callback = Callback  # type: ignore[attr-defined]
    sys.modules["somewhere_else"] = module
    try:
        content = {
            "state_dict": collections.OrderedDict(a=torch.ones(2)),
            "callbacks": {Callback: {"best": Callback()}},
        }
        torch.save(content, tmp_path / "training.ckpt")
        torch.save(content["state_dict"], tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    finally:
        del sys.modules["somewhere_else"]
    for name in ("training", "old"):
        assert torch.equal(read_checkpoint(tmp_path / f"{name}.ckpt")["a"], torch.ones(2))


class _Runs:
    """Would create a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "hook": _Runs(tmp_path / "ran")}, tmp_path / "hook.ckpt")
    with contextlib.suppress(UsageError):
        read_checkpoint(tmp_path / "hook.ckpt")
    assert not (tmp_path / "ran").exists()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_size_is_the_released_checkpoints() -> None:
    network, modules = empty_modules(paper_settings())
    listing = json.loads((PARITY / "keys_restorerid_full.json").read_text())
    adapter = json.loads((PARITY / "keys_restorerid_adapter.json").read_text())
    expected = {key: torch.Size(shape) for key, shape, _ in listing}
    expected |= {f"Adapter.{key}": torch.Size(shape) for key, shape, _ in adapter}
    ours = {key: shape for part in modules.parts() for key, shape in part.released_shapes().items()}
    assert {key: shape for key, shape in expected.items() if "." in key} == ours
    assert count(modules.unet) == 859_520_964
    assert count(network) == sum(count(getattr(modules, part)) for part in (
        "unet", "sft", "identity", "fir", "projection", "lq_encoder"
    ))  # fmt: skip
