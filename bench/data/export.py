"""Writes what another program needs to restore a frozen protocol, in the folders that it reads; no ground truth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.data.frozen import WrittenProtocol, holds_pixels, write_reference
from bench.errors import UsageError
from bench.files import write_json, write_text
from bench.image import write_png
from bench.progress import counted
from bench.protocol.card import data_root, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol, ProtocolImage, ProtocolPhoto
from bench.systems.card import LAYOUTS

MANIFEST, TABLE, LIST = "manifest.json", "manifest.csv", "list.txt"
_BEGUN = ".export.json"
_LANDMARKS = "landmarks"


@dataclass(frozen=True)
class ExportedImage:
    """One picture of an export.

    Attributes:
        image: The protocol's picture.
        lq: Path of the LQ picture within the folder.
        references: The references that are written for it with their paths, in order.
    """

    image: ProtocolImage
    lq: str
    references: list[tuple[ProtocolPhoto, str]]


def flat_name(image_id: str) -> str:
    """A picture's or person's name without folders, such as `s29__6` for `s29/6`."""
    return image_id.replace("/", "__")


def plan_export(protocol: Protocol, layout: str) -> list[ExportedImage]:
    """Which files an export holds.

    Raises:
        UsageError: The layout cannot hold the protocol: two pictures would have one name, references are missing, or
            the pictures of a person have different ones.
    """
    planned = []
    per_image = layout == "image_folders" or (layout == "list" and bool(_mixed(protocol)))
    if layout == "identity_folders" and (mixed := _mixed(protocol)):
        raise UsageError(
            f"The pictures of {mixed[0]} have different references in {protocol.name}, and a folder for each person "
            "cannot tell them apart. Give --layout image_folders."
        )
    for image in protocol.images:
        name = flat_name(image.image_id)
        if layout != "flat" and not image.references:
            raise UsageError(f"{image.image_id} has no reference in {protocol.name}. Give --layout flat.")
        if layout == "same_name":
            references = [(image.references[0], f"reference/{name}.png")]
        else:
            folder = name if per_image else flat_name(image.identity)
            references = [
                (photo, f"reference/{folder}/{rank}_{PurePosixPath(photo.path).stem}.png")
                for rank, photo in enumerate(image.references if layout != "flat" else ())
            ]
        planned.append(ExportedImage(image, f"lq/{name}.png", references))
    if len({one.lq for one in planned}) < len(planned):
        raise UsageError(f"Two pictures of {protocol.name} would have one name without their folders.")
    people = {image.identity for image in protocol.images}
    if not per_image and len({flat_name(person) for person in people}) < len(people):
        raise UsageError(f"Two people of {protocol.name} would have one folder. Give --layout image_folders.")
    return planned


def _mixed(protocol: Protocol) -> list[str]:
    """People whose pictures do not all have the same references in the same order."""
    seen: dict[str, list[dict[str, Any]]] = {}
    own = {one.image_id: [photo.as_dict() for photo in one.references] for one in protocol.images}
    return [
        one.identity for one in protocol.images if seen.setdefault(one.identity, own[one.image_id]) != own[one.image_id]
    ]


def export_protocol(
    protocol: Protocol, settings: DataSettings, layout: str, folder: Path, system: str | None = None
) -> WrittenProtocol:
    """Writes LQ pictures, references and, last, `manifest.json` and `manifest.csv`.

    The LQ files are those of `bench data freeze -o` to the byte, under names without folders. Every file appears
    whole or not at all; a stopped call goes on where it stopped, and one that is repeated writes again what does not
    decode to the frozen pixels.

    Args:
        protocol: A frozen protocol.
        settings: The settings it was frozen with.
        layout: A key of `LAYOUTS`.
        folder: Where to write.
        system: Whom it is for, for the manifest.

    Raises:
        UsageError: The folder holds anything else, or the layout cannot hold the protocol.
        ProtocolMismatchError: A picture is not the one the protocol was frozen with.
    """
    planned = plan_export(protocol, layout)
    _claim(protocol, layout, folder, planned)
    pictures = ProtocolPictures(protocol, data_root(load_card(settings.card), settings.root))
    first: dict[tuple[object, ...], Path] = {}
    done: set[str] = set()
    written = kept = 0
    for one in counted(planned, "written"):
        if holds_pixels(folder / one.lq, one.image.lq_sha256):
            kept += 1
        else:
            write_png(folder / one.lq, pictures.lq(one.image))
            written += 1
        for photo, path in one.references:
            if path not in done:
                write_reference(pictures, photo, folder / path, first)
                done.add(path)
    if layout == "list":
        write_text(folder / LIST, "".join(_lines(folder, planned)))
    write_text(folder / TABLE, _table(protocol, planned))
    write_json(folder / MANIFEST, _manifest(protocol, layout, system, planned))
    (folder / _BEGUN).unlink(missing_ok=True)
    return WrittenProtocol(folder, written, kept)


def _lines(folder: Path, planned: list[ExportedImage]) -> Iterator[str]:
    """Absolute paths: the programs that read them run in their own folder."""
    for one in planned:
        references = (folder / one.references[0][1]).parent.resolve()
        landmarks = folder.resolve() / _LANDMARKS / references.name
        yield f"{(folder / one.lq).resolve()}\t{references}\t{landmarks}\n"


def _manifest(protocol: Protocol, layout: str, system: str | None, planned: list[ExportedImage]) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "protocol_id": protocol.id,
        "layout": layout,
        "system": system,
        "size": protocol.size,
        "images": [
            {
                "image_id": one.image.image_id,
                "identity": one.image.identity,
                "lq": one.lq,
                "references": [path for _, path in one.references],
            }
            for one in planned
        ],
    }


def _table(protocol: Protocol, planned: list[ExportedImage]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "identity", "lq", "references", "protocol_id"])
    for one in planned:
        references = "|".join(path for _, path in one.references)
        writer.writerow([one.image.image_id, one.image.identity, one.lq, references, protocol.id])
    return text.getvalue()


def _claim(protocol: Protocol, layout: str, folder: Path, planned: list[ExportedImage]) -> None:
    """Marks the folder as this export's, unless it holds anything else."""
    mark = {"protocol_id": protocol.id, "layout": layout}
    own = next((folder / name for name in (MANIFEST, _BEGUN) if (folder / name).is_file()), None)
    if own is not None:
        there = _mark_in(own)
        if there != mark:
            raise UsageError(
                f"{folder} holds the export of {there['protocol_id']} as {there['layout']}, not that of {protocol.id} "
                f"as {layout}. Give -o another folder."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds other files. Give -o an empty or a new folder.")
    else:
        write_json(folder / _BEGUN, mark)
    wanted = {MANIFEST, TABLE, LIST, _BEGUN} | {one.lq for one in planned}
    wanted |= {path for one in planned for _, path in one.references}
    strange = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".partial-"):
            path.unlink()  # of a call that was killed while it wrote
        elif name not in wanted and not name.startswith(f"{_LANDMARKS}/"):
            strange.append(name)
    if strange:
        more = ", …" if len(strange) > 3 else ""
        raise UsageError(
            f"{folder} holds files that are not of this export: {', '.join(strange[:3])}{more}. A program would read "
            "them as well; move them away. Results belong into a folder of their own."
        )


def _mark_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"protocol_id", "layout"} <= set(content):
        raise UsageError(f"{path} is of no export. Give -o an empty or a new folder.")
    return {key: content[key] for key in ("protocol_id", "layout")}


def layout_for(system: str | None, layout: str | None) -> str:
    """The layout that was asked for, else that of a system's card.

    Raises:
        UsageError: Neither is given or known.
    """
    from bench.errors import unknown_name
    from bench.systems.card import card

    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if system is None and layout is None:
        raise UsageError(
            f"Say what the pictures are for: --for SYSTEM (bench ls methods), or --layout {'|'.join(LAYOUTS)}."
        )
    own = None if system is None else card(system)
    found = layout or (own.layout if own else None)
    if found is None and own is not None:
        raise UsageError(
            f"What {own.title} reads is not known ({own.unverified['layout']}). Give --layout {'|'.join(LAYOUTS)}."
        )
    return str(found)
