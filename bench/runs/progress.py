"""The progress of a training, printed."""

from __future__ import annotations

from typing import Any

from lightning import Callback, Trainer

from bench.progress import Progress


class ProgressLines(Callback):
    """Prints the progress of a training.

    Args:
        batches: Batches of the whole training.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Starts the clock."""
        self.progress = Progress("trained", self.batches, int(getattr(module, "batches_done", 0)))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Prints, if it is time."""
        loss = trainer.callback_metrics.get("train/total")
        if trainer.is_global_zero and self.progress is not None:
            self.progress.advance(1, f"loss {float(loss):.4f}" if loss is not None else "")
