"""Noise added to the picture.

Every field comes from NumPy's generator on the CPU: the same bits on every device, which torch's do not give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.degradation.operator import Operator, Parameters, check_probability, check_range
from bench.degradation.operators.colour import LUMA, luminance
from bench.degradation.operators.threads import map_pictures
from bench.errors import UsageError

BINS = 2048
#: As a power of ten.
LARGEST_PHOTONS = 6


class GaussianNoise(Operator):
    """Additive Gaussian noise, clipped to [0, 1].

    Args:
        sigma: Range of the standard deviation, in levels of 255.
        grey_probability: Chance that the three channels share one noise field.
    """

    name = "gaussian_noise"

    def __init__(self, sigma: Sequence[float], grey_probability: float = 0.0) -> None:
        self.sigma = check_range(self.name, "sigma", sigma)
        self.grey_probability = check_probability(self.name, "grey_probability", grey_probability)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the strength, whether it is grey, and the seed of the noise field."""
        return {
            "sigma": float(rng.uniform(*self.sigma)),
            "grey": bool(rng.random() < self.grey_probability),
            "seed": int(rng.integers(2**31)),
        }

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Adds each picture's own field."""
        fields = _in_threads(_normal_field, images, parameters)
        return [
            field.to(image).mul_(record["sigma"] / 255.0).add(image).clamp_(0.0, 1.0)
            for image, field, record in zip(images, fields, parameters, strict=True)
        ]


class CorrelatedNoise(Operator):
    """Additive Gaussian noise whose channels are correlated by a random covariance, clipped to [0, 1].

    Source: KAIR, utils_blindsr.add_Gaussian_noise, third branch (BSRGAN, SCUNet). There the strength is always the
    range's upper end: write `[25, 25]`.

    Args:
        sigma: Range of the strength L, in levels of 255; the covariance is L² |Uᵀ D U| with D uniform in [0, 1] and U
            a random orthogonal matrix.
    """

    name = "correlated_noise"

    def __init__(self, sigma: Sequence[float]) -> None:
        self.sigma = check_range(self.name, "sigma", sigma)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the strength, the matrix that mixes the channels, and the seed of the noise field."""
        return {
            "sigma": float(rng.uniform(*self.sigma)),
            "mixing": _random_mixing(rng),
            "seed": int(rng.integers(2**31)),
        }

    apply = GaussianNoise.apply


class SpeckleNoise(Operator):
    """Noise in proportion to the picture, x + x n with Gaussian n, clipped to [0, 1].

    Source: KAIR, utils_blindsr.add_speckle_noise (BSRGAN, SCUNet): grey .4, correlated .2.

    Args:
        sigma: Range of n's standard deviation, in levels of 255. Correlated noise always takes the upper end.
        grey_probability: Chance that the three channels share one field.
        correlated_probability: Chance of a random covariance between the channels (see `correlated_noise`).
    """

    name = "speckle_noise"

    def __init__(
        self, sigma: Sequence[float], grey_probability: float = 0.0, correlated_probability: float = 0.0
    ) -> None:
        self.sigma = check_range(self.name, "sigma", sigma)
        self.grey_probability = check_probability(self.name, "grey_probability", grey_probability)
        self.correlated_probability = check_probability(self.name, "correlated_probability", correlated_probability)
        if self.grey_probability + self.correlated_probability > 1:
            raise UsageError(f"{self.name}: grey_probability and correlated_probability add up to more than 1.")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the strength, the kind, and the seed of the noise field."""
        sigma, kind = float(rng.uniform(*self.sigma)), float(rng.random())
        record: Parameters = {"sigma": sigma, "grey": kind < self.grey_probability}
        if kind >= 1 - self.correlated_probability:
            record |= {"sigma": self.sigma[1], "mixing": _random_mixing(rng)}
        return {**record, "seed": int(rng.integers(2**31))}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Multiplies each picture with its own field."""
        fields = _in_threads(_normal_field, images, parameters)
        return [
            (image * field.to(image) * (record["sigma"] / 255.0) + image).clamp_(0.0, 1.0)
            for image, field, record in zip(images, fields, parameters, strict=True)
        ]


class PoissonNoise(Operator):
    """Shot noise, clipped to [0, 1]. Exactly one of `scale` and `photons` is given.

    The picture is rounded to 8 bits and taken as a count of photons; what the Poisson distribution
    adds to it is added to the picture, with the gradient of the identity.

    The one operator that does not stay within 1/255 between CPU and GPU in every pixel: where the picture lies halfway
    between two levels, rounding may fall differently, and that pixel then counts about a photon more or less, which is
    several levels where white has few photons. No other pixel changes. On the 8-bit grid this strikes none; off it,
    differences as small as single precision's moved 8 to 35 values in 100,000 by more than a level, and 140 in a
    picture enlarged twofold, where many values lie exactly halfway.

    Args:
        scale: Range of the factor on the noise. White is 2^⌈log2 n⌉ photons, n the number of distinct levels in the
            picture (BasicSR, generate_poisson_noise_pt; Real-ESRGAN).
        photons: Range of log10 of white's photons (KAIR, utils_blindsr.add_Poisson_noise: [2, 4]).
        grey_probability: Chance that the three channels share the noise of the picture's luminance.
    """

    name = "poisson_noise"

    def __init__(
        self,
        scale: Sequence[float] | None = None,
        photons: Sequence[float] | None = None,
        grey_probability: float = 0.0,
    ) -> None:
        if (scale is None) == (photons is None):
            raise UsageError(f"{self.name} takes either scale or photons.")
        self.scale = None if scale is None else check_range(self.name, "scale", scale)
        self.photons = None if photons is None else check_range(self.name, "photons", photons)
        if self.photons is not None and self.photons[1] > LARGEST_PHOTONS:
            raise UsageError(
                f"{self.name}.photons is a power of ten of at most {LARGEST_PHOTONS}, got {self.photons[1]}."
            )
        self.grey_probability = check_probability(self.name, "grey_probability", grey_probability)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws the strength, whether it is grey, and the seed of the noise field."""
        record: Parameters
        if self.scale is not None:
            record = {"scale": float(rng.uniform(*self.scale))}
        else:
            record = {"photons": float(10 ** rng.uniform(*(self.photons or (2.0, 4.0))))}
        grey = bool(rng.random() < self.grey_probability)
        return {**record, "grey": grey, "seed": int(rng.integers(2**31))}

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Adds each picture's own field."""
        fields = _in_threads(_poisson_field, images, parameters)
        return [
            field.to(image).mul_(record.get("scale", 1.0)).add(image).clamp_(0.0, 1.0)
            for image, field, record in zip(images, fields, parameters, strict=True)
        ]


