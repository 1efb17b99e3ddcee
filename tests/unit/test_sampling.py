"""Sampling: diffusers' pipeline pattern bit by bit, noise by image, guidance, starts, and tiles without seams."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UsageError
from methods.blocks.sampling import (
    PRESETS,
    ModelCall,
    Sampler,
    SamplingSettings,
    SamplingStep,
    image_generators,
    image_noise,
    sampling_preset,
    spaced_timesteps,
)
from methods.blocks.tiling import Tiling, Window, WindowCache

SHAPE = (4, 8, 12)
SOLVERS = {
    "ddim": SamplingSettings(steps=6, guidance=3.0),
    "ddim_eta": SamplingSettings(steps=6, guidance=3.0, eta=1.0, spacing="trailing"),
    "ddim_v": SamplingSettings(steps=6, guidance=3.0, eta=0.5, prediction="v_prediction"),
    "ddpm": SamplingSettings(solver="ddpm", steps=6, guidance=3.0, spacing="linspace"),
    "dpm_solver++": SamplingSettings(solver="dpm_solver++", steps=6, guidance=3.0, spacing="linspace"),
    "dpm_solver++_karras": SamplingSettings(solver="dpm_solver++", steps=6, guidance=3.0, karras=True),
    "unipc": SamplingSettings(solver="unipc", steps=6, guidance=3.0, spacing="linspace"),
}


def _tokens(images: int) -> dict[str, Tensor]:
    draw = torch.randn(2, images, 5, 4, generator=torch.Generator().manual_seed(3))
    return {"unconditional": draw[0], "conditional": draw[1]}


def _network(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    mixed = torch.tanh(latent.roll(1, dims=-1) + context.mean(1)[:, :, None, None])
    return mixed + 0.1 * latent * (timestep.reshape(-1, 1, 1, 1) / 1000)


def _predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
    return _network(latent, timestep, call.by_branch(_tokens(call.images)))


@pytest.mark.parametrize("name", SOLVERS)
def test_bits_are_those_of_the_pipeline_pattern(name: str) -> None:
    """The loop of diffusers' StableDiffusionPipeline: set_timesteps, doubled batch, guidance, step with a generator."""
    import diffusers
    from diffusers.utils.torch_utils import randn_tensor

    settings, seeds = SOLVERS[name], [11, 12, 13]
    classes = {
        "ddim": "DDIMScheduler",
        "ddpm": "DDPMScheduler",
        "dpm_solver++": "DPMSolverMultistepScheduler",
        "unipc": "UniPCMultistepScheduler",
    }
    configuration: dict[str, Any] = {"karras": {"use_karras_sigmas": True}}.get(name.rpartition("_")[2], {})
    if settings.solver in ("ddim", "ddpm"):
        configuration["clip_sample"] = False
    if settings.solver == "ddim":
        configuration["set_alpha_to_one"] = False
    scheduler = getattr(diffusers, classes[settings.solver])(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=settings.prediction,
        timestep_spacing=settings.spacing,
        steps_offset=1,
        **configuration,
    )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler.set_timesteps(settings.steps, device="cpu")
    latents = randn_tensor((3, *SHAPE), generator=generators, dtype=torch.float32) * scheduler.init_noise_sigma
    embeds = torch.cat([_tokens(3)["unconditional"], _tokens(3)["conditional"]])
    extra: dict[str, Any] = {"eta": settings.eta} if settings.solver == "ddim" else {}
    if settings.solver != "unipc":
        extra["generator"] = generators
    for timestep in scheduler.timesteps:
        doubled = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        unconditional, conditional = _network(doubled, timestep.expand(6), embeds).chunk(2)
        noise = unconditional + settings.guidance * (conditional - unconditional)
        latents = scheduler.step(noise, timestep, latents, **extra).prev_sample
    assert torch.equal(Sampler(settings).sample(_predict, seeds, shape=SHAPE), latents)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_batch_or_order(name: str) -> None:
    sampler = Sampler(SOLVERS[name])

    def alike(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        tokens = {branch: context[:1].expand(call.images, -1, -1) for branch, context in _tokens(1).items()}
        return _network(latent, timestep, call.by_branch(tokens))

    together = sampler.sample(alike, [5, 6, 7], shape=SHAPE)
    reordered = sampler.sample(alike, [7, 5], shape=SHAPE)
    alone = sampler.sample(alike, [6], shape=SHAPE)
    assert torch.equal(together[[2, 0]], reordered)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])
    assert together.is_inference() is False


