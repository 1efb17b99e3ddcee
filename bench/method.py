"""What every restoration method implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lightning import LightningModule
from torch import Tensor

from bench.batch import FaceBatch


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
    """

    name: str
    title: str
    references: Literal["none", "one", "several"]
    tuning: Literal["none", "per_identity"] = "none"
    paper: str | None = None
    licence: str = "Apache-2.0"


class RestorationMethod(LightningModule):
    """A restoration method: trained and called here, its network lives in a plain torch module.

    Subclasses take one plain dictionary of settings (the composed `configs/method/<name>.yaml`), so
    that a checkpoint holds nothing but built-in types, and implement `restore`. Methods that train
    also implement `training_step` and `configure_optimizers`.

    Attributes:
        spec: What the method is and needs.
        native_size: Side of the square pictures the network works on, in pixels; None for any size.
        size: Which preset was built ("paper", "demo"); None where there is only one.
        optimizer_steps_per_batch: How often an optimiser steps per training batch. Lightning's
            `max_steps` counts these, ours counts batches.
    """

    spec: ClassVar[MethodSpec]
    optimizer_steps_per_batch: int = 1
    native_size: int | None = None
    size: str | None = None

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.settings = dict(settings or {})
        self.save_hyperparameters({"settings": self.settings})

    @property
    def label(self) -> str:
        """Name of the row in tables, such as `refine@demo`."""
        return f"{self.spec.name}@{self.size}" if self.size else self.spec.name

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores a batch.

        Args:
            batch: Degraded pictures and references, without anything of the ground truth.

        Returns:
            Restored pictures, (B, 3, H, W), RGB in [0, 1], H and W as in `batch.lq`.
        """
        raise NotImplementedError

    def predict_step(self, batch: FaceBatch, *_: Any) -> Tensor:
        """Restores one batch for `Trainer.predict`; the ground truth is taken away first."""
        return self.restore(batch.for_restoration()).clamp(0.0, 1.0)

    def transfer_batch_to_device(self, batch: FaceBatch, device: Any, dataloader_idx: int) -> FaceBatch:
        """Moves a `FaceBatch`, which Lightning does not know how to move."""
        return batch.to(device)

    def weights_state(self) -> dict[str, Tensor]:
        """Tensors that make up the method's published weights file (EMA where there is one)."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Loads what `weights_state` returned; every key must match."""
        self.load_state_dict(state, strict=True)
