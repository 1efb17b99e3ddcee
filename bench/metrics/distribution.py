"""Whether restored pictures as a set look like true ones: FID and KID over Inception features.

The network and its preprocessing are those of pytorch-fid and BasicSR, which the published
FFHQ statistics were made with: pictures scaled to [-1, 1] and brought to 299 px by bilinear
interpolation without antialiasing. clean-fid's antialiased features are other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from bench.metrics.common import version
from bench.metrics.set_metric import FID_SMALLEST, FeatureNetwork, FeatureSet, SetMetric, SetScore

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import nn

INCEPTION_WEIGHTS = "fid_inception"
FFHQ_STATISTICS = "fid_ffhq_statistics"
INCEPTION_SIDE = 299
KID_RESAMPLES = 999
KID_GROUPS = 1000
_KERNEL_ROWS = 512
FID_RESAMPLES = 100
FID_BOOTSTRAP_UP_TO = 256
_BATCH = 16
_NETWORK_LICENCE = "Apache-2.0 (weights: TensorFlow's Inception of 2015-12-05, ported by pytorch-fid)"


class Inception(FeatureNetwork):
    """The 2,048 pooled features of TensorFlow's Inception of 2015-12-05, as ported by pytorch-fid."""

    dimensions = 2048

    @property
    def identity(self) -> str:
        """Network, weights and preprocessing."""
        from bench.weights import catalogue

        return (
            f"inception(own 1 over torchvision {version('torchvision')}, weights "
            f"{catalogue.short_hash(INCEPTION_WEIGHTS)}, RGB [-1, 1], bilinear to {INCEPTION_SIDE} px without "
            "antialiasing, pool3)"
        )

    def unavailable(self) -> str | None:
        """Whether the weights or torchvision are absent."""
        from bench.weights import catalogue

        if version("torchvision") == "absent":
            return 'needs the Python package torchvision; install it with: pip install "face-restoration-bench[full]"'
        return catalogue.missing(INCEPTION_WEIGHTS)

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Features, (B, 2048) float32."""
        import torch

        from bench.weights import catalogue

        network = _inception_from(str(catalogue.locate(INCEPTION_WEIGHTS)))
        with torch.inference_mode():
            return inception_features(network, pictures)


def build_inception(state: dict[str, Any] | None = None) -> nn.Module:
    """Inception v3 as FID uses it: torchvision's, with the pooling of TensorFlow's first release.

    Its branches pool averages without counting the border, and the last block takes maxima (pytorch-fid
    explains this). `network(images)` on (B, 3, 299, 299) in [-1, 1] returns (B, 2048).

    Args:
        state: State dict in pytorch-fid's layout; None leaves the weights random.

    Raises:
        UsageError: The state does not fit.
    """
    import torch
    from torch import nn
    from torch.nn import functional
    from torchvision.models import Inception3

    from bench.errors import UsageError

    class Repooled(nn.Module):
        """A block whose pooling branch, the last one, pools in another way."""

        def __init__(self, block: nn.Module, maxima: bool) -> None:
            super().__init__()
            self.block, self.maxima = block, maxima

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            if self.maxima:
                pooled = functional.max_pool2d(features, 3, stride=1, padding=1)
            else:
                pooled = functional.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
            block: Any = self.block
            return torch.cat([*block._forward(features)[:-1], block.branch_pool(pooled)], dim=1)

    network: nn.Module = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    if state is not None:
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"These are not pytorch-fid's Inception weights: {str(error).splitlines()[0]}") from error
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"):
        setattr(network, f"Mixed_{name}", Repooled(getattr(network, f"Mixed_{name}"), maxima=name == "7c"))
    network.dropout = nn.Identity()
    network.fc = nn.Identity()
    return network.eval().requires_grad_(False)


def inception_features(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Features of pictures, each brought to 299 px.

    Args:
        network: From `build_inception`.
        pictures: (B, H, W, 3) uint8 RGB.

    Returns:
        (B, 2048) float32.
    """
    import torch
    from torch.nn.functional import interpolate

    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    images = interpolate(images, size=size, mode="bilinear", align_corners=False)
    found: np.ndarray = torch.cat([network(part) for part in images.split(_BATCH)]).float().numpy()
    return found


