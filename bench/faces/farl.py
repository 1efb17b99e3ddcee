"""Sixty-eight landmarks by FaRL (Zheng et al. 2022) through the package pyfacer, as the papers measure them.

RetinaFace finds the faces, the aligner `farl/ibug300w/448` reads the one with the largest box. The aligner's file is
a TorchScript archive: its head is a compiled network, run by torch's interpreter and not by Python.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.faces.remembered import Remembered, picture_key
from bench.weights import catalogue

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

DETECTOR = "retinaface_mobilenet"
ALIGNER = "farl_ibug300w"
_found: Remembered[np.ndarray | None] = Remembered()


def unavailable() -> str | None:
    """Why FaRL cannot be used here, or None."""
    specification = importlib.util.find_spec("facer")
    if specification is None or importlib.util.find_spec("facer.face_alignment") is None:
        return "needs the Python package pyfacer (facer is another project); install it with: pip install pyfacer"
    for name in (DETECTOR, ALIGNER):
        if reason := catalogue.missing(name):
            return f"weights missing: {reason}"
    return None


def farl_points(picture: np.ndarray) -> np.ndarray | None:
    """Landmarks of the largest face, computed once per picture and process.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Returns:
        (68, 2) float64 x, y in pixels, or None where no face is found.

    Raises:
        MissingError: The package or a file is absent.
        UsageError: A file is not one of FaRL's.
    """
    key = picture_key(picture)
    if key not in _found:
        _found[key] = _predict(picture)
    return _found[key]


def farl_identity() -> str:
    """Implementation, version, weights and settings, for metric identities."""
    from bench.metrics.common import version
    from bench.metrics.networks import weights_of

    return (
        f"FaRL ibug300w/448(pyfacer {version('pyfacer')}, weights {weights_of(ALIGNER)}, "
        f"RetinaFace mobilenet {weights_of(DETECTOR)}, largest box)"
    )


def _predict(picture: np.ndarray) -> np.ndarray | None:
    import numpy as np
    import torch

    detector, aligner = _networks(catalogue.locate(DETECTOR), catalogue.locate(ALIGNER))
    images = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).unsqueeze(0)
    with torch.inference_mode():
        faces = detector(images)
        if "rects" not in faces or not len(faces["rects"]):
            return None
        boxes = faces["rects"]
        largest = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax().item()
        chosen = {name: value[largest : largest + 1] for name, value in faces.items()}
        points: np.ndarray = aligner(images, chosen)["alignment"][0].double().numpy()
    return points


@cache
def _networks(detector: Path, aligner: Path) -> tuple[Any, Any]:
    import facer

    try:
        found = facer.face_detector("retinaface/mobilenet", device="cpu", model_path=str(detector))
        return found, facer.face_aligner("farl/ibug300w/448", device="cpu", model_path=str(aligner))
    except (RuntimeError, KeyError, OSError, AssertionError) as error:
        raise UsageError(
            f"FaRL cannot be loaded from {detector} and {aligner}: {error}. Remove them and get them again."
        ) from error
