"""JPEG: the real codec forward, a differentiable one backward."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_range
from bench.degradation.operators.filtering import needs_gradient
from bench.degradation.operators.threads import map_pictures
from bench.errors import UsageError


class JPEG(Operator):
    """JPEG compression with the real codec (4:2:0 chroma subsampling).

    The gradient is that of a differentiable JPEG at the same quality (straight through the codec).

    Args:
        quality: Range of the quality, 1 to 100.
    """

    name = "jpeg"

    def __init__(self, quality: Sequence[float]) -> None:
        self.quality = check_range(self.name, "quality", quality, low=1)
        if self.quality[1] > 100:
            raise UsageError(f"{self.name}.quality must not exceed 100, got {list(quality)}.")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the quality; its fraction is dropped, as the codec does: the upper end itself is never drawn."""
        return {"quality": int(rng.uniform(*self.quality))}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Compresses and decodes every picture at its own quality."""
        decoded = map_pictures(lambda pair: _decoded(*pair), zip(images, parameters, strict=True))
        return [
            _straight_through(image, real, record["quality"])
            for image, real, record in zip(images, decoded, parameters, strict=True)
        ]


def _decoded(image: Tensor, record: Parameters) -> Tensor:
    """What the codec makes of the picture, (3, H, W) uint8 on the CPU."""
    quality = record["quality"]
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise UsageError(f"jpeg: the quality must be a whole number from 1 to 100, got {quality!r}.")
    red, green, blue = image.detach().mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    encoded, content = cv2.imencode(".jpg", cv2.merge((blue, green, red)), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise RuntimeError(f"The JPEG encoder failed on a picture of {red.shape} px at quality {quality}.")
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("The JPEG decoder failed on what the encoder wrote.")
    return torch.from_numpy(np.stack(cv2.split(decoded)[::-1]))


def _straight_through(image: Tensor, decoded: Tensor, quality: int) -> Tensor:
    real = decoded.to(image).div_(255.0)
    if not needs_gradient(image):
        return real
    from kornia.enhance import jpeg_codec_differentiable

    height, width = image.shape[1:]
    padding = (0, -width % 16, 0, -height % 16)
    padded = F.pad(image.unsqueeze(0), padding, mode="replicate")
    soft = jpeg_codec_differentiable(padded, torch.full((1,), float(max(quality, 1))).to(image))
    soft = soft[0, :, :height, :width]
    return real + (soft - soft.detach())
