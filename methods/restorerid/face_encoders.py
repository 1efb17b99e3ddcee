"""The face encoders by name, with their weights."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from bench.errors import unknown_name
from bench.weights import catalogue

if TYPE_CHECKING:
    from methods.restorerid.identity_tokens import FaceEncoder

ENCODERS = ("sface", "arcface_clip")
ARCFACE = "arcface_w600k_r50"
#: Where CLIP ViT-H/14 comes from: with RestorerID's checkpoint, or with IP-Adapter; the first that is here is taken.
CLIP_CHOICES = ("restorerid_clip_vit_h14", "clip_vit_h14")
#: Packages that read the published encoders.
PACKAGES = ("onnx", "onnx2torch", "transformers")


def build_face_encoder(name: str) -> FaceEncoder:
    """The face encoder of that name.

    Args:
        name: `sface` (demo), or `arcface_clip`: insightface's w600k_r50 and CLIP ViT-H/14, as published.

    Raises:
        MissingError: Its weights are absent.
        UsageError: There is no such encoder, or a file is not its weights.
    """
    from methods.restorerid.identity_tokens import ClipImageStates, DemoFaceEncoder, PublishedFaceEncoder

    if name == "sface":
        return DemoFaceEncoder()
    if name == "arcface_clip":
        from methods.blocks.recogniser import build_recogniser

        catalogue.locate(ARCFACE)
        path = catalogue.locate(clip_weights())
        clip = ClipImageStates()
        clip.load_weights(path)
        return PublishedFaceEncoder(build_recogniser("arcface"), clip)
    raise unknown_name("value of method.face_encoder", name, ENCODERS)


def clip_weights() -> str:
    """Name in the catalogue of the CLIP image encoder that is here; the last choice if none is."""
    for name in CLIP_CHOICES[:-1]:
        if any(path.is_file() for path in catalogue.places(catalogue.entry(name))):
            return name
    return CLIP_CHOICES[-1]


def absent_encoder(name: str) -> dict[str, str]:
    """What a face encoder lacks here: name -> what brings it, under which licence.

    Raises:
        UsageError: There is no such encoder.
    """
    if name not in ENCODERS:
        raise unknown_name("value of method.face_encoder", name, ENCODERS)
    wanted = ("sface",) if name == "sface" else (ARCFACE, clip_weights())
    lacking = {weights: why for weights in wanted if (why := catalogue.missing(weights))}
    if (converted := CLIP_CHOICES[0]) not in wanted and CLIP_CHOICES[-1] in lacking:
        lacking[CLIP_CHOICES[-1]] += (
            f"\nRestorerID's checkpoint brings it too. {catalogue.how_to_get(catalogue.entry(converted))}"
        )
    if name == "arcface_clip" and (packages := [own for own in PACKAGES if importlib.util.find_spec(own) is None]):
        lacking["packages"] = (
            f"Python packages are missing: {', '.join(packages)}. Install them with: "
            'pip install "face-restoration-bench[full]"'
        )
    return lacking
