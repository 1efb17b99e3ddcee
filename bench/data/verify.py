"""Checks a data set that is here: is it whole, does every picture open, does anything leak."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.data.leaks import (
    Leak,
    copied_files,
    face_leaks,
    name_leaks,
    reference_leaks,
    reference_pairs,
    thumbnail,
)
from bench.data.prepare import SUMS, read_record, staging_folder
from bench.data.workers import each
from bench.errors import MissingError, UsageError
from bench.files import sha256_bytes, sha256_file
from bench.paths import bench_home, resource_root
from bench.progress import Progress
from bench.protocol.card import SPLITS, DatasetCard, data_root, load_card
from bench.protocol.layout import Photo, list_photos
from bench.protocol.splits import split_identities

if TYPE_CHECKING:
    import numpy as np

#: Side in pixels below which no protocol makes pictures either.
SMALLEST_SIDE = 16


class Inspected(NamedTuple):
    """One picture after its one decode.

    Attributes:
        path: Path inside the data set.
        sha256: Hash of the file; None where it cannot be read.
        reason: Why it cannot be decoded, or None.
        size: (height, width) in pixels.
        thumbnail: See `leaks.thumbnail`; None where nobody asked.
    """

    path: str
    sha256: str | None
    reason: str | None
    size: tuple[int, int]
    thumbnail: np.ndarray | None


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        card: Name of the card.
        root: Folder that was checked.
        pictures: How many photographs there are.
        identities: How many people.
        missing: What is not there, though the card or `SHA256SUMS` says so.
        problems: `{kind, where, message}` of everything that is wrong.
        checks: What was compared, in words.
        closest: Most similar people of different splits, where faces were compared.
    """

    card: str
    root: str
    pictures: int = 0
    identities: int = 0
    missing: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    closest: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 problems, 3 incomplete and otherwise clean."""
        return 1 if self.problems else 3 if self.missing else 0

    def problem(self, kind: str, where: str, message: str) -> None:
        """Notes a problem."""
        self.problems.append({"kind": kind, "where": where, "message": message})

    def as_dict(self) -> dict[str, Any]:
        """The result as built-in types."""
        return asdict(self)


def verify(name: str, root: str | None = None, faces: bool = False, workers: int | None = None) -> Verification:
    """Checks a data set.

    Args:
        name: Name of its card.
        root: Its folder, where it is not in its usual place.
        faces: Also compares the people of different splits by their faces.
        workers: Processes; None for as many as there are processors.

    Raises:
        MissingError: The data set is absent, or its preparation was never finished.
    """
    card = load_card(name)
    folder = _folder(card, root)
    photos = list_photos(card, folder)
    result = Verification(name, str(folder), len(photos), len({photo.identity for photo in photos}))
    _count(card, folder, result)
    parts = _parts(card, photos, result)
    pairs = reference_pairs(photos, _protocols(name, folder))
    inspected = _inspect_all(folder, photos, pairs, result, workers)
    digests = {path: one.sha256 for path, one in inspected.items() if one.sha256 is not None}
    _hashes(card, folder, digests, result)
    _sizes(photos, inspected, card.alignment is None, result)
    split_of = {identity: split for split, own in parts.items() for identity in own}
    where = {photo.path: split_of[photo.identity] for photo in photos if photo.identity in split_of}
    _note(result, copied_files(digests, where))
    thumbnails = {path: one.thumbnail for path, one in inspected.items() if one.thumbnail is not None}
    _note(result, reference_leaks(pairs, digests, thumbnails))
    frozen = "" if pairs else " (no protocol is frozen from this folder yet)"
    result.checks.append(f"{len(pairs)} pairs of a picture and its reference compared{frozen}")
    if faces:
        _faces(folder, parts, photos, result, workers)
    return result


def _folder(card: DatasetCard, root: str | None) -> Path:
    try:
        return data_root(card, root)
    except MissingError as error:
        staging = staging_folder(bench_home() / "data" / card.name)
        if root is None and staging.is_dir():
            raise MissingError(
                f"The preparation of {card.name} was begun in {staging} and not finished. The same bench data prepare "
                "command goes on where it stopped."
            ) from error
        raise


def _count(card: DatasetCard, folder: Path, result: Verification) -> None:
    """Compares the counts with the card's; what `prepare` left out, with its reason, is not missing."""
    # Where neither folders nor a list say who is shown, every picture is read as a person of its own.
    unknown = card.layout != "identity_folders" and not card.identities_from and result.identities == result.pictures
    left_out = len((read_record(folder) or {}).get("skipped", []))
    for what, found, spare in (("images", result.pictures, left_out), ("identities", result.identities, 0)):
        expected = card.statistics.get(what)
        if not isinstance(expected, int) or isinstance(expected, bool):
            continue
        if what == "identities" and unknown and expected != card.statistics.get("images"):
            result.checks.append(f"identities: nobody says who is shown, the card says {expected}; not compared")
            continue
        if found + spare < expected:
            more = f", {spare} were left out when it was prepared" if spare else ""
            result.missing.append(f"{expected - found - spare} of {expected} {what} ({found} are there{more})")
        elif found > expected:
            result.problem("count", what, f"There are {found} {what}, but the card says {expected}.")
        result.checks.append(f"{what}: {found}, the card says {expected}")


