"""RestorerID's adapters on a stock UNet: neutral at the start, alive, removable, right under checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdaptedUNet
from methods.blocks.spatial_feature_transform import sft_adapters
from methods.restorerid.fir_adapter import FIRAdapter, fir_adapters
from methods.restorerid.identity_attention import identity_attention_adapters

WIDTH = 16


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return unet.eval()


def inputs(seed: int = 1, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "latent": normal(batch, 4, 8, 8),
        "timestep": torch.tensor([10, 700][:batch]),
        "text": normal(batch, 7, WIDTH),
        "lq_maps": {(8, 8): normal(batch, 8, 8, 8), (4, 4): normal(batch, 8, 4, 4)},
        "identity_tokens": normal(batch, 4, WIDTH),
        "identity_scale": torch.tensor([0.75, 0.3][:batch]),
    }


def attach_all(unet: UNet2DConditionModel, form: str = "released_code", initialisation: str = "last_zero"):
    torch.manual_seed(5)
    adapted = AdaptedUNet(unet)
    adapted.attach("sft", sft_adapters(unet, 8, 16))
    adapted.attach("identity", identity_attention_adapters(unet, rank=4))
    adapted.attach("fir", fir_adapters(unet, 8, hidden=16, heads=2, form=form, initialisation=initialisation))
    return adapted


def perturb(adapted: AdaptedUNet) -> None:
    """Moves every adapter tensor away from its start, so that every path counts."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapted.adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("form", ["paper", "released_code"])
@torch.no_grad()
def test_new_adapters_change_no_bit_and_detach(form):
    unet = small_unet()
    given = inputs()
    stock = unet(given["latent"], given["timestep"], given["text"]).sample
    adapted = attach_all(unet, form)
    assert torch.equal(adapted(**given), stock)
    perturb(adapted)
    assert (adapted(**given) - stock).abs().max() > 1e-2
    adapted.release()
    assert torch.equal(unet(given["latent"], given["timestep"], given["text"]).sample, stock)


def steps(adapted: AdaptedUNet, count: int = 10) -> list[str]:
    """Names of adapter tensors that have not moved after that many steps."""
    before = {name: p.detach().clone() for name, p in adapted.adapters.named_parameters()}
    adapted.unet.requires_grad_(False)
    # Plain gradient descent: with momentum or normalised steps a gradient of rounding size would count as learning.
    optimiser = torch.optim.SGD(adapted.adapters.parameters(), lr=0.5)
    given = inputs()
    target = inputs(seed=3)["latent"]
    for _ in range(count):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(adapted(**given), target).backward()
        optimiser.step()
    return [name for name, p in adapted.adapters.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("form", ["paper", "released_code"])
def test_every_adapter_tensor_has_moved_after_ten_steps(form):
    assert steps(attach_all(small_unet(), form)) == []


def test_released_start_of_the_fir_adapter_is_dead():
    adapted = attach_all(small_unet(), "released_code", "released_dead")
    adapted.detach("sft")
    adapted.detach("identity")
    still = steps(adapted)
    kinds = {name.split("resnets.")[1].split(".", 1)[1] for name in still}
    attention = {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "to_out.bias"}
    convolutions = {"shared.weight", "shared.bias", "gain.weight", "bias.weight"}
    assert kinds == {f"attention.{name}" for name in attention} | convolutions | {"norm.weight", "norm.bias"}
    adapter = next(adapter for _, adapter in adapted.adapters["fir"].items())
    given = inputs()
    features, other = torch.randn(2, adapter.gain.out_channels, 4, 4), inputs(seed=8)
    moved = adapter(features, given)
    assert not torch.equal(moved, features)
    assert torch.equal(moved, adapter(features, other)), "a dead adapter reads neither the LQ maps nor the identity"


def test_paper_form_starts_with_gain_one_and_is_equation_7():
    torch.manual_seed(0)
    adapter = FIRAdapter(32, 8, WIDTH, hidden=16, heads=2, form="paper")
    assert torch.equal(adapter.gain.bias, torch.ones(32))
    for convolution in (adapter.gain, adapter.bias):
        torch.nn.init.normal_(convolution.weight, std=0.1)
    given, features = inputs(), torch.randn(2, 32, 4, 4)
    f_lq, tokens, own = given["lq_maps"][4, 4], given["identity_tokens"], adapter.attention
    cells = f_lq.permute(0, 2, 3, 1).reshape(2, 16, 8)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = (cells @ own.to_q.weight.T)[..., part], (tokens @ own.to_k.weight.T)[..., part], None
        v = (tokens @ own.to_v.weight.T)[..., part]
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 2.0, -1) @ v)
    enhanced = cells + torch.cat(heads, -1) @ own.to_out.weight.T + own.to_out.bias
    enhanced = (enhanced - enhanced.mean(-1, keepdim=True)) / (
        enhanced.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    hidden = adapter.shared(enhanced.reshape(2, 4, 4, 8).permute(0, 3, 1, 2))
    expected = adapter.gain(hidden) * features + adapter.bias(hidden)
    torch.testing.assert_close(adapter(features, given), expected)


@pytest.mark.parametrize("form", ["paper", "released_code"])
def test_gradients_are_those_of_their_own_call_under_checkpointing(form):
    unet = small_unet()
    reference = attach_all(unet, form)
    perturb(reference)
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    found = []
    for checkpointing in (False, True):
        adapted = attach_all(small_unet(seed=1), form)
        adapted.load_state_dict(state)
        adapted.train()
        if checkpointing:
            adapted.enable_gradient_checkpointing()
        given = inputs()
        given["identity_tokens"].requires_grad_(True)
        loss = adapted(**given).square().mean()
        adapted(**inputs(seed=20))
        with torch.no_grad():
            adapted(**inputs(seed=21, batch=1))
        loss.backward()
        grads = {name: p.grad for name, p in adapted.named_parameters()}
        found.append({**grads, "tokens": given["identity_tokens"].grad})
    plain, checkpointed = found
    assert None not in plain.values()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_under_compilation(checkpointing):
    torch._dynamo.reset()
    given = inputs()
    found = []
    for compiled in (False, True):
        adapted = attach_all(small_unet())
        perturb(adapted)
        adapted.train()
        if compiled:
            adapted.compile_regions(backend="aot_eager")
            if checkpointing:
                adapted.enable_gradient_checkpointing()
        loss = adapted(**given).square().mean()
        if compiled:
            adapted(**inputs(seed=20))
        loss.backward()
        found.append({name: p.grad for name, p in adapted.named_parameters()})
    plain, compiled_gradients = found
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_scale_is_per_sample_and_rows_do_not_touch():
    adapted = attach_all(small_unet())
    perturb(adapted)
    given = inputs()
    together = adapted(**given)
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in given.items() if name != "lq_maps"}
        alone["lq_maps"] = {size: value[row : row + 1] for size, value in given["lq_maps"].items()}
        torch.testing.assert_close(adapted(**alone), together[row : row + 1], atol=1e-5, rtol=0)
        alone["identity_scale"] = float(given["identity_scale"][row])
        torch.testing.assert_close(adapted(**alone), together[row : row + 1], atol=1e-5, rtol=0)
    halved = adapted(**{**given, "identity_scale": given["identity_scale"] / 2})
    assert (halved - together).abs().max() > 1e-3


