"""Perceptual distances to the ground truth by trained networks: LPIPS and DISTS.

Pixels outside the photograph are replaced by the ground truth's, so that they add no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from bench.metrics.common import scores
from bench.metrics.metric import Cost, Score, ScoringBatch
from bench.metrics.networks import (
    NetworkMetric,
    column,
    fill,
    implementation,
    read_state,
    replaced,
    selected,
    weights_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

LPIPS_SMALLEST = 64
DISTS_SMALLEST = 32
_INSIDE = "RGB, float32, own size, outside valid = truth"
_LICENCE = "BSD-2-Clause (lpips, heads); BSD-3-Clause (torchvision), backbone trained on ImageNet"


class Lpips(NetworkMetric):
    """What the forms of LPIPS (Zhang et al. 2018, version 0.1) share. Lower is better."""

    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool | None] = False
    licence = _LICENCE
    packages = (("lpips", "lpips"), ("torchvision", "torchvision"))
    backbone: ClassVar[str]
    where: ClassVar[str] = "mean over the picture"

    @property
    def identity(self) -> str:
        """Identity string."""
        backbone, heads = (weights_of(name) for name in self.weights)
        return (
            f"{self.name}@{implementation('lpips')} version 0.1 {self.backbone}@backbone {backbone}, heads {heads}"
            f"@{_INSIDE}, {self.where}"
        )

    def build(self, *files: Path) -> nn.Module:
        """The network of the package lpips, which returns a map of distances."""
        from lpips import LPIPS

        network = LPIPS(net=self.backbone, version="0.1", pretrained=False, pnet_rand=True, spatial=True, verbose=False)
        backbone = selected(read_state(files[0]), "features.")
        names = {name.partition(".")[2]: name for name in network.net.state_dict()}
        used = {names.get(name, name): tensor for name, tensor in backbone.items()}
        fill(network.net, used, files[0])
        # A head stands in the network twice, by its own name and in a list.
        heads = read_state(files[1])
        doubled = {f"lins.{name[3:]}" if name.startswith("lin") else name: value for name, value in heads.items()}
        fill(network, {**heads, **doubled}, files[1], ignored=r"^(net|scaling_layer)\.")
        return network


class LpipsMap(Lpips):
    """LPIPS with AlexNet at every pixel (the package's `spatial=True`), of which regions take their mean."""

    backbone = "alex"
    weights = ("alexnet_imagenet", "lpips_alex_heads")

    def network(self, device: str = "cpu") -> nn.Module:
        """The network, one for all regions."""
        return super().network(device) if type(self) is LpipsMap else LpipsMap().network(device)

    def distance_map(self, batch: ScoringBatch) -> Tensor | None:
        """(B, 1, H, W) local distances, computed once per batch; None below 64 px."""
        if min(batch.restored.shape[1:3]) < LPIPS_SMALLEST:
            return None

        def compute() -> Tensor:
            network = self.network(batch.device)
            return cast("Tensor", network(batch.restored_inside, batch.truth_tensor, normalize=True))

        return cast("Tensor", batch.once("lpips map", compute))


class _LpipsWhole(Lpips):
    def build(self, *files: Path) -> nn.Module:
        """The network of the package lpips, which returns one distance per picture."""
        network = super().build(*files)
        network.spatial = False  # type: ignore[assignment]
        return network

    def score(self, batch: ScoringBatch) -> list[Score]:
        """LPIPS of every picture."""
        if min(batch.restored.shape[1:3]) < LPIPS_SMALLEST:
            return [Score(None, f"needs {LPIPS_SMALLEST} px")] * len(batch)
        network = self.network(batch.device)
        return scores(column(network(batch.restored_inside, batch.truth_tensor, normalize=True)))


class LpipsAlex(_LpipsWhole):
    """LPIPS with AlexNet, the authors' default and pyiqa's `lpips`: a distance, lower is better."""

    name = "lpips_alex"
    title = "LPIPS (Alex)"
    backbone = "alex"
    weights = ("alexnet_imagenet", "lpips_alex_heads")
    cost: ClassVar[Cost] = "medium"


class LpipsVgg(_LpipsWhole):
    """LPIPS with VGG-16, pyiqa's `lpips-vgg`; its values are not those of AlexNet. Lower is better."""

    name = "lpips_vgg"
    title = "LPIPS (VGG)"
    backbone = "vgg"
    weights = ("vgg16_imagenet", "lpips_vgg_heads")
    cost: ClassVar[Cost] = "high"


class Dists(NetworkMetric):
    """DISTS (Ding et al. 2020): structure and texture distance of VGG-16 features, lower is better."""

    name = "dists"
    title = "DISTS"
    higher_is_better: ClassVar[bool | None] = False
    licence = "PolyForm-Noncommercial-1.0.0 (pyiqa); MIT (weights); BSD-3-Clause (torchvision), trained on ImageNet"
    packages = (("pyiqa", "pyiqa"), ("torchvision", "torchvision"))
    weights = ("vgg16_imagenet", "dists_weights")
    cost: ClassVar[Cost] = "high"

    @property
    def identity(self) -> str:
        """Identity string."""
        backbone, own = (weights_of(name) for name in self.weights)
        return f"dists@{implementation('pyiqa')}@backbone {backbone}, weights {own}@{_INSIDE}"

    def build(self, *files: Path) -> nn.Module:
        """Pyiqa's network, with torchvision's backbone from a local file."""
        import torchvision
        from pyiqa.archs.dists_arch import DISTS

        vgg16 = torchvision.models.vgg16
        with replaced("torchvision.models", "vgg16", lambda **_: vgg16(weights=None)):
            network = DISTS(pretrained=False)
        backbone = selected(read_state(files[0]), "features.")
        convolutions = {name.partition(".")[2]: name for name in network.state_dict() if name.startswith("stage")}
        named = {convolutions.get(name, name): tensor for name, tensor in backbone.items()}
        fill(network, {**named, **read_state(files[1])}, files[0], ignored=r"(filter|^mean|^std)$")
        return network

    def score(self, batch: ScoringBatch) -> list[Score]:
        """DISTS of every picture."""
        if min(batch.restored.shape[1:3]) < DISTS_SMALLEST:
            return [Score(None, f"needs {DISTS_SMALLEST} px")] * len(batch)
        return scores(column(self.network(batch.device)(batch.restored_inside, batch.truth_tensor)))
