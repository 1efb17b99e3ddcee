"""Restoring a picture together with its mirror image: what a network errs in one way it errs in the other way there.

Source: the geometric self-ensemble of Lim et al. (EDSR, CVPR workshops 2017), with the one symmetry that faces have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.batch import FaceBatch


def mean_over_mirror(restore: Callable[[FaceBatch], Tensor], batch: FaceBatch) -> Tensor:
    """Mean of the restored pictures and of the restored mirror images, mirrored back.

    Args:
        restore: Restores a batch: (B, 3, H, W) in [0, 1]. It is called once, with both.
        batch: The pictures; references are mirrored with them.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    given = batch.for_restoration()
    both = replace(
        given,
        lq=torch.cat([given.lq, given.lq.flip(-1)]),
        references=torch.cat([given.references, given.references.flip(-1)]),
        reference_mask=given.reference_mask.repeat(2, 1),
        image_ids=given.image_ids * 2,
        identities=given.identities * 2,
        seeds=given.seeds * 2,
    )
    straight, mirrored = restore(both).chunk(2)
    return (straight + mirrored.flip(-1)) / 2
