"""Downloads that can be interrupted, and archives that must be the ones they claim to be.

A download lies in `bench_home()/downloads/<card>/NAME.part` until it is whole; a later call asks the
server for the rest only, and only if the file there is still the same one.
"""

from __future__ import annotations

import errno
import http.client
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench import __version__
from bench.errors import MissingError, UsageError
from bench.files import sha256_file, write_json
from bench.paths import bench_home

BLOCK = 1 << 20
TIMEOUT = 60.0
ATTEMPTS = 4
PAUSE = 1.0
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class _Known:
    """What is known of a file that is half here: whose part it is."""

    url: str
    validator: str | None = None
    size: int | None = None


def downloads_folder(card: str) -> Path:
    """Folder that archives of a data set are downloaded to."""
    return bench_home() / "downloads" / card


def is_url(text: str) -> bool:
    """Whether the text is a web address."""
    return text.lower().startswith(("http://", "https://"))


def name_of(url: str) -> str:
    """File name that an address ends in; `download` where it ends in none."""
    return file_name(urllib.parse.unquote(Path(urllib.parse.urlsplit(url).path).name))


def file_name(text: str) -> str:
    """A text made into the name of a file: no folders, nothing hidden."""
    return re.sub(r"[^\w.+@ -]", "_", text).lstrip(".") or "download"


