"""Finds what makes a benchmark too easy: people in two splits, references that are the ground truth.

Both thresholds were measured on the ORL photographs (40 people, ten photographs each; tests/unit/test_leaks.py
measures them again).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.workers import each
from bench.progress import Progress
from bench.protocol.card import natural_key

if TYPE_CHECKING:
    import numpy as np

#: SFace cosine between two people's mean embeddings (`PHOTOS_PER_IDENTITY` photographs each) from which they are
#: reported as one person. ORL, 20 random halves: two different people reach at most .461 (99.9 %: .411), one person
#: at least .544 (99 % above .795). With many more people than ORL has, a few different ones may come near it.
IDENTITY_THRESHOLD = 0.50
PHOTOS_PER_IDENTITY = 4

#: Correlation of 32x32 grey thumbnails from which two pictures are reported as copies of one. ORL: two photographs of
#: one person reach at most .987, a JPEG copy at quality 30 at least .998, one at half the size .995. A shift of one
#: pixel in 92 (.955) is not found.
DUPLICATE_THRESHOLD = 0.995
THUMBNAIL_SIDE = 32
CLOSEST = 5


@dataclass(frozen=True)
class Leak:
    """Something that stands where it must not.

    Attributes:
        kind: `name`, `face`, `file` or `picture`.
        first: What stands on one side.
        second: What stands on the other.
        message: What was found, for the user.
        value: Similarity, where one was measured.
    """

    kind: str
    first: str
    second: str
    message: str
    value: float | None = None


def name_leaks(parts: Mapping[str, Sequence[str]]) -> list[Leak]:
    """Identities whose names stand in two splits, also written a little differently.

    Upper and lower case, blanks, underscores, hyphens and Unicode forms make no difference.

    Args:
        parts: Identities of each split.
    """
    seen: dict[str, tuple[str, str]] = {}
    leaks = []
    for split, identities in parts.items():
        for identity in identities:
            key = _plain(identity)
            before = seen.setdefault(key, (split, identity))
            if before[0] != split:
                leaks.append(
                    Leak(
                        "name",
                        f"{before[0]}: {before[1]}",
                        f"{split}: {identity}",
                        f"The identity {identity!r} of {split} stands in {before[0]} too, as {before[1]!r}.",
                    )
                )
    return leaks


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(1024,) float32: 32x32 grey thumbnail without its mean, of length 1; zeros for a picture of one grey.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    import cv2
    import numpy as np

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    centred = small - small.mean()
    length = float(np.linalg.norm(centred))
    plain: np.ndarray = (centred / length if length > 1e-3 else np.zeros_like(centred)).ravel()
    return plain


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two thumbnails, of the second as it is or mirrored, whichever is larger."""
    mirrored = second.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)[:, ::-1].ravel()
    return float(max(first @ second, first @ mirrored))


