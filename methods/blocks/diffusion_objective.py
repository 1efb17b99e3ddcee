"""What a denoiser is trained on: noisy latents, what it should predict of them, and what a prediction means.

Source: Ho et al., NeurIPS 2020, Eqs. 4 and 14; for velocities Salimans and Ho, ICLR 2022, Appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.blocks.sampling import Prediction


@dataclass(frozen=True)
class NoisyLatents:
    """Latents with noise of random timesteps.

    Attributes:
        latent: Clean latents, (B, C, h, w).
        noise: Standard normal, (B, C, h, w).
        timestep: (B,), whole numbers.
        alpha: Cumulative alphas of the timesteps, (B, 1, 1, 1).
        prediction: What the denoiser predicts.
    """

    latent: Tensor
    noise: Tensor
    timestep: Tensor
    alpha: Tensor
    prediction: Prediction

    @property
    def noisy(self) -> Tensor:
        """What the denoiser reads, (B, C, h, w)."""
        return self.alpha.sqrt() * self.latent + (1 - self.alpha).sqrt() * self.noise

    @property
    def target(self) -> Tensor:
        """What the denoiser should predict, (B, C, h, w)."""
        if self.prediction == "v_prediction":
            return self.alpha.sqrt() * self.noise - (1 - self.alpha).sqrt() * self.latent
        return self.noise

    def clean(self, predicted: Tensor) -> Tensor:
        """The clean latents that predictions (B, C, h, w) mean."""
        if self.prediction == "v_prediction":
            return self.alpha.sqrt() * self.noisy - (1 - self.alpha).sqrt() * predicted
        return (self.noisy - (1 - self.alpha).sqrt() * predicted) / self.alpha.sqrt()

    def predicted_noise(self, predicted: Tensor) -> Tensor:
        """The noise that predictions (B, C, h, w) mean."""
        if self.prediction == "v_prediction":
            return self.alpha.sqrt() * predicted + (1 - self.alpha).sqrt() * self.noisy
        return predicted

    def __getitem__(self, rows: Tensor) -> NoisyLatents:
        """Some of the batch."""
        return NoisyLatents(self.latent[rows], self.noise[rows], self.timestep[rows], self.alpha[rows], self.prediction)


def add_noise(
    latent: Tensor,
    alphas_cumprod: Tensor,
    prediction: Prediction,
    generator: torch.Generator,
    least: int = 0,
    among: Sequence[int] = (),
) -> NoisyLatents:
    """Draws a timestep and noise for each latent.

    Args:
        latent: Clean latents, (B, C, h, w). Everything is made in float32, since in bfloat16 the least noise would
            round to none.
        alphas_cumprod: Cumulative alphas of all training timesteps, (T,).
        prediction: What the denoiser predicts.
        generator: Of the CPU, so that a draw does not depend on the device.
        least: The least timestep that is drawn.
        among: The timesteps that are drawn, if not all from `least` on.
    """
    latent = latent.float()
    if among:
        timestep = torch.tensor(among)[torch.randint(len(among), (len(latent),), generator=generator)]
    else:
        timestep = torch.randint(least, len(alphas_cumprod), (len(latent),), generator=generator)
    timestep = timestep.to(latent.device)
    noise = torch.randn(latent.shape, generator=generator).to(latent)
    alpha = alphas_cumprod.to(latent)[timestep].view(-1, 1, 1, 1)
    return NoisyLatents(latent, noise, timestep, alpha, prediction)
