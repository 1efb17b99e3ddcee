"""AuthFace: what its stages move, what they learn, prompts, tiles, and settings that make no sense."""

from __future__ import annotations

import contextlib
import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from methods.authface.captions import read_caption, read_captions
from methods.authface.losses import inside
from methods.authface.module import AuthFace
from methods.authface.settings import RELEASED_PROMPTS
from methods.authface.tags import LIMITS, TAGS, measured_tags, measures, tag_numbers
from methods.authface.timing import FACE, training_batch
from methods.blocks.diffusion_objective import add_noise
from methods.blocks.earlier_weights import read_earlier_weights
from methods.blocks.tiling import Tiling

SMALL = ["method.network.condition_channels=[8,8,8,8]"]


def settings(*words: str, size: str = "demo") -> dict[str, Any]:
    return method_settings(compose("train", ["method=authface", f"size={size}", *SMALL, *words])["method"], size)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a stage `prior` that was never trained."""
    from bench.weights.method_weights import write_weights

    file = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    write_weights(file, AuthFace(settings() | {"seed": 3}), "float32", {"method": "authface"})
    return file


def training(prior: Path, *words: str) -> tuple[AuthFace, torch.optim.Optimizer, list[tuple[str, float]]]:
    """A method ready for `training_step`, its optimiser, and what it logs."""
    method = AuthFace(settings(f"method.training.start_from={prior}", *words) | {"seed": 0})
    method.begin_training()
    optimiser = method.configure_optimizers()
    logged: list[tuple[str, float]] = []
    method.__dict__.update(optimizers=lambda: optimiser, log=lambda name, value, **_: logged.append((name, value)))
    return method, optimiser, logged


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def a_step(method: AuthFace, optimiser: torch.optim.Optimizer, count: int = 2) -> None:
    optimiser.zero_grad()
    loss: Any = method.training_step(training_batch(method, count), 0)
    loss.backward()
    optimiser.step()


# Stages -------------------------------------------------------------------------------------------


def test_only_control_net_and_discriminators_move_in_stage_control(prior: Path) -> None:
    method, optimiser, _ = training(prior, "method.optimiser.warm_up=0")
    before = copy.deepcopy(method.state_dict())
    for _ in range(3):  # what the zero convolutions feed moves from the second step on
        a_step(method, optimiser)
    found = moved(before, method.state_dict())
    assert all(name.startswith(("network.controlnet.", "facial.discriminators.")) for name in found)
    still = {name for name in before if name.startswith(("network.unet.", "network.tag_encoder."))}
    assert still and not still & found
    for part in ("network.controlnet.", "facial.discriminators.eyes.", "facial.discriminators.mouth."):
        own = {name for name in before if name.startswith(part) and before[name].numel()}
        assert own <= found, sorted(own - found)[:5]


def test_only_the_prior_moves_in_stage_prior() -> None:
    method = AuthFace(settings("method.training.stage=prior", "method.optimiser.warm_up=0") | {"seed": 0})
    method.begin_training()
    assert method.facial is None
    optimiser = method.configure_optimizers()
    method.__dict__.update(optimizers=lambda: optimiser, log=lambda *_, **__: None)
    before = copy.deepcopy(method.state_dict())
    a_step(method, optimiser, 8)
    found = moved(before, method.state_dict())
    assert all(name.startswith(("network.unet.", "network.tag_encoder.")) for name in found)
    assert any(name.startswith("network.tag_encoder.") for name in found)


def test_the_discriminators_keep_a_rate_of_their_own(prior: Path) -> None:
    method, optimiser, _ = training(prior, "method.optimiser.warm_up=10")
    method.set_learning_rate()
    control, discriminators = optimiser.param_groups
    assert control["lr"] < 1e-3 and control["betas"] == (0.9, 0.999)
    assert (discriminators["lr"], discriminators["betas"], discriminators["weight_decay"]) == (2e-3, (0.9, 0.99), 0)


def test_stage_control_starts_as_the_prior_and_goes_on_from_a_trained_one(prior: Path, tmp_path: Path) -> None:
    from bench.weights.method_weights import write_weights

    method, optimiser, _ = training(prior, "method.optimiser.warm_up=0")
    for name, value in method.network.unet.mid_block.state_dict().items():
        assert torch.equal(method.network.controlnet.mid_block.state_dict()[name], value)
    assert not method.network.controls
    a_step(method, optimiser)
    write_weights(tmp_path / "control.safetensors", method, "float32", {"method": "authface"})
    further, _, _ = training(tmp_path / "control.safetensors")
    assert further.network.controls
    assert not moved(method.network.state_dict(), further.network.state_dict())


# The loss -----------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_noise_and_of_the_faces(prior: Path) -> None:
    method, _, logged = training(prior)
    assert method.facial is not None
    method.facial.discriminative = 0.5
    tensors = training_batch(method, 3).tensors
    tensors["points"] = tensors["points"].clone()
    tensors["points"][2, 0] = -5.0  # cut away
    noised = add_noise(tensors["latent"], method.sampler.alphas_cumprod, "v_prediction", torch.Generator())
    loss = method.training_loss(tensors, noised, torch.Generator().manual_seed(1))
    from methods.authface.conditions import picture_times

    times = picture_times(3, 128)
    predicted = method.network(noised.noisy, noised.timestep, method.prompt(3, ""), times, tensors["lq"])
    clean = noised.alpha.sqrt() * noised.noisy - (1 - noised.alpha).sqrt() * predicted
    faces = [row[:2] for row in (clean, noised.latent, tensors["points"], noised.timestep / 1000)]
    facial, judged, _ = method.facial(*faces)
    # Means are over three pictures, of which one weighs nothing.
    expected = F.mse_loss(predicted, noised.target) + 2 / 3 * (facial + judged)
    assert torch.allclose(loss, expected, rtol=1e-4)
    assert [float(value) for name, value in logged if name == "train/without_face"] == [1.0]
    assert inside(tensors["points"], 128).tolist() == [True, True, False]


def test_without_the_facial_loss_there_are_no_discriminators(prior: Path) -> None:
    method, optimiser, _ = training(prior, "method.losses.facial=0")
    assert method.facial is None and len(optimiser.param_groups) == 1
    tensors = training_batch(method, 2).tensors
    noised = add_noise(tensors["latent"], method.sampler.alphas_cumprod, "v_prediction", torch.Generator())
    loss = method.training_loss(tensors, noised, torch.Generator())
    assert 0 < float(loss) < 10


def test_the_running_mean_shares_what_is_frozen(prior: Path) -> None:
    method = AuthFace(settings(f"method.training.start_from={prior}") | {"seed": 0})
    method.prepare_training()
    averaged: Any = method.averaged
    assert averaged.unet.conv_in.weight is method.network.unet.conv_in.weight
    assert averaged.controlnet.conv_in.weight is not method.network.controlnet.conv_in.weight
    assert not any(parameter.requires_grad for parameter in averaged.parameters())
    assert all(parameter.requires_grad for parameter in method.network.controlnet.parameters())


def test_samples_are_kept_apart_by_all_that_decides_them() -> None:
    changes = {"captions": "none", "autoencoder_dtype": "float16"}
    method = AuthFace(settings() | {"seed": 0})
    known = [method.sample_identity()]
    for key, value in changes.items():
        method.settings[key] = value
        known.append(method.sample_identity())
    assert known[0]["tags"] and all(one != other for one, other in itertools.combinations(known, 2))


def test_stage_control_without_a_prior_is_refused() -> None:
    method = AuthFace(settings() | {"seed": 0})
    with pytest.raises(UsageError, match="start_from"):
        method.begin_training()


def test_weights_of_another_network_are_no_prior(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"adapted.unet.conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="no earlier stage"):
        read_earlier_weights(AuthFace(settings()).network, str(tmp_path / "other.safetensors"), ("unet",))


# Tags and captions --------------------------------------------------------------------------------


def picture(value: float) -> tuple[Tensor, Tensor]:
    return torch.full((1, 3, 128, 128), value), 128 * torch.tensor(FACE)[None]


def test_measured_tags_say_what_is_seen() -> None:
    flat, points = picture(0.9)
    assert measured_tags(flat, points) == [
        "close-up portrait, light background, frontal view, bright light, even lighting, low contrast, soft focus"
    ]
    turned, lit = points.clone(), flat.clone()
    turned[:, 2, 0] += 10
    lit[..., :64] = 0.1
    noisy = (lit + 0.2 * torch.randn(lit.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    tags = measured_tags(noisy, turned)[0].split(", ")
    assert {"three-quarter view", "side lighting", "high contrast", "sharp focus"} <= set(tags)


def test_every_tag_can_be_measured_and_is_known() -> None:
    known = {TAGS[0], *(tag for _, above, below in LIMITS.values() for tag in (above, below))}
    assert known == set(TAGS)
    flat, points = picture(0.5)
    assert set(measures(flat, points)) == set(LIMITS)


def test_tags_are_told_apart_whatever_their_order() -> None:
    method = AuthFace(settings() | {"seed": 0})
    one, other = (method.prompt(1, text) for text in ("bright light, sharp focus", "Sharp focus , bright light"))
    assert torch.allclose(one.pooled, other.pooled, atol=1e-6)
    assert not torch.allclose(one.pooled, method.prompt(1, "").pooled, atol=1e-3)
    assert not torch.allclose(one.pooled, method.prompt(1, "dim light, sharp focus").pooled, atol=1e-4)
    with pytest.raises(UsageError, match="'moonlight'"):
        tag_numbers(["moonlight"])
    with pytest.raises(UsageError, match="at most"):
        tag_numbers([", ".join(TAGS)])
    with pytest.raises(UsageError, match="these tags alone"):
        AuthFace(settings("method.prompts=released"))


def test_captions_are_read_from_beside_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "woman").mkdir()
    (tmp_path / "woman/woman_1_qwen.json").write_text('{"semantic": ["woman", "black top"], "light": {"kind": "soft"}}')
    (tmp_path / "woman/woman_2.txt").write_text("woman, smiling,\nfreckles\n")
    names = ["woman/woman_1.png", "woman/woman_2.png"]
    assert read_captions(tmp_path, names) == {
        names[0]: "woman, black top, soft",
        names[1]: "woman, smiling, freckles",
    }
    with pytest.raises(MissingError, match=r"1 of 3 pictures .*woman_3.*captioner"):
        read_captions(tmp_path, [*names, "woman/woman_3.png"])
    for content in ("{", "[]", '""'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UsageError, match=r"bad\.json"):
            read_caption(tmp_path / "bad.json")


# Restoration --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def method(prior: Path) -> AuthFace:
    """Small, with a ControlNet that does something."""
    built = AuthFace(settings("method.self_ensemble=false", "method.sampling.steps=3") | {"seed": 0})
    read_earlier_weights(built.network, str(prior), ("unet",))
    for parameter in built.network.controlnet.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return built.eval().requires_grad_(False)


def pictures(*sizes: int, count: int = 1) -> FaceBatch:
    lq = torch.rand(count, 3, *sizes, generator=torch.Generator().manual_seed(0))
    return FaceBatch(
        lq=F.avg_pool2d(lq, 9, 1, 4),
        references=torch.zeros(count, 0, 3, *sizes),
        reference_mask=torch.zeros(count, 0, dtype=torch.bool),
        image_ids=[str(row) for row in range(count)],
        identities=["someone"] * count,
        seeds=list(range(count)),
    )


@torch.inference_mode()
@pytest.mark.parametrize(("width", "made"), [(128, 1), (300, 2)])
def test_the_picture_is_looked_at_once_in_all_steps(
    method: AuthFace, monkeypatch: pytest.MonkeyPatch, width: int, made: int
) -> None:
    method.settings["tiles_per_call"] = 2  # of four tiles: two calls in every step
    batch = pictures(128, width, count=2)
    embedding = method.network.controlnet.controlnet_cond_embedding
    calls: list[int] = []
    handle = embedding.conv_in.register_forward_hook(lambda *_: calls.append(1))
    kept = method.restore(batch)
    handle.remove()
    assert len(calls) == made, "and not in each of three steps"
    assert embedding.kept is None, "nothing is kept after a restoration"
    monkeypatch.setattr(type(method.network), "sampling", lambda _: contextlib.nullcontext())
    assert torch.equal(method.restore(batch), kept)


@torch.inference_mode()
def test_any_size_is_restored_in_tiles(method: AuthFace) -> None:
    batch = pictures(100, 300)
    whole = method.restore(batch)
    assert whole.shape == batch.lq.shape
    # A window far from another is not touched by it.
    other = batch.lq.clone()
    other[..., 200:] = 0.5
    changed = method.restore(FaceBatch(**{**vars(batch), "lq": other}))
    apart = (whole - changed).abs().amax((0, 1, 2))
    assert apart[220:].max() > 10 * apart[:40].max()


@torch.inference_mode()
def test_guidance_goes_from_the_negative_to_the_positive_prompt(prior: Path) -> None:
    """With one step the prediction is linear in both branches, and the latent in the prediction."""

    def latent(guidance: float, positive: str, negative: str) -> Tensor:
        words = ["method.sampling.preset=one_step", "method.sampling.steps=1", f"method.sampling.guidance={guidance}"]
        prompts = {"positive": positive, "negative": negative}
        built = AuthFace(settings(*words) | {"seed": 0, "prompts": prompts}).eval()
        read_earlier_weights(built.network, str(prior), ("unet",))
        return built._sampled(built.network, pictures(128, 128).lq, [0], Tiling(16, 8))

    sharp, soft = (latent(1, text, text) for text in ("sharp focus", "soft focus"))
    assert (sharp - soft).abs().max() > 1e-3
    assert torch.allclose(latent(4, "sharp focus", "soft focus"), soft + 4 * (sharp - soft), atol=1e-3)


def test_presets_and_labels() -> None:
    lacking = AuthFace.absent(settings("method.network.condition_channels=[16,32,96,256]", size="paper"))
    assert set(lacking) == {"sdxl vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    found = settings("method.prompts=released", size="paper")
    assert found["sampling"]["preset"] == "authface_paper"
    assert RELEASED_PROMPTS["positive"].startswith("hyper-realistic portrait")
    assert AuthFace(settings()).label == "authface@demo"
    assert RELEASED_PROMPTS["negative"].endswith("easy negative")


def test_a_mirror_is_the_same_base_model() -> None:
    from bench.runs.plan import _without_hub

    assert _without_hub({"name": "sdxl", "hub_ids": ["me/mirror"]}) == _without_hub("sdxl") == "sdxl"
    changed = {"name": "sdxl", "unet": {"layers_per_block": 1}}
    assert _without_hub({**changed, "hub_ids": ["me/mirror"]}) == changed


def test_weights_of_the_prior_alone_are_not_scored(prior: Path) -> None:
    from bench.weights.method_weights import read_weights

    with pytest.raises(UsageError, match="stage prior, which sees no degraded picture"):
        AuthFace(settings()).load_weights_state(read_weights(prior)[0])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method.prior=sd", "method.prior"),
        ("method.captions=some", "method.captions"),
        ("method.autoencoder_dtype=half", "autoencoder_dtype"),
        ("method.prompts=long", "method.prompts"),
        ("method.prompts={positive:a}", "method.prompts"),
        ("method.control_scale=-1", "control_scale"),
        ("method.losses.facial=-1", "losses.facial"),
        ("method.losses.facial=much", "losses.facial"),
        ("method.discriminator.patch=2", "discriminator.patch"),
        ("method.optimiser.kind=sgd", "optimiser.kind"),
        ("method.dropout.caption=2", "dropout.caption"),
        ("method.tiles_per_call=0", "tiles_per_call"),
        ("method.losses.weighting=flat", "weighting"),
        ("method.losses.deviation=0", "scale of the time weight"),
        ("method.losses.mean=abc", "losses.mean"),
        ("method.losses.deviation=null", "losses.deviation"),
        ("method.optimiser.betas=0.9", "optimiser.betas"),
        ("method.discriminator.betas=[0.9,2]", "discriminator.betas"),
        ("method.discriminator.learning_rate=x", "discriminator.learning_rate"),
        ("method.autoencoder_dtype=float16", "autoencoder_dtype"),
        ("method.optimiser.learning_rate=-1", "optimiser.learning_rate"),
        ("method.optimiser.decay_after=5", "optimiser.decay_after"),
        ("method.ema_halflife_pictures=x", "ema_halflife_pictures"),
        ("method.training.cached_samples=-1", "cached_samples"),
        ("method.losses.saturating=maybe", "losses.saturating"),
        ("method.self_ensemble=maybe", "self_ensemble"),
        ("method.network.condition_channels=[8,8]", "condition_channels must be 4 numbers"),
        ("method.network.condition_channels=x", "condition_channels must be 4 numbers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AuthFace(settings(word))
