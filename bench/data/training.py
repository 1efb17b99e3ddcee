"""Training samples: an endless stream in which sample number n is always the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bench.batch import FaceBatch
from bench.data.augmentation import AugmentationSettings, PairAugmentation
from bench.data.free_crops import free_crop
from bench.data.mixed_identities import draw_region, mix, nearest_pose
from bench.data.pool import TrainingPairPool, with_own_noise
from bench.degradation.pipeline import DegradationPipeline
from bench.errors import MissingError, UsageError
from bench.image import read_image
from bench.protocol.aligner import PhotoAligner
from bench.protocol.alignment import warp
from bench.protocol.card import data_root, load_card
from bench.protocol.layout import list_photos
from bench.protocol.protocol import DataSettings, ProtocolPhoto
from bench.protocol.splits import split_identities
from bench.seeds import derive_seed

# Decoded crops are kept up to this size, so that memory does not grow with the data set.
CACHED_BYTES = 256 * 2**20
NAMED = 3


@dataclass(frozen=True)
class TrainingPhoto:
    """A photograph to train on."""

    identity: str
    photo: ProtocolPhoto


@dataclass(frozen=True)
class TrainingSettings:
    """How training samples are drawn.

    Attributes:
        batch_size: Samples per process and step.
        references: References per sample, drawn from the person's other photographs.
        seed: Seed of the stream.
        size: Side the pictures are trained at; None for the protocol's.
        augmentation: Keyword arguments of `AugmentationSettings`.
        pool: Rows whose degradations are mixed, see `TrainingPairPool`; 0 for none.
        shared_degradation: Draw kernel, scale and quality once per batch, as the released trainings of
            Real-ESRGAN, StableSR and RestorerID do, instead of once per picture.
        crop_scales: Ground truth is cut out of the photograph at any place, resized by a factor between these two, and
            not aligned; empty for aligned ground truth. References are aligned in either case.
    """

    batch_size: int = 8
    references: int = 1
    seed: int = 0
    size: int | None = None
    augmentation: dict[str, Any] = field(default_factory=dict)
    pool: int = 0
    shared_degradation: bool = False
    crop_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the factors.

        Raises:
            UsageError: They are not two positive numbers, the smaller one first.
        """
        given = self.crop_scales
        if given and not (len(given) == 2 and 0 < given[0] <= given[1]):
            raise UsageError(f"crop_scales must be two positive numbers, the smaller one first, got {list(given)}.")


