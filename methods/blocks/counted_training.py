"""A training that counts its batches: its learning rate follows the count, and checkpoints keep it."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor

from bench.errors import UsageError
from methods.blocks.learning_rate import learning_rate


class CountedTraining(LightningModule):
    """Mixed into methods that have `settings["optimiser"]` and `settings["training"]["max_steps"]`.

    Attributes:
        batches_done: Batches trained on.
    """

    settings: dict[str, Any]
    batches_done: int = 0

    def set_learning_rate(self) -> None:
        """Gives the optimiser the learning rate of the batch to come."""
        rate = learning_rate(self.settings["optimiser"], self.batches_done, self.settings["training"]["max_steps"])
        for group in cast(torch.optim.Optimizer, self.optimizers()).param_groups:
            group["lr"] = rate

    def require_finite(self, loss: Tensor) -> None:
        """Stops a training that went astray.

        Raises:
            UsageError: The loss is NaN or infinite.
        """
        if not torch.isfinite(loss):
            raise UsageError(
                f"The loss became {loss.item()} at batch {self.batches_done}. Lower "
                "method.optimiser.learning_rate, or train in float32 (trainer.precision=32-true)."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how many batches were trained on."""
        checkpoint["batches_done"] = self.batches_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on where the training stopped."""
        self.batches_done = checkpoint["batches_done"]
