"""What a size of AuthFace needs beside the weights of its network."""

from __future__ import annotations

from typing import Any

from bench.errors import MissingError
from methods.blocks.absent_parts import absent_base_parts
from methods.blocks.base_models import base_model


def absent_parts(settings: dict[str, Any]) -> dict[str, str]:
    """What these settings need and is not here (see `bench.method.RestorationMethod.absent`).

    Args:
        settings: The composed `configs/method/authface.yaml` with one of its sizes merged in.
    """
    base, given = base_model(settings["base"]), settings["autoencoder"]
    if base.small_autoencoder:
        return absent_base_parts(base, given, ())
    from methods.authface.prompts import absent_encoders
    from methods.blocks.latent_diffusion import absent_base, base_folder, locate_base

    lacking = absent_base(base, given, ("vae",))
    try:
        folder = locate_base(base, given, ("text",))
    except MissingError:
        folder = base_folder(base)
    return lacking | absent_encoders(folder, base.hub_ids[0])