class TrainingPairs(IterableDataset[FaceBatch]):
    """Batches of degraded ground truth with references of the same person.

    Sample n of rank r depends on the seed, n and r alone, so that a training which resumes after k
    batches goes on exactly where it stopped by starting the stream at k.

    Args:
        data: Data configuration; its split is replaced by the training identities.
        settings: How samples are drawn.
        rank: This process.
        world_size: Number of processes.
        first_batch: Batches already trained on.

    Raises:
        MissingError: The data set is absent or has no training identity with two photographs.
    """

    def __init__(
        self,
        data: DataSettings,
        settings: TrainingSettings,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        split: str = "train",
    ) -> None:
        self.data, self.settings = data, settings
        self.rank, self.world_size, self.first_batch = rank, world_size, first_batch
        self.size = settings.size or data.size
        card = load_card(data.card)
        self.root: Path = data_root(card, data.root)
        photos = list_photos(card, self.root)
        if not photos[0].has_truth:
            raise UsageError(f"{card.name} holds real degraded pictures without ground truth: nothing to learn from.")
        chosen = set(split_identities(card, sorted({photo.identity for photo in photos}))[split])
        aligner = PhotoAligner(card, self.root, self.size)
        paths: dict[str, list[str]] = {}
        for photo in photos:
            paths.setdefault(photo.identity, []).append(photo.path)
        self.people: dict[str, list[TrainingPhoto]] = {}
        for identity in sorted(chosen):
            aligned = [aligner.align_if_readable(path) for path in paths[identity]]
            self.people[identity] = [
                TrainingPhoto(identity, photo) for photo in aligned if photo is not None and photo.points is not None
            ]
        self._say_left_out([path for name in sorted(chosen) for path in paths[name]])
        self.people = {name: own for name, own in self.people.items() if len(own) > settings.references}
        if not self.people:
            rule = card.splits.get("rule", "listed")
            raise MissingError(
                f"{self.root} has no {split} identity with {settings.references + 1} photographs (splits of "
                f"{card.name}: {rule}; {len(chosen)} identities to train on). Methods that need references learn from "
                "several photographs of a person."
            )
        self.photos = [photo for own in self.people.values() for photo in own]
        self.pipeline = _pipeline(data, self.size)
        self.pool = TrainingPairPool(settings.pool, settings.batch_size, settings.seed)
        self.settings_of_augmentation = AugmentationSettings(**settings.augmentation)
        self.augment = PairAugmentation(self.settings_of_augmentation)
        self._others: dict[str, list[int]] = {}
        for position, own in enumerate(self.photos):
            self._others.setdefault(own.identity, []).append(position)
        self._picture = lru_cache(maxsize=max(1, CACHED_BYTES // (3 * self.size**2)))(self._read)

    def _say_left_out(self, paths: list[str]) -> None:
        """Counts the photographs that show no face, of which nothing is learnt."""
        kept = {own.photo.path for people in self.people.values() for own in people}
        without = [path for path in paths if path not in kept]
        if without and not self.rank:
            first = ", ".join(without[:NAMED]) + (", …" if len(without) > NAMED else "")
            print(  # noqa: T201
                f"bench: left out of the training: {len(without)} of {len(paths)} photographs, which show no face or "
                f"cannot be read ({first})",
                file=sys.stderr,
            )

    def _read(self, path: str, position: int) -> Tensor:
        photo = self.photos[position].photo
        crop = warp(read_image(self.root / path), photo.matrix, self.size)
        return torch.from_numpy(crop).permute(2, 0, 1).contiguous()

    def _load(self, position: int) -> tuple[Tensor, Tensor]:
        photo = self.photos[position].photo
        points = torch.from_numpy(np.asarray(photo.points)).float()
        return self._picture(photo.path, position).float().div(255), points

    def _load_free(self, position: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A photograph cut at random, and where the face's points are then, which may be outside."""
        photo = self.photos[position].photo
        crop, matrix = free_crop(read_image(self.root / photo.path), self.size, self.settings.crop_scales, rng)
        back = np.linalg.inv(np.vstack([photo.matrix, [0, 0, 1]]))
        in_photo = np.asarray(photo.points) @ back[:2, :2].T + back[:2, 2]
        return crop, torch.from_numpy(in_photo @ matrix[:, :2].T + matrix[:, 2]).float()

    def sample(self, number: int) -> tuple[Tensor, Tensor, str, str]:
        """Ground truth and references of sample `number`: (1+R, 3, S, S), points, identity, image id."""
        rng = np.random.default_rng(derive_seed(self.settings.seed, "training sample", number))
        target = int(rng.integers(len(self.photos)))
        identity = self.photos[target].identity
        others = [position for position in self._others[identity] if position != target]
        chosen = rng.choice(others, size=self.settings.references, replace=False)
        loaded = [self._load(int(position)) for position in (target, *chosen)]
        if self.settings.crop_scales:
            loaded[0] = self._load_free(target, rng)
        mixed = self.settings_of_augmentation.mixed_identities
        # Nothing is drawn where it is off, so that such trainings stay what they were.
        if mixed and len(self._others) > 1 and rng.random() < mixed:
            loaded = self._mixed(identity, loaded, rng)
        images, points = self.augment(
            torch.stack([image for image, _ in loaded]), torch.stack([own for _, own in loaded]), rng
        )
        return images, points, identity, self.photos[target].photo.path

    def _mixed(
        self, identity: str, loaded: list[tuple[Tensor, Tensor]], rng: np.random.Generator
    ) -> list[tuple[Tensor, Tensor]]:
        """The same pictures with a part of the face of another person, of whom each picture gets one of its own."""
        others = [name for name in self._others if name != identity]
        left = list(self._others[others[int(rng.integers(len(others)))]])
        region = draw_region(rng)
        mixed = []
        for image, points in loaded:
            candidates = torch.stack(
                [torch.from_numpy(np.asarray(self.photos[own].photo.points)).float() for own in left]
            )
            other, other_points = self._load(left.pop(nearest_pose(points, candidates)))
            mixed.append((mix(image, points, other, other_points, region), points))
        return mixed

    def batch(self, step: int) -> FaceBatch:
        """The batch of one step on this rank."""
        batches = [(own * self.world_size + self.rank, row) for own, row in self.pool.sources(step)]
        numbers = [batch * self.settings.batch_size + row for batch, row in batches]
        samples = [self.sample(number) for number in numbers]
        gt = torch.stack([images[0] for images, *_ in samples])
        seeds = [derive_seed(self.settings.seed, "training degradation", number) for number in numbers]
        if self.settings.shared_degradation:
            shared = [derive_seed(self.settings.seed, "shared degradation", batch) for batch, _ in batches]
            drawn = self.pipeline.sample(shared, (self.size, self.size))
            theta = [with_own_noise(one, seed) for one, seed in zip(drawn, seeds, strict=True)]
        else:
            theta = self.pipeline.sample(seeds, (self.size, self.size))
        with torch.no_grad():
            lq = self.pipeline.apply(gt, theta)
        references = torch.stack([images[1:] for images, *_ in samples])
        return FaceBatch(
            lq=lq,
            references=references,
            reference_mask=torch.ones(references.shape[:2], dtype=torch.bool),
            image_ids=[path for *_, path in samples],
            identities=[identity for *_, identity, _ in samples],
            seeds=seeds,
            gt=gt,
            landmarks=torch.stack([points[0] for _, points, *_ in samples]),
            reference_landmarks=torch.stack([points[1:] for _, points, *_ in samples]),
            degradation=theta,
        )

    def __iter__(self) -> Iterator[FaceBatch]:
        """Endless batches, from `first_batch` on; workers take turns."""
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_batch + offset
        while True:
            yield self.batch(step)
            step += stride


def _pipeline(data: DataSettings, size: int) -> DegradationPipeline:
    pipeline = replace(data, size=size).pipeline()
    if pipeline is None:
        raise UsageError(f"data={data.name} degrades nothing. Give a preset to train on: data.degradation=heavy.")
    return pipeline
