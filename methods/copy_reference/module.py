"""The reference in place of the restored picture, as a row of every table."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.method import MethodSpec, RestorationMethod


class CopyReference(RestorationMethod):
    """Returns the first reference unchanged: shows what copying alone scores on IPS and ID.

    A picture without references comes back as it was.
    """

    spec = MethodSpec(name="copy_reference", title="Copy of the reference", references="one")

    def restore(self, batch: FaceBatch) -> Tensor:
        """First reference of each picture."""
        if batch.reference_mask.shape[1] == 0:
            return batch.lq
        first = batch.references[torch.arange(len(batch)), batch.reference_mask.float().argmax(dim=1)]
        return torch.where(batch.reference_mask.any(dim=1)[:, None, None, None], first, batch.lq)


method_class = CopyReference
