"""Metrics with trained networks, on random weights of the right shapes, against the packages' own calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.metrics.metric import ScoringBatch
from bench.metrics.networks import replaced
from bench.registry import load_metric
from bench.weights import catalogue

skimage_data = pytest.importorskip("skimage.data")
cv2 = pytest.importorskip("cv2")

NETWORKS = (
    "lpips_alex",
    "lpips_vgg",
    "lpips_eyes",
    "dists",
    "musiq",
    "maniqa",
    "maniqa_pipal",
    "clipiqa",
    "topiq_face",
    "degradation_angle",
)
POINTS = np.array([[35.0, 52.0], [83.0, 50.0], [62.0, 78.0], [42.0, 98.0], [80.0, 97.0]])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of weights, and no cache of anybody else's."""
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "home" / "weights"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def put(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Path]:
    """Puts a table of tensors where the catalogue looks for it; random weights have no published hash."""
    changed = dict(catalogue.entries())

    def place(name: str, state: Any) -> Path:
        changed[name] = replace(changed[name], sha256=None, sha256_start=None, verified="unverified")
        monkeypatch.setattr(catalogue, "entries", lambda: changed)
        path = home / changed[name].file
        torch.save(state, path)
        return path

    return place


def batch_of(count: int = 2, size: int = 128) -> ScoringBatch:
    large = cv2.resize(skimage_data.astronaut()[40:168, 160:288], (size, size), interpolation=cv2.INTER_CUBIC)
    truth = np.ascontiguousarray(large)
    restored = [cv2.GaussianBlur(truth, (0, 0), 1.0 + 2 * index) for index in range(count)]
    points = POINTS * size / 128
    return ScoringBatch(
        image_ids=[str(index) for index in range(count)],
        restored=np.stack(restored),
        truth=np.stack([truth] * count),
        references=[[truth]] * count,
        landmarks=np.stack([points] * count),
        reference_landmarks=[points[None]] * count,
        valid=np.ones((count, size, size), dtype=bool),
    )


def values(name: str, batch: ScoringBatch) -> list[float]:
    metric = load_metric(name)()
    assert metric.unavailable() is None, metric.unavailable()
    found = []
    for value, reason in metric.score_batch(batch):
        assert value is not None, reason
        found.append(value)
    return found


