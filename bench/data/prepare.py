"""Brings a data set into its place: download, unpack, find the layout, align, and only then show it.

Everything happens in `.<name>.preparing` beside the target. One rename makes the finished folder appear, with
`prepared.json` in it, so that half a data set is never taken for a whole one. The same call goes on where a killed
one stopped; of two at once, the second waits. The empty `.<name>.lock` they wait at stays: removing it would let a
third one in.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import __version__
from bench.data import download
from bench.data.archive import extract
from bench.data.gather import Gathered, gather
from bench.data.sources import Source, find_sources, require_utf8
from bench.errors import MissingError, UsageError, unknown_name
from bench.files import sha256_bytes, sha256_file, write_bytes, write_json, write_text
from bench.paths import bench_home
from bench.progress import counted
from bench.protocol.card import DatasetCard, load_card

RECORD = "prepared.json"
SUMS = "SHA256SUMS"
MOST_NAMED = 5
_ALWAYS_SAID = {"card_sha256", "key", "sources", "pictures", "identities", "files", "aligned", "skipped"}
_DECISIVE = (
    "layout",
    "contents",
    "folders",
    "identity_pattern",
    "photo_pattern",
    "identities_from",
    "references_from",
    "align",
)


@dataclass(frozen=True)
class Prepared:
    """A data set in its place: its folder, what `prepared.json` says, and whether this call made it."""

    root: Path
    record: dict[str, Any]
    fresh: bool


def staging_folder(target: Path) -> Path:
    """Folder in which the data set of `target` is prepared."""
    return target.with_name(f".{target.name}.preparing")


def read_record(root: Path) -> dict[str, Any] | None:
    """What `prepared.json` of a data set says; None where `prepare` did not make it."""
    try:
        record = json.loads((root / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and set(record) >= _ALWAYS_SAID else None


def card_hash(card: DatasetCard) -> str:
    """Hash of what in a card decides how its folder is made."""
    content = {key: getattr(card, key) for key in _DECISIVE}
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())


def prepare(
    name: str,
    given: Sequence[str] = (),
    target: Path | None = None,
    sha256: str | None = None,
    link: bool = False,
    workers: int | None = None,
) -> Prepared:
    """Prepares a data set.

    Args:
        name: Name of its card.
        given: Archives, folders, addresses, or single lists that the card names; the card's own addresses if none.
        target: Where it goes; `bench_home()/data/<name>` if None.
        sha256: Hash that the one archive must have.
        link: Hard links instead of copies, where a folder is given.
        workers: Processes that align; None for as many as there are processors.

    Returns:
        The finished data set.

    Raises:
        UsageError: Something given is not what it should be; nothing was put in place.
        MissingError: Nothing was given and the card has no address, or the disk is full.
    """
    card = load_card(name)
    target = (target or bench_home() / "data" / name).expanduser().absolute()
    require_utf8(str(target))
    if not given and (record := read_record(target)) is not None:
        return Prepared(target, record, fresh=False)
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            sources = find_sources(card, given, sha256)
            record = _existing(card, target, sources)
            if fresh := record is None:
                try:
                    record = _make(card, target, sources, link, workers)
                except UsageError as error:
                    # The same call would fail again: nothing is worth keeping, and nothing of it is named.
                    shutil.rmtree(staging_folder(target), ignore_errors=True)
                    raise UsageError(_as_given(str(error), target, sources)) from error
            else:
                shutil.rmtree(staging_folder(target), ignore_errors=True)  # a kill after the last rename leaves it
            download.lock_hashes({one.locked_as: one.sha256 for one in sources if one.locked_as and one.sha256})
            return Prepared(target, record, fresh)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or target.parent
        if error.errno in download.FULL_DISK:
            raise MissingError(
                f"No space left ({where}: {error.strerror}). Nothing was put in place. Free some space, or give --to a "
                "folder on a larger disk; the same command goes on where this one stopped."
            ) from error
        raise UsageError(f"Cannot prepare {target}: {error.strerror or error} ({where}).") from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Holds the lock of a target; says so where another process has it, and waits."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"bench: another process is preparing {target}; waiting for it", file=sys.stderr)  # noqa: T201
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _existing(card: DatasetCard, target: Path, sources: list[Source]) -> dict[str, Any] | None:
    """What is said of a finished data set made from the same sources; None where there is nothing yet."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    record = read_record(target)
    if record is None:
        raise UsageError(
            f"{target} is there, but bench data prepare did not make it. Use it as it is (bench data verify "
            f"{card.name} checks it), or move it away, or give --to another folder."
        )
    if record["card_sha256"] == card_hash(card) and record["key"] == _key(card, sources):
        return record
    if [source["path"] for source in record["sources"]] == [source.path for source in sources]:
        changed = f"{_shown_sources(sources)} or its data card changed since {target} was made from it"
        raise UsageError(f"{changed}. Move {target} away to make it anew, or give --to another folder.")
    raise UsageError(
        f"{target} was made from something else ({', '.join(source['given'] for source in record['sources'])}) or with "
        "another data card. Move it away, or give --to another folder."
    )


