"""ViCo's block, its mask of the reference and its regulariser, with the released code's weights and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from methods.pfstorer.personalisation_block import (
    LearntText,
    PersonalisationBlock,
    TextMaps,
    attention_regulariser,
    otsu_mask,
    text_maps,
)

FIXTURE = Path(__file__).with_name("fixture_vico_block_a.safetensors")
CHANNELS, HEADS, TEXT = 64, 4, 48


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    tensors = load_file(FIXTURE)
    return {name: value.float() / 512 if value.dtype == torch.int8 else value for name, value in tensors.items()}


@pytest.fixture(scope="module")
def block(given: dict[str, Tensor]) -> PersonalisationBlock:
    block = PersonalisationBlock(CHANNELS, HEADS, TEXT, form="vico", use_gamma=False)
    prefix = "state.image_cross_attention."
    block.image.load_state_dict({k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)})
    return block


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_block_alone(given: dict[str, Tensor], block: PersonalisationBlock) -> None:
    tokens, reference = given["in.tok"], given["in.tok_ref"]
    close(block(tokens, reference), given["out.block_nomask"])
    close(block(tokens, reference, mask=given["in.tok_mask"]), given["out.block_masked"])


def test_mask_and_regulariser_of_given_maps(given: dict[str, Tensor]) -> None:
    maps = TextMaps(given["in.attn_ph"], given["in.attn_eot"])
    assert torch.equal(otsu_mask(maps.placeholder), given["out.otsu_mask"])
    close(attention_regulariser(maps), given["out.reg_loss_given"][0])


def test_the_whole_transformer(given: dict[str, Tensor], block: PersonalisationBlock) -> None:
    """The block behind a stock transformer block, its mask from where the reference attends to the placeholder."""
    stock: Any = Transformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=CHANNELS // HEADS, in_channels=CHANNELS, norm_num_groups=32,
        cross_attention_dim=TEXT,
    ).eval()  # fmt: skip
    state = {k.removeprefix("state."): v for k, v in given.items() if k.startswith("state.")}
    stock.load_state_dict({k: v for k, v in state.items() if not k.startswith("image_cross_attention.")})
    text = LearntText(given["in.text"], given["in.placeholder_index"], given["in.eot_index"])
    with torch.no_grad():
        own, reference = (dict(_tokens(stock, given[name], text)) for name in ("in.x", "in.x_ref"))
        close(own["tokens"], given["inter.block_in"])
        close(reference["tokens"], given["inter.ref_tokens"])
        close(reference["attention"], given["inter.ref_text_attn"])
        mask = otsu_mask(text_maps(reference["attention"], text).placeholder)
        assert torch.equal(mask, given["inter.key_mask"])
        close(block(own["tokens"], reference["tokens"], mask=mask), given["inter.block_out"])
        close(attention_regulariser(text_maps(reference["attention"], text)), given["out.reg_loss"][0])


def _tokens(stock: Any, picture: Tensor, text: LearntText) -> Iterator[tuple[str, Tensor]]:
    """Tokens behind the transformer block, and its attention to the text (mean over heads)."""
    kept: dict[str, Tensor] = {}
    transformer = stock.transformer_blocks[0]
    hooks = [
        transformer.register_forward_hook(lambda _m, _i, output: kept.update(tokens=output)),
        transformer.attn2.register_forward_pre_hook(
            lambda _m, inputs, options: kept.update(query=inputs[0]), with_kwargs=True
        ),
    ]
    stock(picture, encoder_hidden_states=text.tokens)
    for hook in hooks:
        hook.remove()
    attention = transformer.attn2
    query, key = attention.to_q(kept["query"]), attention.to_k(text.tokens)
    scores = attention.get_attention_scores(attention.head_to_batch_dim(query), attention.head_to_batch_dim(key))
    yield "tokens", kept["tokens"]
    yield "attention", scores.unflatten(0, (-1, HEADS)).mean(1)