def seeded(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network with reproducible weights, normalisations included, so that no layer is the identity."""
    torch.manual_seed(0)
    network = build().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return network


def backbone_layers(backbone: str) -> torch.nn.Module:
    """The convolutional part of torchvision's AlexNet or VGG-16, which is all that distances read."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    if backbone == "vgg":
        return seeded(lambda: vgg.make_layers(vgg.cfgs["D"], batch_norm=False))
    return seeded(lambda: pytest.importorskip("torchvision.models").alexnet(weights=None).features)


def put_backbone(put: Callable[[str, Any], Path], backbone: str) -> torch.nn.Module:
    features = backbone_layers(backbone)
    name = {"alex": "alexnet_imagenet", "vgg": "vgg16_imagenet"}[backbone]
    put(name, {f"features.{own}": value for own, value in features.state_dict().items()})
    return features


def put_lpips(put: Callable[[str, Any], Path], backbone: str) -> torch.nn.Module:
    """Puts a random backbone (the heads are the package's own) and returns the package's network with it."""
    lpips = pytest.importorskip("lpips")
    features = put_backbone(put, backbone)
    expected = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    for parameter, source in zip(expected.net.parameters(), features.parameters(), strict=True):
        parameter.data.copy_(source.data)
    return expected


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_lpips_is_the_packages(backbone: str, put: Callable[[str, Any], Path]) -> None:
    expected = put_lpips(put, backbone)
    batch = batch_of()
    with torch.inference_mode():
        theirs = expected(batch.restored_tensor, batch.truth_tensor, normalize=True).flatten().tolist()
    assert values(f"lpips_{backbone}", batch) == pytest.approx(theirs, abs=1e-6)
    own = load_metric(f"lpips_{backbone}")()
    same = replace(batch, restored=batch.truth)
    assert own.score_batch(same)[0].value == pytest.approx(0.0, abs=1e-7)
    heads = catalogue.entry(f"lpips_{backbone}_heads").sha256
    assert heads and heads[:12] in own.identity


def test_lpips_of_torchmetrics_agrees(put: Callable[[str, Any], Path]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image.lpips")
    expected = put_lpips(put, "alex")
    theirs = functional._LPIPS(net="alex", pretrained=True, pnet_rand=True, use_dropout=True).eval()
    for parameter, source in zip(theirs.net.parameters(), expected.net.parameters(), strict=True):
        parameter.data.copy_(source.data)
    batch = batch_of()
    with torch.inference_mode():
        wanted = theirs(batch.restored_tensor * 2 - 1, batch.truth_tensor * 2 - 1).flatten().tolist()
    assert values("lpips_alex", batch) == pytest.approx(wanted, abs=1e-6)


def test_regional_lpips_is_the_mean_of_the_map(put: Callable[[str, Any], Path]) -> None:
    from bench.faces.regions import region_masks

    expected = put_lpips(put, "alex")
    expected.spatial = True  # type: ignore[assignment]
    batch = batch_of()
    with torch.inference_mode():
        distances = expected(batch.restored_tensor, batch.truth_tensor, normalize=True).numpy()
    for region in ("eyes", "mouth", "skin"):
        mask = region_masks(POINTS, 128, 128)[region]
        wanted = [float(own[0][mask].mean()) for own in distances]
        assert values(f"lpips_{region}", batch) == pytest.approx(wanted, rel=1e-5)


def test_dists_is_pyiqas_and_torchmetrics(put: Callable[[str, Any], Path]) -> None:
    dists_arch = pytest.importorskip("pyiqa.archs.dists_arch")
    functional = pytest.importorskip("torchmetrics.functional.image.dists")
    whole = SimpleNamespace(features=put_backbone(put, "vgg"))
    shipped = torch.load(catalogue.locate("dists_weights"), weights_only=True)
    batch = batch_of()
    with replaced("torchvision.models", "vgg16", lambda **_: whole):
        theirs = dists_arch.DISTS(pretrained=False)
    theirs.load_state_dict(shipped, strict=False)
    with replaced("torchmetrics.functional.image.dists", "vgg16", lambda **_: whole):
        other = functional.DISTSNetwork(load_weights=True)
    with torch.inference_mode():
        wanted = theirs(batch.restored_tensor, batch.truth_tensor).flatten().tolist()
        also = other(batch.restored_tensor, batch.truth_tensor).flatten().tolist()
    found = values("dists", batch)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found == pytest.approx(also, abs=1e-5)


def test_musiq_is_pyiqas(put: Callable[[str, Any], Path]) -> None:
    musiq_arch = pytest.importorskip("pyiqa.archs.musiq_arch")
    theirs = seeded(lambda: musiq_arch.MUSIQ(pretrained=False))
    put("musiq_koniq", theirs.state_dict())
    batch = batch_of()
    with torch.inference_mode():
        wanted = theirs(batch.restored_tensor).flatten().tolist()
    assert values("musiq", batch) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "scale"), [("maniqa", "maniqa_koniq", 0.8), ("maniqa_pipal", "maniqa_pipal", 0.13)]
)
def test_maniqa_is_pyiqas(name: str, weights: str, scale: float, put: Callable[[str, Any], Path]) -> None:
    maniqa_arch = pytest.importorskip("pyiqa.archs.maniqa_arch")
    timm = pytest.importorskip("timm")
    create_model = timm.create_model
    with replaced("timm", "create_model", lambda kind, **_: create_model(kind, pretrained=False)):
        theirs = seeded(lambda: maniqa_arch.MANIQA(pretrained=False, scale=scale))
    put(weights, {f"module.{key}": value for key, value in theirs.state_dict().items()})
    metric: Any = load_metric(name)()
    # One crop instead of twenty: the same network, a twentieth of the minutes.
    theirs.test_sample = metric.network().test_sample = 1  # type: ignore[assignment]
    batch = batch_of(1)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = values(name, batch)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    with torch.inference_mode():
        wanted = theirs(batch.restored_tensor).flatten().tolist()
    assert found == pytest.approx(wanted, abs=1e-5)


