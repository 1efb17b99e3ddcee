"""Random networks in the place of absent ones, so that a method can be timed; nothing made with them can be scored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from bench.errors import MissingError

if TYPE_CHECKING:
    from methods.blocks.base_models import BaseModel
    from methods.blocks.latent_diffusion_method import LatentDiffusionMethod


def substitute_absent(method: LatentDiffusionMethod, prompts: Iterable[str]) -> list[str]:
    """Gives a method a random autoencoder and random text tokens where its own are absent.

    Args:
        method: Changed in place.
        prompts: The prompts that it reads.

    Returns:
        What was replaced, in words.
    """
    notes = []
    try:
        _ = method.space
    except MissingError as error:
        method.frozen["space"] = random_space(method.base)
        notes.append(f"random autoencoder: {first_line(error)}")
    for prompt in sorted(set(prompts)):
        try:
            method.text(1, prompt)
        except MissingError as error:
            generator = torch.Generator().manual_seed(len(prompt))
            method.frozen[f"text {prompt}"] = torch.randn(1, 77, method.base.text_width, generator=generator)
            notes.append(f"random text tokens: {first_line(error)}")
    return notes


def random_space(base: BaseModel) -> nn.Module:
    """The autoencoder of a base model with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from methods.blocks.latent_space import StableDiffusionSpace

    return StableDiffusionSpace(AutoencoderKL(**base.vae), "random")


@torch.no_grad()
def fill_zeros(network: nn.Module) -> None:
    """Fills what starts at zero, so that every part of a new network costs what it costs when trained."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 / fan_in**0.5)


def first_line(error: Exception) -> str:
    """The first line of a message."""
    return str(error).splitlines()[0]
