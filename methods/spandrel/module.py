"""Released restoration networks through spandrel, each called as its authors call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.errors import MissingError, UsageError
from bench.method import MethodSpec, RestorationMethod
from bench.systems.name import require_system_name, system_name_of
from methods.blocks.latent_diffusion_method import require_number
from methods.blocks.tiling import Tiling, pad_to_multiple, tiled_decode

#: Side of the aligned faces that these were trained on; the others take any size.
FACE_SIDE = {"gfpgan": 512, "codeformer": 512, "restoreformer": 512}
#: Pixels that windows of the others share.
OVERLAP = 32


class Spandrel(RestorationMethod):
    """A network that spandrel recognises by its weights.

    spandrel promises pictures in [0, 1] on both sides, but hands GFPGAN and CodeFormer what it is given, though their
    authors normalise to [-1, 1] (basicsr's `normalize(mean=.5, std=.5)` in inference_gfpgan.py and
    inference_codeformer.py): these two are called here. GFPGAN's noise is that of its weights and not drawn anew.

    Args:
        settings: The composed `configs/method/spandrel.yaml`.
    """

    spec = MethodSpec(
        name="spandrel",
        title="Released network",
        references="none",
        licence="that of the network's release",
    )

    not_in_revision: ClassVar[tuple[str, ...]] = ("system",)
    #: Extra of this project that installs the package spandrel.
    extra: ClassVar[str] = "full"

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        if "fidelity" in settings:
            require_number("fidelity", settings["fidelity"], 0, 1)
        require_number("tile", settings["tile"], 2 * OVERLAP, whole=True)
        file = Path(settings.get("weights") or "")
        self.system = require_system_name(settings.get("system")) or system_name_of(file.stem)
        self.network: torch.nn.Module | None = None
        self.architecture = ""
        self._described: Any = None

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        lacking = cls.absent_package()
        if not settings.get("weights"):
            lacking["weights"] = "Give the released file of a network: method.weights=FILE (.pth or .safetensors)."
        return lacking

    @classmethod
    def absent_package(cls) -> dict[str, str]:
        """The package spandrel with how to install it, where it is not here."""
        import importlib.util

        if importlib.util.find_spec("spandrel") is not None:
            return {}
        install = f'Install it with: pip install "face-restoration-bench[{cls.extra}]"'
        return {"spandrel": f"The Python package spandrel is not here. {install}"}

    @classmethod
    def read_weights_file(cls, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See `RestorationMethod.read_weights_file`; torch files are read without running what is in them."""
        from methods.blocks.checkpoints.accounting import read_checkpoint

        state = read_checkpoint(path)
        # Data parallel trainings prefix every name.
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}, {}

    @property
    def label(self) -> str:
        """Name of the row, such as `spandrel+gfpganv1.4`: of the setting `system`, else of the file."""
        known = self.system or self.architecture
        return f"{self.spec.name}+{known}" if known else self.spec.name

    # Weights -----------------------------------------------------------------------------------

    def weights_state(self) -> dict[str, Tensor]:
        """Tensors of the network, under its authors' names."""
        network = cast(torch.nn.Module, self.network)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Recognises the network by its tensors, and builds it.

        Raises:
            MissingError: spandrel is not installed.
            UsageError: It knows no such network, or another one was asked for.
        """
        try:
            from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
        except ImportError as error:
            raise MissingError("\n".join(self.absent_package().values()) or str(error)) from error
        _install_extra()
        try:
            described = ModelLoader("cpu").load_from_state_dict(dict(state))
        except UnsupportedModelError as error:
            raise UsageError(
                "spandrel knows no network with these tensors. CodeFormer and some others are in a package of their "
                'own, whose networks exclude commercial use: pip install "face-restoration-bench[noncommercial]"'
            ) from error
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"The weights are no whole network that spandrel knows: {reason}") from error
        found = str(described.architecture.id).lower()
        if not isinstance(described, ImageModelDescriptor) or described.input_channels != 3:
            raise UsageError(f"{found} does not make an RGB picture of an RGB picture.")
        if self.settings.get("model") not in (None, found):
            raise UsageError(
                f"method.model={self.settings['model']}, but the weights are those of {found}. Give its own file."
            )
        self.network, self.architecture, self._described = described.model, found, described
        self.native_size = FACE_SIDE.get(found)
        self.any_size = self.native_size is None

    # Restoration -------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures; what a super-resolution network enlarges is brought back to the LQ's size."""
        return self.restore_to(batch, (batch.lq.shape[-2], batch.lq.shape[-1]))

    def restore_to(self, batch: FaceBatch, size: tuple[int, int]) -> Tensor:
        """See `RestorationMethod.restore_to`."""
        restored = torch.cat([self._restored(picture[None]) for picture in batch.lq])
        if tuple(restored.shape[-2:]) != size:
            restored = F.interpolate(restored, size, mode="bicubic", align_corners=False, antialias=True)
        return restored.clamp(0, 1)

    def _restored(self, picture: Tensor) -> Tensor:
        if not self.any_size:
            return self.called(picture)
        described = self._described
        multiple = max(1, int(described.size_requirements.multiple_of or 1))
        padded, padding = pad_to_multiple(picture, multiple, int(described.size_requirements.minimum or 0))
        tiling = Tiling(int(self.settings["tile"]), OVERLAP)
        whole = tiled_decode(lambda own, _: self.called(own), padded, tiling, int(described.scale))
        return padding.cut(whole, int(described.scale))

    def called(self, picture: Tensor) -> Tensor:
        """What the network makes of a picture (1, 3, H, W) in [0, 1], in [0, 1] but for what it overshoots."""
        network: Any = self.network
        if self.architecture == "gfpgan":
            return cast(Tensor, network(picture * 2 - 1, return_rgb=False, randomize_noise=False)[0]).add(1).div(2)
        if self.architecture == "codeformer":
            return cast(Tensor, network(picture * 2 - 1, weight=float(self.settings["fidelity"]))[0]).add(1).div(2)
        return cast(Tensor, self._described(picture))


def _install_extra() -> None:
    """Makes spandrel know the networks of its second package, where that is installed."""
    try:
        import spandrel_extra_arches
    except ImportError:
        return
    spandrel_extra_arches.install(ignore_duplicates=True)


method_class = Spandrel
