"""StableSR's released checkpoint becomes weights of PFStorer's network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.runs.plan import _check_architecture
from bench.weights.method_weights import read_weights
from methods.blocks.base_models import base_model
from methods.blocks.checkpoints.accounting import convert, restore
from methods.blocks.checkpoints.network_file import network_state
from methods.blocks.checkpoints.stablesr import stablesr_parts
from methods.blocks.latent_diffusion import build_text_encoder, build_vae
from methods.blocks.stablesr_network import StableSRNetwork
from methods.pfstorer.module import PFStorer
from methods.pfstorer.network import PFStorerNetwork
from methods.pfstorer.stablesr_checkpoint import (
    BASE_PARTS,
    STABLESR_LEFT_OUT,
    convert_stablesr,
    main,
    paper_settings,
    released_network,
)
from tests.unit.test_restorerid_checkpoint import LQ, TEXT, UNET, VAE

KEYS = Path(__file__).parents[1] / "parity" / "keys_stablesr_full.json"
#: The published size in small: the same classes, under the same names.
SMALL = [
    "method.sizes.paper.native_size=64",
    f"method.sizes.paper.base={{name: sd21_base, unet: {UNET}, vae: {VAE}, text: {TEXT}}}",
    f"method.sizes.paper.network.lq_encoder={LQ}",
    "method.sizes.paper.network.sft.hidden=8",
]
SIDES: dict[str, Tensor] = {
    "betas": torch.linspace(0, 1, 5),
    "cond_stage_model.model.logit_scale": torch.ones(()),
    "first_stage_model.decoder.fusion_layer_1.encode_enc_1.conv1.weight": torch.ones(2, 2, 3, 3),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def small_settings(words: tuple[str, ...] = ()) -> dict[str, Any]:
    return method_settings(compose("run", ["method=pfstorer", *SMALL, *words])["method"], "paper")


def small_release(path: Path) -> tuple[StableSRNetwork, dict[str, Tensor]]:
    """A file laid out as the released one, the network it was made from (no PFStorer in it), and its tensors."""
    settings = small_settings()
    base = base_model(settings["base"])
    network, vae, text = StableSRNetwork(base, settings["network"]), build_vae(base), build_text_encoder(base)
    generator = torch.Generator().manual_seed(5)
    sft: Any = network.adapted.adapters["sft"]
    networks: dict[str, nn.Module] = {
        "unet": network.adapted.unet, "sft": sft, "lq_encoder": network.lq_encoder, "vae": vae, "text": text
    }  # fmt: skip
    for module in networks.values():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    parts = stablesr_parts(network.adapted.unet, sft, network.lq_encoder, vae, text, open_clip=True)
    checkpoint = restore({name: module.state_dict() for name, module in networks.items()}, parts, SIDES)
    torch.save({"state_dict": checkpoint, "global_step": 3}, path)
    return network.eval(), checkpoint


@torch.no_grad()
def output(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    latent, lq = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    timestep, text = torch.tensor([3.0, 700.0]), torch.randn(2, 5, 8, generator=generator)
    maps = network.lq_maps(lq, timestep)
    if isinstance(network, PFStorerNetwork):
        return network(latent, timestep, text, maps)
    found: Tensor = network.adapted(latent, timestep, text, lq_maps=maps)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_converted_network_is_the_one_the_file_was_made_from(tmp_path: Path, dtype: str) -> None:
    network, _ = small_release(tmp_path / "stablesr_000117.ckpt")
    target = tmp_path / "out" / "pfstorer_paper.safetensors"
    words = [str(tmp_path / "stablesr_000117.ckpt"), "-o", str(target)]
    words += ["--dtype", dtype] if dtype != "float16" else []
    assert main(words, small_settings()) == 0
    state, _ = read_weights(target)
    assert {tensor.dtype for tensor in state.values()} == {getattr(torch, dtype)}
    settings = small_settings()
    converted = PFStorerNetwork(base_model(settings["base"]), settings["network"]).eval()
    converted.load_state_dict(state, strict=True)
    if dtype == "float16":
        network.half().float()
    assert torch.equal(output(converted), output(network))
    other = PFStorerNetwork(base_model(settings["base"]), settings["network"]).eval()
    assert not torch.equal(output(converted), output(other))
    assert not list(tmp_path.rglob(".partial-*"))


def test_the_method_takes_the_file_and_knows_where_it_is_from(tmp_path: Path) -> None:
    network, _ = small_release(tmp_path / "stablesr_000117.ckpt")
    target = tmp_path / "stablesr.safetensors"
    convert_stablesr(tmp_path / "stablesr_000117.ckpt", target, "float32", small_settings())
    state, metadata = read_weights(target)
    assert (metadata["method"], metadata["size"]) == ("pfstorer", "paper")
    assert metadata["source"] == "stablesr_000117.ckpt"
    assert len(metadata["source_sha256"]) == 64
    stored = json.loads(metadata["settings"])
    assert not {"training", "optimiser", "dropout", "weights"} & stored.keys()
    method = PFStorer(small_settings(("method.sizes.paper.personalisation.tunes=nothing",)))
    assert set(method.architecture_keys) <= stored.keys()
    _check_architecture(method, metadata, target)
    method.load_weights_state(state)
    assert torch.equal(output(method.network.eval()), output(network))
    other = PFStorer(small_settings(("method.sizes.paper.network.sft.hidden=4",)))
    with pytest.raises(UsageError, match="were trained with"):
        _check_architecture(other, metadata, target)


def test_the_base_model_is_trained_from_the_file(tmp_path: Path) -> None:
    network, _ = small_release(tmp_path / "stablesr_000117.ckpt")
    target = tmp_path / "stablesr.safetensors"
    convert_stablesr(tmp_path / "stablesr_000117.ckpt", target, "float32", small_settings())
    method = PFStorer(small_settings((f"method.sizes.paper.training.start_from={target}",)))
    method.prepare_training()
    assert torch.equal(output(method.network.eval()), output(network))


def test_what_is_left_out_is_named_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, checkpoint = small_release(tmp_path / "stablesr_000117.ckpt")
    target = tmp_path / "stablesr.safetensors"
    assert main([str(tmp_path / "stablesr_000117.ckpt"), "-o", str(target)], small_settings()) == 0
    printed = capsys.readouterr().out
    for prefix, reason in (("first_stage_model.", BASE_PARTS["vae"]), ("cond_stage_model.", BASE_PARTS["text"])):
        count = sum(key.startswith(prefix) and key not in SIDES for key in checkpoint)
        assert f"{count} tensors: {reason}" in printed
    for reason in ("the noise schedule is made", "before the projection", "no feature wrapping (CFW)"):
        assert any(line.startswith("left out  1 tensors") and reason in line for line in printed.splitlines())
    assert f"network   {target}" in printed


def test_every_key_of_the_released_size_is_accounted_for() -> None:
    listing = json.loads(KEYS.read_text())
    network, parts = released_network(paper_settings())
    with torch.device("meta"):
        checkpoint = {key: torch.empty(shape) for key, shape, _ in listing}
    found = convert(checkpoint, parts, expected="", source="", left_out=STABLESR_LEFT_OUT)
    taken = {part.name: {part.prefix + entry.released for entry in part.entries} for part in parts}
    assert {part.name for part in parts} == {*network.PARTS.values(), *BASE_PARTS}
    assert sum(map(len, taken.values())) + len(found.reasons) == len(checkpoint)
    assert set().union(*taken.values(), found.reasons) == checkpoint.keys()
    state, wanted = network_state(network, found.states), network.state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {key: own.shape for key, own in wanted.items()}
    assert not [key for key in wanted if key.startswith("adapted.adapters.personal")]
    assert sum(parameter.numel() for parameter in network.adapted.unet.parameters()) == 865_910_724


def test_wrong_files_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, checkpoint = small_release(tmp_path / "stablesr_000117.ckpt")
    target = tmp_path / "stablesr.safetensors"

    def fails(source: Path, code: int, output: Path = target) -> str:
        assert main([str(source), "-o", str(output)], small_settings()) == code
        return capsys.readouterr().err

    assert "nowhere.ckpt is not there" in fails(tmp_path / "nowhere.ckpt", MissingError.exit_code)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "text.ckpt cannot be read" in fails(tmp_path / "text.ckpt", UsageError.exit_code)
    plain = {key: tensor for key, tensor in checkpoint.items() if ".spade." not in key}
    torch.save({"state_dict": plain}, tmp_path / "plain.ckpt")
    message = fails(tmp_path / "plain.ckpt", UsageError.exit_code)
    assert "plain.ckpt is not the expected checkpoint (stablesr_000117.ckpt)" in message
    assert "keys are missing: model.diffusion_model.input_blocks" in message
    torch.save({"state_dict": {**checkpoint, "control_model.weight": torch.ones(1)}}, tmp_path / "more.ckpt")
    assert "1 keys are unexpected: control_model.weight" in fails(tmp_path / "more.ckpt", UsageError.exit_code)
    assert not target.exists()

    released = tmp_path / "stablesr_000117.ckpt"
    assert f"{tmp_path} is a folder" in fails(released, UsageError.exit_code, tmp_path)
    content = released.read_bytes()
    assert "is the checkpoint itself" in fails(released, UsageError.exit_code, released)
    assert "cannot be written" in fails(released, UsageError.exit_code, tmp_path / "text.ckpt" / "out.safetensors")
    assert released.read_bytes() == content
    assert not list(tmp_path.rglob(".partial-*"))
