"""How near and how sharp eyes, mouth and skin are, each on its own (`bench.faces.regions`).

Regions come from the ground truth's committed points for every method. Only pixels inside the photograph count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from bench.metrics.common import scores
from bench.metrics.fidelity import PSNR_CEILING
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch
from bench.metrics.perceptual import LPIPS_SMALLEST, LpipsMap

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = "the region does not lie inside the photograph"
_FLAT = 1e-12  # mean squared gradient up to which only rounding is left
_REGIONS = "regions 1 by the ground truth's points"


class _Region(Metric):
    higher_is_better: ClassVar[bool | None] = True
    licence: ClassVar[str] = "Apache-2.0"
    cost: ClassVar[Cost] = "low"
    needs = ("truth", "landmarks")
    region: ClassVar[str]


class _RegionPsnr(_Region):
    unit: ClassVar[str] = "dB"

    @property
    def identity(self) -> str:
        """Identity string."""
        return f"{self.name}@own 1@Y BT.601 full range, float64, at most {PSNR_CEILING:g} dB@{_REGIONS}, valid pixels"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """PSNR of the luma over the region."""
        mask = region_mask(batch, self.region).double()
        errors = ((batch.restored_luma - batch.truth_luma).square() * mask).sum(dim=(1, 2, 3))
        mean = errors / mask.sum(dim=(1, 2, 3))
        return scores((-10.0 * mean.clamp_min(10.0 ** (-PSNR_CEILING / 10.0)).log10()).tolist(), _NOTHING)


class _RegionSharpness(_Region):
    """1 is as sharp as the ground truth, less is softer, more is sharper or noisier: described, not ranked."""

    higher_is_better: ClassVar[bool | None] = None

    @property
    def identity(self) -> str:
        """Identity string."""
        return (
            f"{self.name}@own 1@Y BT.601 full range, float64@root of the ratio of Sobel gradient energies, "
            f"restored to ground truth@{_REGIONS}, outside valid = truth"
        )

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Ratio of the gradients' root mean squares, restored to ground truth; null where that is flat."""
        mask = region_mask(batch, self.region).double()
        restored, truth = (
            (energy * mask).sum(dim=(1, 2, 3)) for energy in batch.once("gradient energies", lambda: _energies(batch))
        )
        shown = truth > _FLAT * mask.sum(dim=(1, 2, 3))
        ratios = (restored / truth).sqrt().where(shown, float("nan"))
        return scores(ratios.tolist(), f"{_NOTHING}, or the ground truth is flat there")


class _RegionLpips(LpipsMap):
    needs = ("truth", "landmarks")
    cost: ClassVar[Cost] = "medium"
    region: ClassVar[str]

    @property
    def where(self) -> str:  # type: ignore[override]
        """Which part of the map is averaged."""
        return f"mean of the map over {self.region}, {_REGIONS}"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean of LPIPS's map over the region."""
        distances = self.distance_map(batch)
        if distances is None:
            return [Score(None, f"needs {LPIPS_SMALLEST} px")] * len(batch)
        mask = region_mask(batch, self.region).double()
        return scores(((distances.double() * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))).tolist(), _NOTHING)


class PsnrEyes(_RegionPsnr):
    """PSNR of the luma over both eyes, in dB."""

    name, title, region = "psnr_eyes", "PSNR-Y (eyes)", "eyes"


class PsnrMouth(_RegionPsnr):
    """PSNR of the luma over the mouth, in dB."""

    name, title, region = "psnr_mouth", "PSNR-Y (mouth)", "mouth"


class PsnrSkin(_RegionPsnr):
    """PSNR of the luma over the face without eyes, brows and mouth, in dB."""

    name, title, region = "psnr_skin", "PSNR-Y (skin)", "skin"


class SharpnessEyes(_RegionSharpness):
    """Gradient strength of both eyes relative to the ground truth's; 1 is as sharp."""

    name, title, region = "sharpness_eyes", "Sharpness (eyes)", "eyes"


class SharpnessMouth(_RegionSharpness):
    """Gradient strength of the mouth relative to the ground truth's; 1 is as sharp."""

    name, title, region = "sharpness_mouth", "Sharpness (mouth)", "mouth"


class SharpnessSkin(_RegionSharpness):
    """Gradient strength of the skin relative to the ground truth's; 1 is as sharp."""

    name, title, region = "sharpness_skin", "Sharpness (skin)", "skin"


class LpipsEyes(_RegionLpips):
    """LPIPS with AlexNet over both eyes, lower is better."""

    name, title, region = "lpips_eyes", "LPIPS (eyes)", "eyes"


class LpipsMouth(_RegionLpips):
    """LPIPS with AlexNet over the mouth, lower is better."""

    name, title, region = "lpips_mouth", "LPIPS (mouth)", "mouth"


class LpipsSkin(_RegionLpips):
    """LPIPS with AlexNet over the face without eyes, brows and mouth, lower is better."""

    name, title, region = "lpips_skin", "LPIPS (skin)", "skin"


def region_mask(batch: ScoringBatch, region: str) -> Tensor:
    """(B, 1, H, W) bool: the region's pixels inside the photograph, drawn once per batch."""
    return cast("Tensor", batch.once("regions", lambda: _masks(batch))[region])


def _masks(batch: ScoringBatch) -> dict[str, Tensor]:
    import numpy as np
    import torch

    from bench.faces.regions import REGIONS, region_masks

    if batch.landmarks is None:
        raise ValueError("regions need the ground truth's landmarks")
    height, width = batch.restored.shape[1:3]
    drawn = [region_masks(points, height, width) for points in batch.landmarks]
    return {
        name: torch.from_numpy(np.stack([own[name] for own in drawn])).unsqueeze(1).to(batch.device)
        & batch.valid_tensor
        for name in REGIONS
    }


def _energies(batch: ScoringBatch) -> tuple[Tensor, Tensor]:
    """Squared Sobel gradient at every pixel, (B, 1, H, W), borders repeated: of the restored picture and the truth."""
    import torch
    from torch.nn.functional import conv2d, pad

    across = batch.truth_luma.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8.0
    kernels = torch.stack([across, across.T]).unsqueeze(1)

    def energy(luma: Tensor) -> Tensor:
        return conv2d(pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).square().sum(dim=1, keepdim=True)

    restored = torch.where(batch.valid_tensor, batch.restored_luma, batch.truth_luma)
    return energy(restored), energy(batch.truth_luma)
