"""What the settings of AuthFace may be, and the prompts behind their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.errors import UsageError, unknown_name
from methods.authface.losses import time_weight
from methods.blocks.base_models import base_model
from methods.blocks.latent_diffusion_method import require_betas, require_number
from methods.blocks.optimisers import KINDS

PRIORS = ("face", "sdxl")
#: Of the time weight's location and scale, in logits.
FURTHEST = 100
CAPTIONS = ("files", "measured", "none")
AUTOENCODER_TYPES = ("float32", "float16")
#: Prompts of the released code (test_face_xl.py of EthanLiang99/AuthFace), which reads no others.
RELEASED_PROMPTS: Mapping[str, str] = {
    "positive": (
        "hyper-realistic portrait, face close-up, super detailed, Cinematic, High Contrast, highly detailed, taken "
        "using a Canon EOS R camera,hyper detailed photo - realistic maximum detail, 32k, ultra HD,extreme meticulous "
        "detailing, skin pore detailing,hyper sharpness, perfect without deformations"
    ),
    "negative": (
        "unreal face, asymmetrical eyes, oil painting, illustration, drawing, art, sketch,cartoon, CG Style, 3D "
        "render, unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, "
        "jpeg artifacts, deformed, lowres, over-smooth, malformed/disproportionate hands/fingers, ugly, easy negative"
    ),
}
PROMPTS: Mapping[str, Mapping[str, str]] = {"none": {"positive": "", "negative": ""}, "released": RELEASED_PROMPTS}


def read_prompts(given: Any) -> dict[str, str]:
    """Positive and negative prompt of the setting `prompts`.

    Raises:
        UsageError: There are no such prompts.
    """
    if isinstance(given, str):
        if given not in PROMPTS:
            raise unknown_name("value of method.prompts", given, PROMPTS)
        return dict(PROMPTS[given])
    if not isinstance(given, dict) or set(given) != {"positive", "negative"}:
        raise UsageError(f"method.prompts must be none, released or {{positive: TEXT, negative: TEXT}}, got {given!r}.")
    return {key: "" if text is None else str(text) for key, text in given.items()}


def require_settings(settings: Mapping[str, Any]) -> None:
    """Checks what no other part of the method does.

    Args:
        settings: The composed `configs/method/authface.yaml` with one of its sizes merged in.

    Raises:
        UsageError: A setting makes no sense.
    """
    for key, known in (("prior", PRIORS), ("captions", CAPTIONS), ("autoencoder_dtype", AUTOENCODER_TYPES)):
        if settings[key] not in known:
            raise unknown_name(f"value of method.{key}", str(settings[key]), known)
    base = base_model(settings["base"])
    if base.small_autoencoder and settings["autoencoder_dtype"] != "float32":
        raise UsageError("The small autoencoder runs in float32: leave method.autoencoder_dtype as it is.")
    channels, halvings = settings["network"]["condition_channels"], base.downscale.bit_length() - 1
    if not isinstance(channels, list) or len(channels) != halvings + 1:
        raise UsageError(
            f"method.network.condition_channels must be {halvings + 1} numbers, since the ControlNet's convolutions "
            f"halve a picture {halvings} times: {channels!r}."
        )
    switches = {"self_ensemble": settings["self_ensemble"], "losses.saturating": settings["losses"]["saturating"]}
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise UsageError(f"method.{key} must be true or false, got {value!r}.")
    require_number("control_scale", settings["control_scale"], 0)
    require_number("tiles_per_call", settings["tiles_per_call"], 1, whole=True)
    require_number("dropout.caption", settings["dropout"]["caption"], 0, 1)
    require_number("ema_halflife_pictures", settings["ema_halflife_pictures"], 0)
    require_number("training.cached_samples", settings["training"]["cached_samples"], 0, whole=True)
    _require_loss(settings["losses"], settings["discriminator"])
    _require_optimiser(settings["optimiser"])


def _require_loss(losses: Mapping[str, Any], discriminator: Mapping[str, Any]) -> None:
    for key in ("facial", "discriminative", "style"):
        require_number(f"losses.{key}", losses[key], 0)
    for key in ("mean", "deviation"):
        require_number(f"losses.{key}", losses[key], -FURTHEST, FURTHEST)
    time_weight(torch.zeros(1), losses["mean"], losses["deviation"], losses["weighting"])
    for key in ("width", "patch"):
        require_number(f"discriminator.{key}", discriminator[key], 4, whole=True)
    require_number("discriminator.learning_rate", discriminator["learning_rate"], 0)
    require_betas("discriminator", discriminator["betas"])


def _require_optimiser(optimiser: Mapping[str, Any]) -> None:
    if optimiser["kind"] not in KINDS:
        raise unknown_name("value of method.optimiser.kind", str(optimiser["kind"]), KINDS)
    for key in ("learning_rate", "weight_decay"):
        require_number(f"optimiser.{key}", optimiser[key], 0)
    require_number("optimiser.warm_up", optimiser["warm_up"], 0, whole=True)
    require_number("optimiser.decay_after", optimiser["decay_after"], 0, 1)
    require_betas("optimiser", optimiser["betas"])
