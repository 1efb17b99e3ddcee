"""Scores of whole sets (FID, KID) in results of others: computed here from all pictures, or carried and said so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, unknown_name
from bench.leaderboard.submission import same_identity

if TYPE_CHECKING:
    import pandas as pd

    from bench.metrics.set_metric import FeatureNetwork, FeatureSet, SetMetric, SetScore
    from bench.protocol.pictures import ProtocolPictures
    from bench.protocol.protocol import Protocol

# What another processor or batch size may change in features of float32, and so in a distance of distributions.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class AcceptedSets:
    """The set scores of an entry.

    Attributes:
        metrics: The `set_metrics` part of the entry; empty where there are none.
        differences: By metric that was computed here and handed in: how far the two are apart.
        not_recomputed: By metric that could not be computed here: why.
    """

    metrics: dict[str, Any]
    differences: dict[str, float]
    not_recomputed: dict[str, str]


def sets_beside(scores: Path) -> Path:
    """Where the set scores of a score table lie: `set_scores.parquet` beside `scores.parquet`."""
    return scores.with_name(f"set_{scores.name}")


def read_submitted_sets(
    path: Path, table: pd.DataFrame, protocol: Protocol, pictures: int
) -> dict[str, dict[str, Any]]:
    """The set scores handed in beside a score table, by metric; empty where there is no such file.

    Args:
        path: Their file, as `sets_beside` names it.
        table: The score table they belong to.
        protocol: The protocol.
        pictures: Pictures that were handed in.

    Raises:
        UsageError: They belong to other scores, or what they state cannot be.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bench.registry import set_metric_classes
    from bench.scores.table import SET_SCHEMA

    if not path.is_file():
        return {}
    try:
        frame = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"Cannot read the set scores {path}: {error}") from error
    if missing := [name for name in SET_SCHEMA.names if name not in frame.columns]:
        raise UsageError(f"{path} holds no set scores: columns {', '.join(missing)} are missing.")
    found: dict[str, dict[str, Any]] = {}
    first = table.iloc[0]
    for record in frame[SET_SCHEMA.names].to_dict("records"):
        row = {str(key): None if pd.isna(value) else value for key, value in record.items()}
        name = str(row["metric"])
        for key in ("protocol_id", "method", "method_revision", "seed"):
            if row[key] != first[key]:
                raise UsageError(f"{path} has {key} {row[key]!r}, the score table beside it {first[key]!r}.")
        if name not in set_metric_classes():
            raise unknown_name("metric of whole sets", name, set_metric_classes())
        if name in found:
            raise UsageError(f"{path} scores {name} twice.")
        if (row["value"] is None) == (row["reason"] is None):
            raise UsageError(f"{path}: {name} needs either a value or a reason.")
        if not all(math.isfinite(row[key] or 0.0) for key in ("value", "low", "high")):
            raise UsageError(f"{path}: {name} holds values that are not finite.")
        if row["value"] is not None and (row["n"], row["of"]) != (pictures, len(protocol.images)):
            raise UsageError(
                f"{path} has {name} over {row['n']} of {row['of']} pictures; {pictures} of "
                f"{len(protocol.images)} were handed in."
            )
        found[name] = row
    return found


