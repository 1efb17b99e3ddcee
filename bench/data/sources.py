"""What a data set is made from: archives that are downloaded and checked, folders, single lists."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.data import download
from bench.errors import MissingError, UsageError
from bench.files import sha256_file
from bench.protocol.card import DatasetCard, how_to_get


@dataclass(frozen=True)
class Source:
    """Something the data set is made from.

    Attributes:
        given: What the user gave, or the card's address.
        path: The file or folder.
        kind: `archive`, `folder` or `list`.
        sha256: Hash of a file; None for a folder.
        bytes: Size of a file; None for a folder.
        verified: Whether the card or the user knew the hash beforehand.
        files: Hash of the names, sizes and times of a folder's files; None for a file.
        locked_as: Under which name the hash is locked once the data set is made: that of a file of the card whose
            hash nobody knows; None otherwise.
    """

    given: str
    path: str
    kind: str
    sha256: str | None = None
    bytes: int | None = None
    verified: bool = False
    files: str | None = None
    locked_as: str | None = None


def find_sources(card: DatasetCard, given: Sequence[str], sha256: str | None) -> list[Source]:
    """Downloads what is an address, and checks every archive.

    Raises:
        UsageError: A file is neither an archive nor a list of the card, or its hash is another one.
        MissingError: Nothing is given and the card has no address, or a path does not exist.
    """
    if not given:
        addresses = [file["url"] for file in card.files if file.get("url")]
        if not addresses:
            private = "" if card.public else "It is not public. "
            raise MissingError(
                f"The data card {card.name} has no address to download from. {private}{how_to_get(card)} "
                f"Then: bench data prepare {card.name} --from ARCHIVE_OR_FOLDER"
            )
        given = addresses
    if sha256 is not None and len(given) > 1:
        raise UsageError("--sha256 goes with one --from only.")
    return [_source(card, one, sha256) for one in given]


def require_utf8(path: str) -> None:
    """Refuses a path that no list or record could name.

    Raises:
        UsageError: It is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The path {path!r} is not UTF-8: no record could name it. Rename it.") from None


def _state(folder: Path) -> str:
    """Hash of the names, sizes and times of all files in a folder; hidden ones do not count."""
    digest, visited = hashlib.sha256(), set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names) if real not in visited else ():
            path = os.path.join(place, name)  # noqa: PTH118
            if not name.startswith(".") and os.path.isfile(path):  # noqa: PTH113
                status = os.stat(path)  # noqa: PTH116
                line = f"{os.path.relpath(path, folder)}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        visited.add(real)
    return digest.hexdigest()


def _source(card: DatasetCard, given: str, sha256: str | None) -> Source:
    require_utf8(given)
    if download.is_url(given):
        known = next((file for file in card.files if file.get("url") == given), None)
        name = download.file_name((known or {}).get("name") or download.name_of(given))
        try:
            path = download.fetch(given, download.downloads_folder(card.name) / name, (known or {}).get("bytes"))
        except (MissingError, UsageError) as error:
            raise type(error)(f"{error} How to get {card.name}: {card.obtain}") from error
    else:
        path = Path(given).expanduser().absolute()
        known = next((file for file in card.files if file.get("name") == path.name), None)
        if path.suffix.lower() == ".rec" and path.is_file():
            path = path.parent
    if path.is_dir():
        if sha256:
            raise UsageError(f"--sha256 is the hash of an archive, but {path} is a folder.")
        return Source(given, str(path), "folder", files=_state(path))
    if not path.is_file():
        raise MissingError(f"--from {given} is not there. Give an archive, a folder or an address.")
    rules = (card.identities_from or {}, card.references_from or {})
    if path.name in {Path(rule["file"]).name for rule in rules if "file" in rule}:
        return Source(given, str(path), "list", sha256_file(path), path.stat().st_size)
    digest, verified = download.check_archive(card.name, path, known, sha256)
    locked_as = f"{card.name}/{known['name']}" if known and not verified else None
    return Source(given, str(path), "archive", digest, path.stat().st_size, verified, locked_as=locked_as)
