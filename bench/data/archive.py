"""Unpacks archives that strangers made: nothing leaves the folder, nothing fills the disk.

Zip and tar (plain, gzip, bzip2, xz) are told apart by their content. Members are written one by one under a
temporary name and renamed when whole, so a second call writes only what is missing.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bench.data.download import looks_like_page
from bench.errors import MissingError, UsageError

BLOCK = 1 << 20
PARTIAL = ".unpacking"
#: Bytes of a tar before a member and after the last one: long names and PAX headers, and zeros.
MOST_HEADER = 1 << 20
MOST_PADDING = 1 << 24
#: Folders above a file, and bytes of a name: what file systems take, with room for where the data set lies.
MOST_FOLDERS = 32
MOST_NAME = 255
MOST_PATH = 1024
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)


@dataclass(frozen=True)
class Limits:
    """What an archive may at most hold.

    Attributes:
        total: Bytes of all members.
        members: Files and folders.
        ratio: Bytes unpacked per byte of the archive; pictures reach hardly 2, text 20.
        free: Bytes that are always allowed, whatever the ratio.
    """

    total: int = 1 << 40
    members: int = 5_000_000
    ratio: int = 200
    free: int = 1 << 26


@dataclass(frozen=True)
class _Member:
    """One file of an archive: its checked path, announced size, and how to read it."""

    path: str
    size: int
    open: Callable[[], IO[bytes]]


class _Metered:
    """A stream that gives no more than it was allowed to: `tarfile` reads headers whole, whatever their size."""

    def __init__(self, stream: IO[bytes], archive: Path, total: int) -> None:
        self._stream, self._archive, self._total = stream, archive, total
        self._step = 0

    def allow(self, size: int) -> None:
        """Allows so many bytes from here on, within the total."""
        self._step = size

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._step -= len(block)
        self._total -= len(block)
        if self._step < 0:
            raise _bomb(
                self._archive,
                f"the headers of one member take more than {MOST_HEADER >> 20} MiB, or the zeros at its end more than "
                f"{MOST_PADDING >> 20} MiB",
            )
        if self._total < 0:
            raise _bomb(self._archive, "it unpacks to far more, far larger than its size explains")
        return block


def archive_kind(path: Path) -> str | None:
    """`zip`, `tar`, `tar.gz`, `tar.bz2` or `tar.xz` by the file's first bytes; None for another file."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    for magic, kind in ((b"\x1f\x8b", "tar.gz"), (b"BZh", "tar.bz2"), (b"\xfd7zXZ\x00", "tar.xz")):
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" or _old_tar(head) else None


def _old_tar(head: bytes) -> bool:
    """Whether this is the header of a tar from before `ustar`: its checksum says so."""
    if len(head) < 512 or not head[0]:
        return False
    with contextlib.suppress(ValueError):
        return int(head[148:156].strip(b" \x00"), 8) == sum(head) - sum(head[148:156]) + 8 * 32
    return False


def extract(archive: Path, folder: Path, limits: Limits | None = None) -> int:
    """Unpacks an archive into a folder.

    Args:
        archive: The file.
        folder: Where its members go; created. What lies there whole from an earlier call on the same
            archive is kept.
        limits: What it may at most hold.

    Returns:
        How many files the archive holds.

    Raises:
        UsageError: It is no archive, damaged or truncated, needs a password, or holds what no data
            set needs: names with `..`, absolute names, links, devices, two names that some file
            systems take for one, or far more data than its size explains.
        MissingError: The disk has not enough space.
    """
    limits = limits or Limits()
    kind = archive_kind(archive)
    if kind is None:
        raise UsageError(_no_archive(archive))
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, str] = {}
    allowed = min(limits.total, max(limits.free, limits.ratio * archive.stat().st_size))
    written = count = 0
    try:
        with _members(archive, kind, limits, allowed, folder) as members:
            for member in members:
                _claim(member.path, seen, archive)
                count += 1
                written += _write(member, folder / member.path, archive, allowed - written)
    except RecursionError as error:
        raise _bomb(archive, "it nests headers in headers") from error
    except _DAMAGE as error:
        raise UsageError(f"{archive} is damaged or truncated: {error}. Remove it and download it again.") from error
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or (error.errno is None and kind == "tar.bz2"):
            raise UsageError(f"{archive} is damaged or truncated: {error}. Remove it and download it again.") from error
        raise
    return count


