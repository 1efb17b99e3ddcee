"""Tags of portraits that can be measured, and the small text encoder that reads them at the demo size.

AuthFace describes a portrait by semantic and photographic tags (Sec. 3.1). No captioner ships inside a package, so the
demo's tags are measured on the picture: what it shows around the face, how it is lit, turned and focused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.errors import UsageError
from methods.authface.conditions import PromptStates

#: What the demo's prompts may consist of; the semantic ones first.
TAGS = (
    "close-up portrait", "light background", "dark background",
    "frontal view", "three-quarter view", "bright light", "dim light", "side lighting", "even lighting",
    "high contrast", "low contrast", "sharp focus", "soft focus",
)  # fmt: skip
#: Measure -> its limit, the tag above it, the tag below. The limits are near the medians of ORL's training photographs.
LIMITS: Mapping[str, tuple[float, str, str]] = {
    "background": (0.33, "light background", "dark background"),
    "turn": (0.10, "three-quarter view", "frontal view"),
    "light": (0.53, "bright light", "dim light"),
    "side": (0.08, "side lighting", "even lighting"),
    "contrast": (0.145, "high contrast", "low contrast"),
    "focus": (0.028, "sharp focus", "soft focus"),
}
#: Tags of a picture.
COUNT = 1 + len(LIMITS)


def measures(pictures: Tensor, points: Tensor) -> dict[str, Tensor]:
    """What the tags are read off.

    Args:
        pictures: (B, 3, S, S) RGB in [0, 1].
        points: Five points of each face in pixels, (B, 5, 2), see `methods.authface.losses.region_boxes`.

    Returns:
        By the names of `LIMITS`, each (B,): luminance of the upper corners; how far the nose is off the middle between
        the eyes, in distances of the eyes; mean luminance of the face, how its halves differ, its deviation, and the
        mean step between neighbouring pixels.
    """
    luminance = (pictures * pictures.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    side = luminance.shape[-1]
    corner = side // 6
    corners = torch.cat([luminance[:, :corner, :corner], luminance[:, :corner, -corner:]], dim=-1)
    between = points[:, :2].mean(1)
    distance = (points[:, 1] - points[:, 0]).norm(dim=-1).clamp_min(1)
    found = {
        "background": corners.mean((1, 2)),
        "turn": (points[:, 2, 0] - between[:, 0]).abs() / distance,
    }
    faces = torch.stack([_face(own, place) for own, place in zip(luminance, points, strict=True)])
    half = faces.shape[-1] // 2
    steps = (faces[:, 1:, 1:] - faces[:, 1:, :-1]).abs() + (faces[:, 1:, 1:] - faces[:, :-1, 1:]).abs()
    return found | {
        "light": faces.mean((1, 2)),
        "side": (faces[..., :half].mean((1, 2)) - faces[..., half:].mean((1, 2))).abs(),
        "contrast": faces.flatten(1).std(1),
        "focus": steps.mean((1, 2)) / 2,
    }


def _face(luminance: Tensor, points: Tensor) -> Tensor:
    """The square around eyes and mouth, resized to 64 pixels."""
    centre = points[[0, 1, 3, 4]].mean(0)
    half = float((points[1] - points[0]).norm().clamp_min(8))
    size = luminance.shape[-1]
    left, top = (int(max(0, min(size - 8, float(value) - half))) for value in centre)
    right, bottom = (int(min(size, start + 2 * half)) for start in (left, top))
    face = luminance[top : max(bottom, top + 8), left : max(right, left + 8)]
    return nn.functional.interpolate(face[None, None], (64, 64), mode="bilinear", antialias=True)[0, 0]


def measured_tags(pictures: Tensor, points: Tensor) -> list[str]:
    """A tag prompt for each picture; arguments as of `measures`."""
    found = measures(pictures, points)
    prompts = []
    for row in range(len(pictures)):
        chosen = [above if float(found[name][row]) > limit else below for name, (limit, above, below) in LIMITS.items()]
        prompts.append(", ".join([TAGS[0], *chosen]))
    return prompts


def tag_numbers(prompts: Sequence[str]) -> Tensor:
    """Numbers of the tags of prompts, (B, `COUNT`) whole numbers; what is left over is 0.

    Raises:
        UsageError: A tag is unknown, or a prompt has too many.
    """
    known = {tag: number for number, tag in enumerate(TAGS, start=1)}
    rows = torch.zeros(len(prompts), COUNT, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tags = [tag for part in prompt.split(",") if (tag := part.strip().lower())]
        if unknown := [tag for tag in tags if tag not in known]:
            raise UsageError(
                f"The demo size of AuthFace reads prompts of these tags alone: {', '.join(TAGS)}. Not of "
                f"{', '.join(map(repr, unknown))}."
            )
        if len(tags) > COUNT:
            raise UsageError(f"A prompt of the demo size has {COUNT} tags at most, {prompt!r} has {len(tags)}.")
        rows[row, : len(tags)] = torch.tensor([known[tag] for tag in tags], dtype=torch.long)
    return rows


class TagEncoder(nn.Module):
    """Text encoder of the demo size: tags to the tokens and the pooled text that SDXL's kind of UNet reads.

    The order of the tags does not matter to it. It is trained with the UNet and frozen with it.

    Args:
        width: Of a token.
        pooled: Width of the pooled text.
    """

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(TAGS) + 1, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.pool = nn.Linear(width, pooled)

    def forward(self, numbers: Tensor) -> PromptStates:
        """States of tag numbers (B, T), see `tag_numbers`."""
        tokens = self.layer(self.embedding(numbers))
        return PromptStates(tokens, self.pool(tokens.mean(1)))
