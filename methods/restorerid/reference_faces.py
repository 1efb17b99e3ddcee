"""Finds the face of a reference, and says what is done where there is none or more than one.

The released code takes the detector's first face and fails without a word where there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bench.errors import UsageError, unknown_name
from bench.faces.detector import detect_faces

OnMissingFace = Literal["error", "skip", "blind"]
ON_MISSING_FACE = get_args(OnMissingFace)

# Left and right change places: eyes, nose, corners of the mouth.
MIRRORED_POINTS = [1, 0, 2, 4, 3]

SKIP = " method.on_missing_face=skip (the picture's next reference is taken) or"
BLIND = " method.on_missing_face=blind (a picture without any is restored without identity)"

_said: set[str] = set()


class MissingFaceError(UsageError):
    """References show no face.

    Attributes:
        references: Their positions among the references of their picture, from 0.
    """

    def __init__(self, message: str, references: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.references = tuple(references)


@dataclass(frozen=True)
class ReferenceFaces:
    """The reference that gives each picture its identity.

    Attributes:
        images: (B, 3, H, W) RGB in [0, 1]; zeros where `present` is false.
        points: Five points of its largest face, (B, 5, 2), x and y in pixels.
        present: Whether there is one, (B,); the others are restored with the tokens of no identity.
    """

    images: Tensor
    points: Tensor
    present: Tensor

    def with_mirror_images(self) -> ReferenceFaces:
        """The same and then their mirror images, (2B, ...)."""
        width = self.images.shape[-1]
        mirrored = self.points * self.points.new_tensor([-1, 1]) + self.points.new_tensor([width - 1, 0])
        return ReferenceFaces(
            torch.cat([self.images, self.images.flip(-1)]),
            torch.cat([self.points, mirrored[:, MIRRORED_POINTS]]),
            self.present.repeat(2),
        )


def locate_face(image: Tensor, name: str) -> Tensor | None:
    """Five points of the largest face of a picture; says so where there are several.

    Args:
        image: (3, H, W) RGB in [0, 1].
        name: File or picture, for the message.

    Returns:
        (5, 2) float32, x and y in pixels, or None.
    """
    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    faces = detect_faces(pixels)
    if len(faces) > 1:
        _say(f"{name} shows {len(faces)} faces: the largest is taken for the identity.")
    return torch.from_numpy(faces[0].points).float() if faces else None


def choose_references(
    references: Tensor, mask: Tensor, names: Sequence[str], on_missing_face: OnMissingFace = "error"
) -> ReferenceFaces:
    """The first reference with a face, for each picture.

    Args:
        references: (B, R, 3, H, W) RGB in [0, 1].
        mask: Which of them are real, (B, R).
        names: One name per picture, for messages: its reference file where that is known, else its image id.
        on_missing_face: What is done with a reference that shows no face. "error" stops; "skip" goes on to the
            picture's next reference and stops where there is none left; "blind" goes on likewise and then restores
            without identity. A picture that came without any reference is restored without identity in all three.

    Returns:
        Chosen references, on the device of `references`.

    Raises:
        MissingFaceError: See `on_missing_face`.
        UsageError: `on_missing_face` is none of the three.
    """
    if on_missing_face not in ON_MISSING_FACE:
        raise unknown_name("value of method.on_missing_face", on_missing_face, ON_MISSING_FACE)
    count = len(references)
    images = references.new_zeros((count, *references.shape[2:]))
    points = references.new_zeros((count, 5, 2))
    present = torch.zeros(count, dtype=torch.bool, device=references.device)
    for row in range(count):
        given = [int(position) for position in mask[row].nonzero()[:, 0]]
        for position in given:
            name = f"Reference {position + 1} of {names[row]}"
            found = locate_face(references[row, position], name)
            if found is not None:
                images[row], points[row], present[row] = references[row, position], found.to(points), True
                break
            if on_missing_face == "error":
                raise MissingFaceError(_message(f"{name} shows no face", SKIP + BLIND), [position])
            _say(f"{name} shows no face that the detector finds: it is passed over.")
        if given and not present[row]:
            nothing = f"None of the {len(given)} references of {names[row]} shows a face"
            if on_missing_face == "skip":
                raise MissingFaceError(_message(nothing, BLIND), given)
            _say(f"{nothing}: it is restored without identity.")
    return ReferenceFaces(images, points, present)


def _message(what: str, choices: str) -> str:
    return (
        f"{what} that the detector finds, so there is no identity to restore with. Give a picture with one clear "
        f"face, or set{choices}."
    )


def _say(line: str) -> None:
    """Says something once, however often a batch is tried."""
    if line not in _said:
        _said.add(line)
        print(f"bench: {line}", file=sys.stderr)  # noqa: T201
