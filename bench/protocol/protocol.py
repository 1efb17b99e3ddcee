"""Frozen protocols: which pictures, which references, which degradation, under one id.

The id is the hash of the source files, the committed affine matrix of each, the ordered references,
the degradation with its operator versions, and the declared seed. Metrics are no part of it. Hashes of
the decoded ground truth and LQ pixels stand beside the id and are checked when a picture is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bench.degradation.pipeline import DegradationPipeline
from bench.errors import UsageError
from bench.files import sha256_bytes
from bench.protocol.probe import SEPARATOR, Mark, ProbeSettings

SCHEMA_VERSION = 1
Degradation = dict[str, Any] | list[dict[str, Any]] | None


def presets_of(degradation: Degradation) -> list[dict[str, Any]]:
    """The presets of a degradation: none, one, or the several of which every photograph gets each."""
    if degradation is None:
        return []
    return degradation if isinstance(degradation, list) else [degradation]


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
        marks: Marks that a probe paints on the crop.
        points_from: Where the points come from: the landmark file and its hash, or the detector; None
            where they are committed with the alignment.
    """

    path: str
    sha256: str
    matrix: np.ndarray
    points: np.ndarray | None
    marks: tuple[Mark, ...] = ()
    points_from: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The photograph as built-in types."""
        record: dict[str, Any] = {
            "path": self.path,
            "sha256": self.sha256,
            "matrix": self.matrix.tolist(),
            "points": None if self.points is None else self.points.tolist(),
        }
        if self.marks:
            record["marks"] = [mark._asdict() for mark in self.marks]
        return record if self.points_from is None else {**record, "points_from": self.points_from}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ProtocolPhoto:
        """Reads what `as_dict` wrote."""
        points = None if record["points"] is None else np.asarray(record["points"], dtype=np.float64)
        marks = tuple(Mark(**mark) for mark in record.get("marks", ()))
        matrix = np.asarray(record["matrix"], dtype=np.float64)
        return cls(record["path"], record["sha256"], matrix, points, marks, record.get("points_from"))


@dataclass(frozen=True)
class ProtocolImage:
    """One picture to restore.

    Attributes:
        image_id: Unique name within the protocol.
        identity: Who is shown.
        source: The ground truth; None for a real degraded picture that has none.
        references: Ordered references, never the ground truth.
        gt_sha256: Hash of the decoded, aligned ground truth pixels.
        lq_sha256: Hash of the degraded pixels.
        lq: The degraded picture where the data set brings it; None where the protocol makes it.
        degradation: Which of the protocol's presets degrades it, where there are several; the id ends with it.
    """

    image_id: str
    identity: str
    source: ProtocolPhoto | None
    references: tuple[ProtocolPhoto, ...]
    gt_sha256: str | None = None
    lq_sha256: str | None = None
    lq: ProtocolPhoto | None = None
    degradation: str | None = None

    @property
    def photograph(self) -> str:
        """What the pictures of one photograph share: the image id without the degradation."""
        return self.image_id if self.degradation is None else self.image_id.removesuffix(SEPARATOR + self.degradation)

    @property
    def shown(self) -> ProtocolPhoto:
        """The photograph that fills the crop: the ground truth, or the degraded picture where there is none."""
        photo = self.source or self.lq
        if photo is None:
            raise ValueError(f"{self.image_id} has neither ground truth nor LQ picture")
        return photo

    def as_dict(self) -> dict[str, Any]:
        """The image as built-in types."""
        record = {
            "image_id": self.image_id,
            "identity": self.identity,
            "source": None if self.source is None else self.source.as_dict(),
            "references": [reference.as_dict() for reference in self.references],
            "gt_sha256": self.gt_sha256,
            "lq_sha256": self.lq_sha256,
        }
        if self.lq is not None:
            record["lq"] = self.lq.as_dict()
        return record if self.degradation is None else {**record, "degradation": self.degradation}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ProtocolImage:
        """Reads what `as_dict` wrote."""
        source, lq = record["source"], record.get("lq")
        return cls(
            record["image_id"],
            record["identity"],
            None if source is None else ProtocolPhoto.from_dict(source),
            tuple(ProtocolPhoto.from_dict(reference) for reference in record["references"]),
            record["gt_sha256"],
            record["lq_sha256"],
            None if lq is None else ProtocolPhoto.from_dict(lq),
            record.get("degradation"),
        )


def under_each(images: Sequence[ProtocolImage], presets: Sequence[str]) -> tuple[ProtocolImage, ...]:
    """Every picture once for each of several degradations, with the degradation's name at the end of its id."""
    return tuple(
        replace(image, image_id=image.image_id + SEPARATOR + preset, degradation=preset)
        for image in images
        for preset in presets
    )


