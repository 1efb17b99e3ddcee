"""Hash, matrix and points of each photograph: from committed files, or detected once and kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import MissingError, UsageError
from bench.files import sha256_bytes, sha256_file, write_json
from bench.image import UnreadableImageError, read_image
from bench.paths import bench_home, resource_root
from bench.protocol.alignment import transform_points
from bench.protocol.card import DatasetCard
from bench.protocol.protocol import ProtocolMismatchError, ProtocolPhoto
from bench.weights.catalogue import short_hash

# A protocol must be the same whether it was just frozen or read back from its file.
POINT_DECIMALS = 3


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

    def align(self, relative: str, points: bool = True) -> ProtocolPhoto:
        """Hash, matrix and points of one photograph.

        Args:
            relative: Its path in the data set's folder.
            points: Whether its points are wanted; nothing is detected on an LQ picture.

        Raises:
            ProtocolMismatchError: The file is not the one the committed alignment was made for.
            MissingError: There is no such file.
            UsageError: A picture of an aligned data set has the wrong size, or cannot be read.
        """
        path = self.root / relative
        if not path.is_file():
            raise MissingError(f"{path} is not there, though the lists of {self.card.name} name it.")
        digest = sha256_file(path)
        if self.committed is not None:
            record = self.committed.get(relative)
            if record is None or record["sha256"] != digest:
                raise ProtocolMismatchError(
                    f"{path} is not the file that {self.card.alignment} was made for (SHA-256 {digest[:12]}…). "
                    f"Install the data set again: {self.card.obtain}"
                )
            matrix = np.asarray(record["matrix"], dtype=np.float64) * (self.size / self.card.size)
            placed = transform_points(np.asarray(record["points"], dtype=np.float64), matrix)
            return ProtocolPhoto(relative, digest, matrix, np.round(placed, POINT_DECIMALS) if points else None)
        landmarks = _landmark_file(path) if points else None
        facts = _facts(path, digest, detect=points and landmarks is None)
        height, width = facts["size"]
        if height != width:
            raise UsageError(
                f"{path} is {width}x{height} px; {self.card.name} holds aligned square pictures. Align it first, or "
                "take it out of the folder."
            )
        scale = self.size / height
        matrix = np.array([[scale, 0.0, (scale - 1) / 2], [0.0, scale, (scale - 1) / 2]])
        found = facts["points"] if landmarks is None else landmarks
        if not points:
            return ProtocolPhoto(relative, digest, matrix, None)
        origin = f"yunet {short_hash('yunet')}" if landmarks is None else f"landmarks {sha256_file(_beside(path))}"
        if found is None:
            return ProtocolPhoto(relative, digest, matrix, None, points_from=origin)
        placed = np.round(transform_points(np.asarray(found, dtype=np.float64), matrix), POINT_DECIMALS)
        return ProtocolPhoto(relative, digest, matrix, placed, points_from=origin)

    def align_if_readable(self, relative: str, points: bool = True) -> ProtocolPhoto | None:
        """`align`, or None for a file that cannot be decoded, which is named on standard error."""
        try:
            return self.align(relative, points)
        except UnreadableImageError as error:
            print(f"bench: left out of the protocol: {error}", file=sys.stderr)  # noqa: T201
            return None


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".txt")


def _landmark_file(path: Path) -> np.ndarray | None:
    """Five points from the 68 of a file beside the picture (`0.png.txt`), or None."""
    beside = _beside(path)
    if not beside.is_file():
        return None
    try:
        points = np.loadtxt(beside, dtype=np.float64, ndmin=2)
    except (ValueError, OSError) as error:
        raise UsageError(f"{beside} is no landmark file: {error}. Mend it or take it away.") from error
    if points.shape != (68, 2) or not np.isfinite(points).all():
        raise UsageError(f"{beside} must hold 68 lines of x and y. Mend it or take it away.")
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def _facts(path: Path, digest: str, detect: bool) -> dict[str, Any]:
    """Size and points of the largest face of a picture; found once per file and detector, then read.

    Raises:
        UnreadableImageError: It cannot be decoded.
    """
    from bench.faces.detector import detect_main_face, detector_identity

    name = sha256_bytes(f"facts {digest} {detector_identity() if detect else 'size only'}".encode())
    cached = bench_home() / "points" / name[:2] / f"{name}.json"
    if not cached.is_file():
        image = read_image(path)
        face = detect_main_face(image) if detect else None
        write_json(cached, {"size": list(image.shape[:2]), "points": None if face is None else face.points.tolist()})
    facts: dict[str, Any] = json.loads(cached.read_text("utf-8"))
    return facts
