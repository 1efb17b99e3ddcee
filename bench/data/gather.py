"""Finds a data set inside the folders somebody has: which files belong to it, and where each goes.

An archive often wraps everything in a folder or two, and brings files that only some computer needed.
The layout decides what is looked for (`bench/protocol/layout.py` says how each looks).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UsageError
from bench.protocol.card import DatasetCard, natural_key
from bench.protocol.layout import PAIRED_FOLDERS, layout_of

DEEPEST = 4
SHOWN = 8
JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


@dataclass
class Gathered:
    """What `gather` found.

    Attributes:
        pictures: (file, path inside the data set), in natural order.
        others: The same for lists and landmark files.
        records: An insightface record file to unpack instead of pictures, or None.
        not_taken: Pictures that lie in the folders and do not fit the layout.
    """

    pictures: list[tuple[Path, str]] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)
    records: Path | None = None
    not_taken: list[Path] = field(default_factory=list)


def gather(card: DatasetCard, sources: Sequence[Path], lists: Sequence[Path] = ()) -> Gathered:
    """Finds the files of a data set.

    Args:
        card: Its card.
        sources: Folders to look in.
        lists: Single files that were given beside them, such as a reference list.

    Raises:
        UsageError: A folder does not hold the layout (the message says what was expected and what is there), or
            there are names that no list can hold.
    """
    found = Gathered()
    list_roots = _find_lists(card, sources, lists, found)
    layout = _layout(card, sources)
    if layout == "identity_folders":
        found.records = _records(sources)
        if found.records is None:
            _identity_folders(card, sources, found)
    elif layout == "paired":
        _paired(card, sources, found)
    else:
        _flat(card, sources, list_roots, found)
    taken = {path for path, _ in found.pictures}
    found.not_taken = [path for source in sources for path in _below(source) if path not in taken]
    _landmarks(found)
    _refuse_collisions(found)
    _refuse_useless(card, sources, found)
    return found


def _names(folder: Path) -> list[str]:
    """What lies in a folder, in natural order, without what only some computer needs."""
    kept = [entry for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.name not in JUNK]
    for entry in kept:
        if _unwritable(entry.name) and (Path(entry.name).suffix.lower() in SUFFIXES or entry.is_dir()):
            raise UsageError(
                f"The name {entry.name!r} in {folder} is not UTF-8 or holds a control character such as a line break; "
                "no list could name it. Rename it (in an archive: unpack it by hand and give the folder with --from)."
            )
    return sorted((entry.name for entry in kept), key=lambda name: (natural_key(name), name))


def _unwritable(name: str) -> bool:
    """Whether a name has parts of undecodable bytes (Cs) or control characters (Cc)."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def _pictures(folder: Path) -> list[str]:
    return [name for name in _names(folder) if Path(name).suffix.lower() in SUFFIXES and (folder / name).is_file()]


def _folders(folder: Path) -> list[Path]:
    inside = [folder / name for name in _names(folder)]
    return [path for path in inside if path.is_dir() and not _leads_back(path)]


