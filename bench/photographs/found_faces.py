"""The faces of a photograph, and how much each looks like somebody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bench.errors import UsageError
from bench.faces.detector import Face, detect_faces
from bench.faces.geometry import ARCFACE_112, similarity
from bench.faces.same_person import SAME_PERSON
from bench.faces.sface import INPUT_SIZE, shared_sface
from bench.photographs.face_crop import warped

#: Shorter side of the smallest face, in pixels; of smaller ones nothing is left to restore.
SMALLEST_FACE = 12
#: Least mean cosine to the references at which a face is taken for their person. Of the photographs of orl_heavy on
#: which a face is found, against five references, it keeps out 6 % of the person's (median .37) and lets in 8 % of
#: strangers' (median .08); at .15 that is 4 % and 22 %, at .25 it is 20 % and 2 %. Of orl_light it keeps out 2 % and
#: lets in 14 %, of undegraded photographs none and 15 %. Among several faces the highest counts.
RESEMBLING = 0.2


def find_faces(pixels: np.ndarray) -> list[Face]:
    """The faces of a photograph (H, W, 3) uint8 RGB that are large enough, the largest first.

    Raises:
        UsageError: There are none; the message is the reason.
    """
    found = detect_faces(pixels)
    faces = [face for face in found if min(face.box[2:]) >= SMALLEST_FACE]
    if not faces and found:
        raise UsageError(f"All faces are smaller than {SMALLEST_FACE} px: nothing is left of them to restore.")
    if not faces:
        raise UsageError("No face was found. If the picture is an aligned crop of one already, add --aligned.")
    return faces


def embeddings(pixels: np.ndarray, faces: Sequence[Face]) -> torch.Tensor:
    """SFace's embeddings, (N, 128) of length 1. SFace judges nothing in this project.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        faces: At least one of its faces.

    Raises:
        MissingError: Its weights, or the package that reads them, are absent.
    """
    size = (INPUT_SIZE, INPUT_SIZE)
    crops = np.stack([warped(pixels, similarity(face.points, ARCFACE_112), size) for face in faces])
    with torch.inference_mode():
        return shared_sface()(torch.from_numpy(crops).permute(0, 3, 1, 2).div(255).clamp(0, 1))


def likeness(found: torch.Tensor, person: torch.Tensor) -> np.ndarray:
    """Mean cosine of each face (N, 128) to the references of a person (R, 128), (N,)."""
    mean: np.ndarray = (found @ person.T).mean(dim=1).numpy()
    return mean


def matching_face(alike: np.ndarray) -> tuple[int, str]:
    """Which face of a photograph is the references' person.

    Args:
        alike: (N,) from `likeness`.

    Returns:
        Its number, and what to say of a choice that is not sure; empty where it is.

    Raises:
        UsageError: Nobody looks like the references.
    """
    best = int(alike.argmax())
    if alike[best] < RESEMBLING:
        none = f"None of the {len(alike)} faces looks" if len(alike) > 1 else "The face does not look"
        raise UsageError(
            f"{none} like the references: the nearest has a cosine of {alike[best]:.2f}, and {RESEMBLING} is asked "
            "for. If it is the person all the same, --faces largest restores the largest face as theirs."
        )
    if alike[best] < SAME_PERSON:
        nearest = f"the nearest of {len(alike)} faces" if len(alike) > 1 else "the face"
        return best, (
            f"whether this is whom the references show is not sure: {nearest} has a cosine of {alike[best]:.2f}, and "
            f"from {SAME_PERSON} on SFace takes two faces for one person."
        )
    return best, ""
