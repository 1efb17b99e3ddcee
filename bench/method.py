"""What every restoration method implements."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor

from bench.batch import FaceBatch
from bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch.utils.data import IterableDataset

    from bench.data.training import TrainingPairs
    from bench.personal_state import PersonalState


@dataclass(frozen=True)
class TrainingFaces:
    """What faces a network was trained on, so that others can be brought into that form.

    Attributes:
        template: Name of the alignment template (`bench.protocol.alignment.TEMPLATES`).
        grey: Whether they were grey: it has seen no colour and its colours mean nothing.
        caution: What to say of its results, in a plain sentence; empty where there is nothing to say.
    """

    template: str = "ffhq_512"
    grey: bool = False
    caution: str = ""


FFHQ_FACES = TrainingFaces()
ORL_FACES = TrainingFaces(
    template="orl_tight",
    grey=True,
    caution="These are small networks, trained on 24 people's grey photographs of 128 px. They show what the method "
    "does, not how well it can do it.",
)


@dataclass(frozen=True)
class MethodSpec:
    """What a method is and what it needs, declared once.

    Attributes:
        name: Name on the command line, that of the method's folder.
        title: Name in tables.
        references: How many references `restore` reads.
        tuning: Whether the method is tuned for each identity before it restores.
        paper: Citation in one line, or None for a plain comparison row.
        licence: Licence of the method's published weights, or of the code where there are none.
        weights: Name in the weights catalogue of the file that a method without sizes runs with where none is given, or
            None.
        variants: What a label has after the name for settings that make another row, such as `+blind`, and the words
            of `bench run` behind it; in the order in which labels name them. Of two that share a word the one with
            more words comes first.
        without_reference: The one of `variants` that is the same network with its reference path off, such as
            `+blind`: boards show what the reference bought. None where there is none.
        numbered_variants: The same for suffixes that end in a number, such as `+scale0.75`: the setting it is of. They
            come after the others.
        trained_on: By size, the faces that its weights were trained on; of sizes that are not named, FFHQ's.
    """

    name: str
    title: str
    references: Literal["none", "one", "several"]
    tuning: Literal["none", "per_identity"] = "none"
    paper: str | None = None
    licence: str = "Apache-2.0"
    weights: str | None = None
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbered_variants: Mapping[str, str] = field(default_factory=dict)
    without_reference: str | None = None
    trained_on: Mapping[str, TrainingFaces] = field(default_factory=lambda: {"demo": ORL_FACES})


class RestorationMethod(LightningModule):
    """A restoration method: trained and called here, its network lives in a plain torch module.

    Subclasses take one plain dictionary of settings (the composed `configs/method/<name>.yaml`), so
    that a checkpoint holds nothing but built-in types, and implement `restore`. Methods that train
    also implement `training_step` and `configure_optimizers`.

    Attributes:
        spec: What the method is and needs.
        native_size: Side of the square pictures the network works on, in pixels; None for any size.
        size: Which preset was built ("paper", "demo"); None where there is only one.
        architecture_keys: Settings that the weights were trained with and cannot be used without.
        not_in_revision: Settings that change no picture of given weights (what only training reads, or a path whose
            content `conditions` names).
        optimizer_steps_per_batch: How often an optimiser steps per training batch. Lightning's
            `max_steps` counts these, ours counts batches.
        reads_class_word: Whether what is learnt of a person depends on what the person is called, such as `man`.
        any_size: Whether `restore` takes pictures of any size of at least `native_size`, in tiles.
        weights_sha256: Hash of the weights file that was loaded; None before, or where there is none.
        persons: What was learnt of the person on each picture, by image id; or why nothing could be.
    """

    spec: ClassVar[MethodSpec]
    architecture_keys: ClassVar[tuple[str, ...]] = ()
    not_in_revision: ClassVar[tuple[str, ...]] = ()
    optimizer_steps_per_batch: int = 1
    native_size: int | None = None
    size: str | None = None
    any_size: bool = False
    reads_class_word: bool = False
    weights_sha256: str | None = None

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.settings = dict(settings or {})
        self.save_hyperparameters({"settings": self.settings})
        self.persons: Mapping[str, PersonalState | BenchError] = {}

    @property
    def label(self) -> str:
        """Name of the row in tables, such as `refine@demo`."""
        return f"{self.spec.name}@{self.size}" if self.size else self.spec.name

    @property
    def training_faces(self) -> TrainingFaces:
        """What faces the weights were trained on; pictures are brought into this form before `restore` sees them."""
        return self.spec.trained_on.get(self.size or "", FFHQ_FACES)

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """What the method needs beside its weights file, with these settings, and does not find here.

        Asked before a run starts, by `bench check`, and by `size=auto`, which takes no size that lacks something.

        Args:
            settings: Settings of one size.

        Returns:
            Name of each absent thing -> where it was looked for, what brings it, and its licence.
        """
        return {}

    def prepare_training(self) -> None:
        """Builds what only training needs, before optimisers are made or a checkpoint is read."""

    def training_stream(self, pairs: TrainingPairs) -> IterableDataset[Any]:
        """What the training reads: the stream of pictures, or something made of it.

        Args:
            pairs: Batches of this rank, from the first one not trained on.

        Returns:
            A stream of batches; each has a length and can be moved with `to(device)`.
        """
        return pairs

    def conditions(self) -> dict[str, str]:
        """Whatever else decides the pictures: hashes of frozen networks that are not in the weights file."""
        return {}

    # Methods that are tuned for each identity ---------------------------------------------------

    @property
    def personalises(self) -> bool:
        """Whether these settings learn something of each person before they restore."""
        return False

    def personal_base(self) -> dict[str, Any]:
        """All that a personal state can only be used with, beside the weights file; JSON values only."""
        return {}

    def personal_settings(self) -> dict[str, Any]:
        """All else that decides what is learnt of given references; JSON values only."""
        return {}

    def personal_iterations(self) -> int:
        """How many iterations a person takes, for progress."""
        return 0

    def personalise(
        self,
        references: Tensor,
        seed: int,
        unfinished: dict[str, Tensor] | None = None,
        keep: Callable[[dict[str, Tensor]], None] | None = None,
        advance: Callable[[int, bool], None] | None = None,
        class_word: str = "person",
    ) -> dict[str, Tensor]:
        """Learns a person; the method itself stays as it is.

        Args:
            references: (R, 3, H, W) RGB in [0, 1], on the CPU.
            seed: Every draw comes from it, so that the same call gives the same tensors.
            unfinished: What `keep` was last given, to go on from there: the result is the same.
            keep: Takes everything that going on from here needs, now and then.
            advance: Told how many iterations are done since the last time, and whether an earlier call did them.
            class_word: What the person is called; read where `reads_class_word` says so.

        Returns:
            What `restore` reads of the person, on the CPU.

        Raises:
            UnfinishedError: `unfinished` is of another learning.
        """
        raise NotImplementedError

    def personal_state(self, image_id: str) -> PersonalState:
        """What was learnt of the person on a picture.

        Raises:
            UsageError: Nothing was; the message says why.
        """
        state = self.persons.get(image_id)
        if state is None:
            raise UsageError(
                f"Nobody was learnt for {image_id}, and {self.label} restores no one it does not know. Learn the "
                f"person with: bench personalise method={self.spec.name} --reference FILE ... -o FILE"
            )
        if isinstance(state, BenchError):
            raise state
        return state

    # Restoration --------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores a batch.

        Args:
            batch: Degraded pictures and references, without anything of the ground truth.

        Returns:
            Restored pictures, (B, 3, H, W), RGB in [0, 1], H and W as in `batch.lq`.
        """
        raise NotImplementedError

    def restore_to(self, batch: FaceBatch, size: tuple[int, int]) -> Tensor:
        """Restores pictures and brings them to another size; networks that enlarge do both in one step.

        Args:
            batch: As for `restore`, of a method of any size.
            size: (H, W) of the result.

        Returns:
            (B, 3, H, W), RGB in [0, 1].
        """
        if tuple(batch.lq.shape[-2:]) != size:
            batch = replace(batch, lq=_resized(batch.lq, size))
        return self.restore(batch).clamp(0.0, 1.0)

    def restore_at_native_size(self, batch: FaceBatch) -> Tensor:
        """`restore` with the pictures brought to the network's size, and the result brought back.

        Args:
            batch: As for `restore`, at the protocol's size.

        Returns:
            Restored pictures at the protocol's size, (B, 3, H, W) in [0, 1].
        """
        height, width = batch.lq.shape[-2:]
        side = self.native_size
        if side is None or (height, width) == (side, side):
            return self.restore(batch).clamp(0.0, 1.0)
        count, most = batch.reference_mask.shape
        references = _resized(batch.references.flatten(0, 1), (side, side)).view(count, most, 3, side, side)
        resized = replace(batch, lq=_resized(batch.lq, (side, side)), references=references)
        return _resized(self.restore(resized), (height, width)).clamp(0.0, 1.0)

    def predict_step(self, batch: FaceBatch, *_: Any) -> list[tuple[Tensor | Exception, float]]:
        """Restores one batch for `Trainer.predict`; the ground truth is taken away first.

        Returns:
            For each picture the result, or the exception that stopped it, and the seconds it took. A
            picture that fails takes no other with it: the batch is then tried one by one.
        """
        if not len(batch):
            return []
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                restored = self.restore_at_native_size(batch.for_restoration()).float().cpu()
        except Exception as error:
            if len(batch) == 1:
                from bench.memory import is_out_of_memory, restoring_out_of_memory

                if is_out_of_memory(error):
                    said = restoring_out_of_memory(self, *batch.lq.shape[-2:])
                    said.__cause__ = error
                    return [(said, time.perf_counter() - started)]
                return [(error, time.perf_counter() - started)]
            return [result for row in range(len(batch)) for result in self.predict_step(batch.row(row))]
        seconds = (time.perf_counter() - started) / len(batch)
        return [(picture, seconds) for picture in restored]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Moves a `FaceBatch`, or another batch of `training_stream`, which Lightning does not know how to move."""
        return batch.to(device)

    def weights_state(self) -> dict[str, Tensor]:
        """Tensors that make up the method's published weights file (EMA where there is one)."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    @classmethod
    def read_weights_file(cls, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a weights file; methods whose files are another program's read them in their own way.

        Raises:
            UsageError: The file cannot be read.
        """
        from bench.weights.method_weights import read_weights

        return read_weights(path)

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Loads what `weights_state` returned; every key must match."""
        self.load_state_dict(state, strict=True)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if not images.numel():
        return images.new_zeros((*images.shape[:-2], *size))
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0.0, 1.0)
