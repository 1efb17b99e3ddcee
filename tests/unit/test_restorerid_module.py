"""RestorerID as a method: stages of training, ablations, what identity and scale do to a restoration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.weights.method_weights import write_weights
from methods.autoencoder.module import Autoencoder
from methods.blocks.latent_samples import LatentBatch
from methods.restorerid.module import RestorerID
from methods.restorerid.network import STAGES

SMALL = [
    "method.network.lq_encoder.channels=8",
    "method.network.lq_encoder.map_channels=8",
    "method.network.sft.hidden=8",
    "method.network.fir.hidden=8",
    "method.sampling.steps=2",
]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = ["method=autoencoder", "method.network.block_out_channels=[8,8,8,8]"]
    method = Autoencoder(method_settings(compose("train", words)["method"], "demo"))
    file = tmp_path_factory.mktemp("autoencoder") / "demo.safetensors"
    write_weights(file, method, "float32", {"settings": method.settings})
    return str(file)


def settings(autoencoder: str, *words: str) -> dict[str, Any]:
    composed = compose("train", ["method=restorerid", *SMALL, *words])["method"]
    return method_settings(composed, "demo") | {"autoencoder": autoencoder}


def latents(count: int = 2) -> LatentBatch:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "latent": torch.randn(count, 8, 16, 16, generator=generator),
        "lq_latent": torch.randn(count, 8, 16, 16, generator=generator),
        "identity": torch.nn.functional.normalize(torch.randn(count, 128, generator=generator)),
        "image_states": torch.randn(count, 49, 512, generator=generator),
    }
    return LatentBatch(tensors, list(range(count)))


def faces(orl_root: Path, people: tuple[str, ...] = ("s29", "s30")) -> FaceBatch:
    from bench.image import read_image

    def picture(name: str) -> torch.Tensor:
        pixels = torch.from_numpy(read_image(orl_root / name)).permute(2, 0, 1)[None].float() / 255
        return torch.nn.functional.interpolate(pixels, size=(128, 128), mode="bicubic").clamp(0, 1)

    lq = torch.cat([picture(f"{person}/1.pgm") for person in people])
    return FaceBatch(
        lq=torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(lq, 4), scale_factor=4),
        references=torch.stack([picture(f"{person}/2.pgm") for person in people]),
        reference_mask=torch.ones(len(people), 1, dtype=torch.bool),
        image_ids=[f"{person}/1" for person in people],
        identities=list(people),
        seeds=list(range(len(people))),
    )


def trained(method: RestorerID, steps: int = 3) -> dict[str, torch.Tensor]:
    """Takes steps and returns how far each tensor of the network has moved."""
    method.prepare_training()
    optimiser = method.configure_optimizers()
    method.optimizers = lambda: optimiser  # type: ignore[method-assign]
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    for step in range(steps):
        optimiser.zero_grad()
        method.training_step(latents(), step).backward()
        optimiser.step()
        method.batches_done += 1
    return {name: (value - before[name]).abs().max() for name, value in method.network.state_dict().items()}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_moves_its_own_parts_and_no_other(stage: str, autoencoder: str, tmp_path: Path) -> None:
    words = [f"method.training.stage={stage}"]
    if stage in ("identity", "fir", "single"):
        first = RestorerID(settings(autoencoder))
        with torch.no_grad():
            for name, value in first.network.named_parameters():
                if name.endswith("identity_value.weight"):
                    value.normal_(std=0.02)
        write_weights(tmp_path / "first.safetensors", first, "float32", {})
        words.append(f"method.training.start_from={tmp_path / 'first.safetensors'}")
    method = RestorerID(settings(autoencoder, *words))
    moved = trained(method)
    parts = {part: [name for name in moved if method.network.part_of(name) == part] for part in STAGES["joint"]}
    for part, names in parts.items():
        assert any(moved[name] > 0 for name in names) == (part in STAGES[stage]), part


def test_a_later_stage_needs_the_one_before(autoencoder: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="start_from"):
        RestorerID(settings(autoencoder, "method.training.stage=fir")).prepare_training()
    write_weights(
        tmp_path / "other.safetensors",
        Autoencoder(method_settings(compose("train", ["method=autoencoder"])["method"], "demo")),
        "float32",
        {},
    )
    words = ["method.training.stage=fir", f"method.training.start_from={tmp_path / 'other.safetensors'}"]
    with pytest.raises(UsageError, match="no earlier stage"):
        RestorerID(settings(autoencoder, *words)).prepare_training()
    with pytest.raises(UsageError, match=r"method\.training\.stage"):
        RestorerID(settings(autoencoder, "method.training.stage=second")).prepare_training()


def shaken(method: RestorerID) -> RestorerID:
    """Random numbers wherever training starts at zero, so that every part shows."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in method.network.parameters():
            if not value.any():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return method.eval()


