"""What a metric of a whole set of pictures implements (FID, KID): features per picture, one number per set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np

    from bench.metrics.metric import Cost, Need

FID_SMALLEST = 2048


class FeatureNetwork:
    """Turns pictures into the vectors that set metrics compare.

    Attributes:
        dimensions: Length of a vector.
    """

    dimensions: int

    @property
    def identity(self) -> str:
        """Everything that decides the vectors: network, weights (hash), preprocessing."""
        raise NotImplementedError

    def unavailable(self) -> str | None:
        """Why the network cannot be used here (weights or package missing), or None."""
        return None

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Vectors of pictures.

        Args:
            pictures: (B, H, W, 3) uint8 RGB.

        Returns:
            (B, `dimensions`) float32. A picture's vector does not depend on the others of the batch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FeatureSet:
    """The vectors of one method's pictures on one protocol, in the order of the picture names.

    Attributes:
        restored: (N, D) float32.
        truth: (N, D) float32 of the same pictures' ground truth, or None where there is none.
        identities: Who is shown in each picture.
    """

    restored: np.ndarray
    truth: np.ndarray | None
    identities: Sequence[str]


@dataclass(frozen=True)
class SetScore:
    """One number for a set.

    Attributes:
        value: The number, or None.
        low: Lower bound of its interval, or None.
        high: Upper bound, or None.
        interval: How the bounds were made, or why there are none.
        reason: Why there is no value; None where there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    reason: str | None = None


class SetMetric:
    """A metric of a whole set.

    A subclass sets the class attributes and implements `score`. Heavy packages are imported inside
    methods. A concrete class is found by its `name`, as `bench.metrics.metric.Metric` is.

    Attributes:
        name: Name on the command line and in tables.
        title: Heading of the column.
        higher_is_better: Direction.
        unit: Unit, or "" for a bare number.
        licence: Licence of the implementation and of its weights, joined by "; ".
        cost: What one picture takes, as of `bench.metrics.metric.Metric`; the comparison of the vectors comes once.
        weights: Names in the weights catalogue of what it needs.
        needs: What the pictures must come with.
        limits: Smallest and largest possible value; None for no limit.
        smallest: Smallest number of pictures it is shown for (see `shown_on_boards`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    higher_is_better: ClassVar[bool | None] = False
    unit: ClassVar[str] = ""
    licence: ClassVar[str]
    cost: ClassVar[Cost] = "medium"
    weights: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[Need, ...]] = ("truth",)
    limits: ClassVar[tuple[float | None, float | None]] = (None, None)
    smallest: ClassVar[int] = 2

    @property
    def network(self) -> FeatureNetwork:
        """The network whose vectors it compares; metrics that share one share its vectors."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Identity string, `name@implementation@...`; two numbers compare only where it is equal."""
        raise NotImplementedError

    def unavailable(self) -> str | None:
        """Why it cannot be computed here, or None."""
        return self.network.unavailable()

    def score(self, features: FeatureSet) -> SetScore:
        """The number with its interval, or None with a reason."""
        raise NotImplementedError

    def score_set(self, features: FeatureSet) -> SetScore:
        """`score`, or null with a reason where something is missing."""
        if (reason := self.unavailable()) is not None:
            return SetScore(None, reason=reason)
        if "truth" in self.needs and features.truth is None:
            return SetScore(None, reason="needs a ground truth")
        if len(features.restored) < 2:
            return SetScore(None, reason=f"needs at least 2 pictures, there are {len(features.restored)}")
        return self.score(features)


def shown_on_boards(metrics: Sequence[type[SetMetric]], pictures: int) -> list[type[SetMetric]]:
    """The set metrics a board shows for so many pictures: FID only from 2,048 on, KID always.

    Below 2,048 pictures the covariance of FID's 2,048 features is singular and its bias outweighs
    the differences between methods (Binkowski et al. 2018, "Demystifying MMD GANs", section 4).
    """
    return [metric for metric in metrics if pictures >= metric.smallest]
