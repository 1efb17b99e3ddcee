"""Five-point face templates and the similarity that reaches them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

#: Where ArcFace-aligned 112 px crops have the eyes, the nose and the mouth corners (x, y in pixels).
ARCFACE_112 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


def similarity(
    source: np.ndarray | Sequence[Sequence[float]], target: np.ndarray | Sequence[Sequence[float]]
) -> np.ndarray:
    """Least-squares similarity without reflection (Umeyama 1991) from `source` to `target`.

    Args:
        source: (N, 2) points, x and y in pixels.
        target: (N, 2) points they should reach.

    Returns:
        (2, 3) float64 matrix M, so that M @ (x, y, 1) lies in the target's frame.
    """
    import numpy as np

    source = np.asarray(source, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    start, end = source.mean(0), target.mean(0)
    moved = (source - start) @ (1.0, 1j)
    aimed = (target - end) @ (1.0, 1j)
    turn = np.vdot(moved, aimed) / np.vdot(moved, moved).real
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.concatenate([linear, (end - linear @ start)[:, None]], axis=1)