@dataclass(frozen=True)
class Protocol:
    """A frozen protocol; see the module's text.

    `degradation` is a list where every photograph comes under several; `ProtocolImage.degradation` says under which.
    """

    name: str
    title: str
    card: str
    split: str
    size: int
    seed: int
    degradation: Degradation
    selection: dict[str, Any]
    images: tuple[ProtocolImage, ...]
    id: str
    probe: dict[str, Any] | None = None

    @property
    def image_ids(self) -> list[str]:
        """Ids of all pictures, in the protocol's order."""
        return [image.image_id for image in self.images]

    def pipeline(self, preset: str | None = None) -> DegradationPipeline | None:
        """The protocol's degradation; None where the data set brings the LQ pictures.

        Args:
            preset: Which one, where there are several (`ProtocolImage.degradation`).
        """
        for own in presets_of(self.degradation):
            if preset is None or own["name"] == preset:
                return DegradationPipeline(own["name"], own["steps"], own["size"])
        return None

    def versions(self, image: ProtocolImage) -> list[ProtocolImage]:
        """The pictures of the same photograph, one per degradation, in the protocol's order; the picture among them."""
        return self._photographs[image.photograph]

    @cached_property
    def _photographs(self) -> dict[str, list[ProtocolImage]]:
        found: dict[str, list[ProtocolImage]] = {}
        for image in self.images:
            found.setdefault(image.photograph, []).append(image)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The protocol as built-in types."""
        probe = {} if self.probe is None else {"probe": self.probe}
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
            **probe,
            "identities": len({image.identity for image in self.images}),
            "images": [image.as_dict() for image in self.images],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Protocol:
        """Reads what `as_dict` wrote."""
        images = tuple(ProtocolImage.from_dict(image) for image in record["images"])
        keys = ("name", "title", "card", "split", "size", "seed", "degradation", "selection", "id")
        return cls(**{key: record[key] for key in keys}, images=images, probe=record.get("probe"))


def protocol_id(
    size: int,
    seed: int,
    degradation: Degradation,
    images: tuple[ProtocolImage, ...],
    name: str,
    probe: dict[str, Any] | None = None,
) -> str:
    """Sixteen hexadecimal digits that change when anything that decides the pictures changes."""

    def photo(record: ProtocolPhoto | None) -> list[Any] | None:
        if record is None:
            return None
        own = [record.sha256, record.matrix.tolist()]
        if record.marks:
            own.append([list(mark) for mark in record.marks])
        # Points decide what is measured; their last digits differ between machines, where they come from does not.
        return own if record.points_from is None else [*own, record.points_from]

    def row(image: ProtocolImage) -> list[Any]:
        own = [image.image_id, image.identity, photo(image.source), [photo(one) for one in image.references]]
        return own if image.lq is None else [*own, photo(image.lq)]

    content = {
        "name": name,
        "size": size,
        "seed": seed,
        "degradation": degradation,
        "images": [row(image) for image in images],
    }
    if probe is not None:
        content["probe"] = probe
    return sha256_bytes(json.dumps(content, sort_keys=True).encode("utf-8"))[:16]


@dataclass(frozen=True)
class DataSettings:
    """A data configuration (`configs/data/<name>.yaml`), composed.

    Attributes:
        name: Name of the protocol.
        title: One line for tables.
        card: Data card.
        degradation: `{name, steps, source}` of the preset; None where the data set brings the LQ pictures; a list
            of several where every photograph is to come once under each.
        split: Which identities.
        size: Side of the pictures in pixels.
        seed: Declared seed of the degradation.
        references: References per identity; where the data set fixes them, at most so many of those. None
            for all that the data set fixes.
        targets: Pictures to restore per identity; None for all that are left.
        root: Folder of the data set, where it is not in its usual place.
        identities: How many identities, the first in hashed order; None for all.
        minimum_photos: Photographs an identity must have; None for as many as are used.
        selection: `{rule: quality_pairs, metric: name}` instead of the natural order; see
            `bench/protocol/selection.py`.
        probe: `{name: marks, ...}` plants marks on the photographs; see `bench/protocol/probe.py`.
    """

    name: str
    title: str
    card: str
    degradation: Degradation
    split: str
    size: int
    seed: int
    references: int | None
    targets: int | None
    root: str | None
    identities: int | None = None
    minimum_photos: int | None = None
    selection: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None

    def probe_settings(self) -> ProbeSettings | None:
        """The checked probe, or None."""
        return None if self.probe is None else ProbeSettings.from_dict(self.probe)

    def pipeline(self) -> DegradationPipeline | None:
        """The degradation at the pictures' size; None where the data set brings the LQ pictures.

        Raises:
            UsageError: There are several.
        """
        if isinstance(self.degradation, list):
            names = ", ".join(preset["name"] for preset in self.degradation)
            raise UsageError(f"data={self.name} has several degradations ({names}). Name one: data.degradation=heavy.")
        pipelines = self.pipelines()
        return pipelines[0] if pipelines else None

    def pipelines(self) -> list[DegradationPipeline]:
        """Every degradation at the pictures' size."""
        return [DegradationPipeline(own["name"], own["steps"], self.size) for own in presets_of(self.degradation)]
