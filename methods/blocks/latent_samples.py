"""Training samples as latents, made once and kept on disk.

Autoencoder, recogniser and degradation cost more than a step of a small network. The samples of a training are
therefore drawn once, a fixed number of them, and read again in another order in every pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import IterableDataset

from bench.errors import UsageError
from bench.files import sha256_bytes, sha256_file
from bench.paths import bench_home
from bench.seeds import derive_seed
from methods.blocks.tensor_cache import cached_tensors

if TYPE_CHECKING:
    from bench.batch import FaceBatch
    from bench.data.training import TrainingPairs
    from bench.protocol.protocol import ProtocolPhoto

# The samples are drawn with this seed, whatever the training's own.
SEED = 0

# What a method makes of a batch: tensors by name, each with one row per sample.
Encode = Callable[["FaceBatch"], Mapping[str, Tensor]]


@dataclass(frozen=True)
class LatentBatch:
    """Rows of the cache.

    Attributes:
        tensors: By the names that the method gave, each (B, ...), float32.
        seeds: One per row and use; every draw of a training step for the row comes from it.
    """

    tensors: dict[str, Tensor]
    seeds: list[int]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.seeds)

    def __getitem__(self, name: str) -> Tensor:
        """One of the tensors."""
        return self.tensors[name]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> LatentBatch:
        """Copy with every tensor on `device`."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors.items()}
        return replace(self, tensors=moved)


class LatentSamples(IterableDataset[LatentBatch]):
    """An endless stream of cached samples; batch n of rank r is always the same.

    The samples are those of `SEED`; the training's seed decides their order and all later draws: so trainings that
    differ in seed share one cache. Memory and disk hold every sample (float16), on every process.

    Args:
        pairs: The stream of pictures that the samples are drawn from; sample k of the cache is its sample k.
        encode: Makes the tensors of a batch.
        identity: All that decides what `encode` makes (hashes of networks, settings); JSON values only.
        count: Number of samples, at least 1.

    Raises:
        UsageError: Less than one sample.
    """

    def __init__(self, pairs: TrainingPairs, encode: Encode, identity: Mapping[str, Any], count: int) -> None:
        if count < 1:
            raise UsageError(f"{count} cached samples are too few. Give 1 or more, or 0 to train on fresh pictures.")
        self.settings, self.count = pairs.settings, count
        self.rank, self.world_size, self.first_batch = pairs.rank, pairs.world_size, pairs.first_batch
        # Batches decide about samples only where they share a degradation or are mixed.
        batched = pairs.settings.pool or pairs.settings.shared_degradation
        batch_size = pairs.settings.batch_size if batched else None
        content = {
            "samples": {**asdict(pairs.settings), "batch_size": batch_size, "seed": SEED},
            "data": {key: value for key, value in asdict(pairs.data).items() if key not in ("root", "name")},
            "size": pairs.size,
            "photos": [[*_crop(own.photo), sha256_file(pairs.root / own.photo.path)] for own in pairs.photos],
            "identity": dict(identity),
            "count": count,
        }
        key = sha256_bytes(repr(sorted(content.items(), key=str)).encode())[:16]
        lock = bench_home() / "cache" / "latents" / f"{key}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Several processes of one training wait for the one that came first.
        with FileLock(str(lock)):
            self.tensors = cached_tensors("latents", content, lambda: self._draw(pairs, encode))

    def _draw(self, pairs: TrainingPairs, encode: Encode) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        size = pairs.settings.batch_size
        before = pairs.settings, pairs.pool, pairs.rank, pairs.world_size
        pairs.settings, pairs.pool = replace(pairs.settings, seed=SEED), replace(pairs.pool, seed=SEED)
        pairs.rank, pairs.world_size = 0, 1
        try:
            for step in range(-(-self.count // size)):
                if step % 32 == 0:
                    print(f"encoding training samples {step * size}/{self.count}", file=sys.stderr)  # noqa: T201
                with torch.no_grad():
                    for name, tensor in encode(pairs.batch(step)).items():
                        parts.setdefault(name, []).append(tensor.half().cpu())
        finally:
            pairs.settings, pairs.pool, pairs.rank, pairs.world_size = before
        return {name: torch.cat(rows)[: self.count] for name, rows in parts.items()}

    def batch(self, step: int) -> LatentBatch:
        """The batch of one step on this rank."""
        size = self.settings.batch_size
        first = (step * self.world_size + self.rank) * size
        numbers = range(first, first + size)
        rows = torch.tensor([self._row(number) for number in numbers])
        return LatentBatch(
            {name: tensor[rows].float() for name, tensor in self.tensors.items()},
            [derive_seed(self.settings.seed, "latent sample", number) for number in numbers],
        )

    def _row(self, number: int) -> int:
        """The cached sample that is number n of the stream: every pass has an order of its own."""
        turn, position = divmod(number, self.count)
        if getattr(self, "_turn", None) != turn:
            generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, "order of samples", turn) % 2**63)
            self._turn, self._order = turn, torch.randperm(self.count, generator=generator).tolist()
        return int(self._order[position])

    def __iter__(self) -> Iterator[LatentBatch]:
        """Endless batches, from the first one not trained on; workers take turns."""
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_batch + offset
        while True:
            yield self.batch(step)
            step += stride


def _crop(photo: ProtocolPhoto) -> list[Any]:
    """What cuts a crop out of its file, and where the face's points are in it."""
    return [photo.path, photo.matrix.tolist(), None if photo.points is None else photo.points.tolist()]
