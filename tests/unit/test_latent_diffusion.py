"""Base models: known by name, built at their size, loaded from folders and files, their text read once."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from bench.errors import MissingError, UsageError
from methods.blocks import text_conditioning
from methods.blocks.base_models import BASE_MODELS, BaseModel, base_model
from methods.blocks.checkpoints.accounting import restore
from methods.blocks.latent_diffusion import (
    build_text_encoder,
    build_unet,
    build_vae,
    load_base,
    locate_base,
    released_parts,
)
from methods.blocks.text_conditioning import TEXT_TOKENS, text_tokens, token_numbers

TINY = {
    "name": "sd15",
    "unet": {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "vae": {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "text": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tiny() -> BaseModel:
    torch.manual_seed(0)
    return base_model(TINY)


@pytest.fixture
def folder(tiny, tmp_path):
    """A diffusers folder of the tiny base model, and its networks."""
    networks = {"unet": build_unet(tiny), "vae": build_vae(tiny), "text": build_text_encoder(tiny)}
    for part, subfolder in (("unet", "unet"), ("vae", "vae"), ("text", "text_encoder")):
        networks[part].save_pretrained(tmp_path / "model" / subfolder)
    return tmp_path / "model", networks


def test_demo_size_fits_small_pictures():
    base = BASE_MODELS["demo"]
    unet, vae = build_unet(base), build_vae(base)
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mode()
        assert latent.shape == (1, base.latent_channels, 16, 16)
        assert vae.decode(latent).sample.shape == (1, 3, 128, 128)
        assert unet(latent, 5, torch.zeros(1, 1, base.text_width)).sample.shape == latent.shape
    assert base.downscale == 8
    assert 2e6 < sum(parameter.numel() for parameter in unet.parameters()) < 4e6
    assert sum(parameter.numel() for parameter in vae.parameters()) < 1e6


def test_xl_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = build_unet(BASE_MODELS["sdxl"])
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684


def test_settings_change_a_named_base():
    base = base_model({"name": "sd21_base", "hub_ids": ["me/mirror"], "unet": {"sample_size": 96}})
    assert base.hub_ids == ("me/mirror",)
    assert base.unet["sample_size"] == 96
    assert base.unet["cross_attention_dim"] == BASE_MODELS["sd21_base"].text_width == 1024
    with pytest.raises(UsageError, match=r"Did you mean .*'sd15'"):
        base_model("sd14")
    with pytest.raises(UsageError, match="hub_ids"):
        base_model({"name": "sd15", "hub_id": "x"})


def test_absent_weights_say_where_how_and_under_which_licence(tiny, tmp_path):
    with pytest.raises(MissingError) as error:
        locate_base(tiny)
    message = str(error.value)
    assert str(tmp_path / "home" / "weights" / "stable-diffusion-v1-5") in message
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in message
    assert "CreativeML Open RAIL-M" in message
    assert error.value.exit_code == 3
    with pytest.raises(MissingError, match="not there"):
        locate_base(tiny, tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no released weights"):
        locate_base(BASE_MODELS["demo"])


def test_a_folder_is_loaded_and_locked(folder, tiny, tmp_path, capsys):
    path, networks = folder
    placed = tmp_path / "home" / "weights" / "stable-diffusion-v1-5"
    placed.parent.mkdir(parents=True)
    path.rename(placed)
    loaded = load_base(tiny, parts=["unet", "vae", "text"])
    for part, network in networks.items():
        assert_same(loaded[part], network)
    assert "locked to sha256" in capsys.readouterr().err
    load_base(tiny, parts=["vae"])
    assert capsys.readouterr().err == ""
    build_vae(tiny).save_pretrained(placed / "vae")
    with pytest.raises(UsageError, match="written on first use, says"):
        load_base(tiny, parts=["vae"])


def test_a_folder_of_another_network_is_refused(folder, tiny):
    path, _ = folder
    with pytest.raises(UsageError, match=r"block_out_channels is \[8\] instead of"):
        load_base(BASE_MODELS["sd15"], path, ["unet"])
    state = {name: tensor for name, tensor in build_unet(tiny).state_dict().items() if name != "conv_in.bias"}
    save_file(state, path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match=r"Missing keys: conv_in.bias"):
        load_base(tiny, path, ["unet"])
    (path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingError, match="no safetensors weights"):
        load_base(tiny, path, ["vae"])


def test_a_single_file_is_loaded(folder, tiny, tmp_path):
    _, networks = folder
    parts = released_parts(tiny, networks)
    state = restore({part: network.state_dict() for part, network in networks.items()}, list(parts.values()))
    file = tmp_path / "v1-5.safetensors"
    save_file({**state, "betas": torch.zeros(1000), "model_ema.decay": torch.zeros(())}, file)
    loaded = load_base(tiny, file, ["unet", "text"])
    assert_same(loaded["unet"], networks["unet"])
    tokens = torch.tensor([[49406, 49407]])
    with torch.no_grad():
        expected = networks["text"](tokens).last_hidden_state
        torch.testing.assert_close(loaded["text"](tokens).last_hidden_state, expected)
    save_file({**state, "control.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"unexpected: control.weight"):
        load_base(tiny, tmp_path / "other.safetensors", ["unet"])


def test_text_is_read_once_per_content(folder, tiny, monkeypatch):
    path, networks = folder
    calls = []
    load = text_conditioning.load_base
    monkeypatch.setattr(text_conditioning, "load_base", lambda *given: calls.append(given) or load(*given))
    tokens = text_tokens(tiny, [""], path)
    numbers = torch.tensor([[49406, *[49407] * 76]])
    with torch.no_grad():
        expected = networks["text"].eval()(numbers).last_hidden_state
    torch.testing.assert_close(tokens, expected)
    assert torch.equal(text_tokens(tiny, [""], path), tokens)
    assert len(calls) == 1
    torch.manual_seed(5)
    build_text_encoder(tiny).save_pretrained(path / "text_encoder")
    assert not torch.equal(text_tokens(tiny, [""], path), tokens)
    assert len(calls) == 2


def test_empty_prompt_needs_no_tokeniser_and_pads_as_trained(tmp_path):
    assert token_numbers(BASE_MODELS["sd15"], tmp_path, "") == [49406] + [49407] * 76
    assert token_numbers(BASE_MODELS["sd21_base"], tmp_path, "") == [49406, 49407] + [0] * 75
    with pytest.raises(MissingError, match=r"merges.txt"):
        token_numbers(BASE_MODELS["sd15"], tmp_path, "best portrait")


@pytest.mark.parametrize(
    "prompt",
    [
        "Best quality, cartoon, 3d, lowres, blurry, worst, low, high",
        "a photo of a sks man",
        "a photo of a woman, person, boy, girl",
    ],
)
def test_words_known_without_a_tokeniser_have_its_numbers(tmp_path, prompt):
    clip = pytest.importorskip("clip.simple_tokenizer")
    expected = clip.SimpleTokenizer().encode(prompt)
    assert token_numbers(BASE_MODELS["sd15"], tmp_path, prompt) == [49406, *expected] + [49407] * (76 - len(expected))


def test_prompts_go_through_the_tokeniser(tmp_path):
    vocabulary = {"a</w>": 0, "face</w>": 1, "f": 2, "a": 3, "c": 4, "e</w>": 5, "fa": 6, "fac": 7}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nf a\nfa c\nfac e</w>\n")
    numbers = token_numbers(BASE_MODELS["sd15"], tmp_path, "a face")
    assert numbers == [49406, 0, 1] + [49407] * 74
    assert len(token_numbers(BASE_MODELS["sd15"], tmp_path, "a " * 100)) == TEXT_TOKENS


def test_demo_has_one_silent_token():
    assert torch.equal(text_tokens(BASE_MODELS["demo"], ["", ""]), torch.zeros(2, 1, 64))
    with pytest.raises(UsageError, match="has no text encoder"):
        text_tokens(BASE_MODELS["demo"], ["best quality"])


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    assert not found.training


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(MissingError, match="transformers"):
        build_text_encoder(BASE_MODELS["sd15"])
    with pytest.raises(MissingError, match="transformers"):
        token_numbers(BASE_MODELS["sd15"], tmp_path, "a face")
