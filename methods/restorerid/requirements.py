"""What a size of RestorerID needs beside the weights of its network."""

from __future__ import annotations

from typing import Any

from bench.weights import catalogue
from methods.blocks.absent_parts import absent_base_parts
from methods.blocks.base_models import base_model
from methods.restorerid.face_encoders import absent_encoder

RELEASE = f"RestorerID's checkpoint brings it too: {catalogue.entry('restorerid_paper').command}"


def absent_parts(settings: dict[str, Any]) -> dict[str, str]:
    """What these settings need and is not here (see `bench.method.RestorationMethod.absent`).

    Args:
        settings: The composed `configs/method/restorerid.yaml` with one of its sizes merged in.
    """
    base = base_model(settings["base"])
    lacking = absent_base_parts(base, settings["autoencoder"], settings["prompts"].values(), RELEASE)
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
