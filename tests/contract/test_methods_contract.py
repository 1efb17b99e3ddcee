"""Every registered method keeps the promises of the interface."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import methods
from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.image import read_image, write_png
from bench.method import MethodSpec, RestorationMethod
from bench.personal_state import PersonalSource
from bench.registry import load_method, method_targets
from bench.runs.plan import build_method, choose_size
from tests.unit.identity_network import identity_esrgan

METHODS = sorted(method_targets())
# By how much red is above blue in what becomes of the reddish photographs. ReFine and the cleaner of Dual-Pivot Tuning
# were trained on grey faces and take most of the colour away; the others hand it on.
RED_ABOVE_BLUE = {"refine": 0.0, "dual_pivot": 0.0}
# The promises depend neither on the number of steps of a diffusion, which its time does, nor on a calibration.
FEW_STEPS = {
    "restorerid": ["method.sampling.steps=3", "method.alpha=40", "method.beta=10"],
    "pfstorer": ["method.personalisation.iterations=2", "method.personalisation.samples=4"],
    "dual_pivot": [
        *("method.personalisation.textual.iterations=2", "method.personalisation.textual.samples=4"),
        *("method.personalisation.model.iterations=2", "method.personalisation.model.samples=8"),
        "method.personalisation.generic_samples=8",
    ],
}


def built(name: str) -> RestorationMethod:
    config = compose("run", [f"method={name}", "size=auto", *FEW_STEPS.get(name, [])])
    method, _, _ = build_method(config)
    return method


@pytest.fixture(scope="module", params=METHODS)
def method(
    request: pytest.FixtureRequest, batch: FaceBatch, tmp_path_factory: pytest.TempPathFactory
) -> RestorationMethod:
    """The method, with everyone on the pictures of the batch learnt where it learns anyone."""
    if request.param == "precomputed":
        folder = tmp_path_factory.mktemp("precomputed")
        for image_id, lq in zip(batch.image_ids, batch.lq, strict=True):
            write_png(folder / f"{image_id}.png", (lq * 255).round().byte().permute(1, 2, 0).numpy())
        FEW_STEPS["precomputed"] = [f"method.root={folder}"]
    if request.param in ("realesrgan", "spandrel"):
        file = tmp_path_factory.mktemp(request.param) / "identity.safetensors"
        save_file(identity_esrgan(), file)
        FEW_STEPS[request.param] = [f"method.weights={file}"]
    method = built(request.param)
    if method.personalises:
        method.persons = {
            image_id: source.state(
                method, source.key(method, "32-true"), method.personalise(references, source.own_seed)
            )
            for image_id, references in zip(batch.image_ids, batch.references, strict=True)
            for source in [PersonalSource(references, 0)]
        }
    return method


@pytest.fixture(scope="module")
def faces(orl_root: Path) -> Tensor:
    """Reddish photographs, so that a swap of channels shows: three of each of three people, (9, 3, 128, 128)."""
    files = [f"s{person}/{photo}.pgm" for person in (1, 2, 3) for photo in (1, 2, 3)]
    pixels = torch.stack([torch.from_numpy(read_image(orl_root / file)).permute(2, 0, 1) for file in files])
    pictures = F.interpolate(pixels.float() / 255, size=(128, 128), mode="bicubic", antialias=True).clamp(0, 1)
    return pictures * torch.tensor([0.5, 0.8, 0.4]).view(3, 1, 1) + torch.tensor([0.5, 0.0, 0.0]).view(3, 1, 1)


@pytest.fixture(scope="module")
def batch(faces: Tensor) -> FaceBatch:
    """A degraded picture of each person, and two references."""
    pictures = faces.view(3, 3, 3, 128, 128)
    return FaceBatch(
        lq=F.interpolate(F.avg_pool2d(pictures[:, 0], 4), scale_factor=4, mode="bicubic").clamp(0, 1),
        references=pictures[:, 1:],
        reference_mask=torch.ones(3, 2, dtype=torch.bool),
        image_ids=[f"p{n}/0" for n in range(3)],
        identities=[f"p{n}" for n in range(3)],
        seeds=[0, 1, 2],
    )


def test_spec_is_declared(method: RestorationMethod) -> None:
    assert isinstance(method.spec, MethodSpec)
    assert method.spec.name in METHODS
    assert method.spec.title
    assert method.spec.licence


@pytest.fixture(scope="module")
def restored(method: RestorationMethod, batch: FaceBatch) -> Tensor:
    """What the method makes of the batch."""
    return pictures_of(method, batch)


def pictures_of(method: RestorationMethod, batch: FaceBatch) -> Tensor:
    results = [result for result, _ in method.predict_step(batch)]
    if failed := [result for result in results if isinstance(result, Exception)]:
        raise failed[0]
    return torch.stack(results)


def test_restores_every_picture_in_its_shape_and_range(restored: Tensor, batch: FaceBatch) -> None:
    assert restored.shape == batch.lq.shape
    assert torch.isfinite(restored).all()
    assert restored.min() >= 0
    assert restored.max() <= 1


def test_restore_itself_stays_in_range(method: RestorationMethod, batch: FaceBatch) -> None:
    """What runs a method cuts off what is out of range; a network called in another range would be cut off too."""
    one = batch.row(0).for_restoration()
    side = method.native_size or 128
    given = F.interpolate(one.references[0], size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    lq = F.interpolate(one.lq, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.inference_mode():
        restored = method.restore(replace(one, lq=lq, references=given[None]))
    assert restored.min() >= 0
    assert restored.max() <= 1


def test_nothing_of_the_ground_truth_reaches_restore(method: RestorationMethod, batch: FaceBatch) -> None:
    one = batch.row(0)
    tempting = replace(
        one,
        gt=torch.rand_like(one.lq),
        landmarks=torch.rand(1, 5, 2) * 128,
        reference_landmarks=torch.rand(1, 2, 5, 2),
    )
    assert torch.equal(pictures_of(method, one), pictures_of(method, tempting))


def test_a_picture_is_restored_alike_alone_and_in_any_order(
    method: RestorationMethod, batch: FaceBatch, restored: Tensor
) -> None:
    alone = [pictures_of(method, batch.row(row))[0] for row in range(3)]
    for row, picture in enumerate(alone):
        assert (restored[row] - picture).abs().max() < 1e-3
    for row in (2, 0, 1):
        assert torch.equal(pictures_of(method, batch.row(row))[0], alone[row])


def test_channels_stay_in_order(method: RestorationMethod, restored: Tensor) -> None:
    if method.spec.name == "autoencoder":
        pytest.skip("gives nearly grey pictures, whose channels have no order")
    red, _, blue = restored.mean(dim=(0, 2, 3))
    assert red > blue + RED_ABOVE_BLUE.get(method.spec.name, 0.2)


def test_works_without_references(method: RestorationMethod, batch: FaceBatch) -> None:
    one = batch.row(0)
    none = replace(one, references=one.references[:, :0], reference_mask=one.reference_mask[:, :0])
    assert torch.isfinite(pictures_of(method, none)).all()


def test_works_at_another_size(method: RestorationMethod, batch: FaceBatch) -> None:
    if method.spec.name == "precomputed":
        pytest.skip("has pictures of one size; another is refused (tests/cli/test_run_precomputed.py)")
    one = batch.row(0)
    references = F.interpolate(one.references[0], size=(96, 96), mode="bicubic", antialias=True).clamp(0, 1)
    smaller = replace(one, lq=one.lq[..., 16:112, 16:112], references=references[None])
    assert pictures_of(method, smaller).shape == (1, 3, 96, 96)


def test_weights_round_trip(method: RestorationMethod, batch: FaceBatch) -> None:
    state = method.weights_state()
    other = built(method.spec.name)
    for value in other.parameters():
        value.zero_()
    other.load_weights_state(state)
    other.persons = method.persons
    assert torch.equal(pictures_of(other, batch.row(0)), pictures_of(method, batch.row(0)))


def test_what_is_learnt_per_person_is_declared_and_decides_the_pictures(
    method: RestorationMethod, batch: FaceBatch
) -> None:
    assert method.personalises == (method.spec.tuning == "per_identity")
    if not method.personalises:
        pytest.skip("learns nobody")
    one = batch.row(0)
    known = pictures_of(method, one)
    swapped, learnt = built(method.spec.name), method.persons
    swapped.persons = {one.image_ids[0]: learnt[batch.image_ids[1]]}
    assert not torch.equal(pictures_of(swapped, one), known)
    with pytest.raises(UsageError, match="bench personalise"):
        pictures_of(swapped, batch.row(2))


def sizes(name: str) -> dict[str, Any]:
    return compose("run", [f"method={name}"])["method"].get("sizes") or {}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_card_and_settings(name: str) -> None:
    folder = Path(methods.__path__[0]) / name
    assert (folder / "README.md").is_file() or name in ("input", "copy_reference")
    config = compose("run", [f"method={name}"])
    for size in sizes(name) or (None,):
        assert method_settings(config["method"], size)["name"] == name
    assert load_method(name).spec.name == name


@pytest.mark.parametrize("name", [name for name in METHODS if "paper" in sizes(name)])
def test_random_weights_are_never_scored(name: str) -> None:
    with pytest.raises(MissingError, match=f"bench train method={name}"):
        choose_size(compose("run", [f"method={name}", "size=paper"]))
