"""What the settings of Dual-Pivot Tuning may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.errors import UsageError, unknown_name
from methods.blocks.latent_diffusion_method import require_betas, require_number

TUNES = ("both", "textual", "nothing")
WHERE = ("in_context", "out_of_context")
FACES = ("generic", "personal")
TIMESTEPS = ("all", "sampling")
TEXTS = ("personal", "class", "none")


def require_settings(settings: Mapping[str, Any]) -> None:
    """Checks what no other part of the method does.

    Args:
        settings: The composed `configs/method/dual_pivot.yaml` with one of its sizes merged in.

    Raises:
        UsageError: A setting makes no sense.
    """
    own = settings["personalisation"]
    groups = {"personalisation": own}
    if isinstance(own, dict):
        groups |= {f"personalisation.{key}": own[key] for key in ("textual", "model", "schedule")}
    for key, group in groups.items():
        if not isinstance(group, dict):
            raise UsageError(f"method.{key} holds settings of its own, such as method.{key}.KEY=VALUE; got {group!r}.")
    for key, value, known in (
        ("tunes", own["tunes"], TUNES),
        ("timesteps", own["timesteps"], TIMESTEPS),
        ("textual.where", own["textual"]["where"], WHERE),
        ("model.faces", own["model"]["faces"], FACES),
        ("model.text", own["model"]["text"], TEXTS),
    ):
        if value not in known:
            raise unknown_name(f"value of method.personalisation.{key}", str(value), known)
    _require_tuning(own)
    if not isinstance(settings["self_ensemble"], bool):
        raise UsageError(f"method.self_ensemble must be true or false, got {settings['self_ensemble']!r}.")
    require_number("control_scale", settings["control_scale"], 0)
    require_number("tiles_per_call", settings["tiles_per_call"], 1, whole=True)
    require_number("dropout.caption", settings["dropout"]["caption"], 0, 1)
    require_number("ema_halflife_pictures", settings["ema_halflife_pictures"], 0)
    require_number("training.cached_samples", settings["training"]["cached_samples"], 0, whole=True)


def _require_tuning(own: Mapping[str, Any]) -> None:
    for pivot in ("textual", "model"):
        for key, least in (("iterations", 1), ("batch_size", 1), ("accumulate", 1), ("samples", 0)):
            require_number(f"personalisation.{pivot}.{key}", own[pivot][key], least, whole=True)
        require_number(f"personalisation.{pivot}.learning_rate", own[pivot]["learning_rate"], 0)
    require_number("personalisation.generic_samples", own["generic_samples"], 1, whole=True)
    require_number("personalisation.textual.prior", own["textual"]["prior"], 0)
    require_number("personalisation.textual.class_pictures", own["textual"]["class_pictures"], 1, whole=True)
    if own["model"]["tensors"] is not None:
        require_number("personalisation.model.tensors", own["model"]["tensors"], 1, whole=True)
    require_number("personalisation.schedule.warm_up", own["schedule"]["warm_up"], 0, whole=True)
    require_number("personalisation.schedule.decay_after", own["schedule"]["decay_after"], 0, 1)
    require_number("personalisation.weight_decay", own["weight_decay"], 0)
    require_betas("personalisation", own["betas"])
    if not isinstance(own["degradation"], str):
        raise UsageError(
            f"method.personalisation.degradation must be the name of a preset, got {own['degradation']!r}."
        )
    if not isinstance(own["token"], str) or len(own["token"].split()) != 1:
        raise UsageError(f"method.personalisation.token must be one word, got {own['token']!r}.")
    if not isinstance(own["flip"], bool):
        raise UsageError(f"method.personalisation.flip must be true or false, got {own['flip']!r}.")
