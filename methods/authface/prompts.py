"""What SDXL's two text encoders make of prompts, made once and kept on disk.

Source: SDXL (Podell et al., ICLR 2024, Sec. 2.1): the states before the last layer of CLIP ViT-L and of OpenCLIP
ViT-bigG, one beside the other, and the summary of the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from bench.errors import MissingError
from bench.paths import bench_home
from methods.authface.conditions import PromptStates
from methods.blocks.tensor_cache import cached_tensors, file_digest

#: Folder of each tokeniser and of its encoder.
ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
TOKENISER = ("merges.txt", "tokenizer.json")
WEIGHTS = ("model.safetensors", "model.fp16.safetensors")
TRANSFORMERS_MISSING = (
    "Prompts of the published size need the Python package transformers. Install it with: pip install "
    '"face-restoration-bench[full]"'
)


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
    found = list(_states(folder, prompts, repository))
    return PromptStates(torch.stack([own["tokens"] for own in found]), torch.stack([own["pooled"] for own in found]))


def encode_prompts(folder: Path, prompts: Sequence[str], repository: str) -> int:
    """Puts the states of many prompts into the cache; of several processes one does it and the others wait.

    Args:
        folder: See `prompt_states`.
        prompts: The prompts.
        repository: See `prompt_states`.

    Returns:
        How many prompts are longer than the encoders read, and were cut.

    Raises:
        MissingError: Something of the folder is absent.
    """
    lock = bench_home() / "cache" / "text" / "prompts.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(lock)):
        return sum(int(made["cut"]) for made in _states(folder, prompts, repository))


def _states(folder: Path, prompts: Sequence[str], repository: str) -> Iterator[dict[str, Tensor]]:
    """States of one prompt after the other; the encoders are loaded for the first that is not in the cache."""
    content = text_digests(folder, repository)
    encoders: list[Any] = []
    for prompt in prompts:
        yield cached_tensors("text", {**content, "prompt": prompt}, partial(_encode, folder, prompt, encoders))


def text_digests(folder: Path, repository: str) -> dict[str, str]:
    """Hashes of all that decides what is made of a prompt; arguments as of `prompt_states`.

    Raises:
        MissingError: Something of the folder is absent.
    """
    if lacking := absent_encoders(folder, repository):
        raise MissingError("\n".join(lacking.values()))
    # Which token fills a text up stands in files of the tokeniser's own.
    files = [_present(folder / encoder, WEIGHTS) for _, encoder in ENCODERS]
    files += [file for name, _ in ENCODERS for file in sorted((folder / name).iterdir())]
    return {f"{file.parent.name}/{file.name}": file_digest(file) for file in files if file and file.is_file()}


def absent_encoders(folder: Path, repository: str) -> dict[str, str]:
    """What a diffusers folder lacks of encoders and tokenisers: name -> what is missing, and what brings it."""
    wanted = {name: files for pair in ENCODERS for name, files in zip(pair, (TOKENISER, WEIGHTS), strict=True)}
    return {
        name: f"{folder / name} has no {' or '.join(files)}. Get it with: hf download {repository} --include "
        f"'{name}/*' --local-dir {folder}"
        for name, files in wanted.items()
        if _present(folder / name, files) is None
    }


def _present(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


@torch.no_grad()
def _encode(folder: Path, prompt: str, encoders: list[Any]) -> dict[str, Tensor]:
    """States of a prompt; the encoders are loaded for the first one and kept in the list for the others."""
    if not encoders:
        encoders += _load(folder)
    states, pooled, cut = [], torch.empty(0), False
    for tokeniser, encoder in encoders:
        numbers = tokeniser(
            [prompt], padding="max_length", max_length=tokeniser.model_max_length, truncation=True, return_tensors="pt"
        )
        cut = cut or len(tokeniser(prompt).input_ids) > tokeniser.model_max_length
        made = encoder(numbers.input_ids, output_hidden_states=True)
        states.append(made.hidden_states[-2][0].float())
        pooled = made[0][0].float()
    return {"tokens": torch.cat(states, dim=-1), "pooled": pooled, "cut": torch.tensor(cut)}


def _load(folder: Path) -> list[tuple[Any, Any]]:
    try:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    except ImportError as error:
        raise MissingError(TRANSFORMERS_MISSING) from error
    kinds: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    return [
        (
            CLIPTokenizer.from_pretrained(str(folder / tokeniser), local_files_only=True),
            kind.from_pretrained(
                str(folder / encoder),
                local_files_only=True,
                use_safetensors=True,
                variant=None if (folder / encoder / WEIGHTS[0]).is_file() else "fp16",
                dtype=torch.float32,
            ).eval(),
        )
        for (tokeniser, encoder), kind in zip(ENCODERS, kinds, strict=True)
    ]
