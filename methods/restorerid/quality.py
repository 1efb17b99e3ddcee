"""No-reference quality of the LQ picture, which sets the adaptive ID-scale.

The paper reads MUSIQ (KonIQ). Its weights are not shipped, so the demo has an estimator of its own, said by name
wherever a lambda comes from it: statistics of five frequency bands of the luma, weighted so that they predict the
HaarPSI of the degraded picture to its ground truth. The weights in `quality_demo.json` are fitted to training
identities alone; `python -m methods.restorerid.calibrate_quality` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import UsageError, unknown_name
from bench.files import sha256_bytes
from bench.weights import catalogue

SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
QUANTILES = (0.1, 0.5, 0.9, 0.99)
FEATURES = len(SIGMAS) * (len(QUANTILES) + 1) + 1
MUSIQ_SIDE = 512
_FLOOR = 1e-5
_LIMIT = 3.0
_LUMA = (0.299, 0.587, 0.114)
_DEMO_FILE = Path(__file__).with_name("quality_demo.json")


class QualityEstimator(Protocol):
    """Quality of degraded pictures without their ground truth."""

    @property
    def name(self) -> str:
        """What is measured, for logs, cards and rows."""
        ...

    @property
    def digest(self) -> str:
        """Names what decides its values, but for alpha and beta: hashes of weights."""
        ...

    @property
    def alpha(self) -> float | None:
        """Quality at which lambda is 1 (see `adaptive_id_scale`); None until it is calibrated."""
        ...

    @property
    def beta(self) -> float | None:
        """Points of quality over which lambda falls by the factor e; None until it is calibrated."""
        ...

    def __call__(self, lq: Tensor) -> Tensor:
        """Rates pictures.

        Args:
            lq: (B, 3, H, W) RGB in [0, 1], at the method's native size.

        Returns:
            (B,), higher is better. A picture's value depends on that picture alone.
        """
        ...


class MusiqQuality:
    """MUSIQ (KonIQ) of the LQ enlarged to 512 px, as published.

    Raises:
        MissingError: pyiqa or the weights are absent (on first use).
    """

    name = "musiq (KonIQ) of the LQ at 512 px"
    alpha: float | None = 9.5
    beta: float | None = 10.0

    def __init__(self) -> None:
        self._network: torch.nn.Module | None = None

    @property
    def digest(self) -> str:
        """See `QualityEstimator.digest`."""
        return f"musiq {catalogue.short_hash('musiq_koniq')}"

    @torch.no_grad()
    def __call__(self, lq: Tensor) -> Tensor:
        """Rates pictures; see `QualityEstimator`."""
        if self._network is None:
            self._network = _musiq()
        network = self._network.to(lq.device)
        if min(lq.shape[-2:]) != MUSIQ_SIDE:
            factor = MUSIQ_SIDE / min(lq.shape[-2:])
            lq = F.interpolate(lq, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)
        return torch.cat([network(picture).reshape(1).float() for picture in lq.split(1)])


@dataclass(frozen=True)
class BandQuality:
    """Weighted band statistics (see the module's text), about 0 to 100.

    Attributes:
        name: What is measured.
        side: Side in pixels of the pictures that the weights were fitted on; others are resized to it.
        mean: Mean of each feature of `band_features` over the fit.
        spread: Their standard deviations.
        weights: Weight of each standardised feature, then of each product of two of them (`expanded`).
        intercept: Value of a picture with mean features, but for the products.
        alpha: See `QualityEstimator`.
        beta: See `QualityEstimator`.
    """

    name: str
    side: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    alpha: float | None = None
    beta: float | None = None

    @property
    def digest(self) -> str:
        """See `QualityEstimator.digest`."""
        weights = [self.side, self.mean, self.spread, self.weights, self.intercept]
        return f"bands {sha256_bytes(json.dumps(weights).encode())[:12]}"

    @torch.no_grad()
    def __call__(self, lq: Tensor) -> Tensor:
        """Rates pictures; see `QualityEstimator`."""
        if min(lq.shape[-2:]) != self.side:
            factor = self.side / min(lq.shape[-2:])
            lq = F.interpolate(lq, scale_factor=factor, mode="bicubic", align_corners=False, antialias=True)
        return self.from_features(band_features(lq)).float()

    def from_features(self, features: Tensor) -> Tensor:
        """Quality (B,) from `band_features` (B, FEATURES)."""
        standard = (features - features.new_tensor(self.mean)) / features.new_tensor(self.spread)
        return expanded(standard) @ features.new_tensor(self.weights) + self.intercept


def demo_quality(path: Path = _DEMO_FILE) -> BandQuality:
    """The demo's estimator with its committed weights, alpha and beta.

    Raises:
        UsageError: The file does not hold one weight for each feature.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    if len(stored["weights"]) != FEATURES + FEATURES * (FEATURES + 1) // 2 or len(stored["mean"]) != FEATURES:
        raise UsageError(f"{path} does not hold the weights of {FEATURES} features. Make it again: see {__name__}.")
    return BandQuality(
        name=stored["name"],
        side=int(stored["side"]),
        mean=tuple(stored["mean"]),
        spread=tuple(stored["spread"]),
        weights=tuple(stored["weights"]),
        intercept=float(stored["intercept"]),
        alpha=stored.get("alpha"),
        beta=stored.get("beta"),
    )


def build_quality(name: str) -> QualityEstimator:
    """The estimator of that name: `musiq` or `bands`.

    Raises:
        UsageError: There is none.
    """
    if name == "musiq":
        return MusiqQuality()
    if name == "bands":
        return demo_quality()
    raise unknown_name("quality estimator (method.quality)", name, ["musiq", "bands"])


def band_features(images: Tensor) -> Tensor:
    """Logarithms of what frequency bands of the luma hold.

    Bands are differences of Gaussians with sigma 0.5, 1, 2, 4 and 8 px (the finest against the picture itself). High
    quantiles of their magnitudes are the edges, low ones the noise.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        (B, FEATURES) float64: for each band the quantiles .1, .5, .9 and .99 of the magnitudes and the standard
        deviation; last the standard deviation of what is coarser than all bands.
    """
    level = (images.double() * images.new_tensor(_LUMA, dtype=torch.float64).view(1, 3, 1, 1)).sum(1, keepdim=True)
    at = level.new_tensor(QUANTILES)
    features, before = [], 0.0
    for sigma in SIGMAS:
        # A Gaussian of the difference of variances gives the level the sigma of the list.
        smooth = _gaussian(level, (sigma**2 - before**2) ** 0.5)
        band = (level - smooth).flatten(1)
        features += [band.abs().quantile(at, dim=1).T, band.std(1, keepdim=True)]
        level, before = smooth, sigma
    features.append(level.flatten(1).std(1, keepdim=True))
    return torch.cat(features, dim=1).clamp_min(_FLOOR).log()


def expanded(standard: Tensor) -> Tensor:
    """Standardised features and the products of two of them.

    Args:
        standard: (B, K); cut off at three standard deviations, beyond which nothing was fitted.

    Returns:
        (B, K + K (K + 1) / 2).
    """
    standard = standard.clamp(-_LIMIT, _LIMIT)
    first, second = torch.triu_indices(standard.shape[1], standard.shape[1], device=standard.device)
    return torch.cat([standard, standard[:, first] * standard[:, second]], dim=1)


def fit_quality(name: str, side: int, features: Tensor, targets: Tensor, ridge: float = 1e-3) -> BandQuality:
    """Ridge regression of a quality on band features and their products.

    Args:
        name: What is measured.
        side: Side of the pictures.
        features: (N, FEATURES) float64 from `band_features`.
        targets: (N,) float64 quality to predict.
        ridge: Penalty on the squared weights, relative to N.

    Returns:
        The estimator, without alpha and beta.
    """
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-9)
    terms = expanded((features - mean) / spread)
    centre = terms.mean(0)
    centred = terms - centre
    gram = centred.T @ centred + ridge * len(terms) * torch.eye(terms.shape[1], dtype=terms.dtype)
    weights = torch.linalg.solve(gram, centred.T @ (targets - targets.mean()))
    return BandQuality(
        name=name,
        side=side,
        mean=tuple(mean.tolist()),
        spread=tuple(spread.tolist()),
        weights=tuple(weights.tolist()),
        intercept=float(targets.mean() - centre @ weights),
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, int(3 * sigma + 0.5))
    along = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(along**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _musiq() -> torch.nn.Module:
    from bench.metrics.learned_quality import Musiq

    metric = Musiq()
    reason = metric.unavailable()
    if reason:
        from bench.errors import MissingError

        raise MissingError(
            f"The adaptive ID-scale needs MUSIQ: {reason}. Use method.quality=bands or a fixed method.id_scale instead."
        )
    return metric.network("cpu")