@cache
def _inception_from(path: str) -> nn.Module:
    import torch

    return build_inception(torch.load(path, map_location="cpu", weights_only=True))


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64."""
    import numpy as np

    values = np.asarray(features, dtype=np.float64)
    return values.mean(axis=0), np.cov(values, rowvar=False)


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Squared Fréchet distance of two Gaussians, FID's formula (Heusel et al. 2017).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)). The trace of the root is the sum of the roots of the
    eigenvalues of S C' S, where S is the symmetric root of C: real and non-negative up to rounding, so that no
    imaginary part has to be thrown away for singular covariances.
    """
    import numpy as np

    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = root @ other_covariance @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    apart = np.square(mean - other_mean).sum()
    return float(max(0.0, apart + np.trace(covariance) + np.trace(other_covariance) - 2 * shared))


def frechet_distance_of_sets(first: np.ndarray, second: np.ndarray) -> float:
    """`frechet_distance` of the Gaussians fitted to two sets of features.

    With fewer pictures than features the trace of the root comes from the singular values of the
    (N, N') matrix of inner products of the centred sets, which costs far less than (D, D) and is the same number.

    Args:
        first: (N, D).
        second: (N', D).
    """
    import numpy as np

    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if max(len(one), len(two)) >= one.shape[1]:
        return frechet_distance(*statistics(one), *statistics(two))
    means = one.mean(axis=0), two.mean(axis=0)
    # C = A'A: the non-zero eigenvalues of C C' are the squared singular values of A B'.
    one = (one - means[0]) / np.sqrt(len(one) - 1)
    two = (two - means[1]) / np.sqrt(len(two) - 1)
    shared = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    apart = np.square(means[0] - means[1]).sum()
    return float(max(0.0, apart + np.square(one).sum() + np.square(two).sum() - 2 * shared))


def cubic_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KID's kernel (x · y / D + 1)^3 of every pair (Binkowski et al. 2018, section 3), float64."""
    import numpy as np

    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    kernel: np.ndarray = (one @ two.T / one.shape[1] + 1.0) ** 3
    return kernel


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """KID: the unbiased estimate of the squared maximum mean discrepancy of two sets of features.

    Args:
        first: (N, D).
        second: (N, D) of the same pictures.

    Returns:
        About 0 for two samples of one distribution, sometimes below.
    """
    import numpy as np

    return GroupedKernels.of(first, second, np.zeros(len(first), dtype=np.int64)).distance(np.ones(1))


@dataclass(frozen=True)
class GroupedKernels:
    """Kernel values summed over groups of pictures: all that a bootstrap over the groups needs.

    Attributes:
        first: (G, G) sums within the first set, without pairs of a picture with itself.
        second: The same of the second set.
        across: (G, G) sums between the sets.
        sizes: (G,) pictures of each group.
    """

    first: np.ndarray
    second: np.ndarray
    across: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> GroupedKernels:
        """Sums of two sets of features (N, D) of the same pictures, whose group numbers (N,) are given.

        Kernel values are made and summed for `_KERNEL_ROWS` rows at a time, so that memory does not grow with N^2.
        """
        import numpy as np

        order = np.argsort(groups, kind="stable")
        ordered = groups[order]
        starts = np.flatnonzero(np.r_[True, np.diff(ordered) != 0])
        one, two = first[order], second[order]
        count = len(starts)
        index = np.searchsorted(ordered[starts], ordered)

        def summed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            found = np.zeros((count, count))
            for row in range(0, len(left), _KERNEL_ROWS):
                part = slice(row, row + _KERNEL_ROWS)
                np.add.at(found, index[part], np.add.reduceat(cubic_kernel(left[part], right), starts, axis=1))
            return found

        def alone(values: np.ndarray) -> np.ndarray:
            norms = np.square(values, dtype=np.float64).sum(axis=1) / values.shape[1]
            return np.add.reduceat((norms + 1.0) ** 3, starts)

        within = [summed(values, values) - np.diag(alone(values)) for values in (one, two)]
        sizes = np.diff(np.r_[starts, len(ordered)]).astype(np.float64)
        return cls(within[0], within[1], summed(one, two), sizes)

    def distance(self, weights: np.ndarray) -> float:
        """Unbiased squared MMD where the pictures of group g count `weights[g]` times.

        A picture never meets itself, nor a copy of itself, within a set.
        """
        import numpy as np

        total = float(weights @ self.sizes)
        pairs = total**2 - float(np.square(weights) @ self.sizes)
        inner = float(weights @ (self.first + self.second) @ weights) / pairs
        return inner - 2 * float(weights @ self.across @ weights) / total**2


