"""DiffBIR's released checkpoints become weights of Dual-Pivot Tuning's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.weights.method_weights import read_weights
from methods.blocks.base_models import base_model
from methods.blocks.checkpoints.accounting import restore
from methods.blocks.checkpoints.stable_diffusion import unet_part
from methods.blocks.latent_diffusion import build_text_encoder, build_vae, released_parts
from methods.dual_pivot.module import DualPivot
from methods.dual_pivot.network import DualPivotNetwork
from methods.dual_pivot.release import cleaner_part, control_part, convert_release, empty_network, main, paper_settings
from tests.unit.test_restorerid_checkpoint import TEXT, UNET, VAE

SWINIR = (
    "{kind: swinir, img_size: 16, embed_dim: 12, depths: [2, 2], num_heads: [2, 2], window_size: 8, mlp_ratio: 2, "
    "upscale: 4, upsampler: nearest+conv, start_unshuffle: 4}"
)
#: The published size in small: the same classes, under the same names.
SMALL = [
    "method.sizes.paper.native_size=64",
    f"method.sizes.paper.base={{name: sd21_base, unet: {UNET}, vae: {VAE}, text: {TEXT}}}",
    f"method.sizes.paper.network.cleaner={SWINIR}",
]


def small_settings() -> dict[str, Any]:
    return method_settings(compose("run", ["method=dual_pivot", *SMALL])["method"], "paper") | {"seed": 0}


@pytest.fixture(scope="module")
def network() -> DualPivotNetwork:
    settings = small_settings()
    made = DualPivotNetwork(base_model(settings["base"]), settings["network"]).eval()
    generator = torch.Generator().manual_seed(5)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() and "attn_mask" not in str(tensor.shape):
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return made


@torch.no_grad()
def output(network: DualPivotNetwork) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    cleaned = network.clean(torch.rand(2, 3, 64, 64, generator=generator))
    hint = nn.functional.avg_pool2d(cleaned, 8)[:, [0, 1, 2, 0]]
    return network(noisy, torch.tensor([3, 700]), text, hint)


def full_checkpoint(network: DualPivotNetwork) -> dict[str, Tensor]:
    """All that `face_full_v1.ckpt` is said to hold."""
    base = base_model(small_settings()["base"])
    others: dict[str, nn.Module] = {"vae": build_vae(base), "text": build_text_encoder(base)}
    parts = [unet_part(network.unet), control_part(network.controlnet), cleaner_part(network.cleaner)]
    states = {part: getattr(network, part).state_dict() for part in ("unet", "controlnet", "cleaner")}
    states |= {name: module.state_dict() for name, module in others.items()}
    sides = {"betas": torch.linspace(0, 1, 5), "cond_encoder.encoder.conv_in.weight": torch.ones(2, 3, 3, 3)}
    return restore(states, [*parts, *released_parts(base, others).values()], sides)


def loaded(file: Path) -> DualPivotNetwork:
    method = DualPivot(small_settings())
    method.load_weights_state(read_weights(file)[0])
    return method.network.eval()


def test_full_checkpoint_predicts_the_same_bits(network: DualPivotNetwork, tmp_path: Path) -> None:
    checkpoint = full_checkpoint(network)
    assert {"conv_first.1.weight", "layers.0.residual_group.blocks.1.attn_mask"} <= {
        name.removeprefix("preprocess_model.") for name in checkpoint
    }
    torch.save({"state_dict": checkpoint, "global_step": 3}, tmp_path / "full.ckpt")
    convert_release(tmp_path / "full.ckpt", tmp_path / "ours.safetensors", dtype="float32", settings=small_settings())
    assert torch.equal(output(loaded(tmp_path / "ours.safetensors")), output(network))


def test_separate_files_predict_the_same_bits(network: DualPivotNetwork, tmp_path: Path) -> None:
    control = control_part(network.controlnet, "")
    torch.save(restore({"controlnet": network.controlnet.state_dict()}, [control]), tmp_path / "v1_face.pth")
    cleaner = restore({"cleaner": network.cleaner.state_dict()}, [cleaner_part(network.cleaner, "")])
    torch.save({f"module.{name}": own for name, own in cleaner.items()}, tmp_path / "swinir.ckpt")
    folder = tmp_path / "sd" / "unet"
    network.unet.save_pretrained(folder)
    settings = small_settings() | {"autoencoder": str(tmp_path / "sd")}
    words = [str(tmp_path / "v1_face.pth"), "-o", str(tmp_path / "ours.safetensors"), "--dtype", "float32"]
    assert main(words, settings) == MissingError.exit_code
    assert main([*words, "--cleaner", str(tmp_path / "swinir.ckpt")], settings) == 0
    assert torch.equal(output(loaded(tmp_path / "ours.safetensors")), output(network))


def test_another_checkpoint_is_refused(network: DualPivotNetwork, tmp_path: Path) -> None:
    checkpoint = full_checkpoint(network)
    del checkpoint["control_model.middle_block_out.0.weight"]
    save_file({name: own.contiguous() for name, own in checkpoint.items()}, tmp_path / "broken.safetensors")
    with pytest.raises(UsageError, match="middle_block_out"):
        convert_release(tmp_path / "broken.safetensors", tmp_path / "ours.safetensors", settings=small_settings())
    assert not (tmp_path / "ours.safetensors").exists()


def test_weights_of_an_earlier_stage_are_refused() -> None:
    method = DualPivot(small_settings())
    method.network.begin_control()
    with pytest.raises(UsageError, match="never trained"):
        method.load_weights_state({name: own.clone() for name, own in method.network.state_dict().items()})


def test_the_published_size_has_the_published_numbers_of_parameters() -> None:
    network = empty_network(paper_settings())
    counts = {
        part: sum(own.numel() for own in getattr(network, part).parameters())
        for part in ("unet", "controlnet", "cleaner")
    }
    assert counts["unet"] == 865_910_724
    assert counts["controlnet"] == 363_153_280
    # SwinIR of DifFace's configuration (8 groups of 6 blocks, width 180, unshuffled 8 times).
    assert 15_000_000 < counts["cleaner"] < 17_000_000
