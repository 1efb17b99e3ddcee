"""Noisy latents, training targets and the clean latents of predictions, against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from methods.blocks.diffusion_objective import add_noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_targets_and_clean_latents_are_those_of_diffusers(prediction):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(1000)
    latent = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = add_noise(latent, scheduler.alphas_cumprod, prediction, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.noisy, scheduler.add_noise(latent, drawn.noise, drawn.timestep))
    target = drawn.noise if prediction == "epsilon" else scheduler.get_velocity(latent, drawn.noise, drawn.timestep)
    torch.testing.assert_close(drawn.target, target)
    torch.testing.assert_close(drawn.clean(drawn.target), latent, atol=1e-4, rtol=1e-3)
    wrong = torch.randn_like(latent)
    clean = [
        scheduler.step(wrong[row], int(drawn.timestep[row]), drawn.noisy[row]).pred_original_sample for row in range(6)
    ]
    torch.testing.assert_close(drawn.clean(wrong), torch.stack(clean), atol=1e-4, rtol=1e-4)
    some = drawn[torch.tensor([4, 1])]
    torch.testing.assert_close(some.clean(wrong[[4, 1]]), drawn.clean(wrong)[[4, 1]])


def test_little_noise_is_not_rounded_away():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latent = torch.randn(400, 4, 2, 2).bfloat16()
    drawn = add_noise(latent, scheduler.alphas_cumprod[:3], "epsilon", torch.Generator().manual_seed(3))
    added = (drawn.noisy - drawn.alpha.sqrt() * latent.float()).flatten(1).std(1)
    expected = (1 - scheduler.alphas_cumprod[drawn.timestep]).sqrt()
    torch.testing.assert_close(added / expected, drawn.noise.flatten(1).std(1), atol=1e-2, rtol=1e-2)


def test_timesteps_cover_the_whole_schedule_and_follow_the_seed():
    alphas = torch.linspace(0.99, 0.01, 10)
    latent = torch.zeros(400, 1, 1, 1)
    drawn, again = (add_noise(latent, alphas, "epsilon", torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(drawn.timestep, again.timestep) and torch.equal(drawn.noise, again.noise)
    assert torch.bincount(drawn.timestep, minlength=10).min() > 20
    assert torch.equal(drawn.alpha.flatten(), alphas[drawn.timestep])
    assert abs(float(drawn.noise.std()) - 1) < 0.1
    late = add_noise(latent, alphas, "epsilon", torch.Generator().manual_seed(2), least=7)
    assert set(late.timestep.tolist()) == {7, 8, 9}
