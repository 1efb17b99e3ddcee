"""Scores pictures that any program made: folders paired by path, no protocol needed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from bench.data.workers import each
from bench.errors import BenchError, UsageError
from bench.files import sha256_bytes, sha256_file
from bench.image import is_picture, read_image
from bench.metrics.metric import Metric, Score, ScoringBatch
from bench.metrics.set_metric import FeatureSet, SetMetric
from bench.progress import Progress
from bench.protocol.card import natural_key
from bench.registry import load_metric, load_set_metric, set_metric_classes
from bench.scores.feature_cache import ScoreCache, content_key, decoder_version
from bench.scores.sets import score_sets, set_frame
from bench.scores.table import ScoreRow, rows_to_frame

if TYPE_CHECKING:
    from bench.metrics.set_metric import FeatureNetwork

KEY_VERSION = 2
_NO_TRUTH_POINTS = "needs landmarks, which bench score finds in the ground truth: give --truth"


@dataclass
class Pairing:
    """Which picture of one folder belongs to which of the other.

    Attributes:
        pairs: Restored and true picture by name: the path in the folder without its suffix. The true one is None
            where no ground truth was given.
        not_restored: Names that only the ground truth has.
        without_truth: Names that only the restored pictures have.
        unclear: Names that several files of one folder share, and which.
        unreadable: Pairs that cannot be scored, and why.
    """

    pairs: dict[str, tuple[Path, Path | None]] = field(default_factory=dict)
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


def pair_folders(restored: Path, truth: Path | None) -> Pairing:
    """Pairs the pictures of two folders by relative path without suffix.

    Args:
        restored: Folder of restored pictures.
        truth: Folder of their ground truth; None where there is none, and every restored picture counts.

    Raises:
        UsageError: A folder is missing or empty, or nothing pairs.
    """
    ours = _by_name(restored, "--restored")
    theirs = None if truth is None else _by_name(truth, "--truth")
    result = Pairing()
    for name in {**(theirs or {}), **ours}:
        sides = [ours.get(name, [])] if theirs is None else [ours.get(name, []), theirs.get(name, [])]
        for files in sides:
            if len(files) > 1:
                result.unclear[name] = ", ".join(str(path) for path in files)
        if name in result.unclear:
            continue
        if name not in ours:
            result.not_restored.append(name)
        elif theirs is None:
            result.pairs[name] = (ours[name][0], None)
        elif name not in theirs:
            result.without_truth.append(name)
        else:
            result.pairs[name] = (ours[name][0], theirs[name][0])
    for names in (result.not_restored, result.without_truth):
        names.sort(key=natural_key)
    if not result.pairs:
        if truth is None:
            raise UsageError(f"No picture of {restored} can be scored: {shorten(list(result.failed.values()))}.")
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


def references_of(name: str, folder: Path, truth: Path | None) -> list[Path]:
    """References of a picture: a file or folder of its own name, else the folder of its identity.

    A copy of the ground truth is no reference and is left out.
    """
    digest = None if truth is None else _digest(truth)
    for place in (folder / name, folder / identity_of(name)):
        files = list(place.iterdir()) if place.is_dir() else _files_named(place)
        found = [path for path in files if is_picture(path) and _digest(path) != digest]
        if found:
            return sorted(found, key=lambda path: natural_key(path.name))
    return []


class FolderScores(NamedTuple):
    """What `score_folders` found.

    Attributes:
        table: Score table (`bench.scores.table`, with an empty protocol id).
        sets: Table of set scores; no rows where no set metric was asked for.
        pairing: How the pictures paired.
        method: Label of the rows.
        revision: Hash of the restored files.
        computed: Values and feature vectors that were computed.
        reused: Values and feature vectors that an earlier call had computed.
    """

    table: pd.DataFrame
    sets: pd.DataFrame
    pairing: Pairing
    method: str
    revision: str
    computed: int
    reused: int


def score_folders(
    restored: Path,
    truth: Path | None,
    references: Path | None,
    metrics: Sequence[str],
    label: str | None = None,
    cache: ScoreCache | None = None,
    workers: int | None = None,
) -> FolderScores:
    """Scores every picture of the ground truth that can be scored; the others get null with a reason.

    Pictures are never resized. Landmarks are detected once in each ground truth and reference; all
    pixels count, since nothing is known of borders.

    Args:
        restored: Folder of restored pictures.
        truth: Folder of their ground truth, or None: then what needs one is null with that reason.
        references: Folder of references (see `references_of`), or None.
        metrics: Names of metrics per image and of whole sets.
        label: Name of the method in the table; None takes the name of the folder.
        cache: Earlier results by content; None for the one in `bench_home()`.
        workers: Processes; None for one per processor. They change no value.

    Raises:
        UsageError: Unknown metric, nothing pairs, or a folder is missing.
    """
    cache = ScoreCache() if cache is None else cache
    set_names = [name for name in metrics if name in set_metric_classes()]
    chosen = [load_metric(name)() for name in metrics if name not in set_names]
    chosen_sets = [load_set_metric(name)() for name in set_names]
    if references is not None and not references.is_dir():
        raise UsageError(f"--references {references} is not a folder.")
    _digest.cache_clear()
    pairing = pair_folders(restored, truth)
    scores, computed, reused = _pictures(pairing, references, chosen, cache, workers)
    scores |= {name: {m.name: Score(None, reason) for m in chosen} for name, reason in pairing.failed.items()}
    method = label or restored.resolve().name
    revision = _revision([path for path, _ in pairing.pairs.values()])
    identities = {metric.name: metric.identity for metric in chosen}
    rows = [
        ScoreRow(
            protocol_id="",
            method=method,
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
    of = len(pairing.pairs) + len(pairing.not_restored) + len(pairing.unclear)
    row = {"protocol_id": "", "method": method, "method_revision": revision, "seed": 0}
    sets = _sets(pairing, chosen_sets, cache, of, row)
    cache.prune()
    return FolderScores(
        rows_to_frame(rows), sets, pairing, method, revision, computed + cache.misses, reused + cache.hits
    )


def _pictures(
    pairing: Pairing, references: Path | None, metrics: Sequence[Metric], cache: ScoreCache, workers: int | None
) -> tuple[dict[str, dict[str, Score]], int, int]:
    """Scores of the pairs by name, how many values were computed, and how many reused; notes unreadable pairs."""
    absent = {metric.name: reason for metric in metrics if (reason := metric.unavailable()) is not None}
    identities = {metric.name: metric.identity for metric in metrics if metric.name not in absent}
    scores: dict[str, dict[str, Score]] = {}
    tasks: list[ScoringTask] = []
    keys: dict[str, str] = {}
    reused = 0
    for name in sorted(pairing.pairs, key=natural_key):
        picture, own_truth = pairing.pairs[name]
        own_references = references_of(name, references, own_truth) if references else []
        keys[name] = _key(picture, own_truth, own_references)
        known = cache.values(keys[name])
        scores[name] = {own: known[identity] for own, identity in identities.items() if identity in known}
        reused += len(scores[name])
        missing = tuple(own for own in identities if own not in scores[name])
        # Without anything to compute a pair is still looked at where nothing says that it can be scored.
        if missing or not scores[name]:
            tasks.append(ScoringTask(name, picture, own_truth, tuple(own_references), missing))
    computed = 0
    for task, found in _counted(tasks, workers):
        if isinstance(found, str):
            pairing.unreadable[task.name] = found
            del scores[task.name]
            continue
        computed += len(found)
        scores[task.name] |= found
        cache.add_values(keys[task.name], {identities[own]: score for own, score in found.items()})
    for own_scores in scores.values():
        own_scores |= {own: Score(None, reason) for own, reason in absent.items()}
    return scores, computed, reused


def _counted(tasks: Sequence[ScoringTask], workers: int | None) -> Iterator[tuple[ScoringTask, dict[str, Score] | str]]:
    progress = Progress("scored", len(tasks))
    for task, found in zip(tasks, each(score_pair, tasks, workers), strict=True):
        yield task, found
        progress.advance()


class ScoringTask(NamedTuple):
    """A pair and the metrics it still needs."""

    name: str
    restored: Path
    truth: Path | None
    references: tuple[Path, ...]
    metrics: tuple[str, ...]


def score_pair(task: ScoringTask) -> dict[str, Score] | str:
    """Scores of one pair by metric; why it cannot be scored if it cannot. Each picture is decoded once."""
    metrics = _loaded(task.metrics)
    try:
        batch, why = _batch(task, {need for metric in metrics for need in metric.needs})
        scores = {metric.name: metric.score_batch(batch)[0] for metric in metrics}
    except BenchError as error:
        return str(error)
    return {name: score._replace(reason=why.get(score.reason or "", score.reason)) for name, score in scores.items()}


@functools.lru_cache(maxsize=16)
def _loaded(names: tuple[str, ...]) -> list[Metric]:
    """Metrics of this process, which works on one thread so that no value depends on the number of processors."""
    import torch

    torch.set_num_threads(1)
    return [load_metric(name)() for name in names]


def _sets(
    pairing: Pairing, metrics: Sequence[SetMetric], cache: ScoreCache, of: int, row: Mapping[str, object]
) -> pd.DataFrame:
    names = sorted((name for name in pairing.pairs if name not in pairing.unreadable), key=natural_key)
    pairs = [pairing.pairs[name] for name in names]
    truths = [own for _, own in pairs if own is not None]

    def source(network: FeatureNetwork) -> FeatureSet:
        def of_files(files: Sequence[Path]) -> np.ndarray:
            keys = [content_key(_digest(path), decoder_version()) for path in files]
            return cache.features(network, keys, lambda index: read_image(files[index]))

        restored = of_files([own for own, _ in pairs])
        return FeatureSet(
            restored, of_files(truths) if len(truths) == len(pairs) else None, [identity_of(name) for name in names]
        )

    return set_frame(metrics, score_sets(metrics, source, len(names)), len(names), of, dict(row))


@functools.cache
def _digest(path: Path) -> str:
    return sha256_file(path)


def _key(restored: Path, truth: Path | None, references: Sequence[Path]) -> str:
    """What the scores of a pair depend on besides the metrics: the files, and what reads and finds faces in them."""
    from bench.faces.detector import detector_identity

    return content_key(
        KEY_VERSION,
        _digest(restored),
        None if truth is None else _digest(truth),
        [_digest(path) for path in references],
        decoder_version(),
        detector_identity(),
    )


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


def _batch(task: ScoringTask, needs: set[str]) -> tuple[ScoringBatch, dict[str, str]]:
    """A pair with what the metrics need, and what to say instead of a metric's reason where a face is not known."""
    from bench.faces.detector import main_face_points
    from bench.weights import catalogue

    restored = read_image(task.restored)
    truth = None if task.truth is None else read_image(task.truth)
    if truth is not None and restored.shape != truth.shape:
        sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (restored, truth)]
        raise UsageError(
            f"The restored picture has {sizes[0]} px, the ground truth {sizes[1]}; pictures are not resized."
        )
    references = [read_image(path) for path in task.references] if "references" in needs else []
    why: dict[str, str] = {}
    points, reference_points = None, []
    if "landmarks" in needs:
        if reason := catalogue.missing("yunet"):
            why["needs landmarks"] = f"needs landmarks: {reason}"
        elif truth is None:
            why["needs landmarks"] = _NO_TRUTH_POINTS
        elif (points := main_face_points(truth)) is None:
            why["needs landmarks"] = "no face detected in the ground truth"
        elif "references" in needs:
            reference_points = [main_face_points(picture) for picture in references]
            pairs = zip(task.references, reference_points, strict=True)
            if faceless := [path.name for path, found in pairs if found is None]:
                why["needs the landmarks of the references"] = f"no face detected in reference {shorten(faceless)}"
    known = [found for found in reference_points if found is not None]
    batch = ScoringBatch(
        image_ids=[task.name],
        restored=restored[None],
        truth=None if truth is None else truth[None],
        references=[references],
        landmarks=None if points is None else points[None],
        reference_landmarks=[np.stack(known)] if known and len(known) == len(references) else None,
        valid=np.ones((1, *restored.shape[:2]), dtype=bool),
    )
    return batch, why


def _revision(files: Sequence[Path]) -> str:
    """Hash of the restored files: two sets of pictures are never taken for one."""
    return sha256_bytes("".join(_digest(path) for path in files).encode())[:12]
