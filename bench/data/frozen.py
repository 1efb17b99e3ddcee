"""Writes the pictures of a frozen protocol into a folder, for programs that are not run here."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.files import write_json, write_text
from bench.image import write_png
from bench.progress import counted
from bench.protocol.card import data_root, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol, ProtocolPhoto

MANIFEST = "protocol.json"
_BEGUN = ".protocol_id"


@dataclass(frozen=True)
class WrittenProtocol:
    """Where the pictures of a protocol lie, and how many were written and were there already."""

    folder: Path
    written: int
    kept: int


def write_pictures(protocol: Protocol, settings: DataSettings, folder: Path) -> WrittenProtocol:
    """Writes `lq/<image id>.png`, `gt/…`, `reference/<image id>/<rank>_….png` and, last, `protocol.json`.

    One picture is in memory at a time. A stopped call goes on where it stopped. The folder is in the `paired` layout,
    so `data=folder data.root=FOLDER` reads it again. References that several pictures share are hard links.

    Args:
        protocol: A frozen protocol.
        settings: The settings it was frozen with.
        folder: Where to write.

    Raises:
        UsageError: The folder holds another protocol or other files.
        ProtocolMismatchError: A picture is not the one the protocol was frozen with.
    """
    begun = folder / _BEGUN
    _claim(protocol, folder)
    pictures = ProtocolPictures(protocol, data_root(load_card(settings.card), settings.root))
    first: dict[str, Path] = {}
    written = kept = 0
    for image in counted(protocol.images, "written"):
        lq, gt = (folder / part / f"{image.image_id}.png" for part in ("lq", "gt"))
        if lq.is_file() and (image.source is None or gt.is_file()):
            kept += 1
        else:
            truth = None if image.source is None else pictures.truth(image)
            if truth is not None:
                write_png(gt, truth)
            write_png(lq, pictures.lq(image, truth))
            written += 1
        for rank, reference in enumerate(image.references):
            name = f"{rank}_{Path(reference.path).stem}.png"
            _write_reference(pictures, reference, folder / "reference" / image.image_id / name, first)
    write_json(folder / MANIFEST, protocol.as_dict())
    begun.unlink(missing_ok=True)
    return WrittenProtocol(folder, written, kept)


def _claim(protocol: Protocol, folder: Path) -> None:
    import json

    holds = None
    if (folder / MANIFEST).is_file():
        holds = json.loads((folder / MANIFEST).read_text("utf-8")).get("id")
    elif (folder / _BEGUN).is_file():
        holds = (folder / _BEGUN).read_text("utf-8").strip()
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds other files. Give -o an empty or a new folder.")
    if holds is not None and holds != protocol.id:
        raise UsageError(f"{folder} holds the protocol {holds}, not {protocol.id}. Give -o another folder.")
    write_text(folder / _BEGUN, f"{protocol.id}\n")


def _write_reference(pictures: ProtocolPictures, photo: ProtocolPhoto, target: Path, first: dict[str, Path]) -> None:
    if not target.is_file():
        before = first.get(photo.path)
        if before is None:
            write_png(target, pictures.crop(photo))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(before, target)
            except OSError:
                shutil.copyfile(before, target)
    first.setdefault(photo.path, target)
