"""The name that a row of another program's network or pictures bears."""

from __future__ import annotations

import re
from typing import Any

from bench.errors import UsageError

NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?")


def require_system_name(value: Any) -> str | None:
    """The setting `method.system`, checked; None where there is none.

    Raises:
        UsageError: It is no name.
    """
    if value is None or (isinstance(value, str) and NAME.fullmatch(value)):
        return value
    raise UsageError(f"method.system={value!r} is no name: small letters, digits, dots, dashes and underscores.")


def system_name_of(stem: str) -> str | None:
    """A name made of a file's, such as "gfpganv1.4" of "GFPGANv1.4"; None where nothing is left of it."""
    return re.sub(r"[^a-z0-9_.-]+", "_", stem.lower()).strip("_.-") or None
