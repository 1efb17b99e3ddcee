"""Set metrics (FID, KID) of a run: each process makes the features of its share, the first one compares them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.files import sha256_bytes, sha256_file
from bench.image import UnreadableImageError, read_image
from bench.metrics.set_metric import FeatureSet, SetMetric
from bench.registry import load_set_metric, set_metric_classes
from bench.runs.pictures import restored_path
from bench.runs.plan import RunPlan
from bench.scores.feature_cache import ScoreCache, content_key, decoder_version
from bench.scores.panel import no_sets
from bench.scores.sets import score_sets, set_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

    from bench.metrics.set_metric import FeatureNetwork
    from bench.protocol.protocol import ProtocolImage


def chosen_sets(plan: RunPlan) -> list[SetMetric]:
    """Set metrics of a run: those of `metrics.sets`, or all.

    Raises:
        UsageError: A name is unknown.
    """
    names = plan.config["metrics"].get("sets")
    return [load_set_metric(name)() for name in (set_metric_classes() if names is None else names)]


def make_features(plan: RunPlan, rank: int, world_size: int) -> None:
    """Makes the features of this process's share, so that the first process finds them."""
    if no_sets(plan.protocol) is not None:
        return
    networks = {metric.network.identity: metric.network for metric in chosen_sets(plan) if not metric.unavailable()}
    images = _readable(plan, plan.protocol.images[rank::world_size]) if networks else []
    for network in networks.values():
        _features(plan, images, network, _cache(plan))


def run_sets(plan: RunPlan) -> pd.DataFrame:
    """Set scores of a finished run, as a table (`bench.scores.table.SET_SCHEMA`)."""
    metrics = chosen_sets(plan)
    images = list(plan.protocol.images)
    unfit = no_sets(plan.protocol)
    if unfit is None and any(metric.unavailable() is None for metric in metrics):
        images = _readable(plan, images)
    cache = _cache(plan)
    scores = score_sets(metrics, lambda network: _features(plan, images, network, cache), len(images), unfit)
    cache.prune()
    row = {
        "protocol_id": plan.protocol.id,
        "method": plan.method.label,
        "method_revision": plan.revision,
        "seed": int(plan.config["seed"]),
    }
    return set_frame(metrics, scores, len(images), len(plan.protocol.images), row)


def _features(plan: RunPlan, images: Sequence[ProtocolImage], network: FeatureNetwork, cache: ScoreCache) -> FeatureSet:
    paths = [restored_path(plan.run_dir, image.image_id) for image in images]
    keys = [content_key(sha256_file(path), decoder_version()) for path in paths]
    restored = cache.features(network, keys, lambda index: read_image(paths[index]))
    truth = None
    if images and all(image.source is not None for image in images):
        truth = cache.features(
            network, [_truth_key(plan, image) for image in images], lambda i: _truth(plan, images[i])
        )
    return FeatureSet(restored, truth, [image.identity for image in images])


def _truth(plan: RunPlan, image: ProtocolImage) -> np.ndarray:
    return plan.pictures.truth(image)


def _truth_key(plan: RunPlan, image: ProtocolImage) -> str:
    """Hash of the ground truth's pixels: the protocol's, which every decoding is checked against, where it has one."""
    digest = image.gt_sha256 or sha256_bytes(_truth(plan, image).tobytes())
    return content_key("pixels", digest, plan.protocol.size)


def _cache(plan: RunPlan) -> ScoreCache:
    """The user's cache, or with `cache=false` one that ends with the run folder's journal."""
    private: Path | None = None if plan.config.get("cache", True) else plan.run_dir / "journal" / "features"
    return ScoreCache(private)


def _readable(plan: RunPlan, images: Sequence[ProtocolImage]) -> list[ProtocolImage]:
    found = []
    for image in images:
        try:
            read_image(restored_path(plan.run_dir, image.image_id))
        except UnreadableImageError:
            continue
        found.append(image)
    return found