def accept_sets(
    stated: Mapping[str, dict[str, Any]],
    metrics: list[SetMetric],
    restored: Path,
    hashes: Mapping[str, str],
    pictures: ProtocolPictures,
    where: str,
) -> AcceptedSets:
    """Computes set scores from the pictures handed in and holds them against what is stated of them.

    The entry gets the numbers computed here. One that cannot be computed here stands as it was handed in, and
    `not_recomputed` says why; nothing is dropped in silence.

    Args:
        stated: From `read_submitted_sets`; empty where only pictures were handed in.
        metrics: Metrics to score.
        restored: Folder of the pictures.
        hashes: SHA-256 of each picture by image id, for those that are there.
        pictures: The protocol's pictures.
        where: What was handed in, for messages.

    Raises:
        UsageError: A stated identity or number is not that of the pictures.
    """
    from bench.metrics.set_metric import SetScore
    from bench.registry import set_metric_classes
    from bench.scores.panel import no_sets
    from bench.scores.sets import score_sets, set_frame
    from bench.scores.summary import public_reason, summarise_sets

    unfit = no_sets(pictures.protocol)
    not_recomputed = {} if unfit else {own.name: reason for own in metrics if (reason := own.unavailable())}
    found = score_sets(metrics, _features(restored, hashes, pictures), len(hashes), unfit)
    differences: dict[str, float] = {}
    for metric in metrics:
        claim = stated.get(metric.name)
        if claim is None:
            continue
        if metric.name in not_recomputed:
            if not same_identity(claim["metric_id"], metric.identity, absent=True):
                raise _other_identity(claim, metric, where)
            found[metric.name] = SetScore(*(claim[key] for key in ("value", "low", "high", "interval", "reason")))
        else:
            differences |= _checked(claim, found[metric.name], metric, where)
    of = len(pictures.protocol.images)
    row = {"protocol_id": pictures.protocol.id, "method": "", "method_revision": "", "seed": 0}
    summary = summarise_sets(set_frame(metrics, found, len(hashes), of, row), set_metric_classes())
    for name, metric_summary in summary.items():
        if name in not_recomputed and name in stated:
            metric_summary["identity"] = stated[name]["metric_id"]
        metric_summary["reason"] = public_reason(metric_summary["reason"])
    return AcceptedSets(summary, differences, not_recomputed)


def _other_identity(claim: dict[str, Any], metric: SetMetric, where: str) -> UsageError:
    return UsageError(
        f"{where} scores {metric.name} as {claim['metric_id']!r}, this version as {metric.identity!r}. Two numbers "
        "with different identities are never compared: score the pictures with this version."
    )


def _checked(claim: dict[str, Any], own: SetScore, metric: SetMetric, where: str) -> dict[str, float]:
    """How far a stated number is from ours; empty where none is stated."""
    if claim["value"] is None:
        return {}
    if claim["metric_id"] != metric.identity:
        raise _other_identity(claim, metric, where)
    close = own.value is not None and math.isclose(
        claim["value"], own.value, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE
    )
    if own.value is None or not close:
        here = f"no value ({own.reason})" if own.value is None else f"{own.value:.6g}"
        raise UsageError(
            f"{where} says {metric.name} is {claim['value']:.6g}; computed again from the pictures it is {here}. "
            "Nothing was added."
        )
    return {metric.name: abs(claim["value"] - own.value)}


def _features(
    restored: Path, hashes: Mapping[str, str], pictures: ProtocolPictures
) -> Callable[[FeatureNetwork], FeatureSet]:
    """Gives the features of the pictures that were handed in and of their ground truth."""
    from bench.files import sha256_bytes
    from bench.image import read_image
    from bench.metrics.set_metric import FeatureSet
    from bench.scores.feature_cache import ScoreCache, content_key, decoder_version

    images = [image for image in pictures.protocol.images if image.image_id in hashes]
    cache = ScoreCache()

    def truth_key(index: int) -> str:
        digest = images[index].gt_sha256 or sha256_bytes(pictures.truth(images[index]).tobytes())
        return content_key("pixels", digest, pictures.protocol.size)

    def source(network: FeatureNetwork) -> FeatureSet:
        keys = [content_key(hashes[image.image_id], decoder_version()) for image in images]
        own = cache.features(network, keys, lambda index: read_image(restored / f"{images[index].image_id}.png"))
        truth = None
        if all(image.source is not None for image in images):
            places = range(len(images))
            truth = cache.features(network, list(map(truth_key, places)), lambda index: pictures.truth(images[index]))
        cache.prune()
        return FeatureSet(own, truth, [image.identity for image in images])

    return source
