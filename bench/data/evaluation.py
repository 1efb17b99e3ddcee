"""The pictures of a protocol as batches: shards without padding, broken pictures set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from bench.batch import FaceBatch
from bench.errors import BenchError
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import ProtocolImage, ProtocolMismatchError
from bench.seeds import derive_seed

Failure = tuple[str, str]


class EvaluationSampler(Sampler[int]):
    """Positions of one process: every `world_size`-th, none repeated, none added.

    Args:
        count: Number of pictures over all processes.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, count: int, rank: int, world_size: int) -> None:
        self.positions = range(rank, count, world_size)

    def __iter__(self) -> Iterator[int]:
        """Positions in order."""
        return iter(self.positions)

    def __len__(self) -> int:
        """Number of positions of this process."""
        return len(self.positions)


class EvaluationPictures(Dataset[FaceBatch | Failure]):
    """LQ pictures with their references, one at a time; the ground truth is never part of an item.

    Args:
        pictures: Decoded pictures of the protocol.
        images: Which of its images.
        seed: Seed of the run.
    """

    def __init__(self, pictures: ProtocolPictures, images: Sequence[ProtocolImage], seed: int) -> None:
        self.pictures, self.images, self.seed = pictures, list(images), seed

    def __len__(self) -> int:
        """Number of pictures over all processes."""
        return len(self.images)

    def __getitem__(self, position: int) -> FaceBatch | Failure:
        """One picture as a batch of one, or its id and why it cannot be loaded."""
        image = self.images[position]
        try:
            lq = self.pictures.lq(image)
            references = [self.pictures.crop(reference) for reference in image.references]
        except ProtocolMismatchError:
            raise
        except BenchError as error:
            return image.image_id, str(error)
        side = self.pictures.protocol.size
        stacked = [torch.tensor(picture).permute(2, 0, 1).float().div(255) for picture in references]
        return FaceBatch(
            lq=torch.tensor(lq).permute(2, 0, 1).float().div(255).unsqueeze(0),
            references=(torch.stack(stacked) if stacked else torch.zeros(0, 3, side, side)).unsqueeze(0),
            reference_mask=torch.ones(1, len(stacked), dtype=torch.bool),
            image_ids=[image.image_id],
            identities=[image.identity],
            seeds=[derive_seed(self.pictures.protocol.name, self.seed, image.image_id, "restoration")],
        )


class Collate:
    """Joins pictures to one batch; the broken ones go to `on_failure` and are left out.

    Args:
        on_failure: Takes an image id and the reason.
    """

    def __init__(self, on_failure: Callable[[str, str], None]) -> None:
        self.on_failure = on_failure

    def __call__(self, items: Sequence[FaceBatch | Failure]) -> FaceBatch:
        """A batch of those that could be loaded, possibly empty."""
        loaded = []
        for item in items:
            if isinstance(item, FaceBatch):
                loaded.append(item)
            else:
                self.on_failure(*item)
        return join(loaded)


def join(batches: Sequence[FaceBatch]) -> FaceBatch:
    """Concatenates batches without ground truth; fewer references are filled with masked zeros."""
    if not batches:
        return FaceBatch(torch.zeros(0, 3, 1, 1), torch.zeros(0, 0, 3, 1, 1), torch.zeros(0, 0).bool(), [], [], [])
    most = max(batch.references.shape[1] for batch in batches)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        missing = most - tensor.shape[1]
        if not missing:
            return tensor
        return torch.cat([tensor, tensor.new_zeros((tensor.shape[0], missing, *tensor.shape[2:]))], dim=1)

    return FaceBatch(
        lq=torch.cat([batch.lq for batch in batches]),
        references=torch.cat([filled(batch.references) for batch in batches]),
        reference_mask=torch.cat([filled(batch.reference_mask) for batch in batches]),
        image_ids=[name for batch in batches for name in batch.image_ids],
        identities=[name for batch in batches for name in batch.identities],
        seeds=[seed for batch in batches for seed in batch.seeds],
    )
