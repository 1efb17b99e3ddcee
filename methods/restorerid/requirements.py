"""What a size of RestorerID needs beside the weights of its network."""

from __future__ import annotations

from typing import Any

from bench.errors import MissingError
from bench.weights import catalogue
from bench.weights.method_weights import weights_path
from methods.blocks.base_models import BaseModel, base_model
from methods.restorerid.face_encoders import absent_encoder

RELEASE = f"RestorerID's checkpoint brings it too: {catalogue.entry('restorerid_paper').command}"


def absent_parts(settings: dict[str, Any]) -> dict[str, str]:
    """What these settings need and is not here (see `bench.method.RestorationMethod.absent`).

    Args:
        settings: The composed `configs/method/restorerid.yaml` with one of its sizes merged in.
    """
    base = base_model(settings["base"])
    lacking = _absent_base(base, settings)
    if not settings["use_identity"]:
        return lacking
    lacking |= absent_encoder(settings["face_encoder"])
    if settings["reference"] != "none" and (why := catalogue.missing("yunet")):
        lacking["yunet"] = why
    if settings["id_scale"] == "adaptive" and settings["quality"] == "musiq":
        from bench.metrics.learned_quality import Musiq

        if reason := Musiq().unavailable():
            lacking["musiq"] = (
                f"The adaptive ID-scale rates the LQ with MUSIQ: {reason}\n"
                "A fixed scale needs none: method.id_scale=0.75."
            )
    return lacking


def _absent_base(base: BaseModel, settings: dict[str, Any]) -> dict[str, str]:
    given = settings["autoencoder"]
    if base.name == "demo":
        try:
            found = weights_path("autoencoder", "demo", given)
        except MissingError as error:
            return {"autoencoder": str(error)}
        how = "bench train method=autoencoder data=orl_heavy"
        return {} if found else {"autoencoder": f"The small autoencoder has no weights here. Train it with: {how}"}
    from methods.blocks.latent_diffusion import absent_base, locate_base
    from methods.blocks.text_conditioning import token_numbers

    lacking = {name: f"{why}\n{RELEASE}" for name, why in absent_base(base, given, ("vae", "text")).items()}
    if f"{base.name} text" not in lacking:
        folder = locate_base(base, given, ("text",)) / "tokenizer"
        for prompt in settings["prompts"].values():
            try:
                token_numbers(base, folder, prompt)
            except MissingError as error:
                lacking["tokeniser"] = str(error)
    return lacking
