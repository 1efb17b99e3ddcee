"""How a data set's folder looks, and which photographs it therefore holds.

A card names its layout; a new data set in one of these needs no code:

- `identity_folders`: `<identity>/<photograph>`.
- `flat`: photographs in one folder or any depth of folders; who is shown is said by the file's name,
  by a list, or by nobody (then everyone is alone).
- `paired`: `gt/<name>`, `lq/<name>` and `reference/<name>` or `reference/<name>/<photograph>`; either
  of `gt` and `lq` may be absent. In `gt/<person>/<name>` the folder says who is shown, and
  `reference/<person>/<photograph>` belongs to all pictures of the person.
- `auto`: the first of these that fits: `paired` where one of its folders is there, `identity_folders`
  where most pictures lie in folders of one level, otherwise `flat`.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bench.errors import MissingError, UsageError
from bench.protocol.card import DatasetCard, how_to_get, natural_key

PAIRED_FOLDERS = {"ground_truth": "gt", "lq": "lq", "reference": "reference"}
MOST_NAMED = 5


@dataclass(frozen=True)
class Photo:
    """One photograph of a data set.

    Attributes:
        identity: Who is shown.
        path: Path inside the data set's folder, with "/" between its parts: the ground truth, or the
            LQ picture where there is none.
        lq: Path of the LQ picture that belongs to it, or None.
        references: Paths of the references somebody fixed for it; None where a protocol chooses.
        has_truth: Whether `path` is a ground truth.
        name: Unique name in the data set: the path without suffix (unless two would become one) and
            without the folder that says what kind of picture it is.
    """

    identity: str
    path: str
    lq: str | None = None
    references: tuple[str, ...] | None = None
    has_truth: bool = True
    name: str = ""


def layout_of(card: DatasetCard, root: Path) -> str:
    """The layout of a folder: the card's own, or the one that `auto` finds."""
    if card.layout != "auto":
        return card.layout
    if any((root / name).is_dir() for name in _paired_folders(card).values()):
        return "paired"
    # A stray picture beside the people's folders changes nothing.
    depths = Counter(path.count("/") for path in _pictures(root))
    return "identity_folders" if depths[1] > depths.total() - depths[1] else "flat"


def list_photos(card: DatasetCard, root: Path) -> list[Photo]:
    """Lists the photographs of a data set in natural order.

    Raises:
        MissingError: The folder holds no photographs in this layout.
        UsageError: A list that the card names is absent or malformed.
    """
    layout = layout_of(card, root)
    photos = {"identity_folders": _identity_folders, "flat": _flat, "paired": _paired}[layout](card, root)
    if card.references_from:
        given = _reference_list(card, root)
        photos = [
            replace(photo, references=given[key])
            for photo in photos
            if (key := _listed_as(photo.path, given)) is not None
        ]
    if not photos:
        raise MissingError(
            f"{root} holds no photographs in the layout of {card.name}: {_expected(card, layout)}. {how_to_get(card)}"
        )
    prefixes = _paired_folders(card).values() if layout == "paired" else ()
    names = unique_names(photo.path for photo in photos)
    return [replace(photo, name=_without_folder(names[photo.path], prefixes)) for photo in photos]


def _without_folder(name: str, folders: Iterable[str]) -> str:
    return next((name.removeprefix(f"{folder}/") for folder in folders if name.startswith(f"{folder}/")), name)


def _expected(card: DatasetCard, layout: str) -> str:
    return {
        "identity_folders": f"one folder per person whose name matches {card.identity_pattern!r}, with pictures inside",
        "flat": f"pictures whose names match {card.photo_pattern!r}",
        "paired": f"folders {', '.join(_paired_folders(card).values())} with pictures of the same names",
    }[layout]


def _pictures(folder: Path) -> list[str]:
    """Paths of all pictures below a folder, relative to it, in natural order; linked folders are followed.

    Raises:
        UsageError: A folder cannot be read, or a name is not valid UTF-8.
    """
    from bench.image import is_picture

    def unreadable(error: OSError) -> None:
        raise UsageError(f"Cannot read the folder {error.filename}: {error.strerror}. Mend its permissions.")

    found, visited = [], set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in visited else [name for name in folders if not name.startswith(".")]
        if real in visited:
            continue
        visited.add(real)
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and is_picture(path):
                found.append(_sane(path.relative_to(folder).as_posix(), folder))
    return sorted(found, key=natural_key)


def _sane(path: str, folder: Path) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{folder} holds a file whose name is not valid UTF-8: {path!r}. Rename it.") from None
    return path


def _identity_folders(card: DatasetCard, root: Path) -> list[Photo]:
    from bench.image import is_picture

    identity_pattern, photo_pattern = re.compile(card.identity_pattern, re.DOTALL), re.compile(card.photo_pattern)
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and identity_pattern.fullmatch(path.name)]
        inside = {folder: [own.name for own in folder.iterdir() if is_picture(own)] for folder in folders}
    except OSError as error:
        raise UsageError(f"Cannot read the folder {error.filename}: {error.strerror}. Mend its permissions.") from error
    real_lq = card.contents == "lq"
    return [
        Photo(folder.name, path, lq=path if real_lq else None, has_truth=not real_lq)
        for folder in sorted(folders, key=lambda path: natural_key(path.name))
        for name in sorted(inside[folder], key=natural_key)
        if photo_pattern.fullmatch(name)
        for path in [_sane(f"{folder.name}/{name}", root)]
    ]


def _flat(card: DatasetCard, root: Path) -> list[Photo]:
    pattern = re.compile(card.photo_pattern)
    paths = [path for path in _pictures(root) if pattern.fullmatch(PurePosixPath(path).name)]
    real_lq = card.contents == "lq"
    identities = _identities(card, root, paths)
    return [Photo(identities[path], path, lq=path if real_lq else None, has_truth=not real_lq) for path in paths]


