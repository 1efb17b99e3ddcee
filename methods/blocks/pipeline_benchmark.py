"""The sampling loop of diffusers' documentation, to time ours against.

It is the loop that "Understanding pipelines, models and schedulers" in diffusers' documentation takes apart and that
its pipelines run: both branches of guidance in one batch, everything the network reads computed anew in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DOCUMENTED_LOOP = """\
scheduler.set_timesteps({steps})  # {scheduler}
for t in scheduler.timesteps:
    model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
    {call}
    noise_uncond, noise_cond = noise.chunk(2)
    noise = noise_uncond + {guidance:g} * (noise_cond - noise_uncond)
    latents = scheduler.step(noise, t, latents{extra}).prev_sample
image = vae.decode(latents / scaling_factor).sample  # then the colour fix of the settings"""
"""The pattern as text; `call` is how the method's own network is called in it."""

PlainCall = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def documented_loop(
    scheduler: Any,
    call: PlainCall,
    latents: Tensor,
    guidance: float,
    told: Sequence[int] | None = None,
    **extra: Any,
) -> Tensor:
    """Runs the loop.

    Args:
        scheduler: A scheduler of diffusers with its timesteps set.
        call: The network on both branches at once, the unconditional one first: takes (2 B, C, h, w) and the timestep,
            returns the prediction.
        latents: (B, C, h, w), noise.
        guidance: Scale of classifier-free guidance.
        told: Timesteps told to the network where they are not the scheduler's.
        **extra: Arguments of `scheduler.step` (`eta`, `generator`), as `prepare_extra_step_kwargs` of the pipelines.

    Returns:
        Clean latents, (B, C, h, w).
    """
    dtype = latents.dtype
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        at = timestep if told is None else torch.tensor(told[index])
        noise_uncond, noise_cond = call(model_input, at.to(latents.device)).chunk(2)
        noise = noise_uncond + guidance * (noise_cond - noise_uncond)
        latents = scheduler.step(noise, timestep, latents, **extra, return_dict=False)[0].to(dtype)
    return latents
