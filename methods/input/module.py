"""The degraded picture itself, as a row of every table."""

from __future__ import annotations

from torch import Tensor

from bench.batch import FaceBatch
from bench.method import MethodSpec, RestorationMethod


class Input(RestorationMethod):
    """Returns the LQ picture unchanged: what a method has to beat."""

    spec = MethodSpec(name="input", title="Input (LQ)", references="none")

    def restore(self, batch: FaceBatch) -> Tensor:
        """The LQ pictures."""
        return batch.lq


method_class = Input
