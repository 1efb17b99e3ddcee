"""Writes parts of a base model into a diffusers folder, as its own repository has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import MissingError
from bench.files import write_json
from bench.weights.method_weights import write_tensors
from methods.blocks.latent_diffusion import SUBFOLDERS, weights_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.blocks.base_models import BaseModel

FILES = {"vae": "diffusion_pytorch_model.safetensors", "text": "model.safetensors"}


def write_base_part(
    base: BaseModel, part: str, network: nn.Module, state: Mapping[str, Tensor], folder: Path
) -> Path | None:
    """Writes one part with its configuration, unless the folder has it already.

    Args:
        base: The base model.
        part: `vae` or `text`.
        network: The network the state belongs to; may be on the meta device.
        state: Its tensors.
        folder: The diffusers folder.

    Returns:
        The file, or None where there was one, which is left as it is.
    """
    try:
        weights_file(base, folder, part)
    except MissingError:
        pass
    else:
        return None
    described: Any = network
    stored = described.to_json_string() if part == "vae" else described.config.to_json_string(use_diff=False)
    path = folder / SUBFOLDERS[part] / FILES[part]
    # The tensors come last: a part that was interrupted has none, and is written whole the next time.
    write_json(path.with_name("config.json"), json.loads(stored))
    write_tensors(path, {name: tensor.contiguous() for name, tensor in state.items()}, {"format": "pt"})
    return path
