"""Results among one's own files: what `bench restore` did not write itself is not replaced unasked.

Of each file that it writes, `$BENCH_HOME/restored` holds the hash. A file that still has that hash is a result as it
was written, which the same call may replace; any other is somebody's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.files import sha256_bytes, sha256_file, write_bytes, write_json
from bench.paths import bench_home


def write_result(target: Path, content: bytes, shows: Sequence[Path] = ()) -> None:
    """Writes a file atomically and remembers it.

    Args:
        target: The file.
        content: Its bytes.
        shows: Of a page, the results on it.
    """
    write_bytes(target, content)
    record = {"sha256": sha256_bytes(content), "shows": [_name(path) for path in shows]}
    with contextlib.suppress(OSError):  # then it needs --overwrite another time
        write_json(_record_path(target), record)


def require_replaceable(targets: Sequence[Path], overwrite: bool) -> None:
    """Refuses to replace files that are there already and are not results as they were written.

    Args:
        targets: Files to write.
        overwrite: Whether they may be replaced all the same.

    Raises:
        UsageError: There are some.
    """
    foreign = [] if overwrite else [path for path in targets if os.path.lexists(path) and _record(path) is None]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UsageError(
            f"{foreign[0]}{more} would be overwritten, which bench restore did not write, or which was changed since. "
            "Choose another place with -o, or add --overwrite."
        )


def page_path(wished: Path, targets: Sequence[Path], overwrite: bool) -> Path:
    """Where a page with some results goes: `NAME_2.html` and so on, while a page there shows others.

    Args:
        wished: Its path if nothing is there.
        targets: The results that it shows.
        overwrite: Whether whatever is there may be replaced.
    """
    names = {_name(path) for path in targets}
    for number in count(1):
        path = wished if number == 1 else wished.with_name(f"{wished.stem}_{number}{wished.suffix}")
        if overwrite or not os.path.lexists(path):
            break
        record = _record(path)
        if record is not None and names.issuperset(record["shows"]):
            break
    return path


def _record(path: Path) -> dict[str, Any] | None:
    """What is remembered of a file, if it is as it was written."""
    try:
        record: dict[str, Any] = json.loads(_record_path(path).read_text("utf-8"))
        return record if record["sha256"] == sha256_file(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record_path(path: Path) -> Path:
    key = sha256_bytes(os.fsencode(_name(path)))
    return bench_home() / "restored" / key[:2] / f"{key}.json"


def _name(path: Path) -> str:
    return str(path.parent.resolve() / path.name)