def _no_archive(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return f"{path} is empty (0 bytes). Download it again."
    if looks_like_page(head):
        return (
            f"{path} is a web page, not an archive: a login, quota or consent page was saved in its place. Download "
            "the file again in a browser."
        )
    if head.startswith((b"Rar!", b"7z\xbc\xaf")):
        return f"{path} is a RAR or 7z archive. Unpack it by hand and give the folder with --from."
    return (
        f"{path} is neither a zip nor a tar archive (plain, gzip, bzip2, xz). It may be damaged or one part of several."
    )


@contextlib.contextmanager
def _members(archive: Path, kind: str, limits: Limits, allowed: int, folder: Path) -> Iterator[Iterator[_Member]]:
    if kind == "zip":
        with zipfile.ZipFile(archive) as zipped:
            entries = zipped.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > limits.members:
                raise _bomb(archive, f"it holds {len(entries):,} members, at most {limits.members:,} are unpacked")
            if total > allowed:
                raise _bomb(archive, f"its {archive.stat().st_size:,} bytes announce {total:,}")
            missing = total - _bytes_below(folder)
            if missing > (free := shutil.disk_usage(folder).free):
                raise MissingError(
                    f"{archive} unpacks to {total:,} bytes, but {folder} has {free:,} free. Free some space or move "
                    "BENCH_HOME to a larger disk; the same command goes on where this one stopped."
                )
            yield _zip_members(zipped, entries, archive)
        return
    opener: dict[str, Callable[..., Any]] = {"tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open, "tar": open}
    if kind == "tar":
        _require_end_mark(archive)
    with opener[kind](archive, "rb") as unpacked:
        stream = _Metered(unpacked, archive, allowed + MOST_PADDING)
        stream.allow(MOST_HEADER)
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            yield _tar_members(tar, stream, archive, limits)
        # What follows the end mark is read too: only then are checksum and length of the compression checked. A broken
        # header in the middle passes for the end mark.
        stream.allow(MOST_PADDING)
        while block := stream.read(BLOCK):
            if block.strip(b"\x00"):
                raise tarfile.ReadError("there is data after its end mark")


def _zip_members(zipped: zipfile.ZipFile, entries: list[zipfile.ZipInfo], archive: Path) -> Iterator[_Member]:
    for entry in entries:
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _unsafe(archive, entry.filename, "is a link or a device")
        path = _safe_path(entry.orig_filename, archive)
        if entry.is_dir():
            continue
        if entry.flag_bits & 1:
            raise UsageError(f"{archive} needs a password. Unpack it by hand and give the folder with --from.")
        yield _Member(path, entry.file_size, partial(_zip_opened, zipped, entry, archive))


def _zip_opened(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, archive: Path) -> IO[bytes]:
    try:
        return zipped.open(entry)
    except NotImplementedError as error:
        raise UsageError(
            f"{archive} is packed in a way that Python cannot read (compression method {entry.compress_type}; Windows "
            "packs large archives with method 9, Deflate64). Unpack it by hand and give the folder with --from."
        ) from error


def _tar_members(tar: tarfile.TarFile, stream: _Metered, archive: Path, limits: Limits) -> Iterator[_Member]:
    for number, entry in enumerate(tar):
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        if number >= limits.members:
            raise _bomb(archive, f"it holds more than {limits.members:,} members")
        if not (entry.isreg() or entry.isdir()) or entry.issparse():
            raise _unsafe(archive, entry.name, "is a link, a device or a sparse file")
        path = _safe_path(entry.name, archive)
        stream.allow(MOST_HEADER + (entry.size if entry.isreg() else 0))
        if entry.isreg():
            yield _Member(path, entry.size, partial(_opened, tar, entry))


def _opened(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(entry)
    if stream is None:
        raise tarfile.ReadError(f"{entry.name} cannot be read")
    return stream


def _require_end_mark(archive: Path) -> None:
    """A plain tar ends with zeros; one that does not was cut off, which `tarfile` passes over in silence."""
    with archive.open("rb") as stream:
        stream.seek(-min(512, archive.stat().st_size), 2)
        if stream.read().strip(b"\x00"):
            raise UsageError(
                f"{archive} is damaged or truncated: it ends without its end mark. Remove it and download it again."
            )


def _safe_path(name: str, archive: Path) -> str:
    """The member's path below the folder, or an error."""
    slashed = name.replace("\\", "/")
    if "\x00" in name or slashed.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _unsafe(archive, name, "has an absolute name")
    parts = PurePosixPath(slashed).parts
    if ".." in parts:
        raise _unsafe(archive, name, "leads out of the folder")
    lengths = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    if len(parts) > MOST_FOLDERS or max(lengths, default=0) > MOST_NAME or sum(lengths) > MOST_PATH:
        shown = name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}…"
        raise _unsafe(archive, shown, "has a name that is too long or lies in too many folders")
    return "/".join(parts)


def _claim(path: str, seen: dict[str, str], archive: Path) -> None:
    """Refuses two names that are one on a file system that ignores case or composes accents."""
    if not path:
        raise _unsafe(archive, path, "has no name")
    key = unicodedata.normalize("NFC", path).casefold()
    if key in seen:
        raise _unsafe(archive, path, f"would overwrite {seen[key]!r} where upper and lower case are one")
    seen[key] = path


def _unsafe(archive: Path, name: str, what: str) -> UsageError:
    return UsageError(
        f"{archive} is not unpacked: its member {name!r} {what}. No data set needs that. Get the archive from its "
        "authors, or unpack it by hand and give the folder with --from."
    )


def _bomb(archive: Path, what: str) -> UsageError:
    return UsageError(
        f"{archive} is not unpacked: {what}. If it is what you expect, unpack it by hand and give the folder with "
        "--from."
    )


def _write(member: _Member, target: Path, archive: Path, allowed: int) -> int:
    """Writes one member unless it is there; returns its size."""
    if member.size > allowed:
        raise _bomb(archive, f"{member.path!r} and what comes before it are far larger than its size explains")
    if target.is_file() and target.stat().st_size == member.size:
        return member.size
    unfinished = target.with_name(target.name + PARTIAL)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, unfinished.open("wb") as sink:
            size = 0
            while block := source.read(BLOCK):
                size += len(block)
                if size > member.size:
                    raise _bomb(archive, f"{member.path!r} is larger than it announces")
                sink.write(block)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _unsafe(archive, member.path, "is both a file and a folder") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if size != member.size:
        unfinished.unlink()
        raise EOFError(f"{member.path} has {size:,} of {member.size:,} bytes")
    unfinished.replace(target)
    return size


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
