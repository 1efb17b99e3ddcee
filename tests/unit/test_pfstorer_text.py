"""The text that a person is learnt with: one word of it, through a text encoder that stays as it is."""

from __future__ import annotations

import pytest
import torch

from methods.blocks.base_models import TEXT_END, TEXT_START, BaseModel, base_model
from methods.blocks.latent_diffusion import build_text_encoder
from methods.pfstorer.learnt_text import FIRST_WORD, PROMPT, DemoText, EncodedText, new_text

WIDTH = 32
TEXT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(params=["sd15", "sd21_base"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return base_model({"name": request.param, "text": TEXT})


@pytest.fixture
def text(base: BaseModel) -> EncodedText:
    torch.manual_seed(0)
    return EncodedText(build_text_encoder(base), base.open_clip)


def test_a_new_word_reads_as_the_word_it_starts_from(base: BaseModel, text: EncodedText) -> None:
    numbers = [TEXT_START, *PROMPT, FIRST_WORD, TEXT_END]
    numbers += [0 if base.open_clip else TEXT_END] * (77 - len(numbers))
    plain = text._encoder[0](torch.tensor([numbers])).last_hidden_state
    assert torch.allclose(text().tokens, plain, atol=1e-6)


def test_the_prompt_is_that_of_clips_tokeniser() -> None:
    clip = pytest.importorskip("clip")
    tokens = clip.tokenize(["a photo of a face"])[0, : len(PROMPT) + 3].tolist()
    assert tokens == [TEXT_START, *PROMPT, FIRST_WORD, TEXT_END]


def test_the_word_alone_is_learnt(text: EncodedText) -> None:
    assert [name for name, _ in text.named_parameters()] == ["word"]
    found = text()
    found.tokens[0, int(found.end)].square().sum().backward()
    assert text.word.grad is not None
    assert text.word.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in text._encoder[0].parameters())


def test_the_word_changes_its_own_token_and_those_after_it(text: EncodedText) -> None:
    before = text()
    with torch.no_grad():
        text.word.add_(1)
        after = text()
    place = int(before.placeholder)
    assert torch.equal(before.tokens[0, :place], after.tokens[0, :place])
    assert (before.tokens[0, place:] != after.tokens[0, place:]).any(dim=1).all()
    assert int(before.end) == place + 1
    # The encoder is left as it was.
    assert not text._encoder[0].get_input_embeddings()._forward_hooks


def test_base_models_without_text_get_three_tokens() -> None:
    text = new_text(base_model("demo"), None)
    assert isinstance(text, DemoText)
    found = text()
    assert found.tokens.shape == (1, 3, base_model("demo").text_width)
    assert torch.equal(found.tokens[0, 1], text.word)
    assert torch.equal(DemoText(64)().tokens, DemoText(64)().tokens)
