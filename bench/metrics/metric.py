"""What every metric implements, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bench.protocol.probe import PictureMarks

Need = Literal["truth", "references", "landmarks"]
Cost = Literal["low", "medium", "high"]
# What implementations raise on pictures that they cannot measure: flat, tiny, or both.
_NO_VALUE = (RuntimeError, ValueError, ArithmeticError, AssertionError, IndexError)


class Score(NamedTuple):
    """A value, or None with the reason why there is none."""

    value: float | None
    reason: str | None = None


@dataclass
class ScoringBatch:
    """Pictures of one size to be scored, decoded once for all metrics.

    Attributes:
        image_ids: One id per picture.
        restored: (B, H, W, 3) uint8 RGB, as read back from disk.
        truth: (B, H, W, 3) uint8 RGB, or None where there is no ground truth.
        references: For each picture the references the method was given, each (H, W, 3) uint8 RGB.
        landmarks: (B, 5, 2) float64: the ground truth's eyes, nose and mouth corners (x, y in
            pixels; the eye on the left of the picture first), those of the LQ picture where there is no
            ground truth, or None.
        reference_landmarks: For each picture an (R, 5, 2) array of the references' points, or None.
        valid: (B, H, W) bool, False where the aligned crop reaches beyond the photograph.
        marks: For each picture the marks a probe planted on its photographs, or None.
        restorations: For each picture what was restored from each degradation of its photograph, (H, W, 3) uint8 RGB
            each, in the protocol's order and the picture among them; or why one of them is missing. None where every
            photograph comes once.
        device: Torch device of the tensors below. Each is made and uploaded once, whatever the number of metrics.
    """

    image_ids: Sequence[str]
    restored: np.ndarray
    truth: np.ndarray | None
    references: Sequence[Sequence[np.ndarray]]
    landmarks: np.ndarray | None
    reference_landmarks: Sequence[np.ndarray] | None
    valid: np.ndarray
    marks: Sequence[PictureMarks | None] | None = None
    restorations: Sequence[Sequence[np.ndarray] | str] | None = None
    device: str = "cpu"
    _shared: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.image_ids)

    def alone(self, row: int) -> ScoringBatch:
        """One picture of the batch as a batch of its own."""
        own = slice(row, row + 1)
        return replace(
            self,
            image_ids=self.image_ids[own],
            restored=self.restored[own],
            truth=None if self.truth is None else self.truth[own],
            references=self.references[own],
            landmarks=None if self.landmarks is None else self.landmarks[own],
            reference_landmarks=None if self.reference_landmarks is None else self.reference_landmarks[own],
            valid=self.valid[own],
            marks=None if self.marks is None else self.marks[own],
            restorations=None if self.restorations is None else self.restorations[own],
        )

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, computed by the first metric that asks and kept with the batch."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    @cached_property
    def restored_tensor(self) -> Tensor:
        """`restored` as (B, 3, H, W) float32 in [0, 1]."""
        return _to_tensor(self.restored).to(self.device)

    @cached_property
    def truth_tensor(self) -> Tensor:
        """`truth` as (B, 3, H, W) float32 in [0, 1]."""
        if self.truth is None:
            raise ValueError("this batch has no ground truth")
        return _to_tensor(self.truth).to(self.device)

    @cached_property
    def restored_inside(self) -> Tensor:
        """`restored_tensor` with the ground truth's pixels outside `valid`, where no difference shall count."""
        import torch

        if bool(self.valid.all()):
            return self.restored_tensor
        return torch.where(self.valid_tensor, self.restored_tensor, self.truth_tensor)

    @cached_property
    def restored_double(self) -> Tensor:
        """`restored_tensor` in float64."""
        return self.restored_tensor.double()

    @cached_property
    def truth_double(self) -> Tensor:
        """`truth_tensor` in float64."""
        return self.truth_tensor.double()

    @cached_property
    def restored_luma(self) -> Tensor:
        """Luma of `restored_double`, (B, 1, H, W)."""
        from bench.metrics.common import luma

        return luma(self.restored_double)

    @cached_property
    def truth_luma(self) -> Tensor:
        """Luma of `truth_double`, (B, 1, H, W)."""
        from bench.metrics.common import luma

        return luma(self.truth_double)

    @cached_property
    def valid_tensor(self) -> Tensor:
        """`valid` as (B, 1, H, W) bool."""
        import torch

        return torch.from_numpy(self.valid).unsqueeze(1).to(self.device)


def _to_tensor(pictures: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255.0)


class Metric:
    """A per-image metric.

    A subclass sets the class attributes and implements `score`. It imports heavy packages inside
    its methods, so that listing metrics stays quick. Nothing else needs to be changed to add one.

    Attributes:
        name: Name on the command line and in tables.
        title: Heading of the column.
        higher_is_better: Direction; None where the value is described, not ranked.
        unit: Unit of the value ("dB", "px"), or "" for a bare number.
        licence: Licence of the implementation and of its weights, joined by "; ".
        cost: What scoring one picture of 512 px takes on one processor core, models loaded: "low" under 100 ms,
            "medium" under 1 s, "high" above. Measured; networks with weights of their shapes.
        needs: What a batch must carry. Where it is missing, the score is null with that reason.
        identity: Everything two numbers must share to be compared: implementation and its version,
            weights (hash), preprocessing, colour space.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    higher_is_better: ClassVar[bool | None]
    unit: ClassVar[str] = ""
    licence: ClassVar[str]
    cost: ClassVar[Cost] = "medium"
    needs: ClassVar[tuple[Need, ...]] = ("truth",)

    @property
    def identity(self) -> str:
        """Identity string, `name@implementation@...`."""
        raise NotImplementedError

    def unavailable(self) -> str | None:
        """Why this metric cannot be computed here (weights or package missing), or None."""
        return None

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Scores every picture of the batch; a picture without a value gets `Score(None, reason)`.

        What it raises all the same costs only the picture at fault its value (`score_batch`).
        """
        raise NotImplementedError

    def score_batch(self, batch: ScoringBatch) -> list[Score]:
        """`score`, or nulls with a reason where the metric or what it needs is missing, or `score` fails on a picture.

        Raises:
            torch.OutOfMemoryError: Not even a single picture fits the device.
        """
        reason = self.unavailable()
        if reason is None:
            present = {
                "truth": batch.truth is not None,
                "references": any(len(references) for references in batch.references),
                "landmarks": batch.landmarks is not None,
            }
            absent = [need for need in self.needs if not present[need]]
            if absent:
                names = {"truth": "a ground truth", "references": "references", "landmarks": "landmarks"}
                reason = f"needs {' and '.join(names[need] for need in absent)}"
        if reason is not None:
            return [Score(None, reason)] * len(batch)
        return self._score_each_that_can_be(batch)

    def _score_each_that_can_be(self, batch: ScoringBatch) -> list[Score]:
        """`score`; where an implementation fails on a picture, the others are scored all the same."""
        import torch

        try:
            with torch.inference_mode():
                return self.score(batch)
        except _NO_VALUE as error:
            if len(batch) > 1:
                return [own for row in range(len(batch)) for own in self._score_each_that_can_be(batch.alone(row))]
            if isinstance(error, NotImplementedError | torch.OutOfMemoryError):
                # Of the program or the machine, not of the picture: another attempt may succeed.
                raise
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            return [Score(None, f"{self.title} could not be computed: {said}")]
