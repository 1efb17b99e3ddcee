"""Fits the demo's quality estimator to training identities.

`python -m methods.restorerid.calibrate_quality` degrades photographs of ORL's training identities with the presets
of `DRAWS`, adds the photographs as they are, fits the band weights to the HaarPSI of each degraded picture, prints how
well weights fitted on some identities do on the others, and writes `quality_demo.json`. Alpha and beta, which need a
trained network, are emptied: `calibrate_scale --commit` finds them anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.config import compose
from bench.data.training import TrainingPairs, TrainingSettings
from bench.files import write_json
from bench.image import read_image
from bench.protocol.alignment import warp
from bench.protocol.protocol import DataSettings
from bench.seeds import derive_seed
from methods.restorerid import quality

#: How often each photograph is degraded by a preset; those that draw nothing take one.
DRAWS = {"light": 3, "heavy": 3, "restorerid": 3, "bicubic_x4": 1, "bicubic_x8": 1}
NAME = "band statistics of the LQ, fitted to its HaarPSI"
SIDE = 128


def measure() -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Features (N, K), 100 HaarPSI, identities and presets (N,) of degraded training photographs."""
    from piq import haarpsi

    features, targets, identities, presets = [], [], [], []

    def add(lq: torch.Tensor, truth: torch.Tensor, identity: str, preset: str) -> None:
        features.append(quality.band_features(lq))
        targets.append(100 * haarpsi(lq, truth, data_range=1.0, reduction="none").double())
        identities.extend([identity] * len(lq))
        presets.extend([preset] * len(lq))

    for preset, draws in DRAWS.items():
        composed = compose("run", ["method=input", "data=orl_light", f"data.degradation={preset}"])
        pairs = TrainingPairs(DataSettings(**composed["data"]), TrainingSettings(references=1, size=SIDE))
        for photo in pairs.photos:
            crop = warp(read_image(pairs.root / photo.photo.path), photo.photo.matrix, SIDE)
            truth = torch.from_numpy(crop).permute(2, 0, 1).float().div(255).expand(draws, -1, -1, -1).contiguous()
            seeds = [derive_seed(0, f"quality {preset} {draw}", photo.photo.path) for draw in range(draws)]
            lq = pairs.pipeline.apply(truth, pairs.pipeline.sample(seeds, (SIDE, SIDE))).clamp(0, 1)
            add(lq, truth, photo.identity, preset)
            if preset == "light":
                add(truth[:1], truth[:1], photo.identity, "none")
    return torch.cat(features), torch.cat(targets), np.array(identities), np.array(presets)


def left_out(features: torch.Tensor, targets: torch.Tensor, identities: np.ndarray, folds: int = 4) -> torch.Tensor:
    """Quality of each person's pictures by weights fitted without that person's, (N,)."""
    people = np.unique(identities)
    predictions = torch.empty_like(targets)
    for fold in range(folds):
        held = torch.from_numpy(np.isin(identities, people[fold::folds]))
        estimator = quality.fit_quality(NAME, SIDE, features[~held], targets[~held])
        predictions[held] = estimator.from_features(features[held])
    return predictions


def main() -> None:
    """Prints the figures and writes the weights."""
    torch.set_num_threads(1)
    features, targets, identities, presets = measure()
    predictions = left_out(features, targets, identities)
    error = float((predictions - targets).square().mean().sqrt())
    correlation = quality.rank_correlation(predictions.tolist(), targets.tolist())
    fitted = quality.fit_quality(NAME, SIDE, features, targets)
    target = Path(quality.__file__).with_name("quality_demo.json")
    people = len(np.unique(identities))
    write_json(
        target,
        {
            "name": NAME,
            "fitted_on": f"{len(targets)} pictures of ORL's {people} training identities",
            "degradations": sorted(set(presets)),
            "rank_correlation_left_out": round(correlation, 3),
            "error_left_out": round(error, 2),
            "side": SIDE,
            "mean": _short(fitted.mean),
            "spread": _short(fitted.spread),
            "weights": _short(fitted.weights),
            "intercept": round(fitted.intercept, 5),
            # Of other weights they would mean something else: `calibrate_scale` finds them anew.
            "alpha": None,
            "beta": None,
        },
    )
    sys.stdout.write(
        f"{len(targets)} degraded pictures of {people} people, by weights fitted without the person: "
        f"rank correlation {correlation:.3f}, error {error:.1f} (spread {float(targets.std()):.1f})\n"
    )
    for preset in sorted(set(presets)):
        rows = predictions[torch.from_numpy(presets == preset)]
        low, middle, high = rows.quantile(rows.new_tensor([0.05, 0.5, 0.95])).tolist()
        sys.stdout.write(f"{preset}: {low:.1f}, {middle:.1f}, {high:.1f} (5, 50 and 95 % of the pictures)\n")


def _short(numbers: Sequence[float]) -> list[float]:
    return [round(number, 5) for number in numbers]


if __name__ == "__main__":
    main()
