"""The lines of `theta.jsonl`: what was done to each picture of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bench.degradation.operators import OPERATORS
from bench.degradation.pipeline import Theta, check_theta, operator_versions
from bench.errors import UsageError

RECORDS = "theta.jsonl"
Record = dict[str, Any]


def new_record(path: str, output: str, size: tuple[int, int], digests: tuple[str, str], theta: Theta) -> Record:
    """The record of one picture.

    Args:
        path: The picture in its folder, with "/" between the parts.
        output: Its PNG in the output.
        size: (H, W).
        digests: SHA-256 of the picture's file and of the PNG.
        theta: What was applied. The versions of its operators are noted beside it.
    """
    return {
        "path": path,
        "output": output,
        "size": list(size),
        "sha256": digests[0],
        "output_sha256": digests[1],
        "versions": operator_versions(theta),
        "theta": theta,
    }


def read_records(path: Path, needed: bool = True) -> dict[str, Record]:
    """Reads a `theta.jsonl`: records by path; the last line of a path counts.

    Lines that name no path, such as one cut short, are left out. Any other record that is not whole holds `problem`,
    the reason.

    Args:
        path: The file.
        needed: Whether a file without a record is refused.

    Raises:
        UsageError: The file cannot be read, or holds no record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"Cannot read {path}: {error.strerror or error}. Give the theta.jsonl of an earlier output."
        ) from error
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not isinstance(record.get("path"), str):
            continue
        try:
            check_record(record)
        except UsageError as error:
            record["problem"] = f"Line {number} of {path} is not a whole record: {error}"
        records[record["path"]] = record
    if needed and not records:
        raise UsageError(f"{path} holds no degradation records (one JSON object with path and theta a line).")
    return records


def check_record(record: Record) -> None:
    """Checks the form of a record; only `theta` must be there.

    Raises:
        UsageError: A part is of the wrong kind.
    """
    check_theta(record.get("theta"))
    size, versions = record.get("size"), record.get("versions", {})
    if "size" in record and not (isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))):
        raise UsageError(f"size must be two whole numbers [H, W] above 0, got {size!r}.")
    for name in ("output", "sha256", "output_sha256"):
        if not isinstance(record.get(name, ""), str):
            raise UsageError(f"{name} must be a string, got {record[name]!r}.")
    if not isinstance(versions, dict) or not all(map(_is_count, versions.values())):
        raise UsageError(f"versions must be {{operator: number}}, got {versions!r}.")


def check_versions(record: Record) -> None:
    """Checks that this version's operators are those that the record was made with.

    Raises:
        UsageError: The names of those that are not.
    """
    changed = [
        f"{name} (version {version} there, {OPERATORS[name].version if name in OPERATORS else 'none'} here)"
        for name, version in record.get("versions", {}).items()
        if name not in OPERATORS or OPERATORS[name].version != version
    ]
    if changed:
        raise UsageError(
            f"The record of {record['path']} was made with other operators: {', '.join(changed)}. They would make "
            "another picture: replay it with the version of this project that wrote the record, or degrade anew."
        )


def record_line(record: Record) -> str:
    """A record as a line of the file."""
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """A file to append lines to; one whose last line was cut short gets a new line first."""
    content = path.read_bytes() if path.exists() else b""
    with path.open("a", encoding="utf-8") as stream:
        if content and not content.endswith(b"\n"):
            stream.write("\n")
        yield stream


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
