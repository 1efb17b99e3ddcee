"""Quality without a ground truth, as networks trained on people's opinions see it.

All are pyiqa's classes on pictures in [0, 1] RGB at their own size; each class does its published preprocessing.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from bench.metrics.common import scores
from bench.metrics.metric import Cost, Score, ScoringBatch
from bench.metrics.networks import NetworkMetric, column, fill, implementation, read_state, replaced, weights_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

NO_FACE = "no face detected"
MANIQA_SEED = 0
_PYIQA = "PolyForm-Noncommercial-1.0.0 (pyiqa)"


class _Learned(NetworkMetric):
    higher_is_better: ClassVar[bool | None] = True
    needs = ()
    cost: ClassVar[Cost] = "high"
    packages: ClassVar[tuple[tuple[str, str], ...]] = (("pyiqa", "pyiqa"),)
    how: ClassVar[str]

    @property
    def identity(self) -> str:
        """Identity string."""
        own = ", ".join(weights_of(name) for name in self.weights)
        programs = ", ".join(implementation(distribution) for distribution, _ in self.packages)
        return f"{self.name}@{programs}@weights {own}@RGB, float32, {self.how}"

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Quality of every picture."""
        network = self.network(batch.device)
        # One by one: the largest of these networks takes gigabytes for one picture of 512 px.
        return [score for picture in batch.restored_tensor.split(1) for score in scores(column(network(picture)))]


class Musiq(_Learned):
    """MUSIQ (Ke et al. 2021) trained on KonIQ-10k, pyiqa's `musiq`: about 0 to 100, higher is better.

    The forms trained on AVA, PaQ-2-PiQ and SPAQ have other values and are other metrics.
    """

    name = "musiq"
    title = "MUSIQ"
    cost: ClassVar[Cost] = "medium"
    licence = f"{_PYIQA}; Apache-2.0 (weights, Google Research)"
    weights = ("musiq_koniq",)
    how = "KonIQ-10k, longer sides 224, 384 and native"

    def build(self, *files: Path) -> nn.Module:
        """Pyiqa's network."""
        from pyiqa.archs.musiq_arch import MUSIQ

        network = MUSIQ(pretrained=False)
        fill(network, read_state(files[0]), files[0])
        return network


class _Maniqa(_Learned):
    packages = (("pyiqa", "pyiqa"), ("timm", "timm"))
    swin_scale: ClassVar[float]

    def build(self, *files: Path) -> nn.Module:
        """Pyiqa's network; the file holds its backbone too, which timm would download."""
        import timm

        create_model = timm.create_model
        with replaced("timm", "create_model", lambda name, **_: create_model(name, pretrained=False)):
            from pyiqa.archs.maniqa_arch import MANIQA

            network = MANIQA(pretrained=False, scale=self.swin_scale)
        fill(network, read_state(files[0]), files[0])
        return network

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Quality of every picture. Some releases of pyiqa cut at random: the seed is the same for each picture."""
        found = []
        network = self.network(batch.device)
        for picture in batch.restored_tensor.split(1):
            with _numpy_seed(MANIQA_SEED):
                found.extend(scores(column(network(picture))))
        return found


class Maniqa(_Maniqa):
    """MANIQA (Yang et al. 2022) trained on KonIQ-10k, pyiqa's `maniqa` (scale .8): 0 to 1, higher is better."""

    name = "maniqa"
    title = "MANIQA"
    licence = f"{_PYIQA}; Apache-2.0 (weights)"
    weights = ("maniqa_koniq",)
    swin_scale = 0.8
    how = f"KonIQ-10k, scale 0.8, 20 crops of 224 px, seed {MANIQA_SEED} for each picture"


class ManiqaPipal(_Maniqa):
    """MANIQA trained on PIPAL, pyiqa's `maniqa-pipal`, which several papers report: 0 to 1, higher is better."""

    name = "maniqa_pipal"
    title = "MANIQA (PIPAL)"
    licence = f"{_PYIQA}; Apache-2.0 (weights)"
    weights = ("maniqa_pipal",)
    swin_scale = 0.13
    how = f"PIPAL, scale 0.13, 20 crops of 224 px, seed {MANIQA_SEED} for each picture"


