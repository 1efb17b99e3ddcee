"""Progress over a list: a bar on a terminal, a line every half minute elsewhere, to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


def counted(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yields the items and shows how many are done and how long the rest takes.

    Args:
        items: What is worked on.
        what: Name of the work, such as "degrading".
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=what, console=Console(stderr=True), transient=True)
        return
    started = printed = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            left = (now - started) / done * (len(items) - done)
            print(f"{what}: {done}/{len(items)}, {left:.0f} s left", file=sys.stderr, flush=True)  # noqa: T201
        yield item