def small_clip() -> dict[str, torch.Tensor]:
    """Tensors of a CLIP with a narrow ResNet-50, as its file holds them."""
    from pyiqa.archs.clip_model import CLIP

    torch.manual_seed(0)
    model = CLIP(
        embed_dim=32,
        image_resolution=224,
        vision_layers=(1, 1, 1, 1),
        vision_width=32,
        vision_patch_size=None,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    return model.state_dict()


class Held(torch.nn.Module):
    """A tree of modules that holds tensors under given names, as the published archive does."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for head in dict.fromkeys(name.partition(".")[0] for name in tensors):
            below = {name.partition(".")[2]: value for name, value in tensors.items() if name.partition(".")[0] == head}
            if "" in below:
                self.register_buffer(head, below[""])
            else:
                self.add_module(head, Held(below))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_clipiqa_is_pyiqas(put: Callable[[str, Any], Path]) -> None:
    """CLIP's file is a TorchScript archive; pyiqa opens the same one."""
    clipiqa_arch = pytest.importorskip("pyiqa.archs.clipiqa_arch")
    path = put("clip_rn50", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Held(small_clip()), torch.zeros(1)), str(path))
    batch = batch_of()
    theirs = clipiqa_arch.CLIPIQA(backbone=str(path), pretrained=False).eval()
    with torch.inference_mode():
        wanted = theirs(batch.restored_tensor).flatten().tolist()
    assert values("clipiqa", batch) == pytest.approx(wanted, abs=1e-5)


def test_clip_has_the_published_hash() -> None:
    entry = catalogue.entry("clip_rn50")
    assert entry.url and entry.sha256_start and entry.sha256_start in entry.url and len(entry.sha256_start) == 64


def test_topiq_face_is_pyiqas_on_aligned_faces_and_null_without_a_face(put: Callable[[str, Any], Path]) -> None:
    topiq_arch = pytest.importorskip("pyiqa.archs.topiq_arch")
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = seeded(lambda: retinaface.RetinaFace(network_name="resnet50", device="cpu"))
    settings = {"use_ref": False, "test_img_size": 512, "pretrained": False, "backbone_pretrain": False}
    theirs = seeded(lambda: topiq_arch.CFANet(model_name="aligned", **settings))
    put("topiq_face", {"params": theirs.state_dict()})
    put("retinaface_resnet50", detector.state_dict())
    batch = batch_of(1)
    metric: Any = load_metric("topiq_face")()
    network = metric.network()
    # A detector with random weights finds nothing: null with its reason. Then without alignment, the network alone.
    network.face_helper.get_face_landmarks_5 = lambda **_: 0
    assert metric.score_batch(batch)[0].reason == "no face detected"
    network.align_crop_face = False
    with torch.inference_mode():
        wanted = theirs(batch.restored_tensor).flatten().tolist()
    assert values("topiq_face", batch) == pytest.approx(wanted, abs=1e-5)


