"""Small network that finds facial points in degraded, roughly aligned faces.

ReFine (WACV 2025, Sec. 3.1) fine-tunes a landmark detector on degraded pictures, because detectors
made for clean ones fail on them. This one is trained from scratch on degraded training identities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SIDE = 64
HEATMAP_SIDE = 32


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, group normalisation, SiLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(inplace=True),
    )


class LandmarkNetwork(nn.Module):
    """Encoder-decoder with one soft-argmax heatmap per point.

    Pictures are resized to 64 px inside; heatmaps have 32 x 32 cells. Group normalisation keeps a
    picture's points independent of its batch.

    Args:
        points: Number of points K.
        width: Channels at the finest level; the others are two and three times as wide.
    """

    def __init__(self, points: int = 5, width: int = 24) -> None:
        super().__init__()
        self.points = points
        self.stem = nn.Sequential(_block(3, width, 2), _block(width, width))
        self.down1 = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width))
        self.down2 = nn.Sequential(_block(2 * width, 3 * width, 2), _block(3 * width, 3 * width))
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3 * width, 3 * width, 1))
        self.up1 = _block(3 * width + 2 * width, 2 * width)
        self.up2 = _block(2 * width + width, width)
        self.heatmaps = nn.Conv2d(width, points, 1)
        cells = (torch.arange(HEATMAP_SIDE, dtype=torch.float32) + 0.5) / HEATMAP_SIDE
        self.register_buffer("cells", cells, persistent=False)
        self.cells: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Finds the points.

        Args:
            image: Faces (B, 3, H, W), RGB in [-1, 1].

        Returns:
            Points (B, K, 2), (x, y) in pixels of `image`; the centre of the top-left pixel is (0, 0).
        """
        height, width = image.shape[-2:]
        if (height, width) != (INPUT_SIDE, INPUT_SIDE):
            image = F.interpolate(
                image, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False, antialias=True
            )
        fine = self.stem(image)
        middle = self.down1(fine)
        coarse = self.down2(middle)
        coarse = coarse + self.context(coarse)
        middle = self.up1(torch.cat([F.interpolate(coarse, scale_factor=2, mode="nearest"), middle], dim=1))
        fine = self.up2(torch.cat([F.interpolate(middle, scale_factor=2, mode="nearest"), fine], dim=1))
        chance = self.heatmaps(fine).float().flatten(2).softmax(dim=-1).unflatten(-1, (HEATMAP_SIDE, HEATMAP_SIDE))
        x = (chance.sum(dim=2) * self.cells).sum(dim=-1) * width - 0.5
        y = (chance.sum(dim=3) * self.cells).sum(dim=-1) * height - 0.5
        return torch.stack([x, y], dim=-1)


def landmark_loss(predicted: Tensor, truth: Tensor, side: float, beta: float = 0.01) -> Tensor:
    """Smooth L1 distance of points, in shares of the picture's side.

    Args:
        predicted: Points (B, K, 2), pixels.
        truth: True points (B, K, 2), pixels.
        side: Side of the picture in pixels.
        beta: Below this share of the side the loss is quadratic.

    Returns:
        A scalar; 0 only where all points agree.
    """
    return F.smooth_l1_loss(predicted / side, truth.to(predicted.dtype) / side, beta=beta)
