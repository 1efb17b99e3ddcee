"""Adapters on a stock UNet: removable, identity at the start, able to learn, right under checkpointing and compile."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdaptedUNet, AdapterSet, attention_sites, block_sites, repeat_to_batch
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import SpatialFeatureTransform, sft_adapters

SIZE = (16, 12)
HALF = (8, 6)


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def call_inputs(batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, 4, *SIZE, generator=generator)
    return latent, torch.randint(1000, (batch,), generator=generator), torch.randn(batch, 3, 8, generator=generator)


def lq_maps(seed: int = 2, batch: int = 2) -> dict[tuple[int, int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {size: torch.randn(batch, 8, *size, generator=generator) for size in (SIZE, HALF)}


def randomised(adapters: AdapterSet) -> AdapterSet:
    torch.manual_seed(7)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    return adapters


class OutputGain(nn.Module):
    """Scales a block's output by the mean of its identity tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))

    def forward(self, features: Tensor, conditions: dict) -> Tensor:
        return features * (1 + self.gain * conditions["identity_tokens"].mean((1, 2))[:, None, None, None])


class IdentityAttention(nn.Module):
    """Adds attention to identity tokens, weighted per picture, to the stock cross-attention."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, inner, bias=False)

    def forward(
        self, attention: Attention, hidden: Tensor, context: Tensor, mask: Tensor | None, conditions: dict
    ) -> Tensor:
        stock = AttnProcessor2_0()(attention, hidden, context, mask)
        added = self.value(conditions["identity_tokens"]).mean(1, keepdim=True)
        return stock + conditions["identity_scale"][:, None, None] * added


def with_everything() -> AdaptedUNet:
    unet = small_unet()
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", randomised(sft_adapters(unet, 8, 8, "released_code")))
    adapted.attach("gain", AdapterSet.for_blocks(unet, lambda site: OutputGain(site.channels), "output"))
    adapted.attach(
        "identity",
        AdapterSet.for_attention(
            unet,
            lambda site: IdentityAttention(site.context_channels, site.inner_channels) if site.is_cross else None,
        ),
    )
    return adapted


def all_conditions(seed: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "lq_maps": lq_maps(seed),
        "identity_tokens": torch.randn(2, 4, 8, generator=generator),
        "identity_scale": torch.tensor([0.5, 2.0]) * seed,
    }


@torch.no_grad()
def test_released_unet_is_bit_identical_to_stock():
    stock = small_unet().eval()
    expected = stock(*call_inputs()).sample
    names, kind = list(stock.state_dict()), type(stock)
    processors = {name: type(processor) for name, processor in stock.attn_processors.items()}

    adapted = with_everything().eval()
    assert list(adapted.unet.state_dict()) == names
    assert type(adapted.unet) is kind
    assert (adapted(*call_inputs(), **all_conditions()) - expected).abs().max() > 1e-3
    adapted.enable_gradient_checkpointing()
    released = adapted.release()
    assert torch.equal(released(*call_inputs()).sample, expected)
    assert list(released.state_dict()) == names
    assert {name: type(processor) for name, processor in released.attn_processors.items()} == processors
    assert not list(adapted.adapters)


@torch.no_grad()
def test_detached_set_can_be_attached_again():
    adapted = with_everything().eval()
    everything = adapted(*call_inputs(), **all_conditions())
    gain = adapted.detach("gain")
    without = adapted(*call_inputs(), **all_conditions())
    assert not torch.equal(everything, without)
    adapted.attach("gain", gain)
    assert torch.equal(adapted(*call_inputs(), **all_conditions()), everything)


@torch.no_grad()
def test_fresh_sft_of_the_papers_form_leaves_the_base_bit_identical():
    unet = small_unet().eval()
    expected = unet(*call_inputs()).sample
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", sft_adapters(unet, 8, 8))
    assert torch.equal(adapted(*call_inputs(), lq_maps=lq_maps()), expected)


def test_released_form_starts_normalised_and_both_forms_agree_with_their_equation():
    features, maps = torch.randn(2, 16, *HALF), lq_maps()
    for form in ("paper", "released_code"):
        transform = SpatialFeatureTransform(16, 8, 8, form, groups=8)
        base = nn.functional.group_norm(features, 8) if form == "released_code" else features
        torch.testing.assert_close(transform(features, {"lq_maps": maps}), base)
        nn.init.normal_(transform.gamma.weight)
        nn.init.normal_(transform.beta.bias)
        shared = nn.functional.relu(transform.shared(maps[HALF]))
        expected = base * (1 + transform.gamma(shared)) + transform.beta(shared)
        torch.testing.assert_close(transform(features, {"lq_maps": maps}), expected)


@pytest.mark.parametrize("form", ["paper", "released_code"])
def test_ten_steps_move_every_adapter_tensor(form):
    unet = small_unet().requires_grad_(False)
    adapted = AdaptedUNet(unet)
    sft = adapted.attach("sft", sft_adapters(unet, 8, 8, form))
    encoder = LqEncoder(4, 16, (1, 1), 1, (0,), 2, map_channels=8, groups=8)
    trained = {f"sft.{name}": tensor for name, tensor in sft.named_parameters()}
    trained |= {f"encoder.{name}": tensor for name, tensor in encoder.named_parameters()}
    before = {name: tensor.detach().clone() for name, tensor in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    latent, step, text = call_inputs()
    target, lq = torch.randn_like(latent), torch.randn_like(latent)
    for _ in range(10):
        optimiser.zero_grad()
        loss = (adapted(latent, step, text, lq_maps=encoder(lq, step)) - target).square().mean()
        loss.backward()
        optimiser.step()
    still = [name for name, tensor in trained.items() if torch.equal(tensor, before[name])]
    # A constant added to every key shifts all logits of a query alike, which the softmax does not see.
    assert [name for name in still if not name.endswith("to_k.bias")] == []


def test_gradients_do_not_depend_on_checkpointing_or_on_calls_in_between():
    def gradients(checkpointing: bool, interrupted: bool) -> list[Tensor]:
        adapted = with_everything().train()
        if checkpointing:
            adapted.enable_gradient_checkpointing()
        conditions = all_conditions(2)
        maps = [tensor.requires_grad_() for tensor in conditions["lq_maps"].values()]
        tokens = conditions["identity_tokens"].requires_grad_()
        loss = adapted(*call_inputs(), **conditions).square().mean()
        if interrupted:
            other = adapted(*call_inputs(seed=5), **all_conditions(9)).square().mean()
            torch.autograd.grad(other, list(adapted.adapters.parameters()), retain_graph=True)
            with torch.no_grad():
                adapted(*call_inputs(seed=6), **all_conditions(11))
            conditions = all_conditions(12)
        loss.backward()
        found = [parameter.grad for parameter in adapted.parameters()] + [tensor.grad for tensor in (*maps, tokens)]
        return [tensor if tensor is not None else torch.zeros(()) for tensor in found]

    plain = gradients(checkpointing=False, interrupted=False)
    assert sum(bool(gradient.abs().max() > 0) for gradient in plain) > 0.95 * len(plain)
    for checkpointing, interrupted in ((False, True), (True, False), (True, True)):
        for expected, found in zip(plain, gradients(checkpointing, interrupted), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_two_checkpointed_calls_in_one_loss():
    def gradients(checkpointing: bool) -> list[Tensor]:
        adapted = with_everything().train()
        if checkpointing:
            adapted.enable_gradient_checkpointing()
        first = adapted(*call_inputs(), **all_conditions(2))
        second = adapted(*call_inputs(), **all_conditions(3))
        return list(torch.autograd.grad((first * second).mean(), list(adapted.adapters.parameters())))

    for expected, found in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_maps_are_found_by_height_and_width():
    unet = small_unet().eval()
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", randomised(sft_adapters(unet, 8, 8)))
    latent, step, text = call_inputs()
    turned = {(width, height): tensor for (height, width), tensor in lq_maps().items()}
    with pytest.raises(UsageError, match="16x12"):
        adapted(latent, step, text, lq_maps=turned)


@torch.no_grad()
def test_branches_of_a_guided_call_share_their_maps():
    unet = small_unet().eval()
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", randomised(sft_adapters(unet, 8, 8)))
    latent, step, text = (torch.cat([tensor, tensor.flip(0)]) for tensor in call_inputs())
    once = adapted(latent, step, text, lq_maps=lq_maps())
    doubled = {size: torch.cat([tensor, tensor]) for size, tensor in lq_maps().items()}
    torch.testing.assert_close(once, adapted(latent, step, text, lq_maps=doubled), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="do not fit"):
        repeat_to_batch(torch.zeros(2, 1), 3)


@torch.no_grad()
def test_a_copy_has_its_own_adapters():
    adapted = with_everything().eval()
    adapted.enable_gradient_checkpointing()
    expected = adapted(*call_inputs(), **all_conditions())
    copied = copy.deepcopy(adapted)
    for parameter in copied.adapters.parameters():
        parameter.add_(1.0)
    assert not torch.equal(copied(*call_inputs(), **all_conditions()), expected)
    assert torch.equal(adapted(*call_inputs(), **all_conditions()), expected)
    copied.release()
    assert torch.equal(adapted(*call_inputs(), **all_conditions()), expected)


def test_compiled_blocks_read_the_conditions_of_each_call():
    torch._dynamo.reset()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        block_out_channels=(16,),
        layers_per_block=1,
        cross_attention_dim=8,
        norm_num_groups=8,
    )
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", randomised(sft_adapters(unet, 8, 8)))
    adapted.attach("gain", AdapterSet.for_blocks(unet, lambda site: OutputGain(site.channels), "output"))
    stock = small_unet_output(unet, adapted)
    eager = [prediction_and_gradients(adapted, seed) for seed in (2, 3)]
    adapted.compile_regions(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        for expected, seed in zip(eager, (2, 3), strict=True):
            for found, wanted in zip(prediction_and_gradients(adapted, seed), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    adapted.enable_gradient_checkpointing()
    for found, wanted in zip(prediction_and_gradients(adapted, 2), eager[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(adapted.release()(*call_inputs()).sample, stock)


def small_unet_output(unet: UNet2DConditionModel, adapted: AdaptedUNet) -> Tensor:
    sets = {name: adapted.detach(name) for name in list(adapted.adapters)}
    with torch.no_grad():
        output = unet(*call_inputs()).sample
    for name, adapters in sets.items():
        adapted.attach(name, adapters)
    return output


def prediction_and_gradients(adapted: AdaptedUNet, seed: int) -> list[Tensor]:
    prediction = adapted(*call_inputs(), **all_conditions(seed))
    return [prediction, *torch.autograd.grad(prediction.square().mean(), list(adapted.adapters.parameters()))]


def test_sites_and_names_follow_the_unet():
    unet = small_unet()
    assert [site.name for site in block_sites(unet)] == [
        "down_blocks.0.resnets.0",
        "down_blocks.1.resnets.0",
        "up_blocks.0.resnets.0",
        "up_blocks.0.resnets.1",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
        "mid_block.resnets.0",
        "mid_block.resnets.1",
    ]
    assert [f"{site.name}.processor" for site in attention_sites(unet)] == list(unet.attn_processors)
    assert "down_blocks.1.resnets.0.gamma.weight" in sft_adapters(unet, 8, 8).state_dict()


def test_wrong_sites_and_names_are_refused():
    unet = small_unet()
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", sft_adapters(unet, 8, 8))
    with pytest.raises(UsageError, match="attached already"):
        adapted.attach("sft", sft_adapters(unet, 8, 8))
    with pytest.raises(UsageError, match="Unknown module"):
        adapted.attach("other", AdapterSet("output", {"down_blocks.7": nn.Identity()}))
    with pytest.raises(UsageError, match="need a ResnetBlock2D"):
        adapted.attach("other", AdapterSet("residual", {"conv_in": nn.Identity()}))
    with pytest.raises(UsageError, match="Unknown adapters"):
        adapted.detach("fir")
    with pytest.raises(RuntimeError, match="call the AdaptedUNet"):
        unet(*call_inputs())
