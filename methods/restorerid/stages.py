"""What a stage of RestorerID's training begins with: earlier weights, Stable Diffusion's UNet, an ID model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.errors import UsageError, unknown_name
from bench.weights.method_weights import read_weights
from methods.blocks.adapted_unet import AdapterSet
from methods.blocks.checkpoints.accounting import convert, read_checkpoint
from methods.blocks.latent_diffusion import load_base
from methods.restorerid.checkpoint import ip_adapter_parts
from methods.restorerid.network import STAGES, RestorerIDNetwork

if TYPE_CHECKING:
    from methods.blocks.base_models import BaseModel


def begin_stage(network: RestorerIDNetwork, training: Mapping[str, Any], base: BaseModel, folder: str | None) -> None:
    """Reads what the stage goes on from, and freezes what it leaves alone.

    Args:
        network: The network to be trained.
        training: `stage`; `start_from`, weights of an earlier one; `id_model`, a FaceID-Plus file; `train_unet`.
        base: The base model, whose UNet stage `base` starts from where there is one to be had.
        folder: Where the base model lies, or None for the Hugging Face cache.

    Raises:
        MissingError: The base model's UNet is absent.
        UsageError: The stage needs another's weights, or trains what the settings left out.
    """
    stage = training["stage"]
    if stage not in STAGES:
        raise unknown_name("value of method.training.stage", stage, STAGES)
    if training["start_from"]:
        _read_earlier_stage(network, training)
    elif stage in ("identity", "fir"):
        raise UsageError(
            f"method.training.stage={stage} goes on from the stage before: give its weights with "
            "method.training.start_from=FILE."
        )
    elif base.hub_ids:
        network.adapted.unet.load_state_dict(load_base(base, folder, ("unet",))["unet"].state_dict())
    if training.get("id_model"):
        _read_id_model(network, Path(training["id_model"]).expanduser())
    network.train_only(stage)
    if not training["train_unet"]:
        network.adapted.unet.requires_grad_(False)


def _read_id_model(network: RestorerIDNetwork, path: Path) -> None:
    """Takes the ready-made ID model of an IP-Adapter FaceID-Plus file, as the paper does."""
    if network.projection is None:
        raise UsageError("method.training.id_model is of no use with method.use_identity=false.")
    identity = cast(AdapterSet, network.adapted.adapters["identity"])
    found = convert(
        read_checkpoint(path),
        ip_adapter_parts(network.adapted.unet, identity, network.projection),
        expected="IP-Adapter's FaceID-Plus for this base model (ip-adapter-faceid-plus_sd15.bin)",
        source=str(path),
    )
    identity.load_state_dict(found.states["identity"])
    network.projection.load_state_dict(found.states["projection"])


def _read_earlier_stage(network: RestorerIDNetwork, training: Mapping[str, Any]) -> None:
    path, stage, id_model_given = training["start_from"], training["stage"], bool(training.get("id_model"))
    state, metadata = read_weights(Path(path).expanduser())
    try:
        missing, surplus = network.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    except RuntimeError as error:
        raise UsageError(
            f"{path} is no earlier stage of this network: {str(error).splitlines()[-1].strip()}"
        ) from error
    needed = {*STAGES["base"], *(STAGES["identity"] if stage == "fir" and not id_model_given else ())}
    absent = sorted({network.part_of(name) for name in missing} & needed)
    if absent or surplus:
        raise UsageError(
            f"{path} is no earlier stage of this network: it lacks {', '.join(absent) or 'nothing'} and has "
            f"{len(surplus)} tensors more."
        )
    before = json.loads(metadata.get("settings", "{}")).get("training", {})
    if stage == "fir" and before.get("stage") == "base" and not (before.get("id_model") or id_model_given):
        raise UsageError(
            f"{path} comes from stage base: its ID model was never trained. Train stage identity first, and "
            "give its weights."
        )
