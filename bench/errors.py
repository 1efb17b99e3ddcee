"""Errors a user can act on, each with the exit code the command line returns for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A failure with a message for the user instead of a traceback.

    The message says what happened, where, and what to do about it.
    """

    exit_code = 1


class UsageError(BenchError):
    """Wrong usage or configuration (exit code 2)."""

    exit_code = 2


class MissingError(BenchError):
    """Data, weights or an optional package is absent (exit code 3)."""

    exit_code = 3


class IncompleteError(BenchError):
    """The work ended, but some images failed (exit code 4)."""

    exit_code = 4


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Builds the error for a name that does not exist, with the nearest ones that do.

    Args:
        kind: What the name stands for, in the singular ("method", "data set").
        name: The name that was asked for.
        known: Every valid name.

    Returns:
        An error that lists near names first and all names after them.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or '(none)'}.")
