"""PFStorer as published, in small: Stable Diffusion 2.1's kinds of networks, text, fresh samples, many steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.personal_state import PersonalSource, base_id
from methods.blocks.base_models import base_model
from methods.blocks.latent_diffusion import build_text_encoder, build_vae
from methods.pfstorer.module import PFStorer

SIDE = 64
BASE: dict[str, Any] = {
    "name": "sd21_base",
    "unet": {
        "sample_size": 8, "block_out_channels": [32, 32, 64, 64], "attention_head_dim": [2, 2, 4, 4],
        "cross_attention_dim": 32, "norm_num_groups": 8,
    },
    "vae": {"block_out_channels": [16, 16, 16, 16], "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 64},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip


def folder_of(path: Path, seed: int) -> Path:
    """A diffusers folder with a new autoencoder and a new text encoder; the autoencoder is the same for every seed."""
    base = base_model(BASE)
    torch.manual_seed(0)
    build_vae(base).save_pretrained(path / "vae")
    torch.manual_seed(seed)
    build_text_encoder(base).save_pretrained(path / "text_encoder")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("sd21"), 1)


def small(folder: Path, **personalisation: Any) -> PFStorer:
    settings = copy.deepcopy(method_settings(compose("run", ["method=pfstorer"])["method"], "paper"))
    settings |= {"base": BASE, "native_size": SIDE, "autoencoder": str(folder)}
    settings["network"]["lq_encoder"] |= {"channels": 16, "map_channels": 16, "groups": 8}
    settings["network"]["sft"]["hidden"] = 8
    settings["sampling"]["steps"] = 10
    settings["personalisation"] |= {"iterations": 3, **personalisation}
    method = PFStorer(settings)
    return method.eval().requires_grad_(False)


@pytest.fixture
def references() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(3, 3, 8, 8, generator=generator), (SIDE, SIDE), mode="bilinear")


def restored(method: PFStorer, references: Tensor, tensors: dict[str, Tensor] | None) -> Tensor:
    batch = FaceBatch(
        lq=references[:1],
        references=references[None],
        reference_mask=torch.ones(1, 3, dtype=torch.bool),
        image_ids=["me"],
        identities=["me"],
        seeds=[1],
    )
    if tensors is not None:
        method.persons = {"me": PersonalSource(references, 0).state(method, str(id(tensors)), tensors)}
    with torch.inference_mode():
        return method.restore(batch)


@pytest.mark.parametrize("chosen", ["first", "all"])
@pytest.mark.parametrize("form", ["cross_attentions", "vico"])
def test_a_person_is_learnt_and_restored(folder: Path, references: Tensor, form: str, chosen: str) -> None:
    method = small(folder, form=form, references=chosen)
    training = method.personal_training(references, 3)
    assert len(training.modules["parts"].blocks) == 4  # type: ignore[arg-type]
    before = {name: value.clone() for module in training.modules.values() for name, value in module.named_parameters()}
    assert ("word" in before) == (form != "vico")
    new = training.result()
    training.run()
    for module in training.modules.values():
        for name, value in module.named_parameters():
            assert not torch.equal(value, before[name]), name
    learnt = training.result()
    assert learnt["references"].shape[0] == 3
    if form != "vico":
        assert learnt["text.tokens"].shape == (77, 32)
    base = restored(small(folder, tunes="nothing"), references, None)
    assert torch.equal(restored(method, references, new), base), "gamma is zero"
    for name in learnt:
        if name.endswith("gamma"):
            learnt[name] = torch.full_like(learnt[name], 0.5)
    found = restored(method, references, learnt)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, base)


def test_another_text_encoder_is_another_base(folder: Path, tmp_path: Path, references: Tensor) -> None:
    one, other = small(folder), small(folder_of(tmp_path, 2))
    assert one.space.digest == other.space.digest
    assert base_id(one) != base_id(other)
    assert one.conditions() != other.conditions()
    source = PersonalSource(references, 0)
    state = source.state(one, source.key(one, "32-true"), {})
    with pytest.raises(UsageError, match=f"{base_id(one)}.*{base_id(other)}"):
        state.require_made_for(other, "me.safetensors")


@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_learning_in_mixed_precision_moves_every_tensor(
    folder: Path, references: Tensor, precision: torch.dtype | None
) -> None:
    with torch.autocast("cpu", precision, enabled=precision is not None, cache_enabled=False):
        learnt = small(folder, null_lq="grey", norm="printed").personalise(references, 3)
    assert all(torch.isfinite(value.float()).all() for value in learnt.values())
    assert all(learnt[name].any() for name in learnt if name.endswith("gamma"))
