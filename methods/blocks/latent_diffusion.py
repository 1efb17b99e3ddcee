"""Stable Diffusion's networks from diffusers: built at a named size, or loaded from a folder or a released file.

Nothing is downloaded here; what is absent is named together with the command that gets it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from bench.errors import MissingError, UsageError
from bench.weights.catalogue import check_locked, weights_folder
from methods.blocks.base_models import BaseModel
from methods.blocks.checkpoints.accounting import SHOWN_KEYS, Part, convert, read_checkpoint
from methods.blocks.checkpoints.stable_diffusion import (
    LEFT_OUT,
    clip_text_part,
    open_clip_text_part,
    unet_part,
    vae_part,
)
from methods.blocks.tensor_cache import file_digest

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel


def build_unet(base: BaseModel) -> UNet2DConditionModel:
    """The UNet with new weights (for a count of parameters, build it under `torch.device("meta")`)."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**base.unet)


def build_vae(base: BaseModel) -> AutoencoderKL:
    """The autoencoder with new weights; pictures are (B, 3, H, W) in [-1, 1]."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**base.vae)


def build_text_encoder(base: BaseModel) -> CLIPTextModel:
    """The text encoder with new weights.

    Raises:
        UsageError: The base model has none.
        MissingError: transformers is not installed.
    """
    if base.text is None:
        raise UsageError(f"Base model {base.name!r} has no text encoder; its text is one constant token.")
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        raise MissingError(TRANSFORMERS_MISSING) from error
    return CLIPTextModel(CLIPTextConfig(**base.text))


BUILDERS: dict[str, Callable[[BaseModel], nn.Module]] = {
    "unet": build_unet,
    "vae": build_vae,
    "text": build_text_encoder,
}
TRANSFORMERS_MISSING = (
    "The text encoder of a published size needs the Python package transformers. Install it with: "
    'pip install "face-restoration-bench[full]"'
)
SUBFOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}


def base_folder(base: BaseModel) -> Path:
    """Where a base model's diffusers folder is kept in the weights folder."""
    return weights_folder() / base.hub_ids[0].rpartition("/")[2]


