"""What makes RestorerID's sampling fast changes no picture: against the plain loop, and layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.runs.performance import random_batch
from bench.runs.pipeline_benchmark import PEAK_FLOPS, _peak_flops
from methods.blocks.base_models import base_model
from methods.restorerid.identity_attention import IdentityAttention
from methods.restorerid.module import RestorerID
from methods.restorerid.network import RestorerIDNetwork
from methods.restorerid.timing import prepare_for_timing

SMALL = [
    "method.sizes.demo.network.lq_encoder.channels=8",
    "method.sizes.demo.network.lq_encoder.map_channels=8",
    "method.sizes.demo.network.sft.hidden=8",
    "method.sizes.demo.network.fir.hidden=8",
    "method.sizes.demo.sampling.steps=3",
]


def restorer(**changes: Any) -> RestorerID:
    """A small network in which no part is without effect."""
    settings = method_settings(compose("run", ["method=restorerid", *SMALL])["method"], "demo")
    method = RestorerID(settings | {"self_ensemble": False} | changes)
    prepare_for_timing(method, random_weights=True)
    return method.eval().requires_grad_(False)


def batch_for(method: RestorerID, count: int = 2) -> Any:
    return random_batch(method, count, 128, torch.device("cpu"))


def sampling(preset: str) -> dict[str, Any]:
    return {"preset": preset, "steps": 3, "solver": None, "eta": None, "guidance": None}


@pytest.mark.parametrize("preset", ["restorerid_paper", "restorerid_released_code", "fast"])
def test_pictures_are_those_of_the_documented_loop(preset: str) -> None:
    # The documented loop guides every step.
    method = restorer(sampling={**sampling(preset), "guided_share": 1.0})
    batch = batch_for(method)
    plain = method.plain_pipeline()
    with torch.inference_mode():
        ours, theirs = method.restore(batch), plain.restore(batch)
    assert (ours - theirs).abs().max() < 1e-4
    assert ours.std() > 0.01
    assert "scheduler.step(" in plain.pattern and "set_timesteps(3)" in plain.pattern


def test_the_identity_shows_in_the_pictures_compared() -> None:
    method = restorer()
    batch = batch_for(method, 1)
    with torch.inference_mode():
        with_face = method.restore(batch)
        method.settings["reference"] = "none"
        assert (with_face - method.restore(batch)).abs().max() > 1 / 255


def test_the_same_bits_call_after_call_and_other_pictures_between() -> None:
    method = restorer()
    batch = batch_for(method)
    with torch.inference_mode():
        first = method.restore(batch.row(1))
        method.restore(batch.row(0))
        assert torch.equal(first, method.restore(batch.row(1)))
        together = method.restore(batch)[1:]
    assert (first - together).abs().max() < 1e-4


def calls_of(method: RestorerID, batch: Any) -> list[int]:
    """Batch sizes of the network's calls in one restoration."""
    found: list[int] = []
    hook = method.network.adapted.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    with torch.inference_mode():
        method.restore(batch)
    hook.remove()
    return found


def test_guidance_between_equal_branches_calls_one_of_them_and_changes_nothing() -> None:
    method = restorer(use_identity=False, use_fir=False)
    batch = batch_for(method, 1)
    assert calls_of(method, batch) == [1, 1, 1]
    with torch.inference_mode():
        ours, theirs = method.restore(batch), method.plain_pipeline().restore(batch)
    assert (ours - theirs).abs().max() < 1e-4


def test_branches_that_differ_are_both_called() -> None:
    assert calls_of(restorer(), batch_for(restorer(), 1)) == [2, 2, 2]
    blind = restorer(reference="none")
    assert calls_of(blind, batch_for(blind, 1)) == [1, 1, 1]
    blind.settings["prompts"] = {"positive": "sharp", "negative": ""}
    blind.frozen["text sharp"] = torch.ones(1, 1, blind.base.text_width)
    assert calls_of(blind, batch_for(blind, 1)) == [2, 2, 2]


def test_the_last_steps_can_go_without_guidance() -> None:
    method = restorer(sampling=sampling("restorerid_paper") | {"guided_share": 2 / 3})
    assert calls_of(method, batch_for(method, 1)) == [2, 2, 1]
    with pytest.raises(UsageError, match="guided_share"):
        restorer(sampling=sampling("restorerid_paper") | {"guided_share": 1.5})


