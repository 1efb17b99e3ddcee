"""The recogniser that judges identity: dlib's ResNet. No method's loss or conditioner uses it.

Chips. dlib expects 150 px chips cut by its own five-point predictor. So that every method is judged
on the same crop, ours are cut from given points by a fixed template, `JUDGE_150`: the mean place of
the five points in dlib's own chips (HOG detector on the photo enlarged four times, five-point
predictor, padding 0.25) of the 240 training photographs of ORL (s1 to s24). 60 of them give the same
template within 0.4 px.

Centring. All of dlib's descriptors lie in a narrow cone, so that their raw cosine says little: on all
pairs of the 240 training photographs it is .973 ± .014 for one person and .864 ± .031 for two
(d' 4.5). With the mean descriptor of these photographs subtracted it is .79 ± .12 and −.04 ± .15
(d' 6.0, AUC .9999 both ways; dlib's own chips give the same, .79 and −.04). The judge therefore returns centred
descriptors. The mean (`dlib_judge_mean.json`) comes from training identities alone; centring s13 to s24
by the mean of s1 to s12 gives .80 ± .11 and .08 ± .15 (d' 5.5), which is what to expect of new people.

`python -m bench.faces.calibrate_judge` computes template, mean and these figures again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import MissingError
from bench.faces.geometry import similarity
from bench.faces.remembered import Remembered, picture_key
from bench.weights import catalogue

if TYPE_CHECKING:
    import numpy as np

EMBEDDING_SIZE = 128
CHIP_SIZE = 150
#: Mean place of the five points (x, y) in dlib's 150 px chips.
JUDGE_150 = ((46.1, 45.5), (101.1, 45.5), (73.8, 76.1), (50.3, 100.4), (96.9, 100.4))
_BATCH = 32
_MEAN_FILE = "dlib_judge_mean.json"
_embeddings: Remembered[np.ndarray] = Remembered()


def embed(pictures: Sequence[np.ndarray] | np.ndarray, points: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Centred descriptors of faces, each computed once per process.

    Args:
        pictures: (H, W, 3) uint8 RGB each, of any size.
        points: (5, 2) x, y in pixels for each picture: the eye on the left of the picture, the other
            eye, nose, left and right mouth corner.

    Returns:
        (N, 128) float64 of length 1, so that a dot product is the centred cosine.

    Raises:
        MissingError: The package dlib or the weights are absent.
    """
    import numpy as np

    pairs = zip(pictures, points, strict=True)
    keys = [picture_key(picture, np.asarray(place, np.float64)) for picture, place in pairs]
    found = {key: _embeddings[key] for key in keys if key in _embeddings}
    waiting = list({key: index for index, key in enumerate(keys) if key not in found}.values())
    for start in range(0, len(waiting), _BATCH):
        chosen = waiting[start : start + _BATCH]
        centred = descriptors([face_chip(pictures[index], points[index]) for index in chosen]) - mean_descriptor()
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        for index, row in zip(chosen, unit, strict=True):
            found[keys[index]] = _embeddings[keys[index]] = row
    return np.stack([found[key] for key in keys]) if keys else np.zeros((0, EMBEDDING_SIZE))


def face_chip(picture: np.ndarray, points: np.ndarray, size: int = CHIP_SIZE) -> np.ndarray:
    """Cuts the judge's chip: similarity to `JUDGE_150`, cubic, border pixels repeated outside.

    A picture larger than the chip needs is shrunk first (area average), so that nothing aliases.

    Args:
        picture: (H, W, 3) uint8 RGB.
        points: (5, 2), see `embed`.
        size: Side of the chip in pixels.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    import cv2
    import numpy as np

    template = (np.array(JUDGE_150) + 0.5) * (size / CHIP_SIZE) - 0.5
    matrix = similarity(points, template)
    scale = float(np.hypot(*matrix[:, 0]))
    if scale < 1.0:
        height, width = picture.shape[:2]
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        points = (np.asarray(points) + 0.5) * (small[0] / width, small[1] / height) - 0.5
        matrix = similarity(points, template)
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def descriptors(chips: Sequence[np.ndarray]) -> np.ndarray:
    """Descriptors of (150, 150, 3) uint8 RGB chips as dlib gives them, neither centred nor scaled: (N, 128)."""
    import numpy as np

    chips = [np.ascontiguousarray(chip) for chip in chips]
    return np.array(_network().compute_face_descriptor(chips), dtype=np.float64).reshape(-1, EMBEDDING_SIZE)


@cache
def mean_descriptor() -> np.ndarray:
    """(128,) float64 mean descriptor of the training photographs of ORL."""
    import numpy as np

    content = json.loads(_mean_path().read_text(encoding="utf-8"))
    return np.array(content["mean"], dtype=np.float64)


def unavailable() -> str | None:
    """Why the judge cannot be used here, or None."""
    return no_dlib() if dlib_version() == "absent" else catalogue.missing("dlib_resnet")


def judge_identity() -> str:
    """Implementation, version, weights and preprocessing, for metric identities."""
    mean = hashlib.sha256(_mean_path().read_bytes()).hexdigest()[:12]
    template = hashlib.sha256(repr(JUDGE_150).encode()).hexdigest()[:12]
    return (
        f"dlib-resnet(dlib {dlib_version()}, "
        f"weights {catalogue.short_hash('dlib_resnet')}, "
        f"RGB chip {CHIP_SIZE} cubic similarity template {template}, centred mean {mean})"
    )


def _mean_path() -> Path:
    return Path(__file__).with_name(_MEAN_FILE)


def dlib_version() -> str:
    """Version of the distribution that provides the module dlib, dlib-bin (binary wheels) or dlib; or "absent"."""
    from bench.metrics.common import version

    found = (version(name) for name in ("dlib-bin", "dlib"))
    return next((own for own in found if own != "absent"), "absent")


def no_dlib() -> str:
    """What to do where dlib is absent."""
    return 'needs the Python package dlib-bin; install it with: pip install "face-restoration-bench[demo]"'


@cache
def _network() -> Any:
    try:
        import dlib
    except ImportError as error:
        raise MissingError(f"The identity judge {no_dlib()}") from error
    return dlib.face_recognition_model_v1(str(catalogue.locate("dlib_resnet")))
