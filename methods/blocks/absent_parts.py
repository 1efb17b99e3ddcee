"""What a latent diffusion method needs beside its own weights, and does not find."""

from __future__ import annotations

from collections.abc import Iterable

from bench.errors import MissingError
from bench.weights.method_weights import weights_path
from methods.blocks.base_models import BaseModel


def absent_base_parts(base: BaseModel, given: str | None, prompts: Iterable[str], advice: str = "") -> dict[str, str]:
    """Autoencoder, text encoder and tokeniser that are not here (see `bench.method.RestorationMethod.absent`).

    Args:
        base: The base model.
        given: The setting `autoencoder`.
        prompts: The prompts that are read.
        advice: What else brings them, in words.
    """
    if base.small_autoencoder:
        try:
            found = weights_path("autoencoder", "demo", given)
        except MissingError as error:
            return {"autoencoder": str(error)}
        how = "bench train method=autoencoder data=orl_heavy"
        return {} if found else {"autoencoder": f"The small autoencoder has no weights here. Train it with: {how}"}
    from methods.blocks.latent_diffusion import absent_base, locate_base
    from methods.blocks.text_conditioning import token_numbers

    more = f"\n{advice}" if advice else ""
    lacking = {name: f"{why}{more}" for name, why in absent_base(base, given, ("vae", "text")).items()}
    if f"{base.name} text" not in lacking:
        folder = locate_base(base, given, ("text",)) / "tokenizer"
        for prompt in prompts:
            try:
                token_numbers(base, folder, prompt)
            except MissingError as error:
                lacking["tokeniser"] = str(error)
    return lacking
