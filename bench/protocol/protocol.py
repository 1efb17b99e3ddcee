"""Frozen protocols: which pictures, which references, which degradation, under one id.

The id is the hash of the source files, the committed affine matrix of each, the ordered references,
the degradation with its operator versions, and the declared seed. Metrics are no part of it. Hashes of
the decoded ground truth and LQ pixels stand beside the id and are checked when a picture is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.degradation.pipeline import DegradationPipeline
from bench.errors import MissingError, UsageError
from bench.files import sha256_bytes, sha256_file, write_json
from bench.image import UnreadableImageError, read_image
from bench.paths import bench_home, resource_root
from bench.protocol.alignment import transform_points, warp
from bench.protocol.card import DatasetCard, Photo, data_root, list_photos, load_card, natural_key, split_identities
from bench.seeds import derive_seed

SCHEMA_VERSION = 1
# A protocol must be the same whether it was just frozen or read back from its file.
POINT_DECIMALS = 3


class ProtocolMismatchError(UsageError):
    """Data or code is not what the frozen protocol was made with."""


@dataclass(frozen=True)
class ProtocolPhoto:
    """One photograph of a protocol, ready to be cut out.

    Attributes:
        path: File, relative to the data set's folder.
        sha256: Hash of the file.
        matrix: (2, 3) photograph to crop.
        points: (5, 2) points in the crop, pixels; None where no face was found.
    """

    path: str
    sha256: str
    matrix: np.ndarray
    points: np.ndarray | None

    def as_dict(self) -> dict[str, Any]:
        """The photograph as built-in types."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "matrix": self.matrix.tolist(),
            "points": None if self.points is None else self.points.tolist(),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ProtocolPhoto:
        """Reads what `as_dict` wrote."""
        points = None if record["points"] is None else np.asarray(record["points"], dtype=np.float64)
        return cls(record["path"], record["sha256"], np.asarray(record["matrix"], dtype=np.float64), points)


@dataclass(frozen=True)
class ProtocolImage:
    """One picture to restore.

    Attributes:
        image_id: Unique name within the protocol.
        identity: Who is shown.
        source: The ground truth.
        references: Ordered references, never the ground truth.
        gt_sha256: Hash of the decoded, aligned ground truth pixels.
        lq_sha256: Hash of the degraded pixels.
    """

    image_id: str
    identity: str
    source: ProtocolPhoto
    references: tuple[ProtocolPhoto, ...]
    gt_sha256: str | None = None
    lq_sha256: str | None = None


