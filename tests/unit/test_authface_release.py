"""The released diffusers folder of AuthFace, here in small: UNet and ControlNet become a weights file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.errors import MissingError, UsageError
from bench.weights.method_weights import read_weights
from methods.authface.conditions import PromptStates, picture_times
from methods.authface.network import AuthFaceNetwork
from methods.authface.release import EXPECTED, convert_release, main, missing_files, paper_settings
from methods.blocks.base_models import base_model
from tests.unit.test_authface_network import SMALL

CHANNELS = [8, 8, 8, 16]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    network = {"condition_channels": CHANNELS, "tag_encoder": False}
    return {**paper_settings(), "base": SMALL, "network": network}


@pytest.fixture(scope="module")
def network() -> AuthFaceNetwork:
    torch.manual_seed(0)
    network = AuthFaceNetwork(base_model(SMALL), CHANNELS).eval()
    for parameter in network.controlnet.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.1)
    return network


@pytest.fixture
def folder(tmp_path: Path, network: AuthFaceNetwork) -> Path:
    """As diffusers writes it."""
    network.unet.save_pretrained(tmp_path / "AuthFace/unet")
    network.controlnet.save_pretrained(tmp_path / "AuthFace/controlnet")
    return tmp_path / "AuthFace"


@torch.no_grad()
def test_the_folder_becomes_a_weights_file_that_restores_alike(
    folder: Path, tmp_path: Path, settings: dict[str, Any], network: AuthFaceNetwork
) -> None:
    target = tmp_path / "authface_paper.safetensors"
    assert main([str(folder), "-o", str(target)], settings) == 0
    state, metadata = read_weights(target)
    loaded = AuthFaceNetwork(base_model(SMALL), CHANNELS).eval()
    loaded.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {
        "latent": torch.randn(1, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([500]),
        "prompt": PromptStates(torch.randn(1, 5, 24, generator=generator), torch.randn(1, 16, generator=generator)),
        "times": picture_times(1, 64),
        "lq": torch.rand(1, 3, 64, 64, generator=generator),
    }
    assert torch.equal(loaded(**given), network(**given))
    assert json.loads(metadata["settings"])["native_size"] == 512
    assert "training" not in json.loads(metadata["settings"])


def test_a_sharded_part_is_read(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    names = sorted(whole)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: whole[name] for name in own}, folder / "unet" / shard)
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    file.with_name(file.name + ".index.json").write_text(json.dumps(index))
    file.unlink()
    convert_release(folder, tmp_path / "made.safetensors", settings)
    state, _ = read_weights(tmp_path / "made.safetensors")
    assert all(torch.equal(state[f"unet.{name}"], whole[name]) for name in names)
    (folder / "unet/b.safetensors").unlink()
    with pytest.raises(MissingError, match=r"b\.safetensors is not there"):
        convert_release(folder, tmp_path / "made.safetensors", settings)


def test_an_index_cannot_lead_out_of_the_folder(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.with_name(file.name + ".index.json").write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    file.unlink()
    with pytest.raises(UsageError, match="outside of itself"):
        convert_release(folder, tmp_path / "made.safetensors", settings)


def test_what_is_absent_or_another_network_is_named(
    folder: Path, tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(missing_files(folder)) == {f"{part}/{EXPECTED[part][0]}" for part in EXPECTED} - {
        f"{part}/{EXPECTED[part][0]}" for part in ("unet", "controlnet")
    }
    file = folder / "controlnet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = "controlnet_down_blocks.0.weight"
    save_file({**{key: own for key, own in state.items() if key != name}, "hint.weight": torch.zeros(1)}, file)
    assert main([str(folder), "-o", str(tmp_path / "made.safetensors")], settings) == 2
    said = capsys.readouterr().err
    assert f"1 tensors are missing ({name})" in said
    assert "1 are unexpected (hint.weight)" in said
    file.unlink()
    assert main([str(folder), "-o", str(tmp_path / "made.safetensors")], settings) == 3
    assert "hf download Ethanliang99/AuthFace --include 'controlnet/*'" in capsys.readouterr().err
    assert not (tmp_path / "made.safetensors").exists()


def test_half_a_folder_does_not_hide_what_was_downloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.authface import release

    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    (tmp_path / "home/weights/AuthFace/vae").mkdir(parents=True)
    monkeypatch.setattr("methods.blocks.latent_diffusion.hub_snapshot", lambda name: folder)
    assert release._downloaded() == folder


def test_the_paper_size_is_the_published_one() -> None:
    from methods.authface.release import empty_network

    network = empty_network(paper_settings())
    assert sum(parameter.numel() for parameter in network.unet.parameters()) == 2_567_463_684
    assert sum(parameter.numel() for parameter in network.controlnet.parameters()) == 1_251_014_160