def _key(card: DatasetCard, sources: list[Source]) -> str:
    identity = [source.sha256 or f"{source.path} {source.files}" for source in sources]
    return sha256_bytes(json.dumps([card.name, card_hash(card), sorted(identity)]).encode())


def _make(card: DatasetCard, target: Path, sources: list[Source], link: bool, workers: int | None) -> dict[str, Any]:
    staging = staging_folder(target)
    content = staging / "content"
    started = staging / "started.json"
    key = _key(card, sources)
    if staging.exists() and (not started.is_file() or json.loads(started.read_text("utf-8")) != {"key": key}):
        print(f"bench: starting again: {staging} was made from something else", file=sys.stderr)  # noqa: T201
        shutil.rmtree(staging)
    content.mkdir(parents=True, exist_ok=True)
    write_json(started, {"key": key})
    shutil.rmtree(staging / "unfinished", ignore_errors=True)
    pictures, others, not_taken = _plan(card, staging, sources)
    if not_taken:
        first = _as_given(", ".join(not_taken[:MOST_NAMED]), target, sources)
        print(  # noqa: T201
            f"bench: {len(not_taken)} pictures do not fit the layout of {card.name} and are left out: {first}"
            f"{', …' if len(not_taken) > MOST_NAMED else ''}",
            file=sys.stderr,
        )
    skipped = []
    if card.align:
        from bench.data.aligning import align_pictures
        from bench.protocol.alignment import TEMPLATES

        if card.align not in TEMPLATES:
            raise unknown_name(f"template in the data card {card.name}", card.align, TEMPLATES)
        if card.layout == "paired":
            raise UsageError(f"The data card {card.name} is wrong: pairs of pictures cannot be aligned one by one.")
        skipped = align_pictures(pictures, content, staging, card.align, workers)
        # Landmark files describe the pictures as they were.
        landmarks = {f"{name}.txt" for _, name in pictures}
        others = [(path, name) for path, name in others if name not in landmarks]
    else:
        others = [*others, *pictures]
    for path, name in counted(others, "placed"):
        _place(path, content / name, staging, link)
    unplaced = {"count": len(not_taken), "first": [_as_given(path, target, sources) for path in not_taken[:MOST_NAMED]]}
    return _finish(card, target, staging, sources, skipped, unplaced, link)


def _plan(
    card: DatasetCard, staging: Path, sources: list[Source]
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]], list[str]]:
    """Which file goes where, and which nowhere; decided once, because files leave the staging folder on their way."""
    plan = staging / "plan.json"
    if not plan.is_file():
        folders = [_unpacked(source, staging, number) for number, source in enumerate(sources) if source.kind != "list"]
        lists = [Path(source.path) for source in sources if source.kind == "list"]
        found = gather(card, folders, lists)
        if found.records is not None:
            beside = found
            found = gather(card, [_unpack_records(found.records, staging)], lists)
            found.others = [*beside.others, *found.others]
            found.not_taken = [*beside.not_taken, *found.not_taken]
        _write_plan(plan, found)
    content = json.loads(plan.read_text("utf-8"))
    pictures, others = ([(Path(path), name) for path, name in content[part]] for part in ("pictures", "others"))
    return pictures, others, content["not_taken"]


def _write_plan(plan: Path, found: Gathered) -> None:
    parts = {"pictures": found.pictures, "others": found.others}
    content: dict[str, Any] = {part: [[str(path), name] for path, name in files] for part, files in parts.items()}
    write_json(plan, {**content, "not_taken": [str(path) for path in found.not_taken]})