def _leads_back(path: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _levels(sources: Sequence[Path]) -> Iterator[list[Path]]:
    """The folders themselves, then those inside, level by level."""
    level = list(sources)
    for _ in range(DEEPEST + 1):
        yield level
        level = [inner for folder in level for inner in _folders(folder)]


def _below(folder: Path, depth: int = 16) -> Iterator[Path]:
    """All pictures below a folder; a bound on the depth ends links that lead in a circle."""
    for name in _pictures(folder):
        yield folder / name
    for inner in _folders(folder) if depth else ():
        yield from _below(inner, depth - 1)


def _layout(card: DatasetCard, sources: Sequence[Path]) -> str:
    """The card's layout; for `auto` the one that the folders have, by the rule that reads them later."""
    if card.layout != "auto":
        return card.layout
    roles = _roles(card).values()
    layouts = {
        source: "paired" if source.name in roles else layout_of(card, _unwrapped(card, source))
        for source in sources
        if any(True for _ in _below(source))
    }
    if len(set(layouts.values())) > 1:
        said = ", ".join(f"{source} ({layout})" for source, layout in layouts.items())
        raise UsageError(f"These have different layouts: {said}. Prepare them apart, each with its own --to.")
    return next(iter(layouts.values()), "flat")


def _unwrapped(card: DatasetCard, folder: Path) -> Path:
    """The folder inside those that hold nothing but one folder of folders."""
    for _ in range(DEEPEST):
        inner = [own for own in _folders(folder) if any(True for _ in _below(own))]
        if _pictures(folder) or len(inner) != 1 or inner[0].name in _roles(card).values() or _pictures(inner[0]):
            break
        folder = inner[0]
    return folder


def _find_lists(card: DatasetCard, sources: Sequence[Path], lists: Sequence[Path], found: Gathered) -> list[Path]:
    """Notes the lists that the card names; returns the folders they stand in."""
    roots = []
    for rule in (card.identities_from, card.references_from):
        if not rule or "file" not in rule:
            continue
        wanted = rule["file"]
        given = [path for path in lists if path.name == Path(wanted).name]
        folders = (folder for level in _levels(sources) for folder in level if (folder / wanted).is_file())
        root = None if given else next(folders, None)
        if not given and root is None:
            raise UsageError(
                f"{card.name} needs the list {wanted}, which is not in {_shown(sources)}. If you have it apart, give "
                f"it with a second --from {wanted}. {card.obtain}"
            )
        found.others.append((given[0] if given else (root or Path()) / wanted, wanted))
        if root is not None:
            roots.append(root)
    return roots


def _records(sources: Sequence[Path]) -> Path | None:
    """The `.rec` file of pictures, where there is one."""
    preferred: list[Path] = []
    for source in sources:
        for level in _levels([source]):
            files = [folder / name for folder in level for name in _names(folder) if name.lower().endswith(".rec")]
            if files:
                preferred += [path for path in files if path.stem == "train"] or files
                break
    if len(preferred) > 1:
        raise UsageError(f"There are several record files ({_shown(preferred[:SHOWN])}). Give --from one's folder.")
    return preferred[0] if preferred else None


def _identity_roots(card: DatasetCard, source: Path) -> list[Path]:
    """The uppermost folders that hold folders of people."""
    for level in _levels([source]):
        roots = [folder for folder in level if any(True for _ in _people(card, folder))]
        if roots:
            return roots
    return []


def _people(card: DatasetCard, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders of people in a folder, and the names of their pictures."""
    identity, photo = re.compile(card.identity_pattern), re.compile(card.photo_pattern)
    for person in _folders(folder):
        if identity.fullmatch(person.name):
            names = [name for name in _pictures(person) if photo.fullmatch(name)]
            if names:
                yield person, names


def _identity_folders(card: DatasetCard, sources: Sequence[Path], found: Gathered) -> None:
    roots = [root for source in sources for root in _identity_roots(card, source)]
    if not roots:
        raise UsageError(
            f"{_shown(sources)} is not the layout of {card.name}. Expected: one folder per person whose name matches "
            f"{card.identity_pattern!r}, with pictures inside whose names match {card.photo_pattern!r}, at most "
            f"{DEEPEST} folders deep; or an insightface .rec file. Found: {_described(sources)}."
        )
    found.pictures = [
        (person / name, f"{person.name}/{name}")
        for root in roots
        for person, names in _people(card, root)
        for name in names
    ]


def _flat(card: DatasetCard, sources: Sequence[Path], list_roots: Sequence[Path], found: Gathered) -> None:
    pattern = re.compile(card.photo_pattern)
    for source in sources:
        pictures = [path for path in _below(source) if pattern.fullmatch(path.name)]
        if not pictures:
            continue
        common = Path(os.path.commonpath([path.parent for path in pictures]))
        # A list names pictures from the folder it stands in.
        root = next((folder for folder in list_roots if common.is_relative_to(folder)), common)
        found.pictures += [(path, path.relative_to(root).as_posix()) for path in pictures]
    if not found.pictures:
        raise UsageError(
            f"{_shown(sources)} is not the layout of {card.name}. Expected: pictures whose names match "
            f"{card.photo_pattern!r}, in one folder or in folders. Found: {_described(sources)}."
        )


def _roles(card: DatasetCard) -> dict[str, str]:
    return {role: name for role, name in (PAIRED_FOLDERS | card.folders).items() if name}


def _paired(card: DatasetCard, sources: Sequence[Path], found: Gathered) -> None:
    roles = _roles(card)
    present = {}
    for role, name in roles.items():
        folders = [folder for source in sources for folder in _uppermost(source, name)]
        if len(folders) > 1:
            raise UsageError(f"There are several folders {name}: {_shown(folders)}. Give --from one.")
        if folders:
            present[role] = folders[0]
    needed = "ground_truth" if card.contents == "ground_truth" else "lq"
    if needed not in present and not (card.layout == "auto" and "lq" in present):
        raise UsageError(
            f"{_shown(sources)} is not the layout of {card.name}. Expected: folders {', '.join(roles.values())} with "
            f"pictures of the same names, {roles.get(needed, needed)} at least. Found: {_described(sources)}."
        )
    for role, folder in present.items():
        found.pictures += [(path, f"{roles[role]}/{path.relative_to(folder).as_posix()}") for path in _below(folder)]


def _uppermost(source: Path, name: str) -> list[Path]:
    """The uppermost folders of a name that hold pictures."""
    for level in _levels([source]):
        folders = [folder for folder in level if folder.name == name and any(True for _ in _below(folder))]
        if folders:
            return folders
    return []


def _landmarks(found: Gathered) -> None:
    """Landmark files that stand beside pictures (`0.png.txt`) come along."""
    for path, target in found.pictures:
        beside = path.with_name(path.name + ".txt")
        if beside.is_file():
            found.others.append((beside, target + ".txt"))


def _refuse_collisions(found: Gathered) -> None:
    seen: dict[str, Path] = {}
    for path, target in (*found.pictures, *found.others):
        if target in seen:
            raise UsageError(f"{seen[target]} and {path} would both become {target}. Give --from one of their folders.")
        seen[target] = path


def _refuse_useless(card: DatasetCard, sources: Sequence[Path], found: Gathered) -> None:
    files = [path for path, _ in (*found.pictures, *found.others)] + ([found.records] if found.records else [])
    used = {parent for path in files for parent in path.parents}
    for source in sources:
        if source not in used:
            raise UsageError(
                f"Nothing in {source} fits the layout of {card.name} beside the rest. Found: {_described([source])}. "
                "Leave it out, or prepare it apart with its own --to."
            )


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _described(sources: Sequence[Path]) -> str:
    """What lies in the folders, in a few words."""
    names = [name + ("/" if (source / name).is_dir() else "") for source in sources for name in _names(source)]
    if not names:
        return "an empty folder"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    inside = [f"{source.name}/: {', '.join(_names(source)[:3])}" for top in sources for source in _folders(top)[:2]]
    return f"{', '.join(names[:SHOWN])}{more}" + (f" ({'; '.join(inside)})" if inside else "")
