"""How strongly each picture was degraded: recorded parameters, and what the LQ itself scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.report.pictures import Pictures

# What a recorded parameter must not be called to be a strength.
NO_STRENGTH = {"seed", "angle", "kernel_size", "width", "noise_seed"}
MOST = 16
MOST_LQ_PIXELS = 8_000_000


def degradation_parameters(run_dir: Path, image_ids: Sequence[str]) -> dict[str, list[float | None]]:
    """Recorded degradation parameters that differ between the pictures, drawn again from the protocol's seeds.

    Args:
        run_dir: A run folder with its `protocol.json`.
        image_ids: Pictures, in the order of the values.

    Returns:
        For each parameter ("downscale height") its value per picture. Empty where the data set brings the LQ.
    """
    from bench.protocol.pictures import ProtocolPictures
    from bench.protocol.protocol import Protocol

    try:
        protocol = Protocol.from_dict(json.loads((run_dir / "protocol.json").read_text("utf-8")))
        pictures = ProtocolPictures(protocol, Path())
        of = {image.image_id: image for image in protocol.images}
        drawn = {image_id: pictures.theta(of[image_id]) for image_id in image_ids if image_id in of}
    except (BenchError, OSError, ValueError, KeyError, TypeError):
        return {}
    records = {image_id: _numbers(theta["steps"]) for image_id, theta in drawn.items() if theta is not None}
    names = dict.fromkeys(name for record in records.values() for name in record)
    found = {name: [records.get(image_id, {}).get(name) for image_id in image_ids] for name in names}
    differing = {name: values for name, values in found.items() if len({v for v in values if v is not None}) > 1}
    return dict(list(differing.items())[:MOST])


def _numbers(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for step in steps:
        operator = step["operator"]
        seen[operator] += 1
        again = f" {seen[operator]}" if seen[operator] > 1 else ""
        for name, value in step.items():
            if name not in NO_STRENGTH and isinstance(value, int | float) and not isinstance(value, bool):
                numbers[f"{operator}{again} {name}".replace("_", " ")] = float(value)
    return numbers


def lq_psnr(pictures: Pictures, image_ids: Sequence[str]) -> list[float | None] | None:
    """PSNR of each LQ against its ground truth, in dB over RGB; None where that would take long or no truth exists."""
    import numpy as np

    values: list[float | None] = []
    spent = 0
    for image_id in image_ids:
        if not pictures.has_truth(image_id):
            values.append(None)
            continue
        truth = pictures.truth(image_id).astype(np.float64)
        spent += truth.shape[0] * truth.shape[1]
        if spent * len(image_ids) / (len(values) + 1) > MOST_LQ_PIXELS:
            return None
        error = float(np.mean((pictures.lq(image_id).astype(np.float64) - truth) ** 2))
        values.append(10 * float(np.log10(255**2 / error)) if error else None)
    return values if any(value is not None for value in values) else None
