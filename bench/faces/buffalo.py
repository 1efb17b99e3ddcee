"""insightface's recogniser of the pack buffalo_l (ArcFace, ResNet-50 on WebFace600K), run by onnxruntime.

The recogniser most papers name. Some methods take it as a condition or a loss, so that it does not judge alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.faces.geometry import ARCFACE_112, similarity
from bench.faces.remembered import Remembered, picture_key
from bench.weights import catalogue

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

WEIGHTS = "arcface_w600k_r50"
SIZE = 112
_BATCH = 32
_embeddings: Remembered[np.ndarray] = Remembered()


def embed(pictures: Sequence[np.ndarray] | np.ndarray, points: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Embeddings of faces, each computed once per process.

    Args:
        pictures: (H, W, 3) uint8 RGB each, of any size.
        points: (5, 2) x, y in pixels for each picture: eyes, nose, mouth corners, left of the picture first.

    Returns:
        (N, D) float64 of length 1.

    Raises:
        MissingError: The weights or onnxruntime are absent.
        UsageError: The file is not a face recogniser.
    """
    import numpy as np

    path = catalogue.locate(WEIGHTS)
    version = np.frombuffer(f"{path}{path.stat().st_mtime_ns}".encode(), np.uint8)
    pairs = zip(pictures, points, strict=True)
    keys = [picture_key(picture, np.asarray(place, np.float64), version) for picture, place in pairs]
    found = {key: _embeddings[key] for key in keys if key in _embeddings}
    waiting = list({key: index for index, key in enumerate(keys) if key not in found}.values())
    for start in range(0, len(waiting), _BATCH):
        chosen = waiting[start : start + _BATCH]
        raw = forward([norm_crop(pictures[index], points[index]) for index in chosen], path)
        for index, row in zip(chosen, raw / np.linalg.norm(raw, axis=1, keepdims=True), strict=True):
            found[keys[index]] = _embeddings[keys[index]] = row
    return np.stack([found[key] for key in keys]) if keys else np.zeros((0, 512))


def norm_crop(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(112, 112, 3) uint8 crop by insightface's rule: similarity to the ArcFace template, bilinear, black border."""
    import cv2

    return cv2.warpAffine(picture, similarity(points, ARCFACE_112), (SIZE, SIZE), borderValue=0.0)


def forward(crops: Sequence[np.ndarray], path: Path) -> np.ndarray:
    """Raw embeddings (N, D) float64 of (112, 112, 3) uint8 RGB crops; pixels become (p - 127.5) / 127.5."""
    import numpy as np

    session = _session(path, path.stat().st_mtime_ns)
    blob = (np.stack(crops).astype(np.float32) - 127.5) / 127.5
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: blob.transpose(0, 3, 1, 2)})[0]
    return found.astype(np.float64)


@cache
def _session(path: Path, _: int) -> Any:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UsageError(f"{path} is not a readable ONNX file: {error}. Remove it and get it again.") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or list(inputs[0].shape[1:]) != [3, SIZE, SIZE]:
        raise UsageError(f"{path} is not a recogniser of faces of {SIZE} px; w600k_r50.onnx of buffalo_l is wanted.")
    return session
