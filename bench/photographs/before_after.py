"""The page that shows photographs before and after: one HTML file, which opens from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.photographs.face_crop import FaceCrop
from bench.report.pictures import PictureBook
from bench.report.report import render

#: Longest side of a photograph on the page, in pixels, and how many are shown.
PHOTO_SIDE, MOST_PHOTOS = 1280, 24
#: Sides of the faces; of one photograph so many are shown, with so many references.
FACE_SIDE, REFERENCE_SIDE, MOST_FACES, MOST_REFERENCES = 320, 160, 12, 6


@dataclass(frozen=True)
class ShownFace:
    """A restored face.

    Attributes:
        before: Where it lies in the photograph.
        after: Where it lies in the restored one.
        is_the_person: Whether it was restored as the person of the references.
        note: What to say of it; empty where there is nothing to say.
    """

    before: FaceCrop
    after: FaceCrop
    is_the_person: bool
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """A photograph before and after.

    Attributes:
        name: Of its file.
        before: (H, W, 3) uint8 RGB.
        after: (H', W', 3) uint8 RGB, the restored one.
        faces: The restored ones.
        references: Where the person's face lies in each reference, and the reference, (h, w, 3) uint8 RGB.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    faces: Sequence[ShownFace]
    references: Sequence[tuple[FaceCrop, np.ndarray]]


@dataclass
class _Face:
    before: str
    after: str
    width: int
    references: list[str]
    note: str


@dataclass
class _Shown:
    name: str
    before: str
    after: str
    size: str
    size_before: str
    faces: list[_Face]
    more_faces: int


@dataclass
class Page:
    """Gathers photographs, and writes the page.

    Attributes:
        method: Label of the method.
        caution: What to say of its results; empty where there is nothing to say.
        background: Label of the method that restored the rest of each photograph; empty where none did.
        left_out: How many photographs are not shown.
    """

    method: str
    caution: str = ""
    background: str = ""
    left_out: int = 0
    _book: PictureBook = field(default_factory=PictureBook)
    _shown: list[_Shown] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Adds a photograph, unless the page is full."""
        if len(self._shown) == MOST_PHOTOS:
            self.left_out += 1
            return
        references = [
            self._address(crop.at_side(REFERENCE_SIDE).cut(pixels))
            for crop, pixels in pair.references[:MOST_REFERENCES]
        ]
        faces = [
            _Face(
                self._address(face.before.at_side(FACE_SIDE).cut(pair.before)),
                self._address(face.after.at_side(FACE_SIDE).cut(pair.after)),
                round(face.before.side_in_photo),
                references if face.is_the_person else [],
                face.note,
            )
            for face in pair.faces[:MOST_FACES]
        ]
        self._shown.append(
            _Shown(
                pair.name,
                self._address(pair.before, PHOTO_SIDE),
                self._address(pair.after, PHOTO_SIDE),
                _size(pair.after),
                _size(pair.before),
                faces,
                len(pair.faces) - len(faces),
            )
        )

    def html(self) -> str:
        """The page."""
        return render(
            "before_after.html",
            method=self.method,
            caution=self.caution,
            background=self.background,
            photographs=self._shown,
            left_out=self.left_out,
            scripts=("before_after.js",),
        )

    def _address(self, pixels: np.ndarray, side: int | None = None) -> str:
        return self._book.addresses[self._book.add(pixels, side)]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} × {pixels.shape[0]} px"