def test_degradation_angle_is_the_angle_between_embeddings(put: Callable[[str, Any], Path]) -> None:
    from bench.faces.arcface18 import ArcFace18

    network = seeded(ArcFace18)
    put("arcface_resnet18_110", {f"module.{name}": value for name, value in network.state_dict().items()})
    batch = batch_of(2, 160)
    assert batch.truth is not None
    embedded = []
    for picture in (batch.restored[1], batch.truth[1]):
        grey = cv2.resize(cv2.imdecode(cv2.imencode(".png", picture[..., ::-1])[1], 0), (128, 128))
        with torch.inference_mode():
            embedded.append(network(torch.from_numpy(grey)[None, None].float() / 127.5 - 1)[0].double().numpy())
    cosine = embedded[0] @ embedded[1] / np.linalg.norm(embedded[0]) / np.linalg.norm(embedded[1])
    assert values("degradation_angle", batch)[1] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-2)
    assert values("degradation_angle", replace(batch, restored=batch.truth))[0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_absent_weights_are_null_with_the_way_to_get_them(name: str, home: Path) -> None:
    batch = batch_of(1)
    value, reason = load_metric(name)().score_batch(batch)[0]
    assert value is None
    # A package is asked for before its weights: openai-clip and facexlib come with `full` alone.
    assert reason and (reason.startswith("needs the Python package") or (str(home) in reason and "Licence" in reason))


@pytest.mark.parametrize("name", ["lpips_alex", "dists", "musiq", "clipiqa", "topiq_face", "degradation_angle"])
def test_a_file_of_other_weights_is_refused(name: str, put: Callable[[str, Any], Path]) -> None:
    metric: Any = load_metric(name)()
    for own in metric.weights:
        if not catalogue.entry(own).distribution:
            put(own, {"something.else": torch.zeros(3)})
    value, reason = metric.score_batch(batch_of(1))[0]
    assert value is None
    if reason and reason.startswith("needs the Python package"):
        pytest.skip(reason)
    assert reason and "does not hold the weights" in reason


def test_a_pickle_is_not_opened(home: Path, put: Callable[[str, Any], Path]) -> None:
    put("musiq_koniq", {"a": Path("b")})
    value, reason = load_metric("musiq")().score_batch(batch_of(1))[0]
    assert value is None
    assert reason and "not a readable file of weights" in reason


def test_a_file_whose_hash_is_not_the_published_one_is_refused(home: Path) -> None:
    entry = catalogue.entry("musiq_koniq")
    (home / entry.file).write_bytes(b"not these")
    reason = load_metric("musiq")().unavailable()
    assert reason and "e95806b9..." in reason and "Remove or replace the file" in reason


@pytest.mark.parametrize(
    ("name", "distributions"),
    [("maniqa", ["pyiqa", "timm"]), ("topiq_face", ["pyiqa", "facexlib"]), ("clipiqa", ["pyiqa", "openai-clip"])],
)
def test_identities_name_every_package_that_makes_the_number(name: str, distributions: list[str]) -> None:
    from bench.metrics.common import version

    identity = load_metric(name)().identity
    assert all(f"{distribution} {version(distribution)}" in identity for distribution in distributions)


def test_the_degradation_angle_names_opencv() -> None:
    assert f"OpenCV {cv2.__version__}" in load_metric("degradation_angle")().identity


def test_topiq_face_scores_the_face_aligned_to_the_template(put: Callable[[str, Any], Path]) -> None:
    """The crop is cut here by scikit-image's similarity from points that lie where FFHQ's template has them, turned."""
    topiq_arch = pytest.importorskip("pyiqa.archs.topiq_arch")
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    transform = pytest.importorskip("skimage.transform")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = seeded(lambda: retinaface.RetinaFace(network_name="resnet50", device="cpu"))
    settings = {"use_ref": False, "test_img_size": 512, "pretrained": False, "backbone_pretrain": False}
    theirs = seeded(lambda: topiq_arch.CFANet(model_name="aligned", **settings))
    put("topiq_face", {"params": theirs.state_dict()})
    put("retinaface_resnet50", detector.state_dict())
    template = np.array([[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043]])
    template = np.vstack([template, [[313.08905, 371.15118]]])
    known = transform.SimilarityTransform(scale=3.0, rotation=0.2, translation=(60, 90))
    points = known.inverse(template)
    batch = batch_of(1)
    network: Any = load_metric("topiq_face")().network()
    helper = network.face_helper

    def found(**_: Any) -> int:
        helper.all_landmarks_5 = [points]
        return 1

    helper.get_face_landmarks_5 = found
    matrix = transform.SimilarityTransform.from_estimate(points, template).params[:2]
    crop = cv2.warpAffine(batch.restored[0].astype(np.float32), matrix, (512, 512), borderValue=(132, 133, 135))
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255).flatten().tolist()
        unaligned = theirs(batch.restored_tensor).flatten().tolist()
    assert values("topiq_face", batch) == pytest.approx(wanted, abs=1e-4)
    assert abs(unaligned[0] - wanted[0]) > 1e-3