class _Distribution(SetMetric):
    higher_is_better: ClassVar[bool | None] = False
    weights: ClassVar[tuple[str, ...]] = (INCEPTION_WEIGHTS,)

    @property
    def network(self) -> FeatureNetwork:
        """TensorFlow's Inception."""
        return Inception()


class FidTruth(_Distribution):
    """FID against the ground truth of the same pictures (as DifFace reports it)."""

    name = "fid_gt"
    title = "FID (ground truth)"
    licence = f"Apache-2.0; {_NETWORK_LICENCE}"
    limits = (0.0, None)
    smallest = FID_SMALLEST

    @property
    def identity(self) -> str:
        """Identity string."""
        return f"fid_gt@own 1@{self.network.identity}@against the ground truth, float64, covariance over n - 1"

    def score(self, features: FeatureSet) -> SetScore:
        """FID, with a bootstrap over people where it is affordable."""
        assert features.truth is not None
        truth = features.truth

        def of(rows: np.ndarray) -> float:
            return frechet_distance_of_sets(features.restored[rows], truth[rows])

        return _fid(features, of)


class FidFfhq(_Distribution):
    """FID against the published statistics of FFHQ at 512 px (as GFPGAN, VQFR and CodeFormer report it)."""

    name = "fid_ffhq"
    title = "FID (FFHQ)"
    licence = f"Apache-2.0; {_NETWORK_LICENCE}; statistics of FFHQ: not recorded"
    weights = (INCEPTION_WEIGHTS, FFHQ_STATISTICS)
    needs = ()
    limits = (0.0, None)
    smallest = FID_SMALLEST

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.weights import catalogue

        return (
            f"fid_ffhq@own 1@{self.network.identity}"
            f"@against FFHQ 512 px statistics {catalogue.short_hash(FFHQ_STATISTICS)}, float64, covariance over n - 1"
        )

    def unavailable(self) -> str | None:
        """Whether the weights, torchvision or the statistics are absent."""
        from bench.weights import catalogue

        return super().unavailable() or catalogue.missing(FFHQ_STATISTICS)

    def score(self, features: FeatureSet) -> SetScore:
        """FID; no interval, since the statistics come without their pictures."""
        from bench.weights import catalogue

        mean, covariance = read_statistics(catalogue.locate(FFHQ_STATISTICS), features.restored.shape[1])
        value = frechet_distance(mean, covariance, *statistics(features.restored))
        return SetScore(value, interval=f"none; {_bias(len(features.restored))}")


