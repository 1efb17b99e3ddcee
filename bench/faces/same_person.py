"""Whether some pictures show one person: warnings before something is learnt of them.

SFace (`bench.faces.sface`) looks; whoever asks warns and refuses nothing, and no result is judged by it. Of the ORL
photographs at 128 px it doubts none of 80 sets of five of one person, and names the right one in 3114 of 3120 sets of
five whose last photograph is another person's (measured; 3117 of 3120 for sets of three).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from bench.faces.detector import main_face_points
from bench.faces.sface import crop_faces, shared_sface
from bench.weights import catalogue

#: Least cosine of two faces of one person, as OpenCV's tutorial of FaceRecognizerSF has it for LFW
#: (https://docs.opencv.org/4.x/d0/dd4/tutorial_dnn_face.html).
SAME_PERSON = 0.363


def odd_references(pictures: Tensor, names: Sequence[str]) -> list[str]:
    """Looks for references that show somebody else than the others, or no face.

    A reference is odd if its mean cosine to the others is under `SAME_PERSON` while those agree. Where there are as
    many odd ones as others, such as one of two, nobody can say who is meant, and all of them are named.

    Args:
        pictures: (R, 3, H, W) RGB in [0, 1], on any device.
        names: What to call each of them.

    Returns:
        A sentence for each thing to warn about; none where all is well. Where the detector or the recogniser is absent,
        one that says so.
    """
    if absent := _absent():
        return [f"The check whether the references show one person was left out: {absent}"]
    pixels = pictures.detach().mul(255).round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()
    points = [main_face_points(np.ascontiguousarray(picture)) for picture in pixels.numpy()]
    found = [number for number, own in enumerate(points) if own is not None]
    warnings = [
        f"No face was found in the reference {name}." for name, own in zip(names, points, strict=True) if own is None
    ]
    if len(found) < 2:
        return warnings
    with torch.inference_mode():
        faces = crop_faces(
            pixels[found].permute(0, 3, 1, 2).float().div(255),
            torch.from_numpy(np.stack([own for own in points if own is not None])),
        )
        embeddings = shared_sface()(faces)
        cosines = (embeddings @ embeddings.T).numpy()
    odd, others = split_odd(cosines)
    own = [names[found[number]] for number in range(len(found))]
    if len(odd) >= len(others):
        pairs = cosines[np.triu_indices(len(own), 1)]
        warnings.append(
            f"The references {_listed(own)} seem to show different people: the mean cosine of their faces is "
            f"{pairs.mean():.2f}, and from {SAME_PERSON} on SFace takes two faces for one person."
        )
        return warnings
    return warnings + [
        f"The reference {own[number]} seems to show somebody else than the others: the mean cosine of its face with "
        f"theirs is {cosines[number, others].mean():.2f}, and from {SAME_PERSON} on SFace takes two faces for one "
        "person."
        for number in odd
    ]


def split_odd(cosines: np.ndarray) -> tuple[list[int], list[int]]:
    """Sets faces aside, the strangest first, until the mean cosine of each to the others is that of one person.

    Args:
        cosines: (N, N), symmetric.

    Returns:
        Those set aside, and the others, which agree; both in order.
    """
    others, odd = list(range(len(cosines))), []
    while len(others) > 1:
        own = cosines[np.ix_(others, others)]
        means = (own.sum(axis=1) - own.diagonal()) / (len(others) - 1)
        strangest = int(means.argmin())
        if means[strangest] >= SAME_PERSON:
            break
        odd.append(others.pop(strangest))
    return sorted(odd), others


def _absent() -> str | None:
    """What the check needs and does not find here."""
    for name in ("yunet", "sface"):
        if reason := catalogue.missing(name):
            return " ".join(reason.split())
    if find_spec("onnx") is None:
        return 'the package onnx, which reads SFace, is absent; pip install "face-restoration-bench[demo]" brings it.'
    return None


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
