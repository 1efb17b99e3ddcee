"""How near a restored picture is to the ground truth: PSNR, SSIM, MS-SSIM and HaarPSI.

All are computed in float64 on the 8-bit pictures scaled to [0, 1], and only where the aligned crop
shows the photograph (`ScoringBatch.valid`). Y is the full-range BT.601 luma (`bench.metrics.common.luma`),
pyiqa's convention; BasicSR's studio-range Y gives 1.3 dB more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.metrics.common import correlate, scores, version
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch

if TYPE_CHECKING:
    from torch import Tensor

PSNR_CEILING = 100.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
HAARPSI_SMALLEST = 16
MS_SSIM_SMALLEST = 161
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_NOTHING_VALID = "no pixel of the crop lies inside the photograph"
_Y = "Y BT.601 full range"
_RGB = "RGB"


class _Fidelity(Metric):
    higher_is_better: ClassVar[bool | None] = True
    needs = ("truth",)
    licence: ClassVar[str] = "Apache-2.0"
    on_luma: ClassVar[bool]
    cost: ClassVar[Cost] = "low"

    def pictures(self, batch: ScoringBatch) -> tuple[Tensor, Tensor]:
        """Restored and true pictures in float64: (B, 1, H, W) luma or (B, 3, H, W) RGB."""
        if self.on_luma:
            return batch.restored_luma, batch.truth_luma
        return batch.restored_double, batch.truth_double


class _Psnr(_Fidelity):
    unit: ClassVar[str] = "dB"

    @property
    def identity(self) -> str:
        """Identity string."""
        colour = _Y if self.on_luma else _RGB
        return f"{self.name}@own 1@{colour}, float64, peak 1, valid pixels, at most {PSNR_CEILING:g} dB"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """PSNR over the valid pixels; identical pictures get `PSNR_CEILING`."""
        restored, truth = self.pictures(batch)
        valid = batch.valid_tensor.double()
        errors = ((restored - truth).square() * valid).sum(dim=(1, 2, 3))
        mean = errors / (valid.sum(dim=(1, 2, 3)) * restored.shape[1])
        return scores((-10.0 * mean.clamp_min(10.0 ** (-PSNR_CEILING / 10.0)).log10()).tolist(), _NOTHING_VALID)


class PsnrY(_Psnr):
    """PSNR of the luma, in dB."""

    name = "psnr_y"
    title = "PSNR-Y"
    on_luma = True


class PsnrRgb(_Psnr):
    """PSNR over the three colour channels, in dB."""

    name = "psnr_rgb"
    title = "PSNR-RGB"
    on_luma = False


class _Ssim(_Fidelity):
    @property
    def identity(self) -> str:
        """Identity string."""
        colour = _Y if self.on_luma else _RGB
        window = f"Gaussian {SSIM_WINDOW} px sigma {SSIM_SIGMA:g}, K .01 .03, whole windows of valid pixels"
        return f"{self.name}@own 1@{colour}, float64, {window}"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Mean SSIM over the windows that lie wholly inside the valid region."""
        if min(batch.restored.shape[1:3]) < SSIM_WINDOW:
            return [Score(None, f"needs {SSIM_WINDOW} px")] * len(batch)
        similarity = ssim_map(*self.pictures(batch)).mean(dim=1, keepdim=True)
        whole = batch.once("whole SSIM windows", lambda: _whole_windows(batch))
        means = (similarity * whole).sum(dim=(1, 2, 3)) / whole.sum(dim=(1, 2, 3))
        return scores(means.tolist(), f"no window of {SSIM_WINDOW} px lies inside the photograph")


class SsimY(_Ssim):
    """SSIM of the luma (Wang et al. 2004)."""

    name = "ssim_y"
    title = "SSIM-Y"
    on_luma = True


class SsimRgb(_Ssim):
    """SSIM averaged over the three colour channels (Wang et al. 2004)."""

    name = "ssim_rgb"
    title = "SSIM-RGB"
    on_luma = False


