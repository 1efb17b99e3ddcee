"""Planted detail: whether small marks of the references come back in the restored picture.

For protocols with `probe=marks` (bench/protocol/probe.py). Both metrics ask of each mark of the person whether it
appears in the restored picture, and report the share of those that do:

- contrast at a place: for a light mark, mean luma of a disc of the mark's radius minus the upper quartile of a ring
  around it; for a dark mark, the ring's lower quartile minus the disc's mean. On skin a quartile is nearly the median;
  at edges and lines (hair, glasses) it is not, so that they do not pass for spots;
- search: the largest contrast within 3 px (in a crop of 128) of where the mark belongs on the ground truth's face, or
  of where it lies on one of the references, because a method that copies without warping leaves it there. All methods
  are searched at the same places;
- natural texture: the largest contrast that the unmarked ground truth and the unmarked references show at these places;
- the mark appears where the restored picture reaches at least half of the mark's own contrast, counted from natural
  texture on. The mark's own contrast is that in the ground truth (`mark_recall`), or its mean over the references
  (`mark_false_copy`).

Marks whose natural texture exceeds half of their own contrast (in hair, say, or at the frame of glasses) cannot be told
from it and do not count; a picture without any other mark is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.metrics.metric import Metric, Score, ScoringBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from bench.protocol.probe import Mark, PictureMarks

VERSION = 1
# In pixels of a crop of 128: how far around a place is searched, and the gap between disc and ring.
SEARCH = 3.0
GAP = 1.0
RING = 2.0  # outer radius of the ring, in radii, beyond the gap
RING_QUANTILE = 0.75
LARGEST_NATURAL_SHARE = 0.5
NO_PROBE = "needs a protocol with planted marks (probe=marks)"
NOT_MEASURABLE = "no mark of this picture can be told from natural texture"


def luma(picture: np.ndarray) -> np.ndarray:
    """(H, W) luma in [0, 1] of (H, W, 3) uint8 RGB."""
    import numpy as np

    values: np.ndarray = picture @ np.array([0.299, 0.587, 0.114]) / 255
    return values


def largest_contrast(picture: np.ndarray, places: Iterable[tuple[float, float]], mark: Mark) -> float:
    """The largest signed contrast of a mark's size around some places.

    Args:
        picture: (H, W) luma in [0, 1].
        places: Where to search, (x, y) in pixels.
        mark: Gives radius and sign.

    Returns:
        Contrast in [-1, 1]; NaN where all places lie outside the picture.
    """
    import numpy as np

    height, width = picture.shape
    scale = width / 128
    step = max(1, round(scale))
    reach = int(np.ceil(SEARCH * scale / step)) * step
    shifts = np.arange(-reach, reach + 1, step)
    down, right = (axis.ravel() for axis in np.meshgrid(shifts, shifts, indexing="ij"))
    near = np.hypot(down, right) <= SEARCH * scale + 1e-9
    centres = np.concatenate(
        [np.column_stack([round(y) + down[near], round(x) + right[near]]) for x, y in places] or [np.zeros((0, 2))]
    ).astype(int)
    inside = (centres >= 0).all(1) & (centres[:, 0] < height) & (centres[:, 1] < width)
    centres = np.unique(centres[inside], axis=0)
    if not len(centres):
        return float("nan")
    disc, ring = _disc_and_ring(mark.radius, GAP * scale)
    sign = np.sign(mark.contrast)
    disc_mean = sign * _at(picture, centres, disc).mean(axis=1)
    ring_quantile = np.quantile(sign * _at(picture, centres, ring), RING_QUANTILE, axis=1)
    return float((disc_mean - ring_quantile).max())


def _disc_and_ring(radius: float, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (N, 2) of the pixels of a disc and of the ring around it."""
    import numpy as np

    outer = RING * radius + gap
    reach = int(np.ceil(outer))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(rows, columns)
    offsets = np.stack([rows, columns], axis=-1)
    return offsets[distance <= radius], offsets[(distance > radius + gap) & (distance <= outer)]