class KidTruth(_Distribution):
    """KID against the ground truth: unbiased, and so the one to read for small sets."""

    name = "kid_gt"
    title = "KID (ground truth)"
    licence = f"Apache-2.0; {_NETWORK_LICENCE}"

    @property
    def identity(self) -> str:
        """Identity string."""
        return (
            f"kid_gt@own 1@{self.network.identity}@against the ground truth, kernel (x.y/d+1)^3, unbiased, "
            "all pictures at once, float64"
        )

    def score(self, features: FeatureSet) -> SetScore:
        """KID with the percentile interval of a bootstrap over people."""
        import numpy as np

        assert features.truth is not None
        people = np.unique(np.asarray(features.identities), return_inverse=True)[1]
        named = int(people.max()) + 1
        groups = people % KID_GROUPS
        kernels = GroupedKernels.of(features.restored, features.truth, groups)
        count = len(kernels.sizes)
        value = kernels.distance(np.ones(count))
        if count < 2:
            return SetScore(value, interval="none: a single identity tells nothing about spread")
        generator = np.random.default_rng(0)
        draws = generator.multinomial(count, np.full(count, 1 / count), size=KID_RESAMPLES)
        found = [kernels.distance(draw.astype(float)) for draw in draws if (draw > 0).sum() > 1]
        low, high = _around(value, found)
        over = f"{named} identities" if named <= KID_GROUPS else f"{count} groups of {named} identities"
        return SetScore(
            value, low, high, f"percentile bootstrap, {len(found)} resamples over {over}, centred on the value"
        )


def _around(value: float, resamples: list[float]) -> tuple[float, float]:
    """95 % percentiles of the resamples, shifted so that their mean is the value.

    A resample that holds a person twice pairs more restored pictures with their own ground truth, and covers fewer
    people, than the set does; without the shift the interval would lie beside the value.
    """
    import numpy as np

    low, high = np.quantile(resamples, [0.025, 0.975]) - np.mean(resamples) + value
    return float(low), float(high)


def _fid(features: FeatureSet, of: Any) -> SetScore:
    """FID of all pictures by `of(rows)`, with a bootstrap over people where the set is small enough to afford it."""
    import numpy as np

    count = len(features.restored)
    value = of(np.arange(count))
    people, members = np.unique(np.asarray(features.identities), return_inverse=True)
    if count > FID_BOOTSTRAP_UP_TO or len(people) < 2:
        return SetScore(value, interval=f"none; {_bias(count)}")
    rows = [np.flatnonzero(members == person) for person in range(len(people))]
    generator = np.random.default_rng(0)
    found: list[float] = []
    while len(found) < FID_RESAMPLES:
        drawn = generator.integers(0, len(people), len(people))
        if len(set(drawn)) > 1:
            found.append(of(np.concatenate([rows[person] for person in drawn])))
    low, high = _around(value, found)
    how = f"percentile bootstrap, {FID_RESAMPLES} resamples over {len(people)} identities, centred on the value"
    return SetScore(value, max(0.0, low), high, f"{how}; {_bias(count)}")


def _bias(count: int) -> str:
    if count >= FID_SMALLEST:
        return f"biased upwards with n = {count}: compare only at equal n"
    return f"biased upwards, and singular below {FID_SMALLEST} pictures (n = {count}): read KID instead"


def read_statistics(path: Path, dimensions: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Reads mean and covariance in the layout of BasicSR and GFPGAN: a dict with `mean` and `cov`.

    Nothing in the file is executed: only NumPy arrays are let through.

    Args:
        path: Such as `inception_FFHQ_512.pth`.
        dimensions: Length of the mean.

    Returns:
        Mean (D,) and covariance (D, D), float64.

    Raises:
        UsageError: The file holds something else.
    """
    import numpy as np
    import torch

    from bench.errors import UsageError

    reconstruct: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))]
    # NumPy 2 moved both: files written with NumPy 1 name the old places.
    for function in (reconstruct, scalar):
        allowed += [(function, f"numpy.{core}.multiarray.{function.__name__}") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
        mean, covariance = (np.asarray(content[key], dtype=np.float64) for key in ("mean", "cov"))
    except Exception as error:
        raise UsageError(
            f"{path} does not hold the mean and covariance of features (a dict with `mean` and `cov`): "
            f"{str(error).splitlines()[0]}"
        ) from error
    if mean.shape != (dimensions,) or covariance.shape != (dimensions, dimensions):
        raise UsageError(
            f"{path} holds statistics of shapes {mean.shape} and {covariance.shape}; features have {dimensions} values."
        )
    return mean, covariance
