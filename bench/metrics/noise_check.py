"""Whether a metric without a ground truth can be bettered by adding noise to the picture: measured, per metric.

`python -m bench.metrics.noise_check` degrades photographs of ORL's training identities, scores them with and without
added noise, and writes `noise_check.json`, from which boards print a warning. A metric that is absent here keeps its
entry of an earlier measurement, or has none.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from bench.metrics.metric import Metric

NOISE = 10.0
SIDE = 256
PHOTOS = 24
PRESETS = ("light", "heavy")
_FILE = "noise_check.json"


def noise_effects() -> dict[str, dict[str, Any]]:
    """What was measured, by the metric's name.

    Returns:
        For each metric its `identity`; `measured`: for each preset the mean score of pictures so degraded (`before`)
        and of the same with noise (`after`), the `share` of pictures that noise betters and `n`; `bettered`: whether
        the mean gets better under one of them; `text`: the same for a footnote. An entry holds for that identity only.
    """
    return {**_measured()["metrics"]}


def bettered_by_noise(name: str, identity: str) -> bool | None:
    """Whether noise betters this metric on degraded pictures; None where it was not measured for this identity."""
    entry = _measured()["metrics"].get(name)
    return bool(entry["bettered"]) if entry and entry["identity"] == identity else None


@cache
def _measured() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name(_FILE).read_text(encoding="utf-8"))
    return content


def measure(names: list[str]) -> dict[str, dict[str, Any]]:
    """Scores degraded photographs with and without noise.

    Args:
        names: Metrics that need neither ground truth nor references.

    Returns:
        Entries as `noise_effects` gives them, for the metrics that are available here.
    """
    import numpy as np

    from bench.registry import load_metric

    metrics = {name: metric for name in names if not (metric := load_metric(name)()).unavailable()}
    found: dict[str, dict[str, Any]] = {name: {"identity": own.identity} for name, own in metrics.items()}
    for preset in PRESETS:
        degraded = degraded_photographs(preset)
        noise = np.random.default_rng(0).normal(0.0, NOISE, degraded.shape)
        noisy = np.clip(np.rint(degraded + noise), 0, 255).astype(np.uint8)
        for name, metric in metrics.items():
            pairs = zip(_values(metric, degraded), _values(metric, noisy), strict=True)
            kept = [(first, second) for first, second in pairs if first is not None and second is not None]
            if not kept:
                continue
            before, after = np.array(kept).T
            gain = (after - before) * (1.0 if metric.higher_is_better else -1.0)
            found[name].setdefault("measured", {})[preset] = {
                "before": round(float(before.mean()), 3),
                "after": round(float(after.mean()), 3),
                "share": round(float((gain > 0).mean()), 3),
                "n": len(kept),
            }
            found[name]["bettered"] = found[name].get("bettered", False) or bool(gain.mean() > 0)
    return {name: {**entry, "text": _in_words(entry)} for name, entry in found.items() if "measured" in entry}


def _in_words(entry: dict[str, Any]) -> str:
    changes = ", ".join(
        f"{preset} {own['before']:.1f} to {own['after']:.1f}" for preset, own in entry["measured"].items()
    )
    return f"noise of {NOISE:g}/255 on degraded photographs of ORL at {SIDE} px: {changes}"


def degraded_photographs(preset: str) -> np.ndarray:
    """(24, 256, 256, 3) uint8: one photograph of each training identity, cut square, enlarged, degraded by a preset."""
    import cv2
    import numpy as np

    from bench.degradation.gallery import degraded
    from bench.faces.calibrate_judge import training_photos

    pictures = []
    for seed, (_, photo) in enumerate(training_photos()[:: 240 // PHOTOS]):
        square = photo[(photo.shape[0] - photo.shape[1]) // 2 :][: photo.shape[1]]
        large = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        pictures.append(degraded(np.ascontiguousarray(large), preset, seed))
    return np.stack(pictures)


def _values(metric: Metric, pictures: np.ndarray) -> list[float | None]:
    import numpy as np

    from bench.metrics.metric import ScoringBatch

    found: list[float | None] = []
    for picture in pictures:
        valid = np.ones((1, *picture.shape[:2]), dtype=bool)
        batch = ScoringBatch(["-"], picture[None], None, [[]], None, None, valid)
        found.append(metric.score_batch(batch)[0].value)
    return found


def main() -> None:
    """Measures every metric that needs no ground truth and writes the file."""
    from bench.files import write_json
    from bench.registry import metric_classes

    names = [name for name, own in metric_classes().items() if not own.needs and name != "detected"]
    path = Path(__file__).with_name(_FILE)
    before = json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.is_file() else {}
    description = (
        f"scores of {PHOTOS} degraded photographs of ORL's training identities at {SIDE} px, "
        f"before and after Gaussian noise of standard deviation {NOISE:g}/255"
    )
    metrics = {**before, **measure(names)}
    write_json(path, {"description": description, "metrics": dict(sorted(metrics.items()))})
    sys.stdout.write(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
