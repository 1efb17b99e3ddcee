"""Writes the pictures of a frozen protocol into a folder, for programs that are not run here."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UsageError
from bench.files import atomic_path, sha256_bytes, write_json, write_text
from bench.image import UnreadableImageError, read_image, write_png
from bench.progress import counted
from bench.protocol.card import data_root, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol, ProtocolPhoto

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "protocol.json"
_BEGUN = ".protocol_id"


@dataclass(frozen=True)
class WrittenProtocol:
    """Where the pictures of a protocol lie, how many were written, and how many were there already and are right."""

    folder: Path
    written: int
    kept: int


def write_pictures(protocol: Protocol, settings: DataSettings, folder: Path) -> WrittenProtocol:
    """Writes `lq/<image id>.png`, `gt/…`, `reference/<image id>/<rank>_….png` and, last, `protocol.json`.

    One picture is in memory at a time. A stopped call goes on where it stopped: what is there is kept if it decodes
    to the frozen pixels, and written again if not. The folder is in the `paired` layout,
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
    first: dict[tuple[object, ...], Path] = {}
    written = kept = 0
    for image in counted(protocol.images, "written"):
        lq, gt = (folder / part / f"{image.image_id}.png" for part in ("lq", "gt"))
        if holds_pixels(lq, image.lq_sha256) and (image.source is None or holds_pixels(gt, image.gt_sha256)):
            kept += 1
        else:
            truth = None if image.source is None else pictures.truth(image)
            if truth is not None:
                write_png(gt, truth)
            write_png(lq, pictures.lq(image, truth))
            written += 1
        for rank, reference in enumerate(image.references):
            name = f"{rank}_{Path(reference.path).stem}.png"
            write_reference(pictures, reference, folder / "reference" / image.image_id / name, first)
    write_json(folder / MANIFEST, protocol.as_dict())
    begun.unlink(missing_ok=True)
    return WrittenProtocol(folder, written, kept)


def _claim(protocol: Protocol, folder: Path) -> None:
    holds = None
    if (folder / MANIFEST).is_file():
        holds = _id_in(folder / MANIFEST)
    elif (folder / _BEGUN).is_file():
        holds = (folder / _BEGUN).read_text("utf-8").strip()
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds other files. Give -o an empty or a new folder.")
    if holds is not None and holds != protocol.id:
        raise UsageError(f"{folder} holds the protocol {holds}, not {protocol.id}. Give -o another folder.")
    write_text(folder / _BEGUN, f"{protocol.id}\n")


def _id_in(manifest: Path) -> str:
    try:
        content = json.loads(manifest.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("id"), str):
        raise UsageError(f"{manifest} is no protocol. Give -o an empty or a new folder.")
    return str(content["id"])


def _decoded(path: Path) -> np.ndarray | None:
    """The picture's pixels; None where there is none that can be read."""
    try:
        return read_image(path)
    except UnreadableImageError:
        return None


def holds_pixels(path: Path, expected: str | None) -> bool:
    """Whether a file decodes to pixels of this SHA-256."""
    pixels = _decoded(path)
    return pixels is not None and sha256_bytes(pixels.tobytes()) == expected


def write_reference(
    pictures: ProtocolPictures, photo: ProtocolPhoto, target: Path, first: dict[tuple[object, ...], Path]
) -> None:
    """Writes a reference, or links it to the copy that this call wrote or checked, unless it is there and right."""
    key = (photo.path, photo.marks)
    before = first.get(key)
    if before is None:
        crop, there = pictures.crop(photo), _decoded(target)
        if there is None or there.shape != crop.shape or (there != crop).any():
            write_png(target, crop)
        first[key] = target
    elif not (target.is_file() and target.samefile(before)):
        with atomic_path(target) as temporary:
            temporary.unlink()  # a link takes no name that is there
            try:
                os.link(before, temporary)
            except OSError:
                shutil.copyfile(before, temporary)
