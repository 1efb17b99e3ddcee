"""The pictures inside a report: which of them, each stored once, as data addresses."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from bench.errors import BenchError
from bench.report.content import Run, baseline, leading, ranked_metrics

if TYPE_CHECKING:
    import numpy as np

MOST_REFERENCES = 5
REFERENCE_SIDE = 128
LOSSLESS_SIDE = 256
LOSSY_QUALITY = 92
# About so many pixels in full, and as many again scaled down, so that a page still opens at once on a phone.
MOST_PIXELS = 16_000_000
SMALL_SIDE = 256
EACH = 4
ORDERS = 5
FEWEST_CASES, MOST_CASES = EACH * ORDERS, 120


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

        Up to 256 px a side the pixels are kept exactly; larger pictures are compressed, scaled down or not.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            side: Longest side it is scaled down to.
        """
        import numpy as np
        from PIL import Image

        key = hashlib.sha256(repr((pixels.shape, side)).encode() + np.ascontiguousarray(pixels).tobytes()).digest()
        if key not in self._known:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            exact = max(image.size) <= LOSSLESS_SIDE
            if side is not None and max(image.size) > side:
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            image.save(stream, "WEBP", lossless=exact, quality=80 if exact else LOSSY_QUALITY, method=4)
            self._known[key] = len(self.addresses)
            self.addresses.append("data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii"))
        return self._known[key]


def most_cases(side: int, runs: int) -> tuple[int, int]:
    """How many images a page can show (LQ, ground truth and each run's picture): in full, and in all."""
    full = max(1, min(MOST_CASES, MOST_PIXELS // (side * side * (2 + runs))))
    small = MOST_PIXELS // (SMALL_SIDE * SMALL_SIDE * (2 + runs)) if side > SMALL_SIDE else 0
    return full, max(FEWEST_CASES, min(MOST_CASES, full + small))


def images_to_show(runs: Sequence[Run], metric: str | None, most: int) -> list[str]:
    """Images whose pictures go into the page, the most wanted first.

    First come the images that the page opens with: by the metric chosen first and the leading run the worst,
    best and middle ones, and those with the largest and smallest gain over Input. Then the ends of the leading
    run's other metrics and of the other runs' metrics, and then ever more of each.

    Args:
        runs: The runs.
        metric: The metric that is chosen first.
        most: How many images at most.

    Returns:
        Image ids; all of the leading run if they are few.
    """
    lead = leading(runs)
    chosen: dict[str, None] = {}
    if metric is not None:
        chosen |= dict.fromkeys(_turns(rankings(runs, lead, metric), EACH))
    ends = []
    for run in (lead, *(run for run in runs if run is not lead)):
        names = ranked_metrics(run)
        for name in sorted(names, key=lambda name: name != metric):
            ends.append(rankings(runs, run, name)[:2])
    for each in range(1, len(lead.scores) + 1):
        if len(chosen) >= most:
            break
        chosen |= dict.fromkeys(image for orders in ends for image in _turns(orders, each))
    chosen |= dict.fromkeys(lead.scores["image_id"])
    return list(chosen)[:most]


def rankings(runs: Sequence[Run], run: Run, metric: str) -> list[list[str]]:
    """Image ids worst, best and middle first by a ranked metric, then largest and smallest gain over Input first.

    The page ranks in the same way; without an Input run, or for that run, there are no gains.
    """
    better = -1 if run.summary["metrics"][metric]["higher_is_better"] is False else 1
    values = run.values(metric)
    worst = list((better * values).sort_values(kind="stable").index)
    middle = (len(worst) - 1) / 2
    centre = sorted(range(len(worst)), key=lambda rank: abs(rank - middle))
    found = [worst, worst[::-1], [worst[rank] for rank in centre]]
    first = baseline(runs)
    if first is not None and first is not run and metric in first.summary["metrics"]:
        gains = (better * (values - first.values(metric))).dropna().reindex(values.index).dropna()
        found += [list(gains.sort_values(kind="stable", ascending=up).index) for up in (False, True)]
    return found


def _turns(orders: Sequence[Sequence[str]], each: int) -> list[str]:
    """The first of each order, then the second of each, and so on."""
    return [order[rank] for rank in range(each) for order in orders if rank < len(order)]


def make_case(
    image_id: str, runs: Sequence[Run], pictures: Sequence[Pictures], book: PictureBook, side: int | None = None
) -> dict[str, Any]:
    """Numbers of one image's pictures in the book.

    Args:
        image_id: The image.
        runs: The runs.
        pictures: Their pictures.
        book: Where the pictures go.
        side: Longest side they are scaled down to.

    Returns:
        `lq`, `references`, `truth` (or None), `restored` (one per run, None where it cannot be read), `unreadable`
        (the reason for each of those, by the run's number) and `side`, None for pictures in full.
    """
    own = pictures[leading(runs).index]
    restored: list[int | None] = []
    unreadable: dict[int, str] = {}
    for run, source in zip(runs, pictures, strict=True):
        try:
            restored.append(book.add(source.restored(image_id), side))
        except (BenchError, OSError, KeyError) as error:
            restored.append(None)
            unreadable[run.index] = str((run.summary.get("failed") or {}).get(image_id) or error)
    references = list(own.references(image_id))[:MOST_REFERENCES]
    return {
        "lq": book.add(own.lq(image_id), side),
        "references": [book.add(reference, REFERENCE_SIDE) for reference in references],
        "restored": restored,
        "unreadable": unreadable,
        "truth": book.add(own.truth(image_id), side) if own.has_truth(image_id) else None,
        "side": side,
    }
