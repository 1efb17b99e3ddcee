"""What a method learnt of one person: a small file that is named after all that decides its content.

A method that is tuned for each identity makes such a state once, from the person's references; it is kept below
`$BENCH_HOME/personal` and found again by its key, so that no person is learnt twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.errors import UsageError
from bench.files import sha256_bytes
from bench.paths import bench_home
from bench.seeds import derive_seed
from bench.weights.method_weights import read_metadata, read_weights, write_tensors

if TYPE_CHECKING:
    from bench.method import RestorationMethod

#: Changes whenever states made before can no longer be read.
FORMAT = "1"


class UnfinishedError(UsageError):
    """What a stopped learning left behind is not of this one: it must begin anew."""


@dataclass(frozen=True)
class PersonalState:
    """What was learnt of one person.

    Attributes:
        tensors: By the names that the method gave.
        method: Label of the method that made it.
        base: Id of what it was made for, see `base_id`.
        key: What it is found by, see `PersonalSource.key`.
        references: SHA-256 of the references' pixels.
        seed: Of the learning.
    """

    tensors: dict[str, Tensor]
    method: str
    base: str
    key: str
    references: tuple[str, ...]
    seed: int

    def require_made_for(self, method: RestorationMethod, source: str) -> None:
        """Refuses a state that belongs to another method, base or version.

        Args:
            method: The method that is to use it.
            source: Where the state comes from, for the message.

        Raises:
            UsageError: It was made for something else; the message names both ids.
        """
        wanted = base_id(method)
        if self.base != wanted:
            raise UsageError(
                f"{source} was made for {self.method} with the base {self.base}; this is {method.label} with the base "
                f"{wanted}. Use the method, weights and settings it was made with, or make another: bench personalise "
                f"method={method.spec.name} --reference FILE ... -o {Path(source).name}"
            )


def base_id(method: RestorationMethod) -> str:
    """Names what a personal state can be used with: weights, frozen networks, form of what is learnt."""
    content = {
        "format": FORMAT,
        "method": method.spec.name,
        "weights": method.weights_sha256,
        **method.personal_base(),
    }
    return sha256_bytes(json.dumps(content, sort_keys=True).encode("utf-8"))[:12]


@dataclass(frozen=True)
class PersonalSource:
    """What a personal state is made from.

    Attributes:
        references: (R, 3, H, W) RGB in [0, 1].
        seed: Of the run, or of `bench personalise`.
        class_word: What the person is called, see `DatasetCard.class_words`.
    """

    references: Tensor
    seed: int
    class_word: str = "person"

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each reference's pixels, 8 bits per channel, and of its size."""
        return tuple(pixel_digest(picture) for picture in self.references)

    @property
    def own_seed(self) -> int:
        """Seed of the learning: another for every person, whatever the protocol or the file's name."""
        return derive_seed("personalisation", self.seed, *self.digests)

    def key(self, method: RestorationMethod, precision: str) -> str:
        """Names all that decides the state's content.

        Args:
            method: The method that learns.
            precision: The trainer's.
        """
        content = {
            "base": base_id(method),
            "learning": method.personal_settings(),
            "precision": precision,
            "references": self.digests,
            "seed": self.seed,
        }
        if method.reads_class_word:
            content["class_word"] = self.class_word
        return sha256_bytes(json.dumps(content, sort_keys=True).encode("utf-8"))[:16]

    def state(self, method: RestorationMethod, key: str, tensors: dict[str, Tensor]) -> PersonalState:
        """The state that `method` made of this."""
        return PersonalState(tensors, method.label, base_id(method), key, self.digests, self.seed)


def pixel_digest(picture: Tensor) -> str:
    """SHA-256 of a picture (3, H, W) in [0, 1] as 8-bit pixels, and of its size."""
    pixels = picture.detach().mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
    return sha256_bytes(repr(tuple(pixels.shape)).encode() + pixels.numpy().tobytes())


def state_path(method: RestorationMethod, key: str) -> Path:
    """Where the state of a key is kept."""
    return bench_home() / "personal" / method.spec.name / f"{key}.safetensors"


def unfinished_path(path: Path) -> Path:
    """Where a learning that was stopped left off."""
    return path.with_suffix(".unfinished.safetensors")


def write_state(path: Path, state: PersonalState) -> None:
    """Writes a state atomically."""
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "method": state.method,
        "base": state.base,
        "key": state.key,
        "references": list(state.references),
        "seed": str(state.seed),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    write_tensors(path, tensors, metadata)


def require_state(path: Path) -> None:
    """Checks that a file holds a whole state, without reading its tensors.

    Raises:
        UsageError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} is not a file. Make it with: bench personalise method=NAME --reference FILE ... -o {path}"
        )
    metadata = read_metadata(path)
    wanted = {"format", "method", "base", "key", "references", "seed"}
    if missing := sorted(wanted - metadata.keys()):
        raise UsageError(
            f"{path} is no personal state (it does not say {', '.join(missing)}). Make one with: bench personalise "
            "method=NAME --reference FILE ... -o FILE"
        )
    if metadata["format"] != FORMAT:
        raise UsageError(
            f"{path} is a personal state of format {metadata['format']}, this version reads format {FORMAT}. Make it "
            "again with: bench personalise"
        )


def read_state(path: Path) -> PersonalState:
    """Reads a state.

    Raises:
        UsageError: See `require_state`.
    """
    require_state(path)
    tensors, metadata = read_weights(path)
    references: Sequence[str] = json.loads(metadata["references"])
    return PersonalState(
        tensors, metadata["method"], metadata["base"], metadata["key"], tuple(references), int(metadata["seed"])
    )
