"""Reads face pictures out of insightface's `.rec` files (MXNet RecordIO).

A record is `magic`, a word of three flag bits and 29 length bits, the bytes, and padding to four. Bytes
that hold the magic number are split there into parts. Each record begins with a header (flag, label,
id, id2); a flag of n > 0 means that n float labels follow. Record 0 of insightface's files holds no
picture: its first label is one more than the number of pictures, and the records after them hold
ranges of pictures for each person.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bench.errors import UsageError

MAGIC = 0xCED7230A
_HEADER = struct.Struct("<IfQQ")
_MOST_LABELS = 1 << 16


@dataclass(frozen=True)
class FaceRecord:
    """One picture of a record file.

    Attributes:
        key: Number of the record.
        label: Number of the person.
        content: The encoded picture's bytes, unchanged.
    """

    key: int
    label: int
    content: bytes

    @property
    def path(self) -> str:
        """Where it lies once unpacked: a folder per person, the record's number as name."""
        suffix = "png" if self.content.startswith(b"\x89PNG") else "jpg"
        return f"{self.label:06d}/{self.key:08d}.{suffix}"


def read_faces(path: Path) -> Iterator[FaceRecord]:
    """Yields the pictures of a record file in the order of the file; memory is flat.

    Args:
        path: The `.rec` file. Where an `.idx` file stands beside it, it must name the same records.

    Raises:
        UsageError: It is not a record file, or it is damaged or truncated.
    """
    keys = _index(path.with_suffix(".idx"))
    last: int | None = None
    count = 0
    size = path.stat().st_size
    with path.open("rb") as stream:
        while (start := stream.tell()) < size:
            if keys is not None and start not in keys:
                raise UsageError(f"{path}: a record begins at byte {start:,}, which {path.stem}.idx does not name.")
            key = keys[start] if keys is not None else count
            labels, content = _decoded(_record(stream, path), path, start)
            count += 1
            if key == 0 and not content:
                last = int(labels[0]) - 1
                continue
            if (last is None or key <= last) and content:
                yield FaceRecord(key, int(labels[0]), content)
    if keys is not None and count != len(keys):
        raise UsageError(f"{path} holds {count:,} records, but {path.stem}.idx names {len(keys):,}: it is truncated.")


def _index(path: Path) -> dict[int, int] | None:
    """Record numbers by the byte they begin at."""
    if not path.is_file():
        return None
    try:
        pairs = (line.split() for line in path.read_text("ascii").splitlines() if line.strip())
        return {int(offset): int(key) for key, offset in pairs}
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not an index of records (lines of number and byte): {error}.") from error


def _record(stream: BinaryIO, path: Path) -> bytes:
    """One record, its parts joined."""
    parts: list[bytes] = []
    while True:
        start = stream.tell()
        head = stream.read(8)
        if len(head) < 8:
            raise UsageError(f"{path} ends within a record (byte {start:,}): it is truncated.")
        magic, word = struct.unpack("<II", head)
        if magic != MAGIC:
            raise UsageError(f"{path} is not an MXNet record file, or damaged: no record begins at byte {start:,}.")
        flag, length = word >> 29, word & ((1 << 29) - 1)
        if flag > 3 or (flag in (0, 1)) != (not parts):
            raise UsageError(f"{path} is damaged: the parts of the record at byte {start:,} are out of order.")
        content = stream.read(length)
        padding = -length % 4
        if len(content) < length or len(stream.read(padding)) < padding:
            raise UsageError(f"{path} ends within a record (byte {start:,}): it is truncated.")
        parts.append(content)
        if flag in (0, 3):
            return struct.pack("<I", MAGIC).join(parts)


def _decoded(record: bytes, path: Path, start: int) -> tuple[tuple[float, ...], bytes]:
    """Labels and picture of a record."""
    if len(record) < _HEADER.size:
        raise UsageError(f"{path} is damaged: the record at byte {start:,} has no header.")
    flag, label, _, _ = _HEADER.unpack_from(record)
    end = _HEADER.size + 4 * flag
    if flag > _MOST_LABELS or len(record) < end:
        raise UsageError(f"{path} is damaged: the record at byte {start:,} announces {flag:,} labels.")
    labels = struct.unpack_from(f"<{flag}f", record, _HEADER.size) if flag else (label,)
    return labels, record[end:]
