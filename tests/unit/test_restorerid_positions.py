"""Tokens that end in the code of their place, and queries that find it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdaptedUNet
from methods.blocks.base_models import BASE_MODELS
from methods.blocks.latent_diffusion import build_unet
from methods.restorerid.identity_attention import IdentityAttention, identity_attention_adapters
from methods.restorerid.identity_tokens import IdentityProjection
from methods.restorerid.position_code import CODE_WIDTH, position_code, start_at_the_same_place


def test_codes_are_sines_and_cosines_of_the_cell_centres():
    code = position_code(2, 4)
    assert code.shape == (8, CODE_WIDTH)
    # Row 1, column 2 of two rows and four columns: centre at x = 1/4, y = 1/2.
    x, y = 0.25, 0.5
    expected = [
        function(math.pi / 2 * f * place) for function in (math.sin, math.cos) for f in (1, 2, 4) for place in (x, y)
    ]
    torch.testing.assert_close(code[6], torch.tensor(expected))
    assert len({tuple(row.tolist()) for row in code}) == 8


@pytest.mark.parametrize("side", [4, 8, 16])
def test_at_the_start_every_cell_attends_to_the_token_of_its_place(side):
    heads, head_width, width = 2, 24, 64
    query, key = nn.Linear(CODE_WIDTH, heads * head_width, bias=False), nn.Linear(width, heads * head_width, bias=False)
    start_at_the_same_place(query, key, heads)
    tokens = torch.cat([torch.randn(49, width - CODE_WIDTH) * 3, position_code(7, 7)], -1)
    queries = query(position_code(side, side)).unflatten(-1, (heads, -1)).transpose(0, 1)
    keys = key(tokens).unflatten(-1, (heads, -1)).transpose(0, 1)
    chosen = (queries @ keys.transpose(1, 2) / math.sqrt(head_width)).argmax(-1)
    centres = (torch.arange(side) + 0.5) / side
    nearest = (centres[:, None] - (torch.arange(7) + 0.5) / 7).abs().argmin(-1)
    assert torch.equal(chosen, (nearest[:, None] * 7 + nearest[None, :]).flatten().expand(heads, -1))


def test_heads_too_narrow_for_a_code_are_refused():
    with pytest.raises(ValueError, match="position code"):
        start_at_the_same_place(nn.Linear(CODE_WIDTH, 16), nn.Linear(64, 16), 2)


def test_patches_follow_the_perceivers_tokens_and_end_in_their_place():
    torch.manual_seed(0)
    projection = IdentityProjection(16, 24, width=64, tokens=4, depth=1, head_width=32, patches=True)
    states = torch.randn(2, 49, 24)
    tokens = projection(torch.nn.functional.normalize(torch.randn(2, 16)), states)
    assert tokens.shape == (2, 4 + 49, 64)
    assert not tokens[:, :4, -CODE_WIDTH:].any()
    assert torch.equal(tokens[1, 4:, -CODE_WIDTH:], position_code(7, 7))
    changed = states.clone()
    changed[:, 10] += 1
    other = projection(torch.zeros(2, 16), changed)[:, 4:]
    moved = (other - projection(torch.zeros(2, 16), states)[:, 4:]).abs().amax((0, 2))
    assert moved.nonzero().flatten().tolist() == [10]
    with pytest.raises(ValueError, match="shortcut"):
        IdentityProjection(16, 24, width=64, depth=1, shortcut=True, patches=True)


def test_new_adapters_with_positions_leave_the_unet_as_it_is_and_read_the_right_place():
    torch.manual_seed(0)
    unet = build_unet(BASE_MODELS["demo"]).eval()
    latent, text = torch.randn(1, 8, 16, 16), torch.zeros(1, 1, 64)
    with torch.no_grad():
        stock = unet(latent, 500, text).sample
        adapted = AdaptedUNet(unet)
        adapters = adapted.attach("identity", identity_attention_adapters(unet, rank=2, positions=True))
        maps = {(side, side): torch.zeros(1, 1, side, side) for side in (16, 8, 4)}
        tokens = torch.cat([torch.randn(1, 49, 64 - CODE_WIDTH), position_code(7, 7)[None]], -1)
        given = {"lq_maps": maps, "identity_tokens": tokens, "identity_scale": torch.ones(1)}
        assert torch.equal(adapted(latent, 500, text, **given), stock)
        # One layer's values woken: a change of the token at the top left moves its output most at the top left.
        site = "up_blocks.2.attentions.0.transformer_blocks.0.attn2"
        adapter, attention = dict(adapters.items())[site], unet.get_submodule(site)
        assert isinstance(adapter, IdentityAttention)
        nn.init.normal_(adapter.identity_value.weight)
        hidden = torch.randn(1, 256, 48)
        before = adapter(attention, hidden, text, None, given)
        tokens[0, 0, :10] += 5
        moved = (adapter(attention, hidden, text, None, given) - before).norm(dim=-1).unflatten(1, (16, 16))[0]
        assert moved[:3, :3].mean() > 20 * moved[8:, 8:].mean()
        with pytest.raises(UsageError, match="No LQ map has 256 cells"):
            adapter(attention, hidden, text, None, given | {"lq_maps": {(8, 8): torch.zeros(1, 1, 8, 8)}})
