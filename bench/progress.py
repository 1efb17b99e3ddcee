"""Progress with the time that is left: a line rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Progress:
    """Counts work that is done and prints it with the time left, to standard error.

    On a terminal the line is rewritten in place; elsewhere a new one is printed every 30 seconds.

    Args:
        verb: What is done to each unit ("restored").
        count: Units in all.
        done: Units that were done before.
    """

    def __init__(self, verb: str, count: int, done: int = 0) -> None:
        self.verb, self.count, self.done, self.first = verb, count, done, done
        self.started = self.printed = time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Notes that `units` more are done, and prints if it is time."""
        self.done += units
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        ended = self.done >= self.count
        if now - self.printed < (0.5 if terminal else 30) and not (ended and terminal):
            return
        self.printed = now
        seconds = (now - self.started) / max(1, self.done - self.first)
        left = format_seconds((self.count - self.done) * seconds)
        line = f"{self.verb} {self.done}/{self.count}  {seconds:.2f} s each  {left} left  {note}"
        end = "\n" if ended or not terminal else ""
        print(f"\r{line}   " if terminal else line, end=end, file=sys.stderr, flush=True)  # noqa: T201


def counted(items: Sequence[Item], verb: str) -> Iterator[Item]:
    """Yields the items and shows how many are done and how long the rest takes.

    Args:
        items: What is worked on.
        verb: What is done to each ("degraded").
    """
    progress = Progress(verb, len(items))
    for item in items:
        yield item
        progress.advance()


def format_seconds(seconds: float) -> str:
    """`1 h 02 min`, `3 min 10 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
