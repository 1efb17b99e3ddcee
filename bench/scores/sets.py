"""Scores of whole sets (FID, KID): features by picture, one number per metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench.metrics.set_metric import FeatureSet, SetMetric, SetScore

if TYPE_CHECKING:
    import pandas as pd

    from bench.metrics.set_metric import FeatureNetwork

FeatureSource = Callable[["FeatureNetwork"], FeatureSet]


def score_sets(
    metrics: Sequence[SetMetric], source: FeatureSource, count: int, unfit: str | None = None
) -> dict[str, SetScore]:
    """Scores of a set by every metric.

    Args:
        metrics: Set metrics. Those that share a network share its features.
        source: Gives the features by a network; only called for networks that are here.
        count: Pictures that can be scored.
        unfit: Why the pictures are no set (`bench.scores.panel.no_sets`): then every score is null with this reason.
    """
    made: dict[str, FeatureSet] = {}
    found = {}
    for metric in metrics:
        reason = unfit or metric.unavailable()
        if reason is None and count == 0:
            reason = "no picture could be scored"
        if reason is not None:
            found[metric.name] = SetScore(None, reason=reason)
            continue
        network = metric.network
        if network.identity not in made:
            made[network.identity] = source(network)
        found[metric.name] = metric.score_set(made[network.identity])
    return found


def set_frame(
    metrics: Sequence[SetMetric], scores: dict[str, SetScore], count: int, of: int, row: dict[str, Any]
) -> pd.DataFrame:
    """Table of set scores (`bench.scores.table.SET_SCHEMA`).

    Args:
        metrics: Set metrics.
        scores: By name of the metric.
        count: Pictures that were scored.
        of: Pictures there should be.
        row: The columns `protocol_id`, `method`, `method_revision` and `seed`.
    """
    import pandas as pd

    from bench.scores.table import SET_SCHEMA

    records = []
    for metric in sorted(metrics, key=lambda own: own.name):
        score = scores[metric.name]
        records.append(
            {
                **row,
                "metric": metric.name,
                "metric_id": metric.identity,
                "value": score.value,
                "low": score.low,
                "high": score.high,
                "interval": score.interval,
                "n": count if score.value is not None else 0,
                "of": of,
                "reason": score.reason,
            }
        )
    frame = pd.DataFrame.from_records(records, columns=SET_SCHEMA.names)
    for column in ("value", "low", "high"):
        frame[column] = frame[column].astype("float64")
    return frame