def fetch(url: str, target: Path, expected_bytes: int | None = None, pause: float = PAUSE) -> Path:
    """Downloads a file, or the rest of it.

    Args:
        url: http or https address.
        target: Where the whole file goes; until then it is `<target>.part`.
        expected_bytes: Its size, where a card knows it.
        pause: Seconds before the first new attempt, doubled each time.

    Returns:
        `target`. It exists only if the size is the one that the server (and the card) announced.

    Raises:
        MissingError: No connection, an error of the server, a transfer that keeps breaking off, a full disk.
            What has come is kept, and the same call goes on there.
        UsageError: The address gave a web page instead of a file, or a file of another size.
    """
    from filelock import FileLock

    if target.is_file() and (expected_bytes is None or target.stat().st_size == expected_bytes):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with FileLock(part.with_name(part.name + ".lock")):
        if target.is_file() and (expected_bytes is None or target.stat().st_size == expected_bytes):
            return target
        last: Exception | None = None
        for attempt in range(ATTEMPTS):
            before = part.stat().st_size if part.is_file() else 0
            try:
                _transfer(url, part, expected_bytes)
                part.replace(target)
                _notes(part).unlink(missing_ok=True)
                return target
            except (TimeoutError, http.client.HTTPException, ConnectionError, urllib.error.URLError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                    part.unlink(missing_ok=True)  # the server's file ends before ours goes on
                elif isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise MissingError(_refused(url, error, target)) from error
                last = error
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise MissingError(
                        f"No space left on {part.parent} ({error.strerror}): {part.stat().st_size:,} bytes of {url} "
                        "are there. Free some space, or move BENCH_HOME to a larger disk; the same command goes on "
                        "where this one stopped."
                    ) from error
                raise
            if part.is_file() and part.stat().st_size > before:
                print(f"bench: the transfer broke off ({last}); going on", file=sys.stderr)  # noqa: T201
            if attempt < ATTEMPTS - 1:
                time.sleep(pause * 2**attempt)
        here = part.stat().st_size if part.is_file() else 0
        raise MissingError(
            f"Could not download {url}: {_reason(last)}. {here:,} bytes are kept in {part}; the same command goes on "
            f"there. Without a network: get the file elsewhere and give its path with --from."
        )


def _reason(error: Exception | None) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _refused(url: str, error: urllib.error.HTTPError, target: Path) -> str:
    return (
        f"{url} answers {error.code} {error.reason}. The link may be dead or ask for a login (bench data check-links "
        f"tests all of them). Download the file by hand and give its path with --from, or put it at {target}."
    )


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _known(part: Path, url: str) -> _Known:
    try:
        known = _Known(**json.loads(_notes(part).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        known = _Known("")
    return known if known.url == url else _Known(url)


def _transfer(url: str, part: Path, expected_bytes: int | None) -> None:
    """One attempt: asks for what is missing and appends it."""
    known = _known(part, url)
    if known.validator is None:
        # Without an ETag or a date nobody can say that it is still the same file.
        part.unlink(missing_ok=True)
    here = part.stat().st_size if part.is_file() else 0
    if here and known.size == here:
        return
    request = urllib.request.Request(url, headers={"User-Agent": f"face-restoration-bench/{__version__}"})
    if here and known.validator:
        request.add_header("Range", f"bytes={here}-")
        request.add_header("If-Range", known.validator)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and _starts_at(answer.headers.get("Content-Range"), here)
        if answer.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise http.client.HTTPException("the server sent another range than was asked for")
        size = _size(answer.headers, here if resumed else 0)
        first = answer.read(4096)
        _refuse_page(url, answer.headers.get_content_type(), first if not resumed else b"")
        if expected_bytes is not None and size is not None and size != expected_bytes:
            raise UsageError(
                f"{url} announces {size:,} bytes, but the data card says {expected_bytes:,}: this is another file. "
                "Get the right one by hand and give its path with --from."
            )
        _refuse_full_disk(part, (size or 0) - (here if resumed else 0))
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = answer.headers.get("Last-Modified")
        write_json(_notes(part), {"url": url, "validator": validator, "size": size})
        with part.open("ab" if resumed else "wb") as stream:
            _copy(answer, stream, first, size, url)
    arrived = part.stat().st_size
    if size is not None and arrived < size:
        raise http.client.HTTPException(f"the file is truncated: {arrived:,} of {size:,} bytes came")
    if expected_bytes is not None and arrived != expected_bytes:
        part.unlink()
        raise UsageError(f"{url} gave {arrived:,} bytes, but the data card says {expected_bytes:,}.")


def _copy(answer: http.client.HTTPResponse, stream: IO[bytes], first: bytes, size: int | None, url: str) -> None:
    from bench.progress import Progress

    megabytes = (size or 0) >> 20
    progress = Progress(f"{name_of(url)}: MiB", max(megabytes, 1), stream.tell() >> 20)
    noted, block = stream.tell() >> 20, first
    while block:
        stream.write(block)
        done = stream.tell() >> 20
        if megabytes and done > noted:
            progress.advance(done - noted)
            noted = done
        block = answer.read(BLOCK)


def _starts_at(content_range: str | None, here: int) -> bool:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return match is not None and int(match[1]) == here


def _size(headers: http.client.HTTPMessage, here: int) -> int | None:
    if match := re.search(r"/(\d+)$", headers.get("Content-Range") or ""):
        return int(match[1])
    length = headers.get("Content-Length")
    return None if length is None else here + int(length)


def looks_like_page(head: bytes) -> bool:
    """Whether a file's first bytes are those of a web page."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head", b"<script"))


def _refuse_page(url: str, kind: str, head: bytes) -> None:
    if looks_like_page(head) or (kind == "text/html" and not head.startswith((b"PK", b"\x1f\x8b", b"BZh", b"\xfd7z"))):
        raise UsageError(
            f"{url} gave a web page instead of a file: a login, quota or consent page. Open the address in a browser, "
            "download the file by hand, and give its path with --from."
        )


def _refuse_full_disk(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise OSError(errno.ENOSPC, f"{wanted:,} bytes are still to come, {free:,} are free")


def check_archive(card: str, path: Path, known: dict[str, Any] | None, expected: str | None) -> tuple[str, bool]:
    """Checks an archive's size and SHA-256.

    Args:
        card: Name of the data card.
        path: The archive.
        known: Its entry in the card's `files`, or None.
        expected: SHA-256 that the user asks for, or None.

    Returns:
        Its SHA-256, and whether card or user vouched for it. Where nobody did, and the file is one of the card's,
        it is the one locked on first use, or there is no lock yet: see `lock_hashes`.

    Raises:
        UsageError: It is not the file that was expected; the message says whose expectation it was.
    """
    known = known or {}
    locked = _locks().get(f"{card}/{known['name']}") if known.get("name") else None
    size = path.stat().st_size
    if known.get("bytes") is not None and size != known["bytes"]:
        kind = "truncated" if size < known["bytes"] else "another file"
        raise UsageError(
            f"{path} has {size:,} bytes, but the data card {card} says {known['bytes']:,}: it is {kind}. "
            "Download it again."
        )
    digest = sha256_file(path)
    claims = [("--sha256", expected), (f"the data card {card}", known.get("sha256"))]
    vouched = [(who, value.lower()) for who, value in claims if value]
    for who, value in vouched:
        if value != digest:
            raise UsageError(
                f"{path} is not the file that was expected: its SHA-256 is {digest}, {who} says {value}. It may be "
                "damaged, truncated or another version; remove it and download it again."
            )
    if not vouched and locked not in (None, digest):
        raise UsageError(
            f"{path} is not the file that was used before: its SHA-256 is {digest}, {_locks_path()}, written on first "
            f"use, says {locked}. Remove that line if the new file is meant."
        )
    return digest, bool(vouched)


def lock_hashes(digests: dict[str, str]) -> None:
    """Locks and prints the hashes of archives nobody vouched for, once a data set was made of them.

    Args:
        digests: SHA-256 by `<card>/<name of the file on the card>`.
    """
    from filelock import FileLock

    place = _locks_path()
    if not set(digests) - set(_locks()):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(".locks.lock")):
        known = _locks()
        for key in set(digests) - set(known):
            print(f"data {key}: unverified, locked to sha256 {digests[key]}", file=sys.stderr)  # noqa: T201
        write_json(place, {**digests, **known})


def _locks() -> dict[str, str]:
    path = _locks_path()
    if not path.is_file():
        return {}
    content: dict[str, str] = json.loads(path.read_text("utf-8"))
    return content


def _locks_path() -> Path:
    return bench_home() / "downloads" / "locks.json"


def probe(url: str, timeout: float = 20.0) -> dict[str, Any]:
    """Asks a server about an address without downloading it.

    Returns:
        `{status, bytes, type, note}`: status None where no connection was made; `note` says why, or that
        the answer is a web page.
    """
    agent = {"User-Agent": f"face-restoration-bench/{__version__}"}
    requests: list[Callable[[], urllib.request.Request]] = [
        lambda: urllib.request.Request(url, method="HEAD", headers=agent),
        lambda: urllib.request.Request(url, headers={**agent, "Range": "bytes=0-0"}),
    ]
    result: dict[str, Any] = {"status": None, "bytes": None, "type": None, "note": ""}
    for make in requests:
        try:
            with urllib.request.urlopen(make(), timeout=timeout) as answer:
                kind = answer.headers.get_content_type()
                size = _size(answer.headers, 0)
                return {"status": 200, "bytes": size, "type": kind, "note": ""}
        except urllib.error.HTTPError as error:
            result = {"status": error.code, "bytes": None, "type": None, "note": str(error.reason)}
        except (OSError, http.client.HTTPException) as error:
            return {"status": None, "bytes": None, "type": None, "note": _reason(error)}
    return result