@torch.no_grad()
def test_guided_call_shares_lq_maps_and_scale():
    adapted = attach_all(small_unet())
    perturb(adapted)
    given = inputs()
    doubled = {name: torch.cat([given[name]] * 2) for name in ("latent", "timestep", "text")}
    tokens = torch.cat([torch.zeros_like(given["identity_tokens"]), given["identity_tokens"]])
    shared = {"lq_maps": given["lq_maps"], "identity_scale": given["identity_scale"]}
    both = adapted(**doubled, identity_tokens=tokens, **shared)
    torch.testing.assert_close(both[2:], adapted(**given), atol=1e-5, rtol=0)
    without = {**given, "identity_tokens": tokens[:2]}
    torch.testing.assert_close(both[:2], adapted(**without), atol=1e-5, rtol=0)


@torch.no_grad()
def test_merged_lora_gives_the_same_and_training_drops_it():
    unet = small_unet()
    adapted = attach_all(unet)
    perturb(adapted)
    adapted.eval()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    expected = adapted(**inputs())
    for site, adapter in adapted.adapters["identity"].items():
        adapter.merge_lora(unet.get_submodule(site))
    torch.testing.assert_close(adapted(**inputs()), expected, atol=1e-5, rtol=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.state_dict().items())
    adapted.train()
    assert all(not adapter._merged for _, adapter in adapted.adapters["identity"].items())


def test_start_from_text_and_without_lora():
    unet = small_unet()
    adapters = identity_attention_adapters(unet, rank=0, start="text")
    assert all(site.endswith("attn2") for site in adapters.sites)
    for site, adapter in adapters.items():
        assert torch.equal(adapter.identity_value.weight, unet.get_submodule(site).to_v.weight)
        assert torch.equal(adapter.identity_key.weight, unet.get_submodule(site).to_k.weight)
    with pytest.raises(UsageError, match="start=text"):
        identity_attention_adapters(unet, identity_width=WIDTH + 1, start="text")


def test_fir_adapter_names_what_it_lacks():
    adapter = FIRAdapter(32, 8, WIDTH, heads=2)
    given = inputs()
    with pytest.raises(UsageError, match="identity_tokens"):
        adapter(torch.zeros(2, 32, 8, 8), {"lq_maps": given["lq_maps"]})
    with pytest.raises(ValueError, match="heads"):
        FIRAdapter(32, 8, WIDTH, heads=3)
    with pytest.raises(ValueError, match="initialisation"):
        FIRAdapter(32, 8, WIDTH, heads=2, initialisation="dead")