@dataclass(frozen=True)
class Protocol:
    """A frozen protocol; see the module's text."""

    name: str
    title: str
    card: str
    split: str
    size: int
    seed: int
    degradation: dict[str, Any]
    selection: dict[str, Any]
    images: tuple[ProtocolImage, ...]
    id: str

    @property
    def image_ids(self) -> list[str]:
        """Ids of all pictures, in the protocol's order."""
        return [image.image_id for image in self.images]

    def pipeline(self) -> DegradationPipeline:
        """The protocol's degradation."""
        return DegradationPipeline(self.degradation["name"], self.degradation["steps"], self.degradation["size"])

    def as_dict(self) -> dict[str, Any]:
        """The protocol as built-in types."""
        return {
            "schema": SCHEMA_VERSION,
            "name": self.name,
            "id": self.id,
            "title": self.title,
            "card": self.card,
            "split": self.split,
            "size": self.size,
            "seed": self.seed,
            "degradation": self.degradation,
            "selection": self.selection,
            "identities": len({image.identity for image in self.images}),
            "images": [
                {
                    "image_id": image.image_id,
                    "identity": image.identity,
                    "source": image.source.as_dict(),
                    "references": [reference.as_dict() for reference in image.references],
                    "gt_sha256": image.gt_sha256,
                    "lq_sha256": image.lq_sha256,
                }
                for image in self.images
            ],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Protocol:
        """Reads what `as_dict` wrote."""
        images = tuple(
            ProtocolImage(
                image["image_id"],
                image["identity"],
                ProtocolPhoto.from_dict(image["source"]),
                tuple(ProtocolPhoto.from_dict(reference) for reference in image["references"]),
                image["gt_sha256"],
                image["lq_sha256"],
            )
            for image in record["images"]
        )
        keys = ("name", "title", "card", "split", "size", "seed", "degradation", "selection", "id")
        return cls(**{key: record[key] for key in keys}, images=images)


def protocol_id(size: int, seed: int, degradation: dict[str, Any], images: tuple[ProtocolImage, ...], name: str) -> str:
    """Sixteen hexadecimal digits that change when anything that decides the pictures changes."""

    def photo(record: ProtocolPhoto) -> list[Any]:
        return [record.sha256, record.matrix.tolist()]

    content = {
        "name": name,
        "size": size,
        "seed": seed,
        "degradation": degradation,
        "images": [
            [image.image_id, image.identity, photo(image.source), [photo(reference) for reference in image.references]]
            for image in images
        ],
    }
    return sha256_bytes(json.dumps(content, sort_keys=True).encode("utf-8"))[:16]


@dataclass(frozen=True)
class DataSettings:
    """A data configuration (`configs/data/<name>.yaml`), composed.

    Attributes:
        name: Name of the protocol.
        title: One line for tables.
        card: Data card.
        degradation: `{name, steps, source}` of the preset.
        split: Which identities.
        size: Side of the pictures in pixels.
        seed: Declared seed of the degradation.
        references: References per identity.
        targets: Pictures to restore per identity; None for all that are left.
        root: Folder of the data set, where it is not in its usual place.
    """

    name: str
    title: str
    card: str
    degradation: dict[str, Any]
    split: str
    size: int
    seed: int
    references: int
    targets: int | None
    root: str | None

    def pipeline(self) -> DegradationPipeline:
        """The degradation at the pictures' size."""
        return DegradationPipeline(self.degradation["name"], self.degradation["steps"], self.size)


def _committed_alignment(card: DatasetCard) -> dict[str, Any] | None:
    if card.alignment is None:
        return None
    path = resource_root() / "datasets" / card.alignment
    photos: dict[str, Any] = json.loads(path.read_text("utf-8"))["photos"]
    return photos


class PhotoAligner:
    """Gives each photograph of a data set its matrix and points.

    From the committed alignment file where the card has one; otherwise the pictures are aligned
    already, and the points come from the landmark file beside the picture or from one detection.
    """

    def __init__(self, card: DatasetCard, root: Path, size: int) -> None:
        self.card, self.root, self.size = card, root, size
        self.committed = _committed_alignment(card)

    def align(self, photo: Photo) -> ProtocolPhoto:
        """Hash, matrix and points of one photograph.

        Raises:
            ProtocolMismatchError: The file is not the one the committed alignment was made for.
            UsageError: A picture of an aligned data set has the wrong size, or cannot be read.
        """
        path = self.root / photo.path
        digest = sha256_file(path)
        if self.committed is not None:
            record = self.committed.get(photo.path)
            if record is None or record["sha256"] != digest:
                raise ProtocolMismatchError(
                    f"{path} is not the file that {self.card.alignment} was made for (SHA-256 {digest[:12]}…). "
                    f"Install the data set again: {self.card.obtain}"
                )
            matrix = np.asarray(record["matrix"], dtype=np.float64) * (self.size / self.card.size)
            points = transform_points(np.asarray(record["points"], dtype=np.float64), matrix)
            return ProtocolPhoto(photo.path, digest, matrix, np.round(points, POINT_DECIMALS))
        image = read_image(path)
        if image.shape[0] != image.shape[1]:
            raise UsageError(
                f"{path} is {image.shape[1]}x{image.shape[0]} px; {self.card.name} holds aligned square pictures. "
                "Align it first or take it out of the folder."
            )
        scale = self.size / image.shape[0]
        matrix = np.array([[scale, 0.0, (scale - 1) / 2], [0.0, scale, (scale - 1) / 2]])
        found = _landmark_file(path)
        if found is None:
            found = _detected_points(image, digest)
        placed = None if found is None else np.round(transform_points(found, matrix), POINT_DECIMALS)
        return ProtocolPhoto(photo.path, digest, matrix, placed)


def _landmark_file(path: Path) -> np.ndarray | None:
    """Five points from the 68 of a file beside the picture (`0.png.txt`), or None."""
    beside = path.with_name(path.name + ".txt")
    if not beside.is_file():
        return None
    try:
        points = np.loadtxt(beside, dtype=np.float64).reshape(-1, 2)
    except ValueError:
        return None
    if points.shape != (68, 2):
        return None
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def _detected_points(image: np.ndarray, digest: str) -> np.ndarray | None:
    """Points of the largest face; detected once per file and detector, then read from the cache."""
    from bench.faces.detector import detect_main_face, detector_identity

    name = sha256_bytes(f"{digest} {detector_identity()}".encode())
    cached = bench_home() / "points" / name[:2] / f"{name}.json"
    if not cached.is_file():
        face = detect_main_face(image)
        write_json(cached, None if face is None else face.points.tolist())
    points = json.loads(cached.read_text("utf-8"))
    return None if points is None else np.asarray(points, dtype=np.float64)


def plan_images(settings: DataSettings, root: Path) -> tuple[ProtocolImage, ...]:
    """Chooses references and pictures to restore: in natural order, references first.

    Raises:
        MissingError: No identity of the split has enough photographs.
    """
    card = load_card(settings.card)
    photos = list_photos(card, root)
    by_identity: dict[str, list[Photo]] = {}
    for photo in photos:
        by_identity.setdefault(photo.identity, []).append(photo)
    least = settings.references + (settings.targets or 1)
    # Split first: who is tested must not depend on how many photographs a protocol asks for.
    split = split_identities(card, list(by_identity))[settings.split]
    chosen = [identity for identity in split if len(by_identity[identity]) >= least]
    if not chosen:
        raise MissingError(
            f"No identity of the {settings.split} split of {card.name} in {root} has the {least} photographs that "
            f"{settings.name} needs (found {len(by_identity)} identities)."
        )
    aligner = PhotoAligner(card, root, settings.size)
    images = []
    for identity in sorted(chosen, key=natural_key):
        wanted = None if settings.targets is None else settings.references + settings.targets
        own = list(islice(readable(by_identity[identity], aligner), wanted))
        references, targets = tuple(own[: settings.references]), own[settings.references :]
        stems = [Path(photo.path).stem for photo in targets]
        for target, stem in zip(targets, stems, strict=True):
            name = stem if stems.count(stem) == 1 else Path(target.path).name
            images.append(ProtocolImage(f"{identity}/{name}", identity, target, references))
    return tuple(images)


def readable(photos: list[Photo], aligner: PhotoAligner) -> Iterator[ProtocolPhoto]:
    """Aligned photographs; one that cannot be decoded is named on standard error and left out."""
    for photo in photos:
        try:
            yield aligner.align(photo)
        except UnreadableImageError as error:
            print(f"bench: left out of the protocol: {error}", file=sys.stderr)  # noqa: T201


class ProtocolPictures:
    """The pictures of a protocol, decoded once each and checked against their hashes.

    Args:
        protocol: A protocol.
        root: Folder of its data set.
    """

    def __init__(self, protocol: Protocol, root: Path) -> None:
        self.protocol, self.root = protocol, root
        self._pipeline = protocol.pipeline()
        self.photo = lru_cache(maxsize=64)(self._photo)

    def _photo(self, path: str) -> np.ndarray:
        return read_image(self.root / path)

    def crop(self, photo: ProtocolPhoto) -> np.ndarray:
        """Aligned crop of a photograph, (size, size, 3) uint8 RGB."""
        return warp(self.photo(photo.path), photo.matrix, self.protocol.size)

    def truth(self, image: ProtocolImage) -> np.ndarray:
        """Ground truth, (size, size, 3) uint8 RGB.

        Raises:
            ProtocolMismatchError: It does not decode to the pixels the protocol was frozen with.
        """
        pixels = self.crop(image.source)
        _check(image.gt_sha256, pixels, f"the ground truth of {image.image_id}", "image decoder or alignment")
        return pixels

    def lq(self, image: ProtocolImage, truth: np.ndarray | None = None) -> np.ndarray:
        """Degraded picture, (size, size, 3) uint8 RGB; always made on the CPU, in double precision.

        Raises:
            ProtocolMismatchError: It is not the picture the protocol was frozen with.
        """
        import torch

        pixels: np.ndarray = self.truth(image) if truth is None else truth
        clean = torch.tensor(pixels).permute(2, 0, 1).double().div(255).unsqueeze(0)
        theta = self._pipeline.sample([self.degradation_seed(image)], (self.protocol.size, self.protocol.size))
        with torch.inference_mode():
            degraded = self._pipeline.apply(clean, theta)
        lq = degraded[0].mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        versions = ", ".join(f"{name} v{v}" for name, v in self._pipeline.specification()["versions"].items())
        _check(
            image.lq_sha256,
            lq,
            f"the LQ picture of {image.image_id}",
            f"one of the operators ({versions}), cv2 or NumPy",
        )
        return lq

    def degradation_seed(self, image: ProtocolImage) -> int:
        """Seed of the picture's degradation."""
        return derive_seed(self.protocol.name, self.protocol.seed, image.image_id, "degradation")


def _check(expected: str | None, pixels: np.ndarray, what: str, suspects: str) -> None:
    if expected is not None and (found := sha256_bytes(pixels.tobytes())) != expected:
        raise ProtocolMismatchError(
            f"The pixels of {what} are not those the protocol was frozen with (SHA-256 {found[:12]}…, expected "
            f"{expected[:12]}…). Most likely another version of the {suspects} is installed; the versions in "
            "constraints.txt are those it was frozen with."
        )


def freeze(settings: DataSettings) -> Protocol:
    """Freezes a protocol: plans it, makes every picture once, and records the hashes of the pixels."""
    from dataclasses import replace

    root = data_root(load_card(settings.card), settings.root)
    protocol = _unfrozen(settings, root)
    pictures = ProtocolPictures(protocol, root)
    images = []
    for image in protocol.images:
        truth = pictures.truth(image)
        lq = pictures.lq(image, truth)
        images.append(replace(image, gt_sha256=sha256_bytes(truth.tobytes()), lq_sha256=sha256_bytes(lq.tobytes())))
    return replace(protocol, images=tuple(images))


def _unfrozen(settings: DataSettings, root: Path) -> Protocol:
    images = plan_images(settings, root)
    degradation = settings.pipeline().specification()
    identifier = protocol_id(settings.size, settings.seed, degradation, images, settings.name)
    return Protocol(
        name=settings.name,
        title=settings.title,
        card=settings.card,
        split=settings.split,
        size=settings.size,
        seed=settings.seed,
        degradation=degradation,
        selection={"references": settings.references, "targets": settings.targets},
        images=images,
        id=identifier,
    )


def committed_path(name: str) -> Path:
    """Where the frozen protocol of a data configuration is committed."""
    return resource_root() / "datasets" / "protocols" / f"{name}.json"


def load_protocol(settings: DataSettings) -> Protocol:
    """The frozen protocol of a data configuration.

    The committed one where there is one and the settings are its own; otherwise one frozen on this
    machine, kept under the bench home.

    Raises:
        ProtocolMismatchError: The settings are those of the committed protocol, but a source file or
            an operator version is not; the message names it.
        MissingError: The data set is absent.
    """
    root = data_root(load_card(settings.card), settings.root)
    planned = _unfrozen(settings, root)
    places = [committed_path(settings.name), bench_home() / "protocols" / f"{settings.name}-{planned.id}.json"]
    for place in places:
        if place.is_file():
            frozen = Protocol.from_dict(json.loads(place.read_text("utf-8")))
            if frozen.id == planned.id:
                return frozen
            _explain_difference(frozen, planned)
    frozen = freeze(settings)
    write_json(places[-1], frozen.as_dict())
    return frozen


def _explain_difference(frozen: Protocol, planned: Protocol) -> None:
    """Raises if `planned` is meant to be `frozen` but cannot be; returns if it is a protocol of its own."""

    def settings(protocol: Protocol) -> Any:
        degradation = {key: value for key, value in protocol.degradation.items() if key != "versions"}
        return degradation, protocol.size, protocol.seed, protocol.split, protocol.card, protocol.selection

    if settings(frozen) != settings(planned):
        return
    if frozen.image_ids != planned.image_ids:
        absent = sorted(set(frozen.image_ids) - set(planned.image_ids))
        surplus = sorted(set(planned.image_ids) - set(frozen.image_ids))
        raise ProtocolMismatchError(
            f"Your copy of {frozen.card} does not give the pictures of the protocol {frozen.name} ({frozen.id}): "
            f"{len(absent)} are missing ({', '.join(absent[:3]) or 'none'}), {len(surplus)} are new "
            f"({', '.join(surplus[:3]) or 'none'}). Repair the data set, or give your protocol a name of its own "
            "(data.name=…)."
        )
    ours, theirs = planned.degradation["versions"], frozen.degradation["versions"]
    changed = [
        f"{name} v{theirs.get(name)} → v{version}" for name, version in ours.items() if theirs.get(name) != version
    ]
    if changed:
        raise ProtocolMismatchError(
            f"The protocol {frozen.name} ({frozen.id}) was frozen with other operator versions: {', '.join(changed)}. "
            "Scores would not be comparable; give the changed protocol a name of its own (data.name=…)."
        )
    for one, other in zip(planned.images, frozen.images, strict=True):
        for mine, expected in zip((one.source, *one.references), (other.source, *other.references), strict=False):
            if mine.as_dict() != expected.as_dict():
                raise ProtocolMismatchError(
                    f"{mine.path} is not the photograph that the protocol {frozen.name} ({frozen.id}) was frozen with "
                    f"(expected {expected.path}, SHA-256 {expected.sha256[:12]}…, found {mine.sha256[:12]}…)."
                )


def require_images(protocol: Protocol) -> None:
    """Raises where a protocol has nothing to restore."""
    if not protocol.images:
        raise MissingError(f"The protocol {protocol.name} holds no pictures.")
