"""What Dual-Pivot Tuning needs beside its weights: the base model's parts, the tokeniser, generic faces."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from bench.config import read_preset
from bench.errors import MissingError
from bench.files import sha256_bytes
from bench.protocol.card import data_root, load_card
from bench.protocol.layout import list_photos
from bench.protocol.protocol import DataSettings
from methods.blocks.absent_parts import absent_base_parts
from methods.blocks.base_models import base_model
from methods.dual_pivot.cleaner import SPANDREL_MISSING
from methods.dual_pivot.prompts import personal_prompt

if TYPE_CHECKING:
    from bench.data.training import TrainingPairs

#: Generic faces that are degraded and encoded in one call.
TOGETHER = 8


def generic_data(settings: Mapping[str, Any]) -> DataSettings:
    """The data configuration of the generic faces, degraded as the personal ones are."""
    own = settings["personalisation"]
    found = DataSettings(**read_preset("data", own["generic_data"]))
    return replace(found, degradation=read_preset("degradation", own["degradation"]))


def uses_generic_faces(settings: Mapping[str, Any]) -> bool:
    """Whether a person is tuned with faces of other people beside theirs."""
    own = settings["personalisation"]
    in_model = own["tunes"] == "both" and own["model"]["faces"] == "generic"
    in_textual = own["tunes"] != "nothing" and own["textual"]["where"] == "in_context" and own["textual"]["prior"]
    return bool(in_model or in_textual)


def generic_identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides which generic faces are drawn: the configuration, and names and lengths of the photographs.

    Raises:
        MissingError: The data set is not here.
    """
    data = generic_data(settings)
    card = load_card(data.card)
    try:
        root = data_root(card, data.root)
    except MissingError as error:
        raise MissingError(
            f"A person is tuned beside faces of other people, and those of {card.name!r} ({card.title}) are not here. "
            f"{card.obtain} Licence: {card.licence}. They are looked for in $BENCH_DATA/{card.name}. Or tune as the "
            "released code does, with the person's own faces alone: "
            "method.personalisation.textual.where=out_of_context method.personalisation.model.faces=personal"
        ) from error
    listed = [(photo.path, (root / photo.path).stat().st_size) for photo in list_photos(card, root)]
    drawn = {key: value for key, value in asdict(data).items() if key not in ("root", "name", "title")}
    return {"data": drawn, "photographs": sha256_bytes(repr(sorted(listed)).encode("utf-8"))[:16]}


def generic_pairs(settings: Mapping[str, Any], size: int) -> TrainingPairs:
    """Generic faces and their LQ pictures: the people to train on of the data configuration.

    Args:
        settings: Settings of the method.
        size: Side of the pictures.

    Raises:
        MissingError: The data set is not here.
    """
    from bench.data.training import TrainingPairs, TrainingSettings

    plain: dict[str, float] = dict.fromkeys(("deformation", "rotation", "zoom", "shift", "tone", "light"), 0)
    plain["flip"] = 0.5 if settings["personalisation"]["flip"] else 0
    drawn = TrainingSettings(batch_size=TOGETHER, references=0, seed=0, size=size, augmentation=plain)
    return TrainingPairs(generic_data(settings), drawn)


def absent_parts(settings: Mapping[str, Any]) -> dict[str, str]:
    """See `RestorationMethod.absent`. Generic faces are not asked for: whoever is learnt already needs none."""
    base = base_model(settings["base"])
    prompt = personal_prompt(settings["personalisation"]["token"], "person")
    found = absent_base_parts(base, settings["autoencoder"], ["", prompt])
    if settings["network"]["cleaner"]["kind"] == "swinir" and importlib.util.find_spec("spandrel") is None:
        found["spandrel"] = SPANDREL_MISSING
    return found