def _in_threads(
    draw: Callable[[Tensor, Parameters], Tensor], images: Sequence[Tensor], parameters: Sequence[Parameters]
) -> list[Tensor]:
    return map_pictures(lambda pair: draw(*pair), zip(images, parameters, strict=True))


def _normal_field(image: Tensor, record: Parameters) -> Tensor:
    """Standard normal (1 or C, H, W) in float64; mixed between the channels where the record says so."""
    channels = 1 if record.get("grey") else image.shape[0]
    normal = np.random.default_rng(record["seed"]).standard_normal((channels, *image.shape[1:]))
    if "mixing" in record:
        normal = np.tensordot(np.asarray(record["mixing"]), normal, axes=1)
    return torch.from_numpy(normal)


def _random_mixing(rng: np.random.Generator) -> list[list[float]]:
    """A symmetric matrix A with A A the covariance that NumPy gives KAIR's noise of strength 1.

    KAIR takes |Uᵀ D U| element by element, which may have a negative eigenvalue; NumPy's sampler uses its modulus.
    """
    variances, raw = rng.random(3), rng.random((3, 3))
    orthogonal = np.linalg.svd(raw)[0]
    covariance = np.abs(orthogonal.T @ np.diag(variances) @ orthogonal)
    values, vectors = np.linalg.eigh(covariance)
    return [[float(x) for x in row] for row in vectors @ np.diag(np.sqrt(np.abs(values))) @ vectors.T]


def _poisson_field(image: Tensor, record: Parameters) -> Tensor:
    """What the Poisson distribution adds to the picture, (1 or C, H, W) float64."""
    picture = image.detach()
    if record["grey"]:
        picture = luminance(picture, LUMA)
    levels = picture.mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    present = np.flatnonzero(np.bincount(levels.ravel(), minlength=256))
    white = record["photons"] if "photons" in record else 2.0 ** math.ceil(math.log2(len(present)))
    if not 0 < white <= 10**LARGEST_PHOTONS:
        raise UsageError(f"poisson_noise: photons must be above 0 and at most 10^{LARGEST_PHOTONS}, got {white!r}.")
    row_of_level = np.zeros(256, dtype=np.int64)
    row_of_level[present] = np.arange(len(present))
    # One uniform number per pixel through the inverse distribution: a level that another device rounds otherwise
    # moves its own pixel by a photon, where a rejection sampler would change every pixel after it.
    uniform = np.random.default_rng(record["seed"]).random(levels.shape)
    noise = _poisson_noise(uniform.ravel(), row_of_level[levels.ravel()], present / 255.0, white)
    return torch.from_numpy(noise.reshape(levels.shape))


def _poisson_noise(uniform: np.ndarray, rows: np.ndarray, values: np.ndarray, white: float) -> np.ndarray:
    """Inverse Poisson distribution minus its mean, for few distinct means.

    Args:
        uniform: Probabilities in [0, 1), (N,).
        rows: Which of the values each stands for, (N,).
        values: Brightness of each, in [0, 1].
        white: Photons of brightness 1.

    Returns:
        Noise in units of white, (N,).
    """
    means = values * white
    reach = 10 * np.sqrt(means) + 10
    first = np.maximum(0, np.floor(means - reach))
    width = int((means + reach - first).max()) + 2
    counts = first[:, None].astype(np.int64) + np.arange(width)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counts.max() + 1)))])
    logarithms = counts * np.log(np.maximum(means, 1e-300))[:, None] - means[:, None] - log_factorial[counts]
    distribution = np.minimum(np.cumsum(np.exp(logarithms), axis=1), 1.0)
    distribution[:, -1] = 1.0

    # A table by the leading bits of the probability answers most pixels; where the distribution steps within a bin,
    # a search does. Row r of the distribution, plus r, lies in [r, r + 1]: one sorted list serves all rows.
    bins = (distribution * BINS).astype(np.int64) + (BINS + 1) * np.arange(len(means))[:, None]
    steps = np.bincount(bins.ravel(), minlength=(BINS + 1) * len(means)).reshape(len(means), BINS + 1)[:, :BINS]
    below = np.cumsum(steps, axis=1) - steps
    value = ((first - means)[:, None] + below) / white
    value[steps > 0] = np.nan
    noise = value.ravel()[rows * BINS + (uniform * BINS).astype(np.int64)]
    unsure = np.flatnonzero(np.isnan(noise))
    row = rows[unsure]
    listed = (distribution + np.arange(len(means))[:, None]).ravel()
    found = np.searchsorted(listed, row + uniform[unsure], side="right") - row * width
    noise[unsure] = (found + (first - means)[row]) / white
    return noise