def _parts(card: DatasetCard, photos: Sequence[Photo], result: Verification) -> dict[str, list[str]]:
    own = {} if "rule" in card.splits else card.splits
    listed = {split: [str(name) for name in own.get(split) or []] for split in SPLITS}
    try:
        parts = split_identities(card, list(dict.fromkeys(photo.identity for photo in photos)))
    except UsageError as error:
        result.problem("name", card.name, str(error))
        parts = listed
    named = {split: list(dict.fromkeys([*parts[split], *listed[split]])) for split in SPLITS}
    _note(result, name_leaks(named))
    counts = ", ".join(f"{len(part)} {split}" for split, part in parts.items() if part)
    result.checks.append(f"identities by split: {counts}")
    return parts


def _protocols(card: str, root: Path) -> Iterator[dict[str, Any]]:
    """Protocols frozen from this folder: committed ones and those of this machine."""
    for folder in (resource_root() / "datasets" / "protocols", bench_home() / "protocols"):
        for path in sorted(folder.glob("*.json")):
            try:
                record = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if (
                isinstance(record, dict)
                and record.get("card") == card
                and record.get("images")
                and _is_of(record["images"][0], root)
            ):
                yield record


def _is_of(image: dict[str, Any], root: Path) -> bool:
    """Whether a protocol's picture lies in the folder; other folders of the card may use the same names."""
    photo = image.get("source") or image["lq"]
    path = root / photo["path"]
    return path.is_file() and photo.get("sha256") in (None, sha256_file(path))


def _inspect_all(
    folder: Path,
    photos: Sequence[Photo],
    pairs: dict[tuple[str, str], str],
    result: Verification,
    workers: int | None,
) -> dict[str, Inspected]:
    compared = {path for pair in pairs for path in pair}
    wanted = dict.fromkeys(
        path
        for photo in photos
        for path in (photo.path, photo.lq, *(photo.references or ()))
        if path is not None and (folder / path).is_file()
    )
    for photo in photos:
        for path in photo.references or ():
            if path not in wanted:
                result.missing.append(f"{path}, a reference of {photo.path}")
    progress = Progress("checked", len(wanted))
    inspected = {}
    tasks = [(path, path in compared) for path in wanted]
    for one in each(partial(_inspect, str(folder)), tasks, workers):
        inspected[one.path] = one
        if one.reason is not None:
            result.problem("unreadable", one.path, one.reason)
        progress.advance()
    result.checks.append(f"{len(wanted)} picture files decoded")
    return inspected


def _inspect(root: str, task: tuple[str, bool]) -> Inspected:
    """Reads a file once: its hash, whether it decodes, its size, and a thumbnail if wanted."""
    from bench.image import UnreadableImageError, decode_image

    path, compared = task
    try:
        content = (Path(root) / path).read_bytes()
    except OSError as error:
        return Inspected(path, None, f"cannot be read: {error.strerror or error}", (0, 0), None)
    digest = sha256_bytes(content)
    try:
        image = decode_image(content, path)
    except UnreadableImageError as error:
        return Inspected(path, digest, str(error), (0, 0), None)
    return Inspected(path, digest, None, image.shape[:2], thumbnail(image) if compared else None)


def _hashes(card: DatasetCard, folder: Path, digests: dict[str, str], result: Verification) -> None:
    """Compares with the hashes that `prepare` wrote and with those of the committed alignment."""
    known: dict[str, str] = {}
    if (sums := folder / SUMS).is_file():
        record = read_record(folder) or {}
        text = sums.read_text("utf-8")
        if record.get("sums_sha256") not in (None, sha256_bytes(text.encode())):
            result.problem("hash", SUMS, f"{sums} was changed after the data set was prepared.")
        known = {name: digest for digest, _, name in (line.partition("  ") for line in text.split("\n") if line)}
    if card.alignment is not None:
        content = json.loads((resource_root() / "datasets" / card.alignment).read_text("utf-8"))
        known |= {path: photo["sha256"] for path, photo in content["photos"].items()}
    for path, expected in known.items():
        if not (folder / path).is_file():
            result.missing.append(path)
        elif (digest := digests.get(path) or sha256_file(folder / path)) != expected:
            result.problem("hash", path, f"{path} has the SHA-256 {digest[:12]}…, expected {expected[:12]}….")
    if known:
        result.checks.append(f"{len(known)} files compared with their SHA-256")


def _sizes(photos: Sequence[Photo], inspected: dict[str, Inspected], square: bool, result: Verification) -> None:
    """Reports pictures too small to show a face, and those that are no squares where they must be."""
    for path, one in inspected.items():
        if one.reason is None and min(one.size) < SMALLEST_SIDE:
            message = f"{path} is {one.size[1]}x{one.size[0]} px; a side of at least {SMALLEST_SIDE} px is needed."
            result.problem("size", path, message)
    if not square:
        return
    for path in dict.fromkeys(path for photo in photos for path in (photo.path, photo.lq) if path in inspected):
        height, width = inspected[path or ""].size
        if height != width:
            message = f"{path} is {width}x{height} px; protocols take aligned square pictures only."
            result.problem("size", path or "", message)


def _faces(
    folder: Path, parts: dict[str, list[str]], photos: Sequence[Photo], result: Verification, workers: int | None
) -> None:
    by_identity: dict[str, list[str]] = {}
    for photo in photos:
        by_identity.setdefault(photo.identity, []).append(photo.path)
    present = {split: [name for name in own if name in by_identity] for split, own in parts.items()}
    compared = face_leaks(folder, present, by_identity, workers)
    _note(result, compared.leaks)
    result.closest = compared.closest
    unseen = f"; no face found for {', '.join(compared.without_face)}" if compared.without_face else ""
    result.checks.append(f"{compared.pairs} pairs of people from different splits compared by their faces{unseen}")


def _note(result: Verification, leaks: Sequence[Leak]) -> None:
    for leak in leaks:
        result.problem(f"leak by {leak.kind}", leak.second, leak.message)
