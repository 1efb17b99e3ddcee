"""Results of others: what they claim is checked against their pictures before it stands on a board."""

from __future__ import annotations

import math
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.files import sha256_bytes
from bench.leaderboard.accept_sets import accept_sets, read_submitted_sets, sets_beside
from bench.leaderboard.entry import scored_metrics
from bench.leaderboard.ranking import COPY, INPUT
from bench.leaderboard.schema import ENTRY_SCHEMA, validate
from bench.leaderboard.submission import (
    Submission,
    check_hashes,
    check_no_ghosts,
    check_table,
    find_protocol,
    hash_pictures,
    read_submitted,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bench.metrics.metric import Metric
    from bench.metrics.set_metric import SetMetric
    from bench.protocol.pictures import ProtocolPictures
    from bench.protocol.protocol import Protocol

# What batch size and processor may change (design invariant 1), by unit of the metric.
TOLERANCE = {"dB": 0.01, "px": 0.05}
TOLERANCE_OTHERWISE = 1e-3


def accept(submission: Submission) -> dict[str, Any]:
    """Checks a submission and makes its entry.

    In this order: the protocol id, that the table speaks of exactly the protocol's pictures and
    identities, the identity string of each metric, the pictures and their hashes, and the scores of
    a sample, which are computed again here. The sample is drawn here and now, so that who made the table cannot know
    or choose it, and `accepted` lists it. Scores of whole sets (FID, KID) in `set_scores.parquet` beside the table are
    computed again from all pictures (`bench.leaderboard.accept_sets`).

    Returns:
        A valid entry; its `accepted` says what was computed again and how far it differed.

    Raises:
        UsageError: Something does not hold; the message names it.
        MissingError: The protocol's data set is absent, so that nothing can be checked.
    """
    from bench.protocol.card import data_root, load_card
    from bench.protocol.pictures import ProtocolPictures
    from bench.registry import load_set_metric
    from bench.scores.summary import public_reason

    reporter = submission.reported_by or os.environ.get("BENCH_REPORTED_BY")
    if not reporter:
        raise UsageError("Who reports these results? Add --reported-by NAME.")
    if submission.method:
        _check_label(submission.method)
    if not submission.restored.is_dir():
        raise UsageError(f"--restored {submission.restored} is not a folder.")
    table = None if submission.scores is None else read_submitted(submission.scores)
    if table is not None and not submission.method:
        _check_label(str(table["method"].iloc[0]))
    protocol = find_protocol(submission.protocol, None if table is None else str(table["protocol_id"].iloc[0]))
    hashes = hash_pictures(submission, protocol)
    pictures = ProtocolPictures(protocol, data_root(load_card(protocol.card), None))
    stated: dict[str, dict[str, Any]] = {}
    if table is None:
        table, accepted = _score_all(submission, protocol, pictures, hashes)
        set_metrics = _panel_sets()
    else:
        where = str(submission.scores)
        metrics, not_recomputed = check_table(table, protocol, where)
        check_no_ghosts(table, hashes, where)
        check_hashes(submission, hashes)
        if submission.scores:
            stated = read_submitted_sets(sets_beside(submission.scores), table, protocol, len(hashes))
        set_metrics = [load_set_metric(name)() for name in stated]
        chosen = _sample(sorted(hashes), submission.sample)
        largest = _recompute(table, chosen, metrics, submission, pictures, where)
        accepted = {
            "recomputed": len(chosen),
            "sample": chosen,
            "largest_differences": largest,
            "not_recomputed": not_recomputed,
        }
    where = str(submission.scores or submission.restored)
    sets = accept_sets(stated, set_metrics, submission.restored, hashes, pictures, where)
    accepted["largest_differences"] |= sets.differences
    reasons = {**accepted["not_recomputed"], **sets.not_recomputed}
    accepted["not_recomputed"] = {name: public_reason(reason) for name, reason in reasons.items()}
    listing = "".join(f"{hashes[name]}  {name}.png\n" for name in sorted(hashes))
    entry = _entry(submission, table, protocol, reporter)
    if sets.metrics:
        entry["set_metrics"] = sets.metrics
    entry["accepted"] = {"pictures_sha256": sha256_bytes(listing.encode()), **accepted}
    validate(entry, f"entry of {where}")
    return entry


def _check_label(label: str) -> None:
    """Refuses the names of the comparison rows: what stands in them is made here, from the protocol alone."""
    if label.partition("@")[0].casefold() in (INPUT, COPY):
        raise UsageError(
            f"The label {label!r} belongs to a comparison row (`{INPUT}`, `{COPY}`), which only `bench run` fills. "
            "Give results of others another one: --method LABEL."
        )


def _sample(names: Sequence[str], count: int | None) -> list[str]:
    """Pictures to score again, by the operating system's randomness; all of them where `count` is None."""
    if count is None or count >= len(names):
        return list(names)
    return sorted(secrets.SystemRandom().sample(list(names), count))


def _recompute(
    table: pd.DataFrame,
    chosen: Sequence[str],
    metrics: Sequence[Metric],
    submission: Submission,
    pictures: ProtocolPictures,
    where: str,
) -> dict[str, float]:
    """Scores the chosen pictures again; the largest difference of each metric.

    Raises:
        UsageError: A score differs by more than its metric may.
    """
    stated = table.set_index(["image_id", "metric"])["value"]
    largest = {metric.name: 0.0 for metric in metrics}
    for name, scores in _scores(chosen, metrics, submission, pictures):
        for metric in metrics:
            claimed, own = float(stated[name, metric.name]), scores[metric.name].value
            allowed = float(getattr(metric, "tolerance", TOLERANCE.get(metric.unit, TOLERANCE_OTHERWISE)))
            if math.isnan(claimed) and own is None:
                continue
            if math.isnan(claimed) or own is None or abs(claimed - own) > allowed:
                said = "no value" if math.isnan(claimed) else f"{claimed:.6g}"
                here = "no value" if own is None else f"{own:.6g}"
                raise UsageError(
                    f"{where} says {metric.name} of {name} is {said}; computed again from the picture it is {here} "
                    f"(allowed difference {allowed:g}). Nothing was added."
                )
            largest[metric.name] = max(largest[metric.name], abs(claimed - own))
    return largest


def _scores(
    names: Sequence[str], metrics: Sequence[Metric], submission: Submission, pictures: ProtocolPictures
) -> list[tuple[str, dict[str, Any]]]:
    from bench.image import read_image
    from bench.progress import Progress
    from bench.runs.score import score_pictures

    def restored(image_id: str) -> np.ndarray:
        return read_image(submission.restored / f"{image_id}.png")

    _pin_threads()
    images = {image.image_id: image for image in pictures.protocol.images}
    progress = Progress("scored", len(names))
    found = []
    for name in names:
        scores = score_pictures(pictures, [images[name]], [restored(name)], metrics, restored)
        found.append((name, dict(scores[0])))
        progress.advance(1)
    return found


def _pin_threads() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _score_all(
    submission: Submission, protocol: Protocol, pictures: ProtocolPictures, hashes: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every picture by the boards' panel, as a run would; what is missing is null with its reason."""
    from bench.registry import load_metric
    from bench.scores.panel import protocol_panel
    from bench.scores.table import ScoreRow, rows_to_frame

    if not submission.method:
        raise UsageError("How is the row to be called? Add --method LABEL, or --from scores.parquet.")
    metrics = [load_metric(name)() for name in protocol_panel(_panel(), protocol)]
    scores = dict(_scores(sorted(hashes), metrics, submission, pictures))
    revision = sha256_bytes("".join(hashes[name] for name in sorted(hashes)).encode())[:12]
    rows = []
    for image in protocol.images:
        for metric in metrics:
            score = scores[image.image_id][metric.name] if image.image_id in scores else None
            value, reason = (None, "the restored picture is missing") if score is None else (score.value, score.reason)
            rows.append(
                ScoreRow(
                    protocol_id=protocol.id,
                    method=submission.method,
                    method_revision=revision,
                    seed=0,
                    image_id=image.image_id,
                    identity=image.identity,
                    metric=metric.name,
                    metric_id=metric.identity,
                    value=value,
                    reason=reason,
                )
            )
    reasons = {metric.name: reason for metric in metrics if (reason := metric.unavailable())}
    largest = {metric.name: 0.0 for metric in metrics if metric.name not in reasons}
    return rows_to_frame(rows), {
        "recomputed": len(hashes),
        "sample": sorted(hashes),
        "largest_differences": largest,
        "not_recomputed": reasons,
    }


def _entry(submission: Submission, table: pd.DataFrame, protocol: Protocol, reporter: str) -> dict[str, Any]:
    from bench.registry import metric_classes
    from bench.runs.environment import environment
    from bench.scores.summary import summarise

    first = table.iloc[0]
    label = submission.method or str(first["method"])
    summary = summarise(table, metric_classes(), of=len(protocol.images))
    ordered = {name: summary[name] for name in [*_panel(), *summary] if name in summary}
    return {
        "schema": ENTRY_SCHEMA,
        "protocol": protocol.name,
        "protocol_id": protocol.id,
        "method": label,
        "title": submission.title or label,
        "revision": str(first["method_revision"]),
        "seed": int(first["seed"]),
        "images": int(table.loc[table["value"].notna(), "image_id"].nunique()),
        "of": len(protocol.images),
        "identity_images": dict(sorted(Counter(image.identity for image in protocol.images).items())),
        "metrics": scored_metrics(table, ordered, str(submission.scores or submission.restored)),
        "seconds_per_image": submission.seconds,
        "peak_memory_mb": submission.peak_memory,
        "parameters": submission.parameters,
        "hardware": {"stated": submission.hardware} if submission.hardware else {},
        "versions": {} if submission.scores else dict(environment()["versions"]),
        "code_revision": submission.code_revision,
        "licence": submission.licence,
        "paper": submission.paper,
        "reported_by": reporter,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _panel_sets() -> list[SetMetric]:
    from bench.config import read_preset
    from bench.registry import load_set_metric, set_metric_classes

    names = read_preset("metrics", "standard").get("sets")
    return [load_set_metric(name)() for name in (set_metric_classes() if names is None else names)]


def _panel() -> list[str]:
    from bench.config import read_preset

    return list(read_preset("metrics", "standard")["names"])
