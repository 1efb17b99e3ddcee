"""Real-ESRGAN x4plus out of the Python package that ships it, whose code is not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UsageError
from bench.method import MethodSpec
from bench.systems.name import system_name_of
from bench.weights.catalogue import entries
from methods.realesrgan.ncnn import read_ncnn_rrdbnet
from methods.spandrel.module import Spandrel

SCALE = 4


class RealESRGAN(Spandrel):
    """Enlarges pictures four times and brings them back to their size.

    Args:
        settings: The composed `configs/method/realesrgan.yaml`.
    """

    spec = MethodSpec(
        name="realesrgan",
        title="Real-ESRGAN x4plus",
        references="none",
        paper="Wang et al., Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data, "
        "ICCV Workshops 2021",
        licence="BSD-3-Clause",
        weights="realesrgan_x4plus",
    )
    extra = "realesrgan"

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        return cls.absent_package()

    @classmethod
    def read_weights_file(cls, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See `RestorationMethod.read_weights_file`; a `.bin` file is ncnn's."""
        return (read_ncnn_rrdbnet(path), {}) if path.suffix == ".bin" else super().read_weights_file(path)

    @property
    def label(self) -> str:
        """Name of the row, with that of the file where it is another one than the package's: many are alike."""
        given = system_name_of(Path(self.settings.get("weights") or "").stem)
        return self.spec.name if given is None or self._is_shipped() else f"{self.spec.name}+{given}"

    def _is_shipped(self) -> bool:
        return self.weights_sha256 == entries()[str(self.spec.weights)].sha256

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """See `Spandrel.load_weights_state`.

        Raises:
            UsageError: The network is another one than ESRGAN's generator that enlarges four times.
        """
        super().load_weights_state(state)
        scale = self._described.scale
        if (self.architecture, scale) != ("esrgan", SCALE):
            raise UsageError(
                f"The weights are those of {self.architecture} (scale {scale}), not of Real-ESRGAN x4plus's network "
                f"(esrgan, scale {SCALE}). Run them as what they are: method=spandrel method.weights=FILE."
            )
        # A seventh of the time less on a CPU.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[union-attr,call-overload]

    def called(self, picture: Tensor) -> Tensor:
        """See `Spandrel.called`."""
        return super().called(picture.contiguous(memory_format=torch.channels_last))


method_class = RealESRGAN
