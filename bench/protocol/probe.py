"""Planted marks: a probe of whether a method copies the fine details of its reference, and only when it should.

Small round marks, like moles (dark) and scars (light), are painted on the aligned crops at places that are fixed
relative to the five points. One person has the same marks on all photographs. Each picture to restore comes in two
variants: `both` has them on the ground truth and on the references, `reference` on the references alone. The metrics
`mark_recall` and `mark_false_copy` (bench/metrics/planted_detail.py) read off what a method made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.errors import UsageError, unknown_name
from bench.seeds import derive_seed

if TYPE_CHECKING:
    from bench.protocol.protocol import ProtocolImage, ProtocolPhoto

VERSION = 1
BOTH, REFERENCE = "both", "reference"
VARIANTS = (BOTH, REFERENCE)
SEPARATOR = "@"
# What a protocol with planted marks is for: these are scored whatever else is.
METRICS = ("mark_recall", "mark_false_copy")

# Five points and sites of a face of 128 px; the points are those of the template `orl_tight`.
TEMPLATE_SIDE = 128
TEMPLATE_POINTS = ((39.5, 52.0), (87.5, 52.0), (63.5, 80.5), (43.0, 101.7), (84.0, 101.7))
SITES = {
    "left cheek": (35.0, 78.0),
    "right cheek": (92.0, 78.0),
    "forehead, left": (47.0, 30.0),
    "forehead, right": (80.0, 30.0),
    "chin": (63.5, 116.0),
}
# Brighter skin gets dark marks, darker skin light ones, so that neither is cut off at black or white.
BRIGHT_SKIN = 0.45
DECIMALS = 3


class Mark(NamedTuple):
    """A mark on one photograph.

    Attributes:
        site: Where on the face, a name of `SITES`.
        x: Centre in the crop, pixels.
        y: Centre in the crop, pixels.
        radius: Radius, pixels.
        contrast: Added to the pixels inside, in [-1, 1]; negative is dark.
    """

    site: str
    x: float
    y: float
    radius: float
    contrast: float


@dataclass(frozen=True)
class ProbeSettings:
    """A probe (`configs/probe/<name>.yaml`).

    Attributes:
        name: Name; the protocol's name ends with it.
        marks: Marks per person.
        radius: Smallest and largest radius, pixels in a crop of 128.
        contrast: How much darker or lighter a mark is than the skin, in (0, 1).
    """

    name: str
    marks: int
    radius: tuple[float, float]
    contrast: float

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ProbeSettings:
        """Reads a composed configuration.

        Raises:
            UsageError: Unknown probe, unknown or missing keys, or values out of range.
        """
        content = {key: value for key, value in record.items() if key != "title"}
        if content.get("name") != "marks":
            raise unknown_name("probe", str(content.get("name")), ["marks"])
        try:
            low, high = (float(value) for value in content.pop("radius"))
            settings = cls(radius=(low, high), **content)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"data.probe needs name, marks, radius: [low, high] and contrast: {error}.") from error
        if not (1 <= settings.marks <= len(SITES) and 0 < low <= high and 0 < settings.contrast < 1):
            raise UsageError(
                f"data.probe.marks must lie in 1 to {len(SITES)}, radius be two rising positive numbers, and contrast "
                f"lie between 0 and 1; got {dict(record)}."
            )
        return settings

    def specification(self) -> dict[str, Any]:
        """What enters the protocol and its id."""
        parameters = {"marks": self.marks, "radius": list(self.radius), "contrast": self.contrast}
        return {"name": self.name, "version": VERSION, "parameters": parameters}


def template_map(points: np.ndarray) -> np.ndarray:
    """(2, 3) least-squares affine map from the template of 128 px to (5, 2) points; it follows a turned head."""
    source = np.column_stack([np.asarray(TEMPLATE_POINTS), np.ones(5)])
    solution, *_ = np.linalg.lstsq(source, np.asarray(points, dtype=np.float64), rcond=None)
    matrix: np.ndarray = solution.T
    return matrix


def place(site: str | tuple[float, float], points: np.ndarray) -> tuple[float, float]:
    """Where a site, or a position in the template, lies on a face with these five points: (x, y), pixels."""
    position = SITES[site] if isinstance(site, str) else site
    x, y = template_map(points) @ np.array([*position, 1.0])
    return float(x), float(y)


def coverage(side: int, x: float, y: float, radius: float) -> np.ndarray:
    """(side, side) share of a round mark in every pixel, in [0, 1]; its edge is 1 px wide in a crop of 128."""
    edge = max(1.0, side / TEMPLATE_SIDE)
    rows, columns = np.mgrid[0:side, 0:side]
    share: np.ndarray = np.clip((radius + edge / 2 - np.hypot(columns - x, rows - y)) / edge, 0.0, 1.0)
    return share


def paint(image: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """Paints marks on a crop.

    Args:
        image: (S, S, 3) uint8 RGB.
        marks: Marks of this photograph.

    Returns:
        (S, S, 3) uint8 RGB; painted in double precision and rounded once.
    """
    if not marks:
        return image
    painted = image.astype(np.float64) / 255
    for mark in marks:
        painted += mark.contrast * coverage(len(image), mark.x, mark.y, mark.radius)[..., np.newaxis]
    return np.rint(np.clip(painted, 0.0, 1.0) * 255).astype(np.uint8)


def luma_around(image: np.ndarray, x: float, y: float, radius: float) -> float:
    """Median luma of (S, S, 3) RGB within `radius` of a place, on the picture's own scale."""
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    inside = np.hypot(columns - x, rows - y) <= max(radius, 1.0)
    if not inside.any():
        return float(np.median(image))
    return float(np.median(image[inside] @ np.array([0.299, 0.587, 0.114])))


