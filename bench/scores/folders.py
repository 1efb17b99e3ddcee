"""Scores pictures that any program made: folders paired by path, no protocol needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from bench.errors import BenchError, UsageError
from bench.files import sha256_bytes, sha256_file
from bench.image import is_picture, read_image
from bench.metrics.metric import Score, ScoringBatch
from bench.progress import counted
from bench.protocol.card import natural_key
from bench.registry import load_metric
from bench.scores.table import ScoreRow, rows_to_frame


@dataclass
class Pairing:
    """Which picture of one folder belongs to which of the other.

    Attributes:
        pairs: Restored and true picture by name: the path in the folder without its suffix.
        not_restored: Names that only the ground truth has.
        without_truth: Names that only the restored pictures have.
        unclear: Names that several files of one folder share, and which.
        unreadable: Pairs that cannot be scored, and why.
    """

    pairs: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    not_restored: list[str] = field(default_factory=list)
    without_truth: list[str] = field(default_factory=list)
    unclear: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, str]:
        """Every picture of the ground truth, or unclear name, that got no score, and why."""
        absent = dict.fromkeys(self.not_restored, "there is no restored picture of this name")
        several = {name: f"several files have this name: {files}" for name, files in self.unclear.items()}
        return absent | several | self.unreadable


def pair_folders(restored: Path, truth: Path) -> Pairing:
    """Pairs the pictures of two folders by relative path without suffix.

    Raises:
        UsageError: A folder is missing or empty, or nothing pairs.
    """
    ours, theirs = _by_name(restored, "--restored"), _by_name(truth, "--truth")
    result = Pairing()
    for name, files in {**theirs, **ours}.items():
        for own in (ours.get(name, []), theirs.get(name, [])):
            if len(own) > 1:
                result.unclear[name] = ", ".join(str(path) for path in own)
        if name in result.unclear or not files:
            continue
        if name not in ours:
            result.not_restored.append(name)
        elif name not in theirs:
            result.without_truth.append(name)
        else:
            result.pairs[name] = (ours[name][0], theirs[name][0])
    for names in (result.not_restored, result.without_truth):
        names.sort(key=natural_key)
    if not result.pairs:
        raise UsageError(
            f"No picture of {restored} has the name of one of {truth}; names are compared with their subfolders and "
            f"without suffix. Only restored: {shorten(result.without_truth)}. "
            f"Only true: {shorten(result.not_restored)}."
        )
    return result


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def identity_of(name: str) -> str:
    """Who is shown: the first folder of a nested name, else the name itself."""
    parts = PurePosixPath(name).parts
    return parts[0]


def references_of(name: str, folder: Path, truth: Path) -> list[Path]:
    """References of a picture: a file or folder of its own name, else the folder of its identity.

    A copy of the ground truth is no reference and is left out.
    """
    digest = sha256_file(truth)
    for place in (folder / name, folder / identity_of(name)):
        files = list(place.iterdir()) if place.is_dir() else _files_named(place)
        found = [path for path in files if is_picture(path) and sha256_file(path) != digest]
        if found:
            return sorted(found, key=lambda path: natural_key(path.name))
    return []


def score_folders(
    restored: Path, truth: Path, references: Path | None, metrics: Sequence[str], label: str | None = None
) -> tuple[pd.DataFrame, Pairing]:
    """Scores every picture of the ground truth that can be scored; the others get null with a reason.

    Pictures are never resized. Landmarks are detected once in each ground truth and reference; all
    pixels count, since nothing is known of borders.

    Args:
        restored: Folder of restored pictures.
        truth: Folder of their ground truth.
        references: Folder of references (see `references_of`), or None.
        metrics: Names of metrics.
        label: Name of the method in the table; None takes the name of the folder.

    Returns:
        Score table (`bench.scores.table`, with an empty protocol id), and how the pictures paired.

    Raises:
        UsageError: Unknown metric, nothing pairs, or a folder is missing.
    """
    chosen = [load_metric(name)() for name in metrics]
    if references is not None and not references.is_dir():
        raise UsageError(f"--references {references} is not a folder.")
    pairing = pair_folders(restored, truth)
    scores: dict[str, dict[str, Score]] = {}
    for name in counted(sorted(pairing.pairs, key=natural_key), "scored"):
        try:
            batch = _batch(name, *pairing.pairs[name], references)
        except BenchError as error:
            pairing.unreadable[name] = str(error)
            continue
        scores[name] = {metric.name: metric.score_batch(batch)[0] for metric in chosen}
    scores |= {name: {m.name: Score(None, reason) for m in chosen} for name, reason in pairing.failed.items()}
    revision = _revision([path for path, _ in pairing.pairs.values()])
    identities = {metric.name: metric.identity for metric in chosen}
    rows = [
        ScoreRow(
            protocol_id="",
            method=label or restored.resolve().name,
            method_revision=revision,
            seed=0,
            image_id=name,
            identity=identity_of(name),
            metric=metric,
            metric_id=identities[metric],
            value=score.value,
            reason=score.reason,
        )
        for name, own in scores.items()
        for metric, score in own.items()
    ]
    return rows_to_frame(rows), pairing


def _by_name(folder: Path, option: str) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UsageError(f"{option} {folder} is not a folder.")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if is_picture(path) and not any(part.startswith(".") for part in relative.parts):
            found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
    if not found:
        raise UsageError(f"{option} {folder} holds no pictures.")
    return found


def _files_named(place: Path) -> list[Path]:
    """Files beside `place` that have its name and a suffix."""
    if not place.parent.is_dir():
        return []
    return sorted(path for path in place.parent.iterdir() if path.stem == place.name and path.is_file())


def _batch(name: str, restored_file: Path, truth_file: Path, references: Path | None) -> ScoringBatch:
    restored, truth = read_image(restored_file), read_image(truth_file)
    if restored.shape != truth.shape:
        sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (restored, truth)]
        raise UsageError(
            f"The restored picture has {sizes[0]} px, the ground truth {sizes[1]}; pictures are not resized."
        )
    own_references = [read_image(path) for path in references_of(name, references, truth_file)] if references else []
    points = _points(truth)
    reference_points = [_points(picture) for picture in own_references]
    known = [found for found in reference_points if found is not None]
    return ScoringBatch(
        image_ids=[name],
        restored=restored[None],
        truth=truth[None],
        references=[own_references],
        landmarks=None if points is None else points[None],
        reference_landmarks=[np.stack(known)] if known and len(known) == len(own_references) else None,
        valid=np.ones((1, *truth.shape[:2]), dtype=bool),
    )


def _points(picture: np.ndarray) -> np.ndarray | None:
    from bench.faces.detector import main_face_points

    return main_face_points(picture)


def _revision(files: Sequence[Path]) -> str:
    """Hash of the restored files: two sets of pictures are never taken for one."""
    return sha256_bytes("".join(sha256_file(path) for path in files).encode())[:12]