@pytest.mark.gpu
def test_noise_does_not_depend_on_the_device() -> None:
    for settings in (SOLVERS["ddim_eta"], SOLVERS["ddpm"]):
        sampler = Sampler(settings)
        zero = [
            sampler.sample(lambda latent, *_: 0.1 * latent, [1, 2], shape=SHAPE, device=device).cpu()
            for device in ("cpu", "cuda")
        ]
        torch.testing.assert_close(*zero, atol=1e-4, rtol=1e-4)


def test_guidance_is_one_call_and_scale_one_leaves_the_other_branch_out() -> None:
    calls: list[tuple[int, ModelCall]] = []

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        assert timestep.shape == (len(latent),) and timestep.dtype == torch.int64
        calls.append((len(latent), call))
        return _predict(latent, timestep, call)

    whole = (Window(0, 0, 8, 12),)
    Sampler(SamplingSettings(steps=3, guidance=2.0)).sample(predict, [1, 2], shape=SHAPE)
    assert calls == [(4, ModelCall(("unconditional", "conditional"), whole, 2, step)) for step in range(3)]
    calls.clear()
    Sampler(SamplingSettings(steps=3)).sample(predict, [1, 2], shape=SHAPE)
    assert calls == [(2, ModelCall(("conditional",), whole, 2, step)) for step in range(3)]