def plant(
    images: Sequence[ProtocolImage],
    settings: ProbeSettings,
    protocol: str,
    size: int,
    crop: Callable[[ProtocolPhoto], np.ndarray],
) -> tuple[ProtocolImage, ...]:
    """Two variants of every picture, with the marks of its person written into its photographs.

    Pictures without references, and those where the five points of a photograph are unknown, are left out.

    Args:
        images: Pictures of a protocol without the probe.
        settings: The probe.
        protocol: Name of the protocol; with the identity it seeds which marks a person has.
        size: Side of the crops.
        crop: Cuts a photograph out, (size, size, 3) uint8 RGB.

    Raises:
        UsageError: No picture is left.
    """
    people: dict[str, list[tuple[str, float, float]]] = {}
    planted: list[ProtocolImage] = []
    for image in images:
        source = image.source
        if source is None or source.points is None or not image.references:
            continue
        if any(reference.points is None for reference in image.references):
            continue
        if image.identity not in people:
            people[image.identity] = _marks_of(image, settings, protocol, size, crop)
        own = people[image.identity]
        references = tuple(_with_marks(reference, own) for reference in image.references)
        for variant, truth in ((BOTH, _with_marks(source, own)), (REFERENCE, source)):
            name = f"{image.image_id}{SEPARATOR}{variant}"
            planted.append(replace(image, image_id=name, source=truth, references=references))
    if not planted:
        raise UsageError(f"{protocol} holds no picture with ground truth, references and five points: nothing to mark.")
    return tuple(planted)


def _marks_of(
    image: ProtocolImage,
    settings: ProbeSettings,
    protocol: str,
    size: int,
    crop: Callable[[ProtocolPhoto], np.ndarray],
) -> list[tuple[str, float, float]]:
    """Site, radius and contrast of a person's marks; the sign is decided on the first reference."""
    rng = np.random.default_rng(derive_seed(protocol, "probe", settings.name, VERSION, image.identity))
    scale = size / TEMPLATE_SIDE
    first = image.references[0]
    assert first.points is not None
    picture = crop(first)
    chosen = rng.permutation(list(SITES))[: settings.marks]
    marks = []
    for site in sorted(str(name) for name in chosen):
        radius = round(float(rng.uniform(*settings.radius)) * scale, DECIMALS)
        skin = luma_around(picture, *place(site, first.points), 2 * radius) / 255
        marks.append((site, radius, -settings.contrast if skin > BRIGHT_SKIN else settings.contrast))
    return marks


def _with_marks(photo: ProtocolPhoto, own: Sequence[tuple[str, float, float]]) -> ProtocolPhoto:
    assert photo.points is not None
    marks = []
    for site, radius, contrast in own:
        x, y = place(site, photo.points)
        marks.append(Mark(site, round(x, DECIMALS), round(y, DECIMALS), radius, contrast))
    return replace(photo, marks=tuple(marks))


def unmarked(photo: ProtocolPhoto) -> ProtocolPhoto:
    """The photograph without its marks."""
    return replace(photo, marks=())


def base_image_id(image_id: str) -> str:
    """The picture's id in the protocol without the probe: both variants are degraded with the same seed."""
    base, separator, variant = image_id.rpartition(SEPARATOR)
    return base if separator and variant in VARIANTS else image_id


@dataclass(frozen=True)
class PictureMarks:
    """What the metrics need to know of a picture's planted marks.

    Attributes:
        variant: `both` or `reference`.
        sites: The person's marks where they lie on the ground truth's face, whether painted there or not.
        reference_sites: The same on each reference, where they are painted.
        plain_truth: (S, S, 3) uint8 RGB, the ground truth without marks.
        plain_references: The references without marks, (S, S, 3) uint8 RGB each.
    """

    variant: str
    sites: tuple[Mark, ...]
    reference_sites: tuple[tuple[Mark, ...], ...]
    plain_truth: np.ndarray
    plain_references: tuple[np.ndarray, ...]


def picture_marks(image: ProtocolImage, crop: Callable[[ProtocolPhoto], np.ndarray]) -> PictureMarks | None:
    """The marks of one picture; None where no probe planted any.

    Args:
        image: Picture of a protocol.
        crop: Cuts a photograph out and paints its marks, as `ProtocolPictures.crop`.
    """
    source = image.source
    if source is None or source.points is None or not any(reference.marks for reference in image.references):
        return None
    own = [(mark.site, mark.radius, mark.contrast) for mark in image.references[0].marks]
    return PictureMarks(
        variant=BOTH if source.marks else REFERENCE,
        sites=_with_marks(source, own).marks,
        reference_sites=tuple(reference.marks for reference in image.references),
        plain_truth=crop(unmarked(source)),
        plain_references=tuple(crop(unmarked(reference)) for reference in image.references),
    )