def _unpacking(staging: Path, number: int, archive: Path) -> Path:
    """The folder that an archive is unpacked into, named like the archive."""
    name = archive.name
    for suffix in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".zip"):
        name = name.removesuffix(suffix)
    return staging / "unpacked" / str(number) / (name or archive.name)


def _as_given(message: str, target: Path, sources: list[Source]) -> str:
    """A message about folders that are gone when it is read, in the user's own names."""
    staging = staging_folder(target)
    for number, source in enumerate(sources):
        message = message.replace(str(_unpacking(staging, number, Path(source.path))), source.path)
    return message.replace(str(staging / "content"), str(target)).replace(str(staging / "unpacked"), "the record file")


def _shown_sources(sources: list[Source]) -> str:
    return ", ".join(source.given for source in sources)


def _unpacked(source: Source, staging: Path, number: int) -> Path:
    """The folder itself, or the one that an archive was unpacked into."""
    path = Path(source.path)
    if source.kind == "folder":
        return path
    folder = _unpacking(staging, number, path)
    done = staging / f"unpacked-{number}"
    if not done.is_file():
        print(f"bench: unpacking {path}", file=sys.stderr)  # noqa: T201
        count = extract(path, folder)
        write_text(done, f"{count}\n")
    return folder


def _unpack_records(records: Path, staging: Path) -> Path:
    from bench.data.recordio import read_faces

    folder = staging / "unpacked" / "records"
    done = staging / "unpacked-records"
    if not done.is_file():
        print(f"bench: unpacking {records}", file=sys.stderr)  # noqa: T201
        for face in read_faces(records):
            path = folder / face.path
            if not (path.is_file() and path.stat().st_size == len(face.content)):
                write_bytes(path, face.content)
        write_text(done, "\n")
    return folder


def _place(path: Path, target: Path, staging: Path, link: bool) -> None:
    """Moves what was unpacked; copies or links what is the user's."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_relative_to(staging):
        path.replace(target)
        return
    try:
        if link:
            os.link(path.resolve(), target)
            return
        unfinished = staging / "unfinished" / "copy"
        unfinished.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, unfinished)
        unfinished.replace(target)
    except FileNotFoundError as error:
        raise UsageError(f"{path} was there when this preparation began and is gone now. Start again.") from error
    except OSError as error:
        if link and error.errno not in download.FULL_DISK:
            raise UsageError(
                f"Cannot link {path} to {target}: {error.strerror}. Hard links stay on one disk; without --link the "
                "files are copied."
            ) from error
        raise


def _finish(
    card: DatasetCard,
    target: Path,
    staging: Path,
    sources: list[Source],
    skipped: list[dict[str, str]],
    not_taken: dict[str, Any],
    link: bool,
) -> dict[str, Any]:
    """Counts and hashes what is there, writes `prepared.json` last, and lets the folder appear."""
    from bench.protocol.layout import list_photos

    content = staging / "content"
    try:
        photos = list_photos(card, content)
    except MissingError as error:
        raise UsageError(
            f"Nothing of what was given fits the layout of {card.name} once in place ({len(skipped)} pictures were "
            f"left out{': ' + skipped[0]['reason'] if skipped else ''}). {error}"
        ) from error
    for half in content.glob(".partial-*"):
        half.unlink()
    files = sorted(
        path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file() and path.name != SUMS
    )
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: sha256_file(content / name), files)
        sums = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, files, strict=True))
    write_text(content / SUMS, sums)
    folders = any(source.kind == "folder" for source in sources)
    record = {
        "card": card.name,
        "card_sha256": card_hash(card),
        "key": _key(card, sources),
        "sources": [asdict(source) for source in sources],
        "files": "aligned" if card.align else "unpacked" if not folders else "linked" if link else "copied",
        "aligned": _alignment(card),
        "pictures": len(photos),
        "identities": len({photo.identity for photo in photos}),
        "sums_sha256": sha256_bytes(sums.encode()),
        "skipped": skipped,
        "not_taken": not_taken,
        "prepared_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    write_json(content / RECORD, record)
    if target.is_dir():
        target.rmdir()
    content.rename(target)
    shutil.rmtree(staging, ignore_errors=True)
    return record


def _alignment(card: DatasetCard) -> dict[str, Any] | None:
    if not card.align:
        return None
    from bench.faces.detector import detector_identity
    from bench.protocol.alignment import TEMPLATES

    return {"template": TEMPLATES[card.align].as_dict(), "detector": detector_identity()}