def locate_base(base: BaseModel, given: str | Path | None = None, parts: Sequence[str] = ("vae",)) -> Path:
    """Where a base model's released weights are: a diffusers folder or a single file.

    Looked up in this order: `given`, `bench_home()/weights/<repository's name>`, the Hub's own cache, for every
    repository of the base model. Nothing is downloaded.

    Args:
        base: The base model.
        given: Folder or file that a user names, taken as it is.
        parts: What the folder must hold (`unet`, `vae`, `text`); a method with a UNet of its own needs no other.

    Raises:
        MissingError: It is nowhere, or `given` does not exist.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.exists():
            raise MissingError(f"{path} is not there. Give a diffusers folder or a Stable Diffusion checkpoint.")
        return path
    looked = []
    for hub_id in base.hub_ids:
        folder = weights_folder() / hub_id.rpartition("/")[2]
        if _holds(folder, parts):
            return folder
        if str(folder) not in looked:
            looked.append(str(folder))
    for hub_id in base.hub_ids:
        if (cached := hub_snapshot(hub_id)) is not None and _holds(cached, parts):
            return cached
    if not base.hub_ids:
        raise MissingError(
            f"Base model {base.name!r} has no released weights. Train a method at this size, or give "
            "its weights file with method.weights=FILE."
        )
    subfolders = [SUBFOLDERS[part] for part in parts]
    wanted = " ".join(f"--include '{folder}/*'" for folder in subfolders)
    raise MissingError(
        f"The weights of base model {base.name!r} ({', '.join(subfolders)}) are not here. "
        f"Looked in: {', '.join(looked)}, the Hugging Face cache "
        f"({', '.join(base.hub_ids)}).\n"
        f"Get them with: hf download {base.hub_ids[0]} {wanted} --local-dir {looked[0]}\n"
        f"Licence: {base.licence}. Some original repositories were withdrawn; a mirror is named by the "
        "setting hub_ids of the base model.\n"
        f"Without a network: copy a diffusers folder to {looked[0]}, or give a folder or checkpoint of your own."
    )


def absent_base(base: BaseModel, given: str | Path | None, parts: Sequence[str]) -> dict[str, str]:
    """Which parts of a base model are not here: `sd15 vae` -> where it was looked for and what brings it."""
    lacking = {}
    for part in parts:
        try:
            weights_file(base, locate_base(base, given, (part,)), part)
        except MissingError as error:
            lacking[f"{base.name} {part}"] = str(error)
    return lacking


def load_base(
    base: BaseModel,
    given: str | Path | None = None,
    parts: Sequence[str] = ("unet", "vae"),
    dtype: torch.dtype = torch.float32,
) -> dict[str, nn.Module]:
    """Networks of a base model with their released weights, in evaluation mode.

    Args:
        base: The base model.
        given: Diffusers folder or single file, or None to look it up (`locate_base`).
        parts: Which networks: `unet`, `vae`, `text`.
        dtype: Type of the weights.

    Returns:
        Network by part.

    Raises:
        MissingError: The weights are nowhere.
        UsageError: The folder holds another network, or the file's keys do not fit.
    """
    path = locate_base(base, given, parts)
    if path.is_dir():
        networks = {part: _from_folder(base, part, path) for part in parts}
    else:
        networks = _from_file(base, path, parts)
    return {part: network.to(dtype).eval() for part, network in networks.items()}


def released_parts(base: BaseModel, networks: Mapping[str, nn.Module]) -> dict[str, Part]:
    """How a Stable Diffusion checkpoint names the networks given (`unet`, `vae`, `text`)."""
    text_part = open_clip_text_part if base.open_clip else clip_text_part
    described: dict[str, Any] = {"unet": unet_part, "vae": vae_part, "text": text_part}
    return {part: described[part](network) for part, network in networks.items()}


def weights_file(base: BaseModel, path: Path, part: str) -> Path:
    """The file that holds a part of a base model found at `path` (a diffusers folder or a single file).

    Raises:
        MissingError: A folder has no safetensors file of this part.
    """
    if path.is_file():
        return path
    folder = path / SUBFOLDERS[part]
    for name in ("diffusion_pytorch_model", "model"):
        for variant in ("", ".fp16"):
            if (file := folder / f"{name}{variant}.safetensors").is_file():
                return file
    repository = base.hub_ids[0] if base.hub_ids else "REPOSITORY"
    raise MissingError(
        f"{folder} holds no safetensors weights. Get them with: "
        f"hf download {repository} --include '{SUBFOLDERS[part]}/*' --local-dir {path}"
    )


def _from_folder(base: BaseModel, part: str, path: Path) -> nn.Module:
    file = weights_file(base, path, part)
    _check_configuration(base, part, file.with_name("config.json"))
    _check_locked(file)
    with torch.device("meta"):
        kind: Any = type(BUILDERS[part](base))
    variant = "fp16" if file.name.endswith(".fp16.safetensors") else None
    network, report = kind.from_pretrained(
        str(file.parent), use_safetensors=True, variant=variant, local_files_only=True, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [str(key) for key in report[problem] if "position_ids" not in str(key)]
        if keys:
            raise UsageError(
                f"{file} is not the {part} of {base.name}. {problem.replace('_', ' ').capitalize()}: "
                f"{', '.join(keys[:SHOWN_KEYS])}. "
                f"Expected: {SUBFOLDERS[part]}/{file.name} of {' or '.join(base.hub_ids)}."
            )
    return cast(nn.Module, network)


def _from_file(base: BaseModel, path: Path, parts: Sequence[str]) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {}
    for part, build in BUILDERS.items():
        if part != "text" or base.text is not None:
            with torch.device("cpu" if part in parts and part == "text" else "meta"):
                networks[part] = build(base)
    _check_locked(path)
    conversion = convert(
        read_checkpoint(path),
        list(released_parts(base, networks).values()),
        expected=f"Stable Diffusion checkpoint for {base.name}, as in {', '.join(base.hub_ids)}",
        source=str(path),
        left_out=LEFT_OUT,
    )
    for part in parts:
        networks[part].load_state_dict(conversion.states[part], assign=True)
    return {part: networks[part] for part in parts}


def _check_configuration(base: BaseModel, part: str, file: Path) -> None:
    if not file.is_file():
        return
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    wanted: Mapping[str, Any] = getattr(base, part) or {}
    for key in ("block_out_channels", "cross_attention_dim", "attention_head_dim", "latent_channels", "hidden_size"):
        if key in wanted and key in stored and _plain(stored[key]) != _plain(wanted[key]):
            raise UsageError(
                f"{file} describes another network than {base.name}: {key} is {stored[key]} instead of {wanted[key]}. "
                "Give the folder of this base model, or choose the base model that belongs to the folder."
            )


def _check_locked(file: Path) -> None:
    """Locks a file of the weights folder to its hash on first use; a file a user names is the user's own choice."""
    if not file.is_relative_to(weights_folder()):
        return
    check_locked(file.relative_to(weights_folder()).as_posix(), file, file_digest(file))


def _holds(folder: Path, parts: Sequence[str]) -> bool:
    return all((folder / SUBFOLDERS[part]).is_dir() for part in parts)


def hub_snapshot(hub_id: str) -> Path | None:
    """Where a repository of the Hub was downloaded, or None."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except OSError:
        return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
