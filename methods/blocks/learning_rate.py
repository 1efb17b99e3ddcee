"""A learning rate that rises over the first batches and falls along a cosine over the last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LAST_SHARE = 0.01


def learning_rate(options: Mapping[str, Any], done: int, last: int) -> float:
    """The learning rate of one batch.

    Args:
        options: `learning_rate`, its height; `warm_up`, batches over which it rises linearly; `decay_after`, share of
            all batches after which it falls, to a hundredth of its height.
        done: Batches trained on before this one.
        last: Batches of the whole training.

    Returns:
        The learning rate, at most `options["learning_rate"]`.
    """
    first = options["decay_after"] * last
    fallen = min(1.0, max(0.0, (done - first) / max(1.0, last - first)))
    share = LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * fallen)) / 2
    return float(options["learning_rate"] * share * min(1.0, (done + 1) / max(1, options["warm_up"])))