class ClipIqa(_Learned):
    """CLIP-IQA (Wang, Chan and Loy 2023) with CLIP's RN50, pyiqa's `clipiqa` and its five pairs of words: 0 to 1."""

    name = "clipiqa"
    title = "CLIP-IQA"
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    licence = f"{_PYIQA}; MIT (CLIP)"
    packages = (("pyiqa", "pyiqa"), ("openai-clip", "clip"))
    weights = ("clip_rn50",)
    how = "CLIP RN50 in float32, no positional embedding, 5 pairs of prompts"

    def build(self, *files: Path) -> nn.Module:
        """Pyiqa's network around CLIP, whose archive is only opened for its tensors."""
        from pyiqa.archs import clipiqa_arch
        from pyiqa.archs.clip_model import build_model

        model = build_model(_clip_state(files[0])).float().eval()
        with replaced("pyiqa.archs.clipiqa_arch", "load", lambda *_: model):
            network: nn.Module = clipiqa_arch.CLIPIQA(pretrained=False)
        return network


class TopiqFace(_Learned):
    """TOPIQ for faces (Chen et al. 2024, trained on CGFIQA), pyiqa's `topiq_nr-face`: 0 to 1, higher is better.

    The face is found by facexlib's RetinaFace and aligned to 512 px, as published; null where none is found.
    """

    name = "topiq_face"
    title = "TOPIQ-face"
    licence = f"{_PYIQA}; MIT (facexlib)"
    packages = (("pyiqa", "pyiqa"), ("facexlib", "facexlib"))
    weights = ("topiq_face", "retinaface_resnet50")
    how = "CGFIQA, RetinaFace, faces aligned to 512 px by facexlib"

    def build(self, *files: Path) -> nn.Module:
        """Pyiqa's network with facexlib's detector; the face parser, which the score does not use, is left out."""
        with replaced("facexlib.utils.face_restoration_helper", "init_parsing_model", lambda **_: None):
            from facexlib.utils.face_restoration_helper import FaceRestoreHelper
            from pyiqa.archs.topiq_arch import CFANet

            network = CFANet(
                model_name="local", use_ref=False, test_img_size=512, pretrained=False, backbone_pretrain=False
            )
            fill(network, read_state(files[0], "params"), files[0])
            _read_detector(files[1])
            helper = replaced("facexlib.detection", "load_file_from_url", lambda **_: str(files[1]))
            with warnings.catch_warnings(), helper:
                warnings.simplefilter("ignore")
                network.face_helper = FaceRestoreHelper(
                    1, face_size=512, crop_ratio=(1, 1), det_model="retinaface_resnet50", device="cpu"
                )
        network.model_name = "topiq_nr_cgfiqa_res50"
        return network

    def score(self, batch: ScoringBatch) -> list[Score]:
        """Quality of every picture; null where RetinaFace finds no face."""
        network = self.network(batch.device)
        found = []
        for picture in batch.restored_tensor.split(1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found.extend(scores(column(network(picture))))
            except AssertionError:
                found.append(Score(None, NO_FACE))
        return found


def _read_detector(path: Path) -> None:
    """Refuses a file that is not RetinaFace's before facexlib reads it."""
    from facexlib.detection.retinaface import RetinaFace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(RetinaFace(network_name="resnet50", half=False, device="cpu"), read_state(path), path)


def _clip_state(path: Path) -> dict[str, Any]:
    """Tensors of CLIP's file, a TorchScript archive, or of a plain table of tensors.

    The archive is opened only after the catalogue has compared its SHA-256 with the published one, and nothing in
    it is run.
    """
    import torch

    from bench.errors import UsageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError:
        state: dict[str, Any] = read_state(path)
    else:
        state = dict(archive.state_dict())
    if "visual.layer1.0.conv1.weight" not in state or "text_projection" not in state:
        raise UsageError(f"{path} does not hold the weights of CLIP RN50. Replace it by the file the catalogue names.")
    return state


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Fixes numpy's global generator, which pyiqa draws from, and puts it back."""
    import numpy as np

    generator = SimpleNamespace(state=np.random.get_state())  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(generator.state)  # noqa: NPY002