class MsSsim(_Fidelity):
    """MS-SSIM of the luma (Wang, Simoncelli and Bovik 2003): five scales, the published weights.

    Null below 161 px, where the window of 11 px does not fit the fifth scale. Pixels outside the photograph are
    replaced by the ground truth's, so that they add no difference.
    """

    name = "ms_ssim"
    title = "MS-SSIM"
    on_luma = True

    @property
    def identity(self) -> str:
        """Identity string."""
        window = f"Gaussian {SSIM_WINDOW} px sigma {SSIM_SIGMA:g}, K .01 .03"
        return f"ms_ssim@own 1@{_Y}, float64, 5 scales, {window}, negative = 0, outside valid = truth"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """MS-SSIM of every picture."""
        import torch
        from torch.nn.functional import avg_pool2d, pad

        if min(batch.restored.shape[1:3]) < MS_SSIM_SMALLEST:
            return [Score(None, f"needs {MS_SSIM_SMALLEST} px for its fifth scale")] * len(batch)
        restored, truth = self.pictures(batch)
        restored = torch.where(batch.valid_tensor, restored, truth)
        product = restored.new_ones(len(batch))
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            if scale:
                odd = max(side % 2 for side in restored.shape[2:])
                restored, truth = (
                    avg_pool2d(pad(picture, (odd, 0, odd, 0), mode="replicate"), 2) for picture in (restored, truth)
                )
            similarity, contrast = ssim_maps(restored, truth)
            last = scale == len(MS_SSIM_WEIGHTS) - 1
            product = product * (similarity if last else contrast).mean(dim=(1, 2, 3)).clamp_min(0.0) ** weight
        return scores(product.tolist())


class HaarPsi(_Fidelity):
    """HaarPSI (Reisenhofer et al. 2018): a perceptual similarity without trained weights, in [0, 1].

    Pixels outside the photograph are replaced by the ground truth's, so that they add no difference.
    """

    name = "haarpsi"
    title = "HaarPSI"
    cost: ClassVar[Cost] = "medium"
    licence = "Apache-2.0"
    on_luma = False

    @property
    def identity(self) -> str:
        """Identity string."""
        return f"haarpsi@piq {version('piq')}@RGB to YIQ, float64, 3 scales, subsampled, outside valid = truth"

    def unavailable(self) -> str | None:
        """Whether piq is absent."""
        return "needs the Python package piq; install it with: pip install piq" if version("piq") == "absent" else None

    def score(self, batch: ScoringBatch) -> list[Score]:
        """HaarPSI of every picture."""
        import piq
        import torch

        if min(batch.restored.shape[1:3]) < HAARPSI_SMALLEST:
            return [Score(None, f"needs {HAARPSI_SMALLEST} px")] * len(batch)
        restored, truth = self.pictures(batch)
        restored = torch.where(batch.valid_tensor, restored, truth)
        values = piq.haarpsi(restored, truth, reduction="none").reshape(-1).tolist()
        return scores(values, "both pictures are flat, which leaves nothing to weigh")


def _whole_windows(batch: ScoringBatch) -> Tensor:
    """(B, 1, H - 10, W - 10) float64: 1 where the whole window is valid, else 0."""
    from torch.nn.functional import max_pool2d

    if bool(batch.valid.all()):
        rows, columns = (side - SSIM_WINDOW + 1 for side in batch.valid.shape[1:])
        return batch.restored_double.new_ones(len(batch), 1, rows, columns)
    return 1.0 - max_pool2d((~batch.valid_tensor).double(), SSIM_WINDOW, stride=1)


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """SSIM at every position where the whole window fits: the first of `ssim_maps`."""
    return ssim_maps(first, second)[0]


def ssim_maps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its factor of contrast and structure, at every position where the whole window fits.

    Args:
        first: (B, C, H, W) in [0, 1].
        second: The same shape.

    Returns:
        Two of (B, C, H - 10, W - 10).
    """
    import torch

    along = torch.arange(SSIM_WINDOW, dtype=first.dtype, device=first.device) - SSIM_WINDOW // 2
    weights = torch.exp(-along.square() / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()

    def blur(images: Tensor) -> Tensor:
        return correlate(correlate(images, weights.view(1, -1)), weights.view(-1, 1))

    mean_first, mean_second = blur(first), blur(second)
    variance_first = blur(first * first) - mean_first**2
    variance_second = blur(second * second) - mean_second**2
    covariance = blur(first * second) - mean_first * mean_second
    c1, c2 = 0.01**2, 0.03**2
    squares, variances = mean_first**2 + mean_second**2 + c1, variance_first + variance_second + c2
    contrast = 2 * covariance + c2
    return (2 * mean_first * mean_second + c1) * contrast / (squares * variances), contrast / variances
