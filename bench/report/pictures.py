"""The pictures inside a report: which of them, each stored once, as data addresses."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from bench.errors import BenchError
from bench.report.content import Run, leading, ranked_metrics

if TYPE_CHECKING:
    import numpy as np

MOST_REFERENCES = 5
REFERENCE_SIDE = 128
LOSSLESS_SIDE = 256
LOSSY_QUALITY = 92
# About so many pixels in one page, so that it opens at once on a phone.
MOST_PIXELS = 8_000_000
FEWEST_CASES, MOST_CASES = 16, 120
ENDS = (8, 6, 4, 3, 2, 1)


class Pictures(Protocol):
    """The pictures of one run; each an (H, W, 3) uint8 RGB array."""

    def lq(self, image_id: str) -> np.ndarray:
        """The degraded picture."""
        ...

    def has_truth(self, image_id: str) -> bool:
        """Whether a ground truth exists."""
        ...

    def truth(self, image_id: str) -> np.ndarray:
        """The ground truth."""
        ...

    def restored(self, image_id: str) -> np.ndarray:
        """What the method made of it."""
        ...

    def references(self, image_id: str) -> Sequence[np.ndarray]:
        """The references the method was given."""
        ...


class PictureBook:
    """Pictures as data addresses, equal ones once.

    Attributes:
        addresses: `data:image/webp;base64,…` of each picture, in the order they were added.
    """

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._known: dict[bytes, int] = {}

    def add(self, pixels: np.ndarray, side: int | None = None) -> int:
        """Adds a picture and returns its number.

        Up to 256 px a side the pixels are kept exactly; larger pictures are compressed.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            side: Longest side it is scaled down to.
        """
        import numpy as np
        from PIL import Image

        key = hashlib.sha256(repr((pixels.shape, side)).encode() + np.ascontiguousarray(pixels).tobytes()).digest()
        if key not in self._known:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            if side is not None and max(image.size) > side:
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            exact = max(image.size) <= LOSSLESS_SIDE
            image.save(stream, "WEBP", lossless=exact, quality=80 if exact else LOSSY_QUALITY, method=4)
            self._known[key] = len(self.addresses)
            self.addresses.append("data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii"))
        return self._known[key]


def most_cases(side: int, runs: int) -> int:
    """How many images a page can show in full: LQ, ground truth and each run's picture."""
    return max(FEWEST_CASES, min(MOST_CASES, MOST_PIXELS // (side * side * (2 + runs))))


def images_to_show(runs: Sequence[Run], metric: str | None, most: int) -> list[str]:
    """Images whose pictures go into the page: all if they are few, else the ends of every metric's ranking.

    Args:
        runs: The runs.
        metric: The metric that is chosen first; its median images are among those shown.
        most: How many images at most.

    Returns:
        Image ids in the order of the score table.
    """
    lead = leading(runs)
    everything = list(dict.fromkeys(lead.scores["image_id"]))
    if len(everything) <= most:
        return everything
    for ranked_runs in (list(runs), [lead]):
        for each in ENDS:
            chosen = _middle(lead, metric, each)
            for run in ranked_runs:
                for name in ranked_metrics(run):
                    chosen |= _ends(run, name, each)
            if len(chosen) <= most:
                return [image for image in everything if image in chosen]
    chosen = set()
    for name in dict.fromkeys([*([metric] if metric else []), *ranked_metrics(lead)]):
        for each in reversed(ENDS[-2:] if name == metric else ENDS[-1:]):
            added = _ends(lead, name, each) | (_middle(lead, metric, 1) if name == metric else set())
            if len(chosen | added) <= most:
                chosen |= added
    chosen = chosen or set(everything[:most])
    return [image for image in everything if image in chosen]


def _ends(run: Run, metric: str, each: int) -> set[str]:
    ordered = list(run.values(metric).sort_values(kind="stable").index)
    return {*ordered[:each], *ordered[-each:]}


def _middle(run: Run, metric: str | None, each: int) -> set[str]:
    if metric is None:
        return set()
    ordered = list(run.values(metric).sort_values(kind="stable").index)
    start = max(0, (len(ordered) - each) // 2)
    return set(ordered[start : start + each])


def make_case(image_id: str, runs: Sequence[Run], pictures: Sequence[Pictures], book: PictureBook) -> dict[str, Any]:
    """Numbers of one image's pictures in the book: `lq`, `references`, `restored` (one per run or null), `truth`."""
    own = pictures[leading(runs).index]
    restored: list[int | None] = []
    for source in pictures:
        try:
            restored.append(book.add(source.restored(image_id)))
        except (BenchError, OSError, KeyError):
            restored.append(None)
    references = list(own.references(image_id))[:MOST_REFERENCES]
    return {
        "lq": book.add(own.lq(image_id)),
        "references": [book.add(reference, REFERENCE_SIDE) for reference in references],
        "restored": restored,
        "truth": book.add(own.truth(image_id)) if own.has_truth(image_id) else None,
    }
