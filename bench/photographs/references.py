"""The person's other photographs: whose face is meant on each, and that face as a method wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.errors import BenchError, UsageError
from bench.faces.detector import Face
from bench.method import TrainingFaces
from bench.photographs.blend import grey_of
from bench.photographs.face_crop import FaceCrop, face_crop
from bench.photographs.found_faces import embeddings, find_faces
from bench.photographs.photograph import read_photograph
from bench.protocol.alignment import TEMPLATES


@dataclass(frozen=True)
class Reference:
    """A photograph that shows the person.

    Attributes:
        path: Its file.
        pixels: (H, W, 3) uint8 RGB.
        face: The person's face.
        embedding: (128,) of that face.
    """

    path: Path
    pixels: np.ndarray
    face: Face
    embedding: Tensor

    def crop(self, template: str, side: int) -> FaceCrop:
        """Where the aligned face lies."""
        return face_crop(self.face.points, TEMPLATES[template], side, self.pixels.shape[:2])


def read_references(paths: Sequence[Path]) -> tuple[list[Reference], list[str]]:
    """Reads the photographs of a person and finds the face that is meant.

    That is the largest. Where one photograph shows several faces, it is the one most like the faces of those that show
    a single one, or like the largest faces of the others where all show several.

    Args:
        paths: Picture files.

    Returns:
        The references that show a face, and what to warn about.

    Raises:
        UsageError: One cannot be read, or none shows a face.
    """
    warnings: list[str] = []
    read: list[tuple[Path, np.ndarray, list[Face], Tensor]] = []
    for path in paths:
        pixels = read_photograph(path).pixels
        for earlier, other, _, _ in read:
            if np.array_equal(pixels, other):
                warnings.append(
                    f"warning: the reference {path} is the same picture as {earlier}; it teaches nothing more."
                )
                break
        try:
            faces = find_faces(pixels)
        except BenchError as error:
            if not isinstance(error, UsageError):
                raise
            warnings.append(f"warning: the reference {path} is left out. {error}")
            continue
        read.append((path, pixels, faces, embeddings(pixels, faces)))
    if paths and not read:
        raise UsageError(f"No face was found in the reference{'s' if len(paths) > 1 else ''} {_listed(paths)}.")
    chosen = _whose([found for _, _, _, found in read])
    references = []
    for (path, pixels, faces, found), number in zip(read, chosen, strict=True):
        references.append(Reference(path, pixels, faces[number], found[number]))
        if number:
            warnings.append(
                f"the reference {path} shows {len(faces)} people; number {number + 1} by size is like the others."
            )
    return references, warnings


def _whose(found: Sequence[Tensor]) -> list[int]:
    """Of each reference's faces (N, 128) the number of the one that is meant."""
    alone = [number for number, faces in enumerate(found) if len(faces) == 1]
    chosen = []
    for number, faces in enumerate(found):
        others = [other for other in (alone or range(len(found))) if other != number]
        if len(faces) == 1 or not others:
            chosen.append(0)
            continue
        known = torch.stack([found[other][0] for other in others])
        chosen.append(int((faces @ known.T).mean(dim=1).argmax()))
    return chosen


def aligned_references(
    references: Sequence[Reference], trained_on: TrainingFaces, side: int
) -> tuple[Tensor, list[str]]:
    """The faces as a method wants them.

    Args:
        references: At least one.
        trained_on: Their form.
        side: In pixels.

    Returns:
        (R, 3, side, side) RGB in [0, 1], of 8 bits per channel, and what to warn about.
    """
    warnings, crops = [], []
    for reference in references:
        crop = reference.crop(trained_on.template, side)
        pixels = crop.cut(reference.pixels)
        crops.append(grey_of(pixels) if trained_on.grey else pixels)
        if crop.scale > 1.5:
            warnings.append(
                f"warning: the face of the reference {reference.path} is enlarged from {crop.side_in_photo:.0f} to "
                f"{side} px; a larger one shows more of the person."
            )
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(255), warnings


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
