"""Consistency: whether a method gives the same face whatever happened to the photograph.

For protocols in which every photograph comes once under each of several degradations (`data.degradation=[…]`), after
Dual-Pivot Tuning, supplement, Fig. 24: the same picture is blurred and compressed, and what becomes of it is compared.
The paper shows pictures and states no number; these are ours. Of the D restorations of one photograph let e_d be the
judge's unit descriptors, e that of the ground truth, and Y_d the lumas in 8-bit levels:

- `id_spread`: standard deviation over d of the cosines e_d · e, that is, of ID;
- `id_change`: mean of 1 − e_d · e_d' over the D (D − 1) / 2 pairs: whether the person changes;
- `picture_spread`: root of the mean, over the pixels inside the photograph, of the variance over d of Y_d.

The degradations are fixed, not a sample of others: variances divide by D. Each value belongs to a photograph and stands
at every one of its D pictures, so that means, intervals and tests over people are those of the photographs. If one of
the D restorations is missing, all D are null.

A method that always returns the same picture is perfectly consistent: read these beside ID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.metrics.common import scores
from bench.metrics.identity import JUDGE_LICENCE, TRUTH_POINTS
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

# What a protocol with several degradations is for: these are scored whatever else is.
METRICS = ("id_spread", "id_change", "picture_spread")
ONE_DEGRADATION = "needs a protocol with several degradations of each photograph (data.degradation=[…])"
NOT_ALONE = "A method that always returns the same picture is perfectly consistent: read this beside ID."
_NOTHING_VALID = "no pixel of the crop lies inside the photograph"


class _Consistency(Metric):
    higher_is_better: ClassVar[bool | None] = False

    def score_batch(self, batch: ScoringBatch) -> list[Score]:
        """As for every metric; where every photograph comes once that is the reason, whatever else is absent."""
        if batch.restorations is None:
            return [Score(None, ONE_DEGRADATION)] * len(batch)
        return super().score_batch(batch)

    def score(self, batch: ScoringBatch) -> list[Score]:
        """The value of each picture's photograph; null where one of its restorations is missing."""
        assert batch.restorations is not None
        return [
            Score(None, own) if isinstance(own, str) else self.spread(own, batch, row)
            for row, own in enumerate(batch.restorations)
        ]

    def spread(self, restorations: Sequence[np.ndarray], batch: ScoringBatch, row: int) -> Score:
        """How much the restorations of one photograph, (H, W, 3) uint8 RGB each, differ."""
        raise NotImplementedError


class _Judged(_Consistency):
    licence: ClassVar[str] = JUDGE_LICENCE
    weights: ClassVar[tuple[str, ...]] = ("dlib_resnet",)
    cost: ClassVar[Cost] = "medium"

    def unavailable(self) -> str | None:
        """Whether dlib or the judge's weights are absent."""
        from bench.faces import dlib_judge

        return dlib_judge.unavailable()


class IdentitySpread(_Judged):
    """Standard deviation of ID over the degradations of a photograph; 0 where each time is equally right."""

    name = "id_spread"
    title = "ID spread"
    needs = ("truth", "landmarks")
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.dlib_judge import judge_identity

        return (
            f"id_spread@{judge_identity()}@population standard deviation, over the degradations of a photograph, of "
            f"the cosine with the ground truth, {TRUTH_POINTS}"
        )

    def spread(self, restorations: Sequence[np.ndarray], batch: ScoringBatch, row: int) -> Score:
        """Standard deviation of the cosines, in [0, 1]."""
        import numpy as np

        from bench.faces import dlib_judge

        assert batch.truth is not None and batch.landmarks is not None
        points = batch.landmarks[row]
        truth = dlib_judge.embed(batch.truth[row][None], [points])[0]
        found = dlib_judge.embed(restorations, [points] * len(restorations))
        return scores([float(np.clip(found @ truth, -1.0, 1.0).std())])[0]


class IdentityChange(_Judged):
    """Mean identity distance between the restorations of a photograph; 0 where the person never changes."""

    name = "id_change"
    title = "ID change"
    needs = ("landmarks",)
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 2.0)

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.faces.dlib_judge import judge_identity

        return (
            f"id_change@{judge_identity()}@mean of 1 - cosine over the pairs of degradations of a photograph, "
            f"{TRUTH_POINTS}"
        )

    def spread(self, restorations: Sequence[np.ndarray], batch: ScoringBatch, row: int) -> Score:
        """Mean of 1 − cosine over the pairs, in [0, 2]."""
        import numpy as np

        from bench.faces import dlib_judge

        assert batch.landmarks is not None
        found = dlib_judge.embed(restorations, [batch.landmarks[row]] * len(restorations))
        pairs = np.triu_indices(len(found), 1)
        return scores([float(1 - np.clip(found @ found.T, -1.0, 1.0)[pairs].mean())])[0]


class PictureSpread(_Consistency):
    """Standard deviation of the luma over the degradations of a photograph, root mean square over its pixels."""

    name = "picture_spread"
    title = "picture spread"
    unit: ClassVar[str] = "levels"
    licence: ClassVar[str] = "Apache-2.0 (own)"
    cost: ClassVar[Cost] = "low"
    needs = ()
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 127.5)
    tolerance: ClassVar[float] = 0.05

    @property
    def identity(self) -> str:
        """Identity string."""
        return (
            f"{self.name}@own 1@Y BT.601 full range, float64, 0 to 255@root of the mean over valid pixels of the "
            "population variance over the degradations of a photograph"
        )

    def spread(self, restorations: Sequence[np.ndarray], batch: ScoringBatch, row: int) -> Score:
        """Root mean square of the pixels' standard deviations, in 8-bit levels; grey pictures are their own luma."""
        import numpy as np

        valid = batch.valid[row]
        if not valid.any():
            return Score(None, _NOTHING_VALID)
        lumas = np.stack(restorations) @ np.array([0.299, 0.587, 0.114])
        return scores([float(np.sqrt(lumas.var(axis=0)[valid].mean()))])[0]