def test_start_from_the_lq_latent_is_noised_to_the_last_timestep() -> None:
    lq = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9))
    seen: list[Tensor] = []

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        seen.append(latent)
        return latent

    sampler = Sampler(sampling_preset("stablesr_turbo"))
    sampler.sample(predict, [1, 2], lq_latent=lq)
    alpha = math.prod(
        1 - (math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(1000)
    )
    noise = image_noise(image_generators([1, 2]), SHAPE)
    torch.testing.assert_close(seen[0], math.sqrt(alpha) * lq + math.sqrt(1 - alpha) * noise, atol=1e-5, rtol=0)
    assert [latent.shape for latent in seen] == [lq.shape] * 4
    with pytest.raises(UsageError, match="lq_latent"):
        sampler.sample(predict, [1, 2], shape=SHAPE)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_perfect_network_gives_the_clean_latent(name: str) -> None:
    """With the noise known exactly, every solver ends at the latent the noise was added to, wherever it started."""
    settings = SOLVERS[name]
    clean = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(4))
    sampler = Sampler(settings)
    alphas = sampler.make_scheduler().alphas_cumprod

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        alpha = alphas[timestep].reshape(-1, 1, 1, 1)
        noise = (latent - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return noise if settings.prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    final = sampler.sample(predict, [0], shape=SHAPE)
    tolerance = 0.15 if settings.solver == "ddim" else 0.02  # DDIM stops at the noise of timestep 0, as released
    assert float((final - clean).abs().max()) < tolerance


def test_spaced_timesteps_are_the_accumulated_ones_for_every_number_of_steps() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(timestep_spacing="linspace")
    differ = []
    for steps in range(1, 1001):
        accumulated, position = [], 0.0
        for _ in range(steps):
            accumulated.append(round(position))
            position += 999 / (steps - 1) if steps > 1 else 1
        assert spaced_timesteps(steps) == accumulated
        scheduler.set_timesteps(steps)
        differences = (scheduler.timesteps.flip(0) - torch.tensor(accumulated)).abs()
        assert differences.max() <= 1
        if differences.any():
            differ.append(steps)
    assert 21 in differ and not {4, 20, 50, 200} & set(differ)
    settings = SamplingSettings(solver="ddpm", steps=21, spacing="linspace")
    assert list(Sampler(settings).solver_timesteps) == spaced_timesteps(21)[::-1]


def test_presets_are_what_papers_and_releases_use() -> None:
    calls = {name: Sampler(settings).call_timesteps for name, settings in PRESETS.items()}
    assert calls["restorerid_paper"][:2] == (981, 961) and calls["restorerid_paper"][-1] == 1
    assert calls["restorerid_released_code"][:3] == (999, 979, 958) and calls["restorerid_released_code"][-1] == 0
    assert len(calls["stablesr_released_code"]) == 200 and len(calls["fast"]) == 20
    assert sampling_preset("restorerid_paper").guidance == 7.5
    assert sampling_preset("restorerid_released_code", steps=4).steps == 4
    with pytest.raises(UsageError, match="restorerid_paper"):
        sampling_preset("restorer_paper")
    with pytest.raises(UsageError, match="steps"):
        sampling_preset("fast", step=3)


def test_one_step_is_the_guided_prediction_of_the_clean_latent() -> None:
    """By hand: x0 = (x - sqrt(1 - a) (u + g (c - u))) / sqrt(a) at the last timestep, from noise alone."""
    sampler = Sampler(sampling_preset("one_step"))
    assert sampler.call_timesteps == (999,)
    found = sampler.sample(_predict, [11, 12], shape=SHAPE)
    noise, tokens, timestep = image_noise(image_generators([11, 12]), SHAPE), _tokens(2), torch.full((2,), 999)
    free, bound = (_network(noise, timestep, tokens[branch]) for branch in ("unconditional", "conditional"))
    alpha = sampler.alphas_cumprod[999]
    expected = (noise - (1 - alpha).sqrt() * (free + 2 * (bound - free))) / alpha.sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_steps_are_reported_and_precision_is_the_networks_alone() -> None:
    steps: list[SamplingStep] = []
    types: set[torch.dtype] = set()

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        types.add(latent.dtype)
        return latent * 0.1

    final = Sampler(SamplingSettings(steps=4)).sample(
        predict, [1], shape=SHAPE, dtype=torch.bfloat16, on_step=steps.append
    )
    assert types == {torch.bfloat16} and final.dtype == torch.float32
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert torch.equal(steps[-1].latent, final)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"solver": "euler"}, "solver"),
        ({"steps": 0}, "between 1 and 1000"),
        ({"eta": 0.5, "solver": "ddpm"}, "belongs to the solver ddim"),
        ({"eta": 2.0}, "between 0 and 1"),
        ({"spacing": "linspace"}, "constant stride"),
        ({"karras": True}, "karras"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SamplingSettings(**changes)


def test_latents_that_do_not_fit_are_refused() -> None:
    sampler, latent = Sampler(SamplingSettings(solver="ddpm", steps=2)), torch.zeros(2, *SHAPE)
    for arguments, said in (
        ({}, "how large"),
        ({"start_latent": latent[:1]}, "one seed per image"),
        ({"start_latent": latent, "shape": (4, 8, 8)}, "shape is"),
        ({"shape": SHAPE, "step_noise": latent[None]}, "replays DDIM"),
    ):
        with pytest.raises(UsageError, match=said):
            sampler.sample(_predict, [1, 2], **arguments)
    with pytest.raises(UsageError, match="1 steps of 3"):
        Sampler(SamplingSettings(steps=3)).sample(_predict, [1, 2], shape=SHAPE, step_noise=latent[None])


def _smooth_network(latent: Tensor, tile_bias: float = 0.3) -> Tensor:
    """Blurs and adds what depends on the whole window, as attention and normalisation do."""
    blurred = F.avg_pool2d(F.pad(latent, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return 0.8 * blurred + tile_bias * torch.tanh(3 * latent.mean(dim=(2, 3), keepdim=True) + 0.5 * latent.std())


def _seams(latent: Tensor, windows: tuple[Window, ...], axis: int) -> float:
    """Mean second difference where windows begin or end over the mean elsewhere."""
    length = latent.shape[axis]
    bends = latent.diff(n=2, dim=axis).abs().mean(dim=[i for i in range(4) if i != axis])
    first = [window.left if axis == 3 else window.top for window in windows]
    size = windows[0].width if axis == 3 else windows[0].height
    at_border = torch.zeros(length - 2, dtype=torch.bool)
    for edge in {*first, *(start + size for start in first)} - {0, length}:
        at_border[[edge - 2, edge - 1]] = True
    return float(bends[at_border].mean() / bends[~at_border].mean())


@pytest.mark.parametrize("size", [(12, 80), (96, 640)])
def test_tiled_strip_has_no_seams(size: tuple[int, int]) -> None:
    """A strip of 96x640 pixels (12x80 latent), and one of 96x640 latent pixels with windows in both directions."""
    ramp = torch.linspace(-2, 2, size[1]).expand(1, 4, *size)
    sampler = Sampler(SamplingSettings(steps=5))

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        condition = call.by_window(lambda window: window.crop(ramp))
        return torch.cat(
            [_smooth_network(part + c) for part, c in zip(latent.split(1), condition.split(1), strict=True)]
        )

    start = F.interpolate(torch.randn(1, 4, 3, 10, generator=torch.Generator().manual_seed(0)), size, mode="bicubic")

    def run(tiling: Tiling | None) -> tuple[float, float]:
        """How windows' borders bend against everything else, and the sharpest bend anywhere (blended or not)."""
        final = sampler.sample(predict, [0], start_latent=start, tiling=tiling)
        windows = (tiling or Tiling(tile=640)).windows(*size)
        axes = [axis for axis, length in ((2, size[0]), (3, size[1])) if tiling and length > tiling.tile]
        sharpest = float(final.diff(n=2, dim=3).abs().mean(dim=(0, 1, 2)).max())
        return max((_seams(final, windows, axis) for axis in axes), default=0.0), sharpest

    _, untiled = run(None)
    hard, hard_bend = run(Tiling(tile=64 if size[1] == 640 else 40, overlap=0))
    assert hard > 3
    for preset in ("symmetric", "released_code"):
        seams, bend = run(Tiling(preset=preset))  # type: ignore[arg-type]
        assert seams < 1.3
        assert bend - untiled < 0.1 * (hard_bend - untiled)


def test_tiles_of_a_network_that_sees_pixels_alone_change_nothing() -> None:
    calls: list[ModelCall] = []
    shape = (4, 70, 100)

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        calls.append(call)
        context = call.by_branch(_tokens(call.images)).mean(1)[:, :, None, None]
        return torch.tanh(latent + context)

    settings = SamplingSettings(steps=3, guidance=2.0, eta=1.0)
    whole = Sampler(settings).sample(predict, [1, 2], shape=shape)
    calls.clear()
    tiled = Sampler(settings).sample(predict, [1, 2], shape=shape, tiling=Tiling(batch=3))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)
    assert [len(call.windows) for call in calls] == [3, 3] * 3  # 2 x 3 windows, three at a time, three steps
    assert set(itertools.chain.from_iterable(call.windows for call in calls)) == set(Tiling().windows(70, 100))
    assert len({call.layout for call in calls}) == 2


def test_tiles_get_their_own_conditions_computed_once() -> None:
    lq = torch.randn(2, 4, 70, 100, generator=torch.Generator().manual_seed(1))
    made: list[Window] = []

    def encode(window: Window) -> Tensor:
        made.append(window)
        return window.crop(lq)

    cache = WindowCache(encode)

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        return 0.5 * latent + call.by_window(cache)

    settings = SamplingSettings(steps=3, guidance=2.0)
    tiled = Sampler(settings).sample(predict, [1, 2], lq_latent=lq, tiling=Tiling(batch=4))
    assert sorted(made) == sorted(Tiling().windows(70, 100))
    whole = Sampler(settings).sample(lambda latent, t, call: 0.5 * latent + torch.cat([lq, lq]), [1, 2], lq_latent=lq)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)
    small = Sampler(settings).sample(lambda latent, t, call: latent, [1], shape=(4, 64, 64), tiling=Tiling())
    assert torch.equal(small, Sampler(settings).sample(lambda latent, t, call: latent, [1], shape=(4, 64, 64)))
