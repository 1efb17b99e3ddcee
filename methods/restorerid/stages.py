"""What a stage of RestorerID's training begins with: earlier weights, Stable Diffusion's UNet, an ID model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.errors import UsageError
from methods.blocks.adapted_unet import AdapterSet
from methods.blocks.checkpoints.accounting import convert, read_checkpoint
from methods.blocks.earlier_weights import read_earlier_weights
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
        UsageError: The stage needs another's weights or an ID model, or trains what the settings left out.
    """
    stage = training["stage"]
    freeze(network, training)
    if training["start_from"]:
        ready_made = stage != "fir" or training.get("id_model")
        needed = STAGES["base"] if ready_made else (*STAGES["base"], *STAGES["identity"])
        read_earlier_weights(network, training["start_from"], needed)
    elif stage in ("identity", "fir"):
        raise UsageError(
            f"method.training.stage={stage} goes on from the stage before: give its weights with "
            "method.training.start_from=FILE."
        )
    elif base.hub_ids:
        network.adapted.unet.load_state_dict(load_base(base, folder, ("unet",))["unet"].state_dict())
    if training.get("id_model"):
        _read_id_model(network, Path(training["id_model"]).expanduser())
    if stage in ("fir", "single") and network.projection is not None and not _has_id_model(network):
        raise UsageError(
            f"method.training.stage={stage} needs an ID model, and {training['start_from'] or 'a new network'} has "
            "none that was ever trained. Give a ready-made one with method.training.id_model=FILE, or train stage "
            "identity first and go on from its weights."
        )


def freeze(network: RestorerIDNetwork, training: Mapping[str, Any]) -> None:
    """Leaves to training what the stage trains.

    Raises:
        UsageError: See `RestorerIDNetwork.train_only`.
    """
    network.train_only(training["stage"])
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


def _has_id_model(network: RestorerIDNetwork) -> bool:
    """Whether identity tokens have any effect: an untrained ID model's value layers are zero."""
    state = network.adapted.adapters["identity"].state_dict()
    return any(bool(value.any()) for name, value in state.items() if name.endswith("identity_value.weight"))