def _identities(card: DatasetCard, root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Who each picture shows, by its path."""
    alone = unique_names(paths)
    rule = card.identities_from
    if rule is None:
        return alone
    if "pattern" in rule:
        pattern = re.compile(rule["pattern"])
        matches = {path: pattern.fullmatch(PurePosixPath(path).stem) for path in alone}
        return {path: match[1] if match else alone[path] for path, match in matches.items()}
    listed = {}
    source = root / rule["file"]
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {source}, the list of who is shown in {card.name}: {error}.") from error
    for line in lines:
        name, _, identity = line.strip().rpartition(" ")
        if name:
            listed[name.strip()] = identity
    absent = [path for path in alone if PurePosixPath(path).name not in listed and path not in listed]
    if absent:
        raise UsageError(
            f"{source} does not say who is shown on {len(absent)} pictures ({', '.join(absent[:MOST_NAMED])})."
        )
    return {path: listed.get(path) or listed[PurePosixPath(path).name] for path in alone}


def unique_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path without its suffix; with it where two would become one."""
    names = {path: PurePosixPath(path).with_suffix("").as_posix() for path in paths}
    while len(set(names.values())) < len(names):
        uses = Counter(names.values())
        names = {path: name if uses[name] == 1 else path for path, name in names.items()}
    return names


def _paired_folders(card: DatasetCard) -> dict[str, str]:
    return {role: name for role, name in (PAIRED_FOLDERS | card.folders).items() if name is not None}


def _paired(card: DatasetCard, root: Path) -> list[Photo]:
    folders = _paired_folders(card)
    found: dict[str, dict[str, str]] = {}
    for role in ("ground_truth", "lq"):
        folder = root / folders[role] if role in folders else None
        if folder is not None and folder.is_dir():
            names = unique_names(_pictures(folder))
            found[role] = {name: f"{folders[role]}/{path}" for path, name in names.items()}
    if not found:
        return []
    shared = sorted(set.intersection(*(set(own) for own in found.values())), key=natural_key)
    for role, own in found.items():
        if alone := sorted(set(own) - set(shared), key=natural_key):
            print(  # noqa: T201
                f"bench: {len(alone)} pictures of {root / folders[role]} have no partner and are left out: "
                f"{', '.join(alone[:MOST_NAMED])}{', …' if len(alone) > MOST_NAMED else ''}",
                file=sys.stderr,
            )
    pattern = re.compile(card.photo_pattern)
    truth, lq = found.get("ground_truth"), found.get("lq")
    paths = {name: (truth or lq or {})[name] for name in shared}
    paths = {name: path for name, path in paths.items() if pattern.fullmatch(PurePosixPath(path).name)}
    people = dict(zip(paths, _identities(card, root, paths.values()).values(), strict=True))
    if card.identities_from is None:
        people = {name: name.partition("/")[0] for name in paths}
    beside = _references_beside(root / folders["reference"], folders["reference"]) if "reference" in folders else {}
    return [
        Photo(
            people[name],
            path,
            lq=lq[name] if lq else None,
            references=beside.get(name) or beside.get(people[name]) or (() if beside else None),
            has_truth=truth is not None,
        )
        for name, path in paths.items()
    ]


def _references_beside(folder: Path, name: str) -> dict[str, tuple[str, ...]]:
    """References by picture: `reference/<picture>/*` or `reference/<picture>.png`."""
    beside: dict[str, list[str]] = {}
    for path in _pictures(folder) if folder.is_dir() else ():
        beside.setdefault(PurePosixPath(path).with_suffix("").as_posix(), []).append(f"{name}/{path}")
        for parent in PurePosixPath(path).parents:
            if parent.name:
                beside.setdefault(parent.as_posix(), []).append(f"{name}/{path}")
    return {key: tuple(paths) for key, paths in beside.items()}


def _reference_list(card: DatasetCard, root: Path) -> dict[str, tuple[str, ...]]:
    """References by picture from the card's CSV file: one line per reference, or several in one cell."""
    rule = card.references_from or {}
    source = root / rule["file"]
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"Cannot read {source}, the reference list of {card.name}: {error}.") from error
    given: dict[str, list[str]] = {}
    for row in rows:
        try:
            image, cell = row[rule["image"]], row[rule["references"]]
        except KeyError as error:
            raise UsageError(f"{source} has no column {error}; its columns are {', '.join(row)}.") from error
        names = [part for part in re.split(r"[\[\]'\";|,\s]+", cell or "") if part]
        if outside := [
            name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        ]:
            raise UsageError(f"{source} names a file outside of the data set: {outside[0]!r}. Take that line out.")
        given.setdefault(image, []).extend(_existing(root, PurePosixPath(image), name, card) for name in names)
    return {image: tuple(dict.fromkeys(names)) for image, names in given.items()}


def _existing(root: Path, image: PurePosixPath, name: str, card: DatasetCard) -> str:
    """Path of a listed reference: from the data set's folder, the picture's own, or one of a paired layout."""
    folders = _paired_folders(card)
    places = [name, (image.parent / name).as_posix()]
    places += [f"{folders[role]}/{name}" for role in ("reference", "ground_truth") if role in folders]
    return next((place for place in places if (root / place).is_file()), name)


def _listed_as(path: str, given: dict[str, tuple[str, ...]]) -> str | None:
    """The name under which a list holds a picture: its path, its file name, or either without suffix."""
    pure = PurePosixPath(path)
    candidates = (path, pure.name, pure.with_suffix("").as_posix(), pure.stem)
    return next((name for name in candidates if name in given), None)
