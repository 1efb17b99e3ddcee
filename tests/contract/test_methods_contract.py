"""Every registered method keeps the promises of the interface."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.method import MethodSpec, RestorationMethod
from bench.registry import load_method, method_targets
from bench.runs.plan import build_method, choose_size

METHODS = sorted(method_targets())


def built(name: str) -> RestorationMethod:
    config = compose("run", [f"method={name}", "size=auto"])
    method, _, _ = build_method(config)
    return method


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> RestorationMethod:
    return built(request.param)


def colour_batch(count: int = 3, side: int = 128, references: int = 2) -> FaceBatch:
    generator = torch.Generator().manual_seed(5)
    smooth = torch.rand(count * (references + 1), 3, 6, 6, generator=generator)
    pictures = torch.nn.functional.interpolate(smooth, size=(side, side), mode="bicubic").clamp(0, 1)
    pictures[:, 0] = pictures[:, 0] * 0.5 + 0.5  # reddish, so that a swap of channels shows
    pictures[:, 2] *= 0.4
    return FaceBatch(
        lq=pictures[:count],
        references=pictures[count:].view(count, references, 3, side, side),
        reference_mask=torch.ones(count, references, dtype=torch.bool),
        image_ids=[f"p/{n}" for n in range(count)],
        identities=["p"] * count,
        seeds=list(range(count)),
    )


def test_spec_is_declared(method: RestorationMethod) -> None:
    assert isinstance(method.spec, MethodSpec)
    assert method.spec.name in METHODS
    assert method.spec.title
    assert method.spec.licence


def test_restores_every_picture_in_its_shape_and_range(method: RestorationMethod) -> None:
    batch = colour_batch()
    restored = torch.stack([picture for picture, _ in method.predict_step(batch)])
    assert restored.shape == batch.lq.shape
    assert torch.isfinite(restored).all()
    assert restored.min() >= 0
    assert restored.max() <= 1


def test_nothing_of_the_ground_truth_reaches_restore(method: RestorationMethod) -> None:
    batch = colour_batch()
    tempting = replace(
        batch,
        gt=torch.rand_like(batch.lq),
        landmarks=torch.rand(3, 5, 2) * 128,
        reference_landmarks=torch.rand(3, 2, 5, 2),
    )
    with torch.inference_mode():
        assert torch.equal(method.restore(batch), method.restore(tempting))


def test_a_picture_is_restored_alike_alone_and_in_any_order(method: RestorationMethod) -> None:
    batch = colour_batch()
    together = [picture for picture, _ in method.predict_step(batch)]
    alone = [method.predict_step(batch.row(row))[0][0] for row in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert (one - other).abs().max() < 1e-3
    again = [method.predict_step(batch.row(row))[0][0] for row in (2, 0, 1)]
    for row, picture in zip((2, 0, 1), again, strict=True):
        assert torch.equal(picture, alone[row])


def test_channels_stay_in_order(method: RestorationMethod) -> None:
    batch = colour_batch()
    restored = torch.stack([picture for picture, _ in method.predict_step(batch)])
    red, _, blue = restored.mean(dim=(0, 2, 3))
    # A network trained on grey faces takes colour away, but must not swap it.
    assert red > blue + (0.0 if method.spec.name == "refine" else 0.2)


def test_works_without_references(method: RestorationMethod) -> None:
    batch = colour_batch()
    none = replace(batch, references=batch.references[:, :0], reference_mask=batch.reference_mask[:, :0])
    for picture, _ in method.predict_step(none):
        assert isinstance(picture, torch.Tensor)
        assert torch.isfinite(picture).all()


def test_works_at_another_size(method: RestorationMethod) -> None:
    batch = colour_batch(count=1, side=96)
    assert method.predict_step(batch)[0][0].shape == (3, 96, 96)


def test_weights_round_trip(method: RestorationMethod) -> None:
    state = method.weights_state()
    other = built(method.spec.name)
    other.load_weights_state(state)
    batch = colour_batch(count=1)
    with torch.inference_mode():
        assert torch.equal(other.restore(batch), method.restore(batch))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_card_and_settings(name: str) -> None:
    from pathlib import Path

    import methods

    folder = Path(methods.__path__[0]) / name
    assert (folder / "README.md").is_file() or name in ("input", "copy_reference")
    config = compose("run", [f"method={name}"])
    for size in config["method"].get("sizes") or {None: None}:
        assert method_settings(config["method"], size)["name"] == name
    assert load_method(name).spec.name == name


def test_random_weights_are_never_scored() -> None:
    from bench.errors import MissingError

    config = compose("run", ["method=refine", "size=paper"])
    with pytest.raises(MissingError, match="bench train method=refine"):
        choose_size(config)