def reference_pairs(photos: Iterable[Any], protocols: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Every (picture to restore, its reference), and where they are paired.

    Args:
        photos: `Photo`s, some of which may fix their references.
        protocols: Frozen protocols as they are kept in files.
    """
    pairs = {(photo.path, path): "the data set" for photo in photos for path in photo.references or ()}
    for protocol in protocols:
        for image in protocol["images"]:
            restored = image.get("source") or image.get("lq")
            for reference in image["references"]:
                pairs.setdefault((restored["path"], reference["path"]), f"the protocol {protocol['name']}")
    return pairs


def reference_leaks(
    pairs: Mapping[tuple[str, str], str], digests: Mapping[str, str], thumbnails: Mapping[str, np.ndarray]
) -> list[Leak]:
    """References that are the picture to restore: the same file, or nearly the same pixels.

    Args:
        pairs: See `reference_pairs`.
        digests: SHA-256 of files by path.
        thumbnails: Thumbnails by path.
    """
    leaks = []
    for (restored, reference), where in pairs.items():
        if reference == restored or (restored in digests and digests[restored] == digests.get(reference)):
            message = f"{reference} is a reference of {restored} in {where}, and the same file."
            leaks.append(Leak("file", restored, reference, message, 1.0))
        elif restored in thumbnails and reference in thumbnails:
            value = likeness(thumbnails[restored], thumbnails[reference])
            if value >= DUPLICATE_THRESHOLD:
                message = (
                    f"{reference} is a reference of {restored} in {where}, and nearly the same picture "
                    f"(correlation {value:.4f}, at most {DUPLICATE_THRESHOLD} is allowed)."
                )
                leaks.append(Leak("picture", restored, reference, message, round(value, 4)))
    return leaks


def copied_files(digests: Mapping[str, str], splits: Mapping[str, str]) -> list[Leak]:
    """Files that lie in two splits under different names.

    Args:
        digests: SHA-256 of each file by path.
        splits: Split of each path.
    """
    first: dict[str, str] = {}
    leaks = []
    for path, digest in digests.items():
        if path not in splits:
            continue
        before = first.setdefault(digest, path)
        if splits[before] != splits[path]:
            message = f"{path} of {splits[path]} is the same file as {before} of {splits[before]}."
            leaks.append(Leak("file", before, path, message, 1.0))
    return leaks


@dataclass(frozen=True)
class FaceComparison:
    """People of different splits compared by their faces.

    Attributes:
        leaks: Pairs at or above `IDENTITY_THRESHOLD`.
        closest: The most similar pairs, whether leaks or not: (first, second, cosine).
        without_face: Identities on whose photographs no face was found.
        pairs: How many pairs were compared.
    """

    leaks: list[Leak]
    closest: list[tuple[str, str, float]]
    without_face: list[str]
    pairs: int


def face_leaks(
    root: Path, parts: Mapping[str, Sequence[str]], photos: Mapping[str, Sequence[str]], workers: int | None = None
) -> FaceComparison:
    """Compares the people of each two splits by SFace.

    Args:
        root: Folder of the data set.
        parts: Identities of each split.
        photos: Paths of each identity's photographs; up to `PHOTOS_PER_IDENTITY` are looked at, evenly spread.
        workers: Processes; None for as many as there are processors.

    Raises:
        MissingError: The detector's or recogniser's weights are absent.
    """
    import numpy as np

    compared = {split: list(identities) for split, identities in parts.items() if identities}
    if len(compared) < 2:
        return FaceComparison([], [], [], 0)
    tasks = [(identity, path) for own in compared.values() for identity in own for path in _spread(photos[identity])]
    sums: dict[str, np.ndarray] = {}
    progress = Progress("embedded", len(tasks))
    for identity, vector in each(partial(_embed, str(root)), tasks, workers):
        if vector is not None:
            sums[identity] = sums.get(identity, 0) + vector
        progress.advance()
    means = {identity: vector / np.linalg.norm(vector) for identity, vector in sums.items()}
    leaks: list[Leak] = []
    closest: list[tuple[str, str, float]] = []
    pairs = 0
    for one, other in combinations(compared, 2):
        rows, columns = ([name for name in compared[split] if name in means] for split in (one, other))
        if not rows or not columns:
            continue
        others = np.stack([means[name] for name in columns])
        for name in rows:
            cosines = others @ means[name]
            pairs += len(columns)
            for index in np.flatnonzero(cosines >= IDENTITY_THRESHOLD):
                leaks.append(_face_leak(one, name, other, columns[index], float(cosines[index])))
            best = int(cosines.argmax())
            closest.append((f"{one}: {name}", f"{other}: {columns[best]}", round(float(cosines[best]), 4)))
        closest = sorted(closest, key=lambda pair: -pair[2])[:CLOSEST]
    leaks.sort(key=lambda leak: -(leak.value or 0))
    everyone = sorted((name for own in compared.values() for name in own), key=natural_key)
    return FaceComparison(leaks, closest, [name for name in everyone if name not in means], pairs)


def _face_leak(one: str, name: str, other: str, second: str, value: float) -> Leak:
    limit = f"reported from {IDENTITY_THRESHOLD}"
    message = f"{second} of {other} looks like {name} of {one}: SFace cosine {value:.3f} ({limit})."
    return Leak("face", f"{one}: {name}", f"{other}: {second}", message, round(value, 4))


def _spread(paths: Sequence[str]) -> list[str]:
    """Up to `PHOTOS_PER_IDENTITY` of them, from the first to the last."""
    count = min(PHOTOS_PER_IDENTITY, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def _embed(root: str, task: tuple[str, str]) -> tuple[str, np.ndarray | None]:
    """(128,) embedding of length 1 of the largest face; None where there is none or no picture."""
    import torch

    from bench.faces.detector import detect_main_face
    from bench.faces.sface import crop_faces, shared_sface
    from bench.image import UnreadableImageError, read_image

    torch.set_num_threads(1)
    identity, path = task
    try:
        image = read_image(Path(root) / path)
    except UnreadableImageError:
        return identity, None
    face = detect_main_face(image)
    if face is None:
        return identity, None
    picture = torch.tensor(image).permute(2, 0, 1).unsqueeze(0).float().div(255)
    with torch.inference_mode():
        embedding: np.ndarray = shared_sface()(crop_faces(picture, torch.tensor(face.points).unsqueeze(0)))[0].numpy()
    return identity, embedding
