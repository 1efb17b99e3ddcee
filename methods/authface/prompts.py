"""What SDXL's two text encoders make of prompts, made once and kept on disk.

Source: SDXL (Podell et al., ICLR 2024, Sec. 2.1): the states before the last layer of CLIP ViT-L and of OpenCLIP
ViT-bigG, one beside the other, and the summary of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import MissingError
from methods.authface.network import PromptStates
from methods.blocks.latent_diffusion import TRANSFORMERS_MISSING
from methods.blocks.tensor_cache import cached_tensors, file_digest

#: Folder of each tokeniser and of its encoder.
ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


def prompt_states(folder: Path, prompts: Sequence[str], repository: str) -> PromptStates:
    """States of prompts, from the cache where they are there.

    Args:
        folder: A diffusers folder with `tokenizer`, `tokenizer_2`, `text_encoder` and `text_encoder_2`.
        prompts: The prompts; "" is encoded like any other, as AuthFace's second stage trains with it.
        repository: Where the folder can be had, for messages.

    Returns:
        A row for each prompt, float32 on the CPU.

    Raises:
        MissingError: Something of the folder is absent.
    """
    content: dict[str, Any] = {name: file_digest(_weights(folder / name, repository)) for _, name in ENCODERS}
    for name, _ in ENCODERS:
        _require_tokeniser(folder / name, repository)
        # Which token fills a text up stands in files of its own.
        content[name] = {file.name: file_digest(file) for file in sorted((folder / name).iterdir()) if file.is_file()}
    found = [
        cached_tensors("text", {**content, "prompt": prompt}, partial(_encode, folder, prompt)) for prompt in prompts
    ]
    return PromptStates(torch.stack([own["tokens"] for own in found]), torch.stack([own["pooled"] for own in found]))


@torch.no_grad()
def _encode(folder: Path, prompt: str) -> dict[str, Tensor]:
    try:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    except ImportError as error:
        raise MissingError(TRANSFORMERS_MISSING) from error
    kinds: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    states, pooled = [], torch.empty(0)
    for (tokeniser_name, encoder_name), kind in zip(ENCODERS, kinds, strict=True):
        tokeniser = CLIPTokenizer.from_pretrained(str(folder / tokeniser_name), local_files_only=True)
        numbers = tokeniser(
            [prompt], padding="max_length", max_length=tokeniser.model_max_length, truncation=True, return_tensors="pt"
        )
        encoder = kind.from_pretrained(str(folder / encoder_name), local_files_only=True, use_safetensors=True).eval()
        made = encoder(numbers.input_ids, output_hidden_states=True)
        states.append(made.hidden_states[-2][0].float())
        pooled = made[0][0].float()
    return {"tokens": torch.cat(states, dim=-1), "pooled": pooled}


def _weights(folder: Path, repository: str) -> Path:
    return _present(folder, ("model.safetensors", "model.fp16.safetensors"), repository)


def _require_tokeniser(folder: Path, repository: str) -> None:
    _present(folder, ("merges.txt", "tokenizer.json"), repository)


def _present(folder: Path, names: Sequence[str], repository: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingError(
        f"{folder} has no {' or '.join(names)}. Get it with: hf download {repository} --include '{folder.name}/*' "
        f"--local-dir {folder.parent}"
    )
