"""Schedules, a sampling trajectory and colour fixes are the released code's (sources in the fixtures' JSON)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.blocks.colour_fix import adain_colour_fix, wavelet_blur, wavelet_colour_fix, wavelet_decompose
from methods.blocks.sampling import ModelCall, Sampler, SamplingStep, sampling_preset, spaced_timesteps

HERE = Path(__file__).parent


def _fixture(name: str) -> dict[str, Tensor]:
    return load_file(HERE / f"{name}.safetensors")


def test_colour_fixes_agree() -> None:
    tensors = _fixture("fixture_colorfix_a")
    restored, lq = tensors["in.result"], tensors["in.lq"]
    high, low = wavelet_decompose(restored)
    for ours, name in (
        (wavelet_colour_fix(restored, lq), "wavelet"),
        (adain_colour_fix(restored, lq), "adain"),
        (high, "result_high"),
        (low, "result_low"),
        (wavelet_blur(restored, 4), "blur_radius4"),
    ):
        torch.testing.assert_close(ours, tensors[f"out.{name}"], atol=1e-5, rtol=0)


def test_toy_trajectory_with_guidance_and_noise_agrees() -> None:
    tensors = _fixture("fixture_ddim_toy_a")
    scale, lq = 0.35, tensors["in.lq"]
    tokens = {"conditional": tensors["in.cond"], "unconditional": tensors["in.uncond"]}
    called: list[int] = []
    steps: list[SamplingStep] = []

    def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        called.append(int(timestep[0]))
        context = call.by_branch(tokens).mean(dim=(1, 2))[:, None, None, None]
        condition = call.by_window(lambda window: window.crop(lq))
        return 0.1 * latent + timestep[:, None, None, None] / 1000 + context + 0.02 * condition + 0.03 * scale

    sampler = Sampler(sampling_preset("restorerid_released_code", steps=5))
    final = sampler.sample(
        predict, [0, 0], start_latent=tensors["in.x_T"], step_noise=tensors["in.noise"], on_step=steps.append
    )
    assert called == tensors["out.call_timesteps"].tolist()
    assert list(reversed(sampler.solver_timesteps)) == tensors["out.alpha_timesteps"].tolist()
    trajectory = torch.stack([tensors["in.x_T"], *(step.latent for step in steps)])
    torch.testing.assert_close(trajectory, tensors["out.x_trajectory"], atol=1e-4, rtol=0)
    clean = torch.stack([step.predicted_clean for step in steps])
    torch.testing.assert_close(clean, tensors["out.pred_x0"], atol=1e-4, rtol=0)
    torch.testing.assert_close(final, tensors["out.x_0"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [50, 20])
def test_ddim_lists_are_the_released_ones(steps: int) -> None:
    tensors = _fixture("fixture_schedule_a")
    sampler = Sampler(sampling_preset("restorerid_released_code", steps=steps))
    solver = tensors[f"out.ddim_{steps}.alpha_timesteps"].tolist()
    assert list(reversed(sampler.solver_timesteps)) == solver
    assert list(reversed(sampler.call_timesteps)) == tensors[f"out.ddim_{steps}.model_timesteps"].tolist()
    scheduler = sampler.make_scheduler()
    alphas = scheduler.alphas_cumprod[solver].double()
    before = [t - 1000 // steps for t in solver]
    alphas_before = torch.stack(
        [scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod for t in before]
    )
    sigmas = torch.stack([scheduler._get_variance(t, b) for t, b in zip(solver, before, strict=True)]).double().sqrt()
    for ours, name in ((alphas, "alphas"), (alphas_before.double(), "alphas_prev"), (sigmas, "sigmas")):
        torch.testing.assert_close(ours, tensors[f"out.ddim_{steps}.ddim_{name}"], rtol=1e-5, atol=1e-7)


def test_alphas_beyond_the_calls_are_not_used() -> None:
    """Seven steps: the release lists eight multiples of 142, and seven calls use the first seven of them."""
    sampler = Sampler(sampling_preset("restorerid_released_code", steps=7))
    assert list(reversed(sampler.solver_timesteps)) == list(range(0, 1000, 142))[:7]
    assert list(reversed(sampler.call_timesteps)) == spaced_timesteps(7) and len(range(0, 1000, 142)) == 8


@pytest.mark.parametrize("steps", [200, 50, 4])
def test_spaced_ddpm_is_the_respaced_process(steps: int) -> None:
    tensors = _fixture("fixture_schedule_a")
    sampler = Sampler(sampling_preset("stablesr_released_code", steps=steps))
    kept = list(reversed(sampler.solver_timesteps))
    assert kept == tensors[f"out.spaced_timesteps_{steps}"].tolist() == spaced_timesteps(steps)
    assert sampler.call_timesteps == sampler.solver_timesteps
    scheduler = sampler.make_scheduler()
    torch.testing.assert_close(scheduler.betas, tensors["out.betas1000"], rtol=1e-5, atol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, tensors["out.alphas_cumprod1000"], rtol=1e-5, atol=0)

    def expected(name: str) -> Tensor:
        return tensors[f"out.respaced_{steps}.{name}"]

    torch.testing.assert_close(scheduler.alphas_cumprod[kept], expected("alphas_cumprod"), rtol=1e-5, atol=0)

    def step(latent: float, clean: float, timestep: int) -> float:
        """One step from `latent`, where the prediction says that `clean` is under it."""
        alpha = scheduler.alphas_cumprod[timestep].double()
        noise = (latent - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        drawn = torch.Generator().manual_seed(0)
        start = torch.full((1, 1, 1, 1), latent, dtype=torch.float64)
        return float(scheduler.step(noise.reshape(1, 1, 1, 1), timestep, start, generator=drawn).prev_sample)

    unit = float(torch.randn(1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    rows = []
    for timestep in kept:
        noise = step(0, 0, timestep)
        rows.append((step(0, 1, timestep) - noise, step(1, 0, timestep) - noise, (noise / unit) ** 2))
    names = ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance")
    for ours, name in zip(torch.tensor(rows).T, names, strict=True):
        torch.testing.assert_close(ours, expected(name), rtol=1e-5, atol=2e-6)
