"""Which photographs a protocol takes: whose, which are references, which are restored."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import MissingError, UsageError, unknown_name
from bench.files import sha256_bytes, sha256_file, write_json
from bench.image import read_image
from bench.metrics.metric import ScoringBatch
from bench.paths import bench_home
from bench.protocol.aligner import PhotoAligner
from bench.protocol.alignment import warp
from bench.protocol.card import DatasetCard, load_card, natural_key
from bench.protocol.layout import Photo, layout_of, list_photos
from bench.protocol.probe import plant
from bench.protocol.protocol import DataSettings, ProtocolImage, ProtocolPhoto, under_each
from bench.protocol.splits import hashed_order, split_identities
from bench.registry import load_metric

RULES = ("quality_pairs",)


@dataclass(frozen=True)
class _Planned:
    """A photograph to restore and the paths of its references, best first."""

    photo: Photo
    references: Sequence[str]


def plan_images(settings: DataSettings, root: Path) -> tuple[ProtocolImage, ...]:
    """Chooses references and pictures to restore.

    Of each identity, in natural order, the first photographs are references and the next ones are
    restored, unless the data set fixes the references of each picture, or the settings name a rule:
    `quality_pairs` takes of each identity the photograph with the best value of a no-reference metric
    as reference and the second best as ground truth. Where the settings name several degradations, every picture comes
    once under each.

    Raises:
        MissingError: No identity of the split has enough photographs, or a metric that the rule
            needs is absent.
        UsageError: The degradation and the data set do not go together.
    """
    card = load_card(settings.card)
    photos = list_photos(card, root)
    if settings.degradation is None:
        photos = [_as_degraded(photo, card, root, settings) for photo in photos]
    elif not photos[0].has_truth:
        raise UsageError(
            f"{card.name} holds real degraded pictures without ground truth; nothing is degraded again. "
            "Give data.degradation=null."
        )
    else:
        photos = [replace(photo, lq=None) for photo in photos]
    if not any(photo.references for photo in photos):
        photos = [replace(photo, references=None) for photo in photos]
    by_identity: dict[str, list[Photo]] = {}
    for photo in photos:
        by_identity.setdefault(photo.identity, []).append(photo)
    aligner = PhotoAligner(card, root, settings.size)
    images = [
        image
        for identity in _identities(settings, card, by_identity, root)
        for image in _images(settings, identity, by_identity[identity], aligner)
    ]

    def crop(photo: ProtocolPhoto) -> np.ndarray:
        return warp(read_image(root / photo.path), photo.matrix, settings.size)

    if (probe := settings.probe_settings()) is not None:
        images = list(plant(images, probe, settings.name, settings.size, crop))
    if isinstance(settings.degradation, list):
        return under_each(images, [preset["name"] for preset in settings.degradation])
    return tuple(images)


def _as_degraded(photo: Photo, card: DatasetCard, root: Path, settings: DataSettings) -> Photo:
    """A photograph of a protocol that degrades nothing: its LQ is given, or it is the LQ itself."""
    if photo.lq is not None:
        return photo
    if card.layout == "auto" and layout_of(card, root) != "paired":
        return replace(photo, lq=photo.path, has_truth=False)
    raise UsageError(
        f"{settings.name} degrades nothing (data.degradation=null), but {root} brings no LQ pictures. Give a preset, "
        "such as data.degradation=heavy."
    )


def _identities(
    settings: DataSettings, card: DatasetCard, by_identity: dict[str, list[Photo]], root: Path
) -> list[str]:
    """Identities of the split that have enough photographs, in natural order."""
    fixed = all(photo.references is not None for own in by_identity.values() for photo in own)
    wanted_references = 0 if fixed else settings.references or 0
    least = max((settings.targets or 1) + wanted_references, settings.minimum_photos or 0)
    everyone = card.statistics.get("identities")
    if card.splits.get("rule") == "hashed" and isinstance(everyone, int) and len(by_identity) < everyone:
        _warn_of_partial_copy(card.name, len(by_identity), everyone)
    # Split first: who is tested must not depend on how many photographs a protocol asks for.
    split = split_identities(card, list(by_identity))[settings.split]
    chosen = [identity for identity in split if len(by_identity[identity]) >= least]
    wanted = settings.identities or 1
    if len(chosen) < wanted:
        raise MissingError(
            f"{settings.name} needs {wanted} identities with at least {least} photographs, but only {len(chosen)} of "
            f"the {len(split)} in the {settings.split} split of {card.name} in {root} have as many "
            f"({len(by_identity)} identities are there)."
        )
    if settings.identities is not None:
        chosen = hashed_order(card, chosen)[: settings.identities]
    return sorted(chosen, key=natural_key)


@cache
def _warn_of_partial_copy(card: str, present: int, everyone: int) -> None:
    """Says once per process what the split of an incomplete copy is worth."""
    print(  # noqa: T201
        f"bench: {present} of the {everyone} people of {card} are here. The split ranks those who are: people of your "
        "test split may be training people of the whole set.",
        file=sys.stderr,
    )


def _images(settings: DataSettings, identity: str, photos: list[Photo], aligner: PhotoAligner) -> list[ProtocolImage]:
    """The pictures of one identity with their references."""
    known: dict[tuple[str, bool], ProtocolPhoto | None] = {}

    def aligned(path: str, points: bool = True) -> ProtocolPhoto | None:
        if (path, points) not in known:
            known[path, points] = aligner.align_if_readable(path, points)
        return known[path, points]

    if settings.selection is not None:
        planned = _by_rule(settings.selection, photos, aligner)
    elif photos[0].references is not None:
        planned = [_Planned(photo, photo.references or ()) for photo in photos]
    else:
        shared = list(islice((photo.path for photo in photos if aligned(photo.path)), settings.references or 0))
        rest = photos[[photo.path for photo in photos].index(shared[-1]) + 1 :] if shared else photos
        planned = [_Planned(photo, shared) for photo in rest]
    images: list[ProtocolImage] = []
    for plan in planned:
        if len(images) == settings.targets:
            break
        photo = plan.photo
        source = aligned(photo.path) if photo.has_truth else None
        # Where there is no ground truth, the LQ picture says where the face is, for every method alike.
        lq = aligned(photo.lq, not photo.has_truth) if photo.lq is not None else None
        if (photo.has_truth and source is None) or (photo.lq is not None and lq is None):
            continue
        readable = (found for path in plan.references if (found := aligned(path)) is not None)
        references = tuple(islice(readable, settings.references))
        shown = {own.sha256 for own in (source, lq) if own is not None}
        if copied := [reference.path for reference in references if reference.sha256 in shown]:
            raise UsageError(
                f"The reference {copied[0]} of {photo.path} is that picture itself, which makes any method look good. "
                "Take it out of the references."
            )
        images.append(ProtocolImage(photo.name, identity, source, references, lq=lq))
    return images


def _by_rule(rule: dict[str, Any], photos: list[Photo], aligner: PhotoAligner) -> list[_Planned]:
    """The best photograph as reference of the second best.

    Raises:
        UsageError: Unknown rule.
        MissingError: The metric cannot be computed here.
    """
    if rule.get("rule") not in RULES:
        raise unknown_name("rule in data.selection", str(rule.get("rule")), RULES)
    metric = rule.get("metric")
    if not isinstance(metric, str):
        raise UsageError("data.selection needs the name of a metric, such as {rule: quality_pairs, metric: brisque}.")
    if len(photos) < 2:
        return []
    values = {photo.path: _quality(metric, photo.path, aligner) for photo in photos}
    known = [photo for photo in photos if values[photo.path] is not None]
    sign = -1 if load_metric(metric).higher_is_better else 1
    best = sorted(known, key=lambda photo: sign * (values[photo.path] or 0.0))
    return [_Planned(best[1], (best[0].path,))] if len(best) > 1 else []


def _quality(name: str, path: str, aligner: PhotoAligner) -> float | None:
    """A no-reference metric of one photograph at the protocol's size; computed once per file, then read."""
    metric = load_metric(name)()
    if (reason := metric.unavailable()) is not None:
        raise MissingError(f"This protocol chooses photographs by {name}, which is not available: {reason}.")
    if metric.needs:
        raise UsageError(f"data.selection.metric must need no ground truth; {name} needs {', '.join(metric.needs)}.")
    key = sha256_bytes(f"{sha256_file(aligner.root / path)} {aligner.size} {metric.identity}".encode())
    cached = bench_home() / "quality" / key[:2] / f"{key}.json"
    if not cached.is_file():
        photo = aligner.align_if_readable(path, points=False)
        if photo is None:
            return None
        crop = warp(read_image(aligner.root / path), photo.matrix, aligner.size)[np.newaxis]
        batch = ScoringBatch([path], crop, None, [[]], None, None, np.ones(crop.shape[:3], dtype=bool))
        score = metric.score_batch(batch)[0]
        write_json(cached, {"value": score.value, "reason": score.reason})
    found: dict[str, Any] = json.loads(cached.read_text("utf-8"))
    if found["value"] is None:
        print(f"bench: left out of the protocol: {path} has no {name}: {found['reason']}", file=sys.stderr)  # noqa: T201
    value: float | None = found["value"]
    return value
