"""Progress with the time that is left: a line now and then, everywhere readable."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import Callback, Trainer


class ProgressLines(Callback):
    """Prints batches done, seconds per batch, time left and the loss, to standard error.

    On a terminal the line is rewritten in place; elsewhere a new one is printed every 30 seconds.

    Args:
        batches: Batches of the whole training.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.started = self.printed = 0.0
        self.first = 0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Starts the clock."""
        self.started = self.printed = time.monotonic()
        self.first = int(getattr(module, "batches_done", 0))

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        """Prints, if it is time."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        done = int(getattr(module, "batches_done", trainer.global_step))
        if not trainer.is_global_zero or (now - self.printed < (0.5 if terminal else 30) and done < self.batches):
            return
        self.printed = now
        seconds = (now - self.started) / max(1, done - self.first)
        loss = trainer.callback_metrics.get("train/total")
        line = (
            f"batch {done}/{self.batches}  {seconds:.2f} s each  "
            f"{format_seconds((self.batches - done) * seconds)} left  loss {float(loss):.4f}"
            if loss is not None
            else f"batch {done}/{self.batches}"
        )
        print(f"\r{line}   " if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)  # noqa: T201

    def on_train_end(self, *_: Any) -> None:
        """Ends the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)  # noqa: T201


def format_seconds(seconds: float) -> str:
    """`1 h 02 min`, `3 min 10 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
