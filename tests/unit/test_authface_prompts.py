"""Prompts of SDXL: the states that diffusers' pipeline makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bench.errors import MissingError
from methods.authface.prompts import prompt_states

TAGS = "woman, smiling, freckles, soft light"
SIZES = {"text_encoder": (24, "quick_gelu"), "text_encoder_2": (32, "gelu")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both encoders in small with new weights, and tokenisers that know letters."""
    path = tmp_path_factory.mktemp("sdxl")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    for name in ("tokenizer", "tokenizer_2"):
        (path / name).mkdir()
        (path / name / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        (path / name / "merges.txt").write_text("#version: 0.2\n")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        if name == "tokenizer_2":
            config["pad_token"] = "a"
        (path / name / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    for (name, (width, activation)), kind in zip(
        SIZES.items(), (CLIPTextModel, CLIPTextModelWithProjection), strict=True
    ):
        kind(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=width,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                hidden_act=activation,
                projection_dim=16,
                bos_token_id=len(words) - 2,
                eos_token_id=len(words) - 1,
            )
        ).save_pretrained(path / name)
    return path


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))


@pytest.mark.parametrize("prompt", [TAGS, ""])
def test_states_are_those_of_diffusers_pipeline(folder: Path, prompt: str) -> None:
    pipeline = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
    )  # fmt: skip
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    found = prompt_states(folder, [prompt], "someone/sdxl")
    assert found.tokens.shape == (1, 77, 24 + 32)
    assert torch.allclose(found.tokens, tokens, atol=1e-5)
    assert torch.allclose(found.pooled, pooled, atol=1e-5)


def test_prompts_are_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prompt_states(folder, [TAGS, ""], "someone/sdxl")
    assert not torch.equal(first.tokens[0], first.tokens[1])
    monkeypatch.setattr("methods.authface.prompts._encode", lambda *_: pytest.fail("encoded again"))
    again = prompt_states(folder, ["", TAGS], "someone/sdxl")
    assert torch.equal(again.tokens.flip(0), first.tokens)
    assert torch.equal(again.pooled.flip(0), first.pooled)


def test_what_is_absent_is_named_with_its_command(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"text_encoder has no model.safetensors.*hf download someone/sdxl"):
        prompt_states(tmp_path, [""], "someone/sdxl")