@torch.no_grad()
def test_kept_keys_and_values_are_those_made_anew() -> None:
    network = restorer().network
    generator = torch.Generator().manual_seed(1)
    width = network.adapted.unet.config["cross_attention_dim"]
    latent = torch.randn(4, 8, 16, 16, generator=generator)
    text, tokens, other = (torch.randn(4, count, width, generator=generator) for count in (3, 4, 4))
    steps, scale = torch.full((4,), 500), torch.tensor([0.5, 1.5])
    maps = network.lq_maps(torch.randn(2, 8, 16, 16, generator=generator), steps[:2])
    expected = network(latent, steps, text, maps, tokens, scale)
    network.keep(text, tokens)
    alone = network(latent, steps, text, maps, tokens, scale, use_kept=True)
    torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)
    with network.sampling():
        network.keep(text, tokens)
        kept = network(latent, steps, text, maps, tokens, scale, use_kept=True)
        # A call that does not ask for them is told by its own tokens.
        between = network(latent, steps, text, maps, other, scale)
    torch.testing.assert_close(kept, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(between, network(latent, steps, text, maps, other, scale), atol=1e-5, rtol=0)
    assert (between - expected).abs().max() > 1e-3
    assert torch.equal(network(latent, steps, text, maps, tokens, scale), expected)
    adapters = [module for module in network.modules() if isinstance(module, IdentityAttention)]
    assert adapters and all(adapter._kept is None and not adapter._merged for adapter in adapters)


def test_layout_type_and_compilation_are_set_for_inference_alone() -> None:
    method = restorer(inference_dtype="bfloat16", channels_last=True)
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    reference = restorer()
    batch = batch_for(method, 1)
    with torch.inference_mode():
        quick, exact = method.restore(batch), reference.restore(batch)
    network = method.network_for_inference()
    assert network is method.network_for_inference() is not method.network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert network.adapted.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (quick - exact).abs().mean() < 0.02
    for name, value in method.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for share in (0.5, 0.25):
        method.load_weights_state({name: value * share for name, value in before.items()})
        loaded = method.network_for_inference()
        assert loaded is not network
        network = loaded
        name, value = next(iter(network.named_parameters()))
        torch.testing.assert_close(value.float(), before[name] * share, rtol=0.01, atol=1e-4)
    method.network.requires_grad_(True)
    assert method.network_for_inference() is method.network
    with pytest.raises(UsageError, match=r"method\.inference_dtype"):
        restorer(inference_dtype="bfloat61")


def test_channels_last_changes_no_picture() -> None:
    method, reference = restorer(channels_last=True), restorer(channels_last=False)
    batch = batch_for(method, 1)
    with torch.inference_mode():
        assert (method.restore(batch) - reference.restore(batch)).abs().max() < 1e-4
    assert all(value.is_contiguous() for value in method.weights_state().values())


@pytest.mark.slow
def test_regional_compilation_changes_no_picture() -> None:
    torch._dynamo.reset()
    method, reference = restorer(), restorer()
    method.network.compile_regions(backend="aot_eager")
    batch = batch_for(method, 1)
    with torch.inference_mode():
        found = [method.restore(batch) for _ in range(2)]
        assert (found[0] - reference.restore(batch)).abs().max() < 1e-4
    assert torch.equal(found[0], found[1])


def test_the_face_of_nobody_is_encoded_once_and_can_be_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    method = restorer(reference="none")
    method.frozen.pop("no face", None)
    encoder, calls = method.face_encoder, []
    encode = encoder.unconditional
    monkeypatch.setattr(encoder, "unconditional", lambda *a: calls.append(1) or encode(*a))
    with torch.inference_mode():
        method.restore(batch_for(method, 1))
        method.restore(batch_for(method, 1))
    assert len(calls) == 1
    method.network.requires_grad_(True)
    method.settings["training"] = {**method.settings["training"], "stage": "joint"}
    method.__dict__.update(log=lambda *_, **__: None, set_learning_rate=lambda: None)
    method.training_step(method.random_training_batch(2), 0).backward()
    assert all(parameter.grad is not None for parameter in method.network.projection.parameters())  # type: ignore


def test_names_of_the_network_stay_as_trained_files_have_them() -> None:
    method = restorer()
    names = set(method.network.state_dict())
    with torch.inference_mode(), method.network.sampling():
        method.network.keep(torch.zeros(2, 1, 64), torch.zeros(2, 4, 64))
        assert set(method.network.state_dict()) == names
    assert {name.split(".")[0] for name in names} == {"adapted", "lq_encoder", "projection"}


@torch.no_grad()
def test_the_published_size_goes_the_same_way() -> None:
    settings = method_settings(compose("run", ["method=restorerid"])["method"], "paper")
    with torch.device("meta"):
        network = RestorerIDNetwork(base_model("sd15"), settings["network"])
        network.to(torch.bfloat16).to(memory_format=torch.channels_last)
        latent = torch.empty(2, 4, 64, 64, dtype=torch.bfloat16)
        text, tokens = (torch.empty(2, count, 768, dtype=torch.bfloat16) for count in (77, 4))
        steps = torch.empty(2, dtype=torch.int64)
        with network.sampling():
            network.keep(text, tokens)
            maps = network.lq_maps(latent[:1], steps[:1])
            found = network(latent, steps, text, maps, tokens, torch.empty(1), use_kept=True)
    assert (found.shape, found.dtype) == (latent.shape, torch.bfloat16)


def test_peaks_are_known_by_the_whole_name() -> None:
    assert _peak_flops("NVIDIA H100 PCIe") == PEAK_FLOPS["NVIDIA H100 PCIe"]
    assert _peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert _peak_flops("NVIDIA GeForce RTX 4090") is None
