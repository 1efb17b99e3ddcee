"""The recogniser of the degradation angle: an 18-layer ArcFace network on grey pictures of 128 px.

VQFR (Gu et al., ECCV 2022) and GFPGAN measure identity with it ("Deg."): `resnet18_110.pth` of the project
arcface-pytorch, layers (2, 2, 2, 2) without squeeze and excitation. Written here from the names and shapes of that
file's tensors.
"""

from __future__ import annotations

from torch import Tensor, nn

INPUT_SIZE = 128
EMBEDDING_SIZE = 512


class _Block(nn.Module):
    """Two convolutions between normalisations; one slope serves both activations."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(entering)
        self.conv1 = nn.Conv2d(entering, entering, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(entering)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(entering, leaving, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.downsample: nn.Module | None = None
        if stride != 1 or entering != leaving:
            projection = nn.Conv2d(entering, leaving, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(leaving))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        inner = self.prelu(self.bn1(self.conv1(self.bn0(images))))
        skipped = images if self.downsample is None else self.downsample(images)
        activated: Tensor = self.prelu(self.bn2(self.conv2(inner)) + skipped)
        return activated


class ArcFace18(nn.Module):
    """Embeds whole grey pictures of 128 px; no alignment is made, none is expected."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.bn4 = nn.BatchNorm2d(512)
        self.fc5 = nn.Linear(512 * 8 * 8, EMBEDDING_SIZE)
        self.bn5 = nn.BatchNorm1d(EMBEDDING_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds pictures.

        Args:
            images: (B, 1, 128, 128) grey in [-1, 1].

        Returns:
            (B, 512), not normalised.
        """
        shallow = nn.functional.max_pool2d(self.prelu(self.bn1(self.conv1(images))), 2)
        deep = self.bn4(self.layer4(self.layer3(self.layer2(self.layer1(shallow)))))
        embedding: Tensor = self.bn5(self.fc5(deep.flatten(1)))
        return embedding