def _at(picture: np.ndarray, centres: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(centres, offsets) values; places beyond the border take the border's."""
    import numpy as np

    where = centres[:, np.newaxis] + offsets
    rows = np.clip(where[..., 0], 0, picture.shape[0] - 1)
    columns = np.clip(where[..., 1], 0, picture.shape[1] - 1)
    values: np.ndarray = picture[rows, columns]
    return values


def contrast_shares(
    restored: np.ndarray, marks: PictureMarks, truth: np.ndarray, references: Sequence[np.ndarray]
) -> list[float]:
    """How much of each mark's contrast a restored picture shows: 0 is natural texture, 1 the mark itself.

    Marks that cannot be told from natural texture are left out.

    Args:
        restored: (S, S, 3) uint8 RGB.
        marks: The picture's marks.
        truth: The ground truth as the protocol gives it, (S, S, 3) uint8 RGB.
        references: The marked references.
    """
    import numpy as np

    plain = [luma(picture) for picture in (marks.plain_truth, *marks.plain_references)]
    marked = [luma(truth)] if marks.variant == "both" else [luma(picture) for picture in references]
    picture = luma(restored)
    shares = []
    for number, mark in enumerate(marks.sites):
        copies = [own[number] for own in marks.reference_sites]
        places = [(site.x, site.y) for site in (mark, *copies)]
        origins = [mark] if marks.variant == "both" else copies
        own = [largest_contrast(image, [(site.x, site.y)], mark) for image, site in zip(marked, origins, strict=True)]
        full = float(np.mean(own))
        natural = max(0.0, *(largest_contrast(image, places, mark) for image in plain))
        if full > 0 and natural <= LARGEST_NATURAL_SHARE * full:
            shares.append((largest_contrast(picture, places, mark) - natural) / (full - natural))
    return shares


def marks_found(
    restored: np.ndarray, marks: PictureMarks, truth: np.ndarray, references: Sequence[np.ndarray]
) -> list[bool]:
    """Which marks appear in a restored picture, with at least half of their contrast; see `contrast_shares`."""
    return [share >= 0.5 for share in contrast_shares(restored, marks, truth, references)]


class _PlantedDetail(Metric):
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    licence: ClassVar[str] = "Apache-2.0 (own)"
    weights: ClassVar[tuple[str, ...]] = ()
    needs = ("truth", "references", "landmarks")
    variant: ClassVar[str]
    counted: ClassVar[str]

    @property
    def identity(self) -> str:
        """Identity string."""
        return (
            f"{self.name}@planted-detail v{VERSION}@share of planted marks with half of {self.counted}, "
            f"luma of disc minus quartile of ring, largest within {SEARCH:g}/128 of truth and reference sites, counted "
            "from natural texture on"
        )

    def score_batch(self, batch: ScoringBatch) -> list[Score]:
        """As for every metric; without a probe that is the reason, whatever else is absent."""
        if batch.marks is None or all(own is None for own in batch.marks):
            return [Score(None, NO_PROBE)] * len(batch)
        return super().score_batch(batch)

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Share of the marks that appear, in [0, 1]; null in the other variant and without the probe."""
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: ScoringBatch, row: int) -> Score:
        marks = None if batch.marks is None else batch.marks[row]
        if marks is None or batch.truth is None:
            return Score(None, NO_PROBE)
        if marks.variant != self.variant:
            return Score(None, f"scored on the pictures …@{self.variant} only")
        found = marks_found(batch.restored[row], marks, batch.truth[row], batch.references[row])
        return Score(sum(found) / len(found)) if found else Score(None, NOT_MEASURABLE)


class MarkRecall(_PlantedDetail):
    """Share of the marks on ground truth and references that the restored picture shows."""

    name = "mark_recall"
    title = "Mark recall"
    higher_is_better: ClassVar[bool | None] = True
    variant = "both"
    counted = "the ground truth's contrast"


class MarkFalseCopy(_PlantedDetail):
    """Share of the marks on the references alone that the restored picture shows all the same."""

    name = "mark_false_copy"
    title = "Mark false copy"
    higher_is_better: ClassVar[bool | None] = False
    variant = "reference"
    counted = "the references' contrast"
