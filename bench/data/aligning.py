"""Aligns the pictures of a data set that is being prepared: detect, warp, write; each picture once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from bench.data.workers import each
from bench.progress import Progress
from bench.protocol.alignment import TEMPLATES, AlignmentTemplate, alignment_matrix, warp

JOURNAL = "skipped.jsonl"


def align_pictures(
    pictures: Sequence[tuple[Path, str]], content: Path, staging: Path, template: str, workers: int | None
) -> list[dict[str, str]]:
    """Writes the aligned crop of every picture as a PNG.

    Args:
        pictures: (file, path inside the data set).
        content: Folder of the data set; a crop that lies there is kept.
        staging: Folder for unfinished files and the journal of pictures that gave no crop.
        template: Name of the template.
        workers: Processes; None for as many as there are processors.

    Returns:
        `{path, reason}` of each picture without a crop.
    """
    journal = staging / JOURNAL
    skipped = _read(journal)
    targets = png_names([target for _, target in pictures])
    open_tasks = [
        (str(path), target, targets[target])
        for path, target in pictures
        if target not in skipped and not (content / targets[target]).is_file()
    ]
    progress = Progress("aligned", len(pictures), len(pictures) - len(open_tasks))
    align = partial(_align, str(content), str(staging), TEMPLATES[template])
    with journal.open("a", encoding="utf-8") as stream:
        for target, reason in each(align, open_tasks, workers):
            if reason:
                skipped[target] = reason
                stream.write(json.dumps({"path": target, "reason": reason}, ensure_ascii=False) + "\n")
                stream.flush()
            progress.advance()
    return [{"path": path, "reason": reason} for path, reason in skipped.items()]


def png_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path with the suffix .png, added to the old one where two would become one."""
    plain = {path: PurePosixPath(path).with_suffix(".png").as_posix() for path in paths}
    uses = Counter(plain.values())
    return {path: name if uses[name] == 1 else f"{path}.png" for path, name in plain.items()}


def _read(journal: Path) -> dict[str, str]:
    """What was skipped before; a line cut off by a kill is dropped, and its picture tried again."""
    if not journal.is_file():
        return {}
    text = journal.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        journal.write_text(whole, "utf-8")
    records = [json.loads(line) for line in whole.split("\n") if line]
    return {record["path"]: record["reason"] for record in records}


def _align(
    content: str, staging: str, template: AlignmentTemplate, task: tuple[str, str, str]
) -> tuple[str, str | None]:
    """Aligns one picture; returns its path and why it has no crop, or None."""
    from bench.faces.detector import detect_main_face
    from bench.files import sha256_bytes
    from bench.image import UnreadableImageError, encode_png, read_image

    source, target, name = task
    try:
        image = read_image(Path(source))
    except UnreadableImageError as error:
        return target, str(error)
    face = detect_main_face(image)
    if face is None:
        return target, "no face found"
    crop = warp(image, alignment_matrix(face.points, template, image.shape[:2]), template.size)
    unfinished = Path(staging) / "unfinished" / sha256_bytes(name.encode())
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.write_bytes(encode_png(crop))
    final = Path(content) / name
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished.replace(final)
    return target, None
