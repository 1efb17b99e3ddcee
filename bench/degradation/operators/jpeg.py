"""JPEG: the real codec forward, a differentiable one backward."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_range
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
        """Draws the quality; its fraction is dropped, as the codec does."""
        return {"quality": int(rng.uniform(*self.quality))}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Compresses and decodes every picture at its own quality."""
        return [
            _straight_through_jpeg(image, record["quality"]) for image, record in zip(images, parameters, strict=True)
        ]


def _straight_through_jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = image.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    encoded, content = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise RuntimeError(f"The JPEG encoder failed on a picture of {pixels.shape[:2]} px at quality {quality}.")
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("The JPEG decoder failed on what the encoder wrote.")
    real = torch.from_numpy(np.ascontiguousarray(decoded[:, :, ::-1])).permute(2, 0, 1).to(image).div_(255.0)
    if not (torch.is_grad_enabled() and image.requires_grad):
        return real
    from kornia.enhance import jpeg_codec_differentiable

    height, width = image.shape[1:]
    padding = (0, -width % 16, 0, -height % 16)
    padded = F.pad(image.unsqueeze(0), padding, mode="replicate")
    soft = jpeg_codec_differentiable(padded, torch.full((1,), float(max(quality, 1))).to(image))
    soft = soft[0, :, :height, :width]
    return real + (soft - soft.detach())