def test_identity_and_its_scale_reach_the_picture(autoencoder: str, orl_root: Path) -> None:
    method = shaken(RestorerID(settings(autoencoder, "method.id_scale=1.0", "method.colour_fix=none")))
    batch = faces(orl_root)
    other = faces(orl_root, ("s31", "s32"))
    with torch.inference_mode():
        own = method.restore(batch)
        swapped = method.restore(replace(batch, references=other.references))
        method.settings["id_scale"] = 0.0
        weightless = method.restore(batch)
    assert (own - swapped).abs().max() > 1e-3
    assert (own - weightless).abs().max() > 1e-3


def test_a_picture_depends_on_its_own_seed_alone(autoencoder: str, orl_root: Path) -> None:
    method = shaken(
        RestorerID(
            settings(
                autoencoder, "method.id_scale=1.0", "method.sampling.preset=restorerid_paper", "method.sampling.eta=1.0"
            )
        )
    )
    batch = faces(orl_root)
    with torch.inference_mode():
        together = method.restore(batch)
        alone = method.restore(batch.row(1))
    assert (together[1] - alone[0]).abs().max() < 1e-3


def test_parts_that_are_left_out_are_passed_over_when_loading(autoencoder: str) -> None:
    whole = shaken(RestorerID(settings(autoencoder)))
    base = RestorerID(settings(autoencoder, "method.use_identity=false", "method.use_fir=false"))
    base.load_weights_state(whole.weights_state())
    assert base.label == "restorerid+base@demo"
    with pytest.raises(UsageError, match=r"lack .* identity"):
        whole.load_weights_state(base.weights_state())
    with pytest.raises(UsageError, match="no weights of RestorerID"):
        base.load_weights_state(base.weights_state() | {"something.else": torch.zeros(1)})


def test_the_adaptive_scale_follows_the_quality_and_says_when_it_cannot(autoencoder: str) -> None:
    method = RestorerID(settings(autoencoder, "method.alpha=40", "method.beta=10"))
    sharp = torch.rand(1, 3, 128, 128)
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(sharp, 16), scale_factor=16)
    quality = method.quality(torch.cat([sharp, blurred]))
    expected = torch.exp((40 - quality) / 10)
    assert torch.allclose(method.id_scale(torch.cat([sharp, blurred])), expected, rtol=1e-4)
    fixed = RestorerID(settings(autoencoder, "method.id_scale=0.75"))
    assert fixed.id_scale(sharp).tolist() == [0.75]
    assert fixed.label == "restorerid+scale0.75@demo"


def test_fir_needs_the_identity(autoencoder: str) -> None:
    with pytest.raises(UsageError, match="use_fir=false"):
        RestorerID(settings(autoencoder, "method.use_identity=false"))


