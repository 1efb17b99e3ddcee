"""A pool that diversifies the degradations within a batch, as Real-ESRGAN's pool of training pairs does.

A published training draws kernel, scale and JPEG quality once per batch, because that is quick on a GPU, and then
mixes the rows of many batches. The released RestorerID mixes LQ and ground truth but not the references, so
that after some fifty steps references belong to other people. Here a row is drawn by its number, with
everything that belongs to it, and the pool only decides which numbers meet in a batch: nothing can come apart,
nothing is kept in memory, and a training that resumes goes on with the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.degradation.pipeline import Theta
from bench.errors import UsageError
from bench.seeds import derive_seed


@dataclass(frozen=True)
class TrainingPairPool:
    """Shuffles the rows of consecutive batches among each other.

    Attributes:
        rows: Rows that are shuffled together; 0 leaves every batch as it is. Rounded down to whole
            batches.
        batch_size: Rows of a batch.
        seed: Seed of the shuffling.

    Raises:
        UsageError: A pool smaller than one batch.
    """

    rows: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the size."""
        if self.rows and self.rows < self.batch_size:
            raise UsageError(f"pool={self.rows} holds less than one batch of {self.batch_size}. Give pool=0 or more.")

    def sources(self, step: int) -> list[tuple[int, int]]:
        """Which rows make up a batch.

        Args:
            step: Number of the batch.

        Returns:
            For each row the batch it was drawn for and its position there.
        """
        if not self.rows:
            return [(step, row) for row in range(self.batch_size)]
        batches = self.rows // self.batch_size
        block, place = divmod(step, batches)
        order = np.random.default_rng(derive_seed(self.seed, "pool", block)).permutation(batches * self.batch_size)
        own = order[place * self.batch_size : (place + 1) * self.batch_size]
        return [(block * batches + int(row) // self.batch_size, int(row) % self.batch_size) for row in own]


def with_own_noise(theta: Theta, seed: int) -> Theta:
    """θ shared by a batch, with the noise fields of one of its rows.

    Args:
        theta: Parameters drawn once for the batch.
        seed: Seed of the row.
    """
    steps = [
        {**step, "seed": derive_seed(seed, position) % 2**31} if "seed" in step else step
        for position, step in enumerate(theta["steps"])
    ]
    return {**theta, "seed": seed, "steps": steps}
