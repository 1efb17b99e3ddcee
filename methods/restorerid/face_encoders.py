"""The face encoders by name, with their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.errors import UsageError, unknown_name
from bench.weights import catalogue
from bench.weights.method_weights import read_weights
from methods.restorerid.identity_tokens import ClipImageStates, DemoFaceEncoder, PublishedFaceEncoder

if TYPE_CHECKING:
    from methods.restorerid.identity_tokens import FaceEncoder

ENCODERS = ("sface", "arcface_clip")


def build_face_encoder(name: str) -> FaceEncoder:
    """The face encoder of that name.

    Args:
        name: `sface` (demo), or `arcface_clip`: insightface's w600k_r50 and CLIP ViT-H/14, as published.

    Raises:
        MissingError: Its weights are absent.
        UsageError: There is no such encoder.
    """
    if name == "sface":
        return DemoFaceEncoder()
    if name == "arcface_clip":
        from methods.blocks.recogniser import build_recogniser

        path = catalogue.locate("clip_vit_h14")
        clip = ClipImageStates()
        state, _ = read_weights(path)
        state.pop("vision_model.embeddings.position_ids", None)
        if unfit := sorted(set(clip.image_encoder.state_dict()) ^ set(state)):
            raise UsageError(f"{path} is not the image encoder CLIP ViT-H/14: {', '.join(unfit[:3])}, … do not fit.")
        clip.image_encoder.load_state_dict(state)
        recogniser = build_recogniser("arcface")
        return PublishedFaceEncoder(recogniser, clip)
    raise unknown_name("value of method.face_encoder", name, ENCODERS)


def encoder_digest(name: str) -> str:
    """Names the weights of a face encoder, without loading them."""
    names = {"sface": ("sface",), "arcface_clip": ("arcface_w600k_r50", "clip_vit_h14")}
    return ", ".join(f"{weights} {catalogue.short_hash(weights)}" for weights in names[name])