def test_identity_loss_looks_at_the_noisiest_pictures_and_adds_to_the_noise_loss(autoencoder: str) -> None:
    points = torch.tensor([[39.0, 53], [89, 53], [64, 81], [44, 102], [85, 102]])
    faces_known = {"points": points.expand(4, -1, -1), "own_identity": torch.eye(128)[:4]}

    def step(weight: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[int], torch.Tensor]:
        words = [f"method.losses.identity={weight}", "method.losses.identity_pictures=2"]
        method = RestorerID(settings(autoencoder, *words))
        method.prepare_training()
        optimiser = method.configure_optimizers()
        method.optimizers = lambda: optimiser  # type: ignore[method-assign]
        logged: dict[str, torch.Tensor] = {}
        method.log = lambda key, value, **_: logged.__setitem__(key, value)  # type: ignore[method-assign]
        decoded: list[int] = []
        decode = method.space.decode
        method.space.decode = lambda latent: decoded.append(len(latent)) or decode(latent)  # type: ignore
        batch = latents(4)
        loss = method.training_step(LatentBatch(batch.tensors | faces_known, batch.seeds), 0)
        return loss, logged, decoded, method.network.adapted.unet.conv_in.weight

    plain, logged, decoded, weight = step(0.0)
    (without,) = torch.autograd.grad(plain, weight)
    assert "train/identity" not in logged
    assert decoded == []
    loss, logged, decoded, weight = step(0.5)
    assert decoded == [2]
    assert 0 < logged["train/identity"] < 2
    torch.testing.assert_close(loss, plain + 0.5 * logged["train/identity"])
    (gradient,) = torch.autograd.grad(loss, weight)
    assert (gradient - without).norm() > 1e-3 * without.norm()


def test_identity_loss_of_no_pictures_is_refused(autoencoder: str) -> None:
    words = ["method.losses.identity=0.5", "method.losses.identity_pictures=0"]
    with pytest.raises(UsageError, match="identity_pictures"):
        RestorerID(settings(autoencoder, *words))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.least_timestep=-1", "least_timestep must be a whole number from 0 to 999, got -1"),
        ("training.least_timestep=1000", "least_timestep must be a whole number from 0 to 999"),
        ("training.least_timestep=null", "least_timestep must be a whole number from 0 to 999, got None"),
        ("colour_fix_levels=0", "colour_fix_levels must be a whole number from 1 to 10, got 0"),
        ("colour_fix_levels=three", "colour_fix_levels must be a whole number"),
        ("losses.identity=-1", "losses.identity must be a number from 0 on"),
        ("losses.identity_pictures=null", "losses.identity_pictures must be a whole number from 0 on"),
    ],
)
def test_settings_out_of_range_are_refused(autoencoder: str, word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RestorerID(settings(autoencoder, f"method.{word}"))


def test_timesteps_of_training_are_drawn_from_the_least_one_on(autoencoder: str) -> None:
    method = RestorerID(settings(autoencoder, "method.training.least_timestep=990"))
    asked: list[torch.Tensor] = []
    make = method.network.lq_maps
    method.network.lq_maps = lambda latent, step: asked.append(step) or make(latent, step)  # type: ignore
    trained(method, 4)
    assert min(int(step.min()) for step in asked) >= 990
    assert len({int(value) for step in asked for value in step}) > 1


def test_a_references_face_is_looked_for_once_and_mirrored_with_its_picture(autoencoder: str, orl_root: Path) -> None:
    method = RestorerID(settings(autoencoder, "method.self_ensemble=true", "method.id_scale=0.75")).eval()
    batch, asked, encoded = faces(orl_root), [], []
    find, encode = method.find_references, method.face_encoder.encode

    def found(references: torch.Tensor, *rest: Any) -> Any:
        asked.append(len(references))
        return find(references, *rest)

    method.find_references = found
    method.face_encoder.encode = lambda images, points: encoded.append((images, points)) or encode(images, points)  # type: ignore
    method.restore(batch)
    assert asked == [2], "the detector sees each picture's reference once"
    (images, points), *more = encoded
    assert not more and len(images) == 4
    assert torch.equal(images[2:], images[:2].flip(-1))
    left_eye, right_eye = points[2:, 0, 0], points[2:, 1, 0]
    assert (left_eye < right_eye).all(), "left and right have changed places"
    torch.testing.assert_close(points[2:, 2, 0], 127 - points[:2, 2, 0])
