"""AuthFace's facial loss: its weight over time, the predicted latent, regions, and the discriminators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

from bench.errors import UsageError
from bench.faces.detector import main_face_points
from bench.image import read_image
from bench.protocol.alignment import FFHQ_512
from methods.authface.losses import (
    BOX_SIDES,
    FacialLoss,
    RegionDiscriminator,
    crop_regions,
    discriminator_loss,
    flipped,
    generator_terms,
    gram,
    predicted_latent,
    region_boxes,
    time_weight,
)


def weight_at(t: float, **settings: float | str) -> float:
    return float(time_weight(torch.tensor(t, dtype=torch.float64), **settings))  # type: ignore[arg-type]


# Time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "mode"), [(1.0, 0.2815), (0.5, 0.361)])
def test_modes_of_the_density(s: float, mode: float) -> None:
    found = optimize.minimize_scalar(lambda t: -weight_at(t, s=s), bounds=(0.01, 0.99), method="bounded")
    assert found.x == pytest.approx(mode, abs=1e-3)


@pytest.mark.parametrize(("m", "s"), [(-0.5, 1.0), (-0.5, 0.5), (0.0, 1.0), (0.7, 0.8)])
def test_the_density_is_scipys_and_integrates_to_one(m: float, s: float) -> None:
    area, _ = integrate.quad(lambda t: weight_at(t, m=m, s=s), 1e-3, 1 - 1e-3)
    assert area == pytest.approx(1, abs=2e-3)
    for t in (0.05, 0.3, 0.5, 0.9):
        logit = np.log(t / (1 - t))
        assert weight_at(t, m=m, s=s) == pytest.approx(stats.norm.pdf(logit, m, s) / (t * (1 - t)), rel=1e-6)


def test_the_exponential_alone_peaks_where_the_text_says() -> None:
    found = optimize.minimize_scalar(lambda t: -weight_at(t, form="exponential"), bounds=(0.01, 0.99), method="bounded")
    assert found.x == pytest.approx(0.3775, abs=1e-3)
    assert -found.fun == pytest.approx(1)


def test_ends_of_time_are_finite_and_forms_are_checked() -> None:
    assert torch.isfinite(time_weight(torch.tensor([0.0, 1.0]))).all()
    assert torch.equal(time_weight(torch.tensor([0.1, 0.9]), form="constant"), torch.ones(2))
    with pytest.raises(UsageError, match="weighting"):
        time_weight(torch.tensor([0.5]), form="linear")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="above 0"):
        time_weight(torch.tensor([0.5]), s=0)


def test_the_predicted_latent_inverts_the_forward_process() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    generator = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(4, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    timesteps = torch.tensor([0, 300, 700, 999])
    noisy = scheduler.add_noise(latent, noise, timesteps)
    alphas = scheduler.alphas_cumprod.double()[timesteps]
    assert (predicted_latent(noisy, noise, alphas) - latent).abs().max() < 1e-5


# Regions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def face(orl_root: Path) -> tuple[Tensor, Tensor]:
    """A real face at 128 px, (1, 3, 128, 128), and its five points."""
    pixels = torch.from_numpy(read_image(orl_root / "s1/1.pgm")).permute(2, 0, 1)[None].float()
    picture = torch.nn.functional.interpolate(pixels, (128, 128), mode="bicubic", antialias=True).clamp(0, 255)
    points = main_face_points(np.ascontiguousarray(picture[0].permute(1, 2, 0).round().byte().numpy()))
    assert points is not None
    return picture / 255, torch.from_numpy(np.asarray(points)).float()[None]


def test_boxes_stand_around_eyes_and_mouth(face: tuple[Tensor, Tensor]) -> None:
    _, points = face
    boxes = region_boxes(points)
    assert boxes["eyes"].shape == (1, 2, 4)
    assert boxes["mouth"].shape == (1, 1, 4)
    centres = (boxes["eyes"][..., :2] + boxes["eyes"][..., 2:]) / 2 - 0.5
    assert torch.allclose(centres, points[:, :2], atol=1e-4)
    sides = boxes["mouth"][..., 2:] - boxes["mouth"][..., :2]
    distance = float((points[0, 1] - points[0, 0]).norm())
    assert torch.allclose(sides, torch.full_like(sides, BOX_SIDES["mouth"] * distance), atol=1e-3)
    for corner in points[0, 3:5]:
        assert (corner > boxes["mouth"][0, 0, :2]).all()
        assert (corner < boxes["mouth"][0, 0, 2:]).all()


def test_at_512_pixels_the_boxes_are_gfpgans() -> None:
    points = torch.tensor([FFHQ_512.points])
    boxes = region_boxes(points)
    for region, side in (("eyes", 112.0), ("mouth", 120.0)):
        sides = boxes[region][..., 2:] - boxes[region][..., :2]  # type: ignore[index]
        assert torch.allclose(sides, torch.full_like(sides, side), atol=0.1)


def test_a_flip_changes_sides_and_leaves_the_points_alone(face: tuple[Tensor, Tensor]) -> None:
    picture, points = face
    before = points.clone()
    mirrored = flipped(points, 128)
    assert torch.equal(points, before)
    assert torch.allclose(flipped(mirrored, 128), points, atol=1e-4)
    assert mirrored[0, 0, 0] < mirrored[0, 1, 0], "the first eye is the one on the left"
    # The left eye of the mirrored picture is the mirrored right eye.
    cut = crop_regions(picture, region_boxes(points)["eyes"], factor=1)
    cut_mirrored = crop_regions(picture.flip(-1), region_boxes(mirrored)["eyes"], factor=1)
    assert torch.allclose(cut_mirrored[0], cut[1].flip(-1), atol=1e-4)
    assert torch.allclose(cut_mirrored[1], cut[0].flip(-1), atol=1e-4)
    assert not torch.allclose(cut_mirrored[0], cut[0].flip(-1), atol=1e-2)


def test_regions_of_latents_are_those_of_the_picture(face: tuple[Tensor, Tensor]) -> None:
    """A patch of the picture averaged over 8 x 8 pixels shows what the patch of the picture shows."""
    picture, points = face
    boxes = region_boxes(points)["mouth"]
    latents = torch.nn.functional.avg_pool2d(picture, 8)
    small = crop_regions(latents, boxes, factor=8, patch=4)
    large = torch.nn.functional.avg_pool2d(crop_regions(picture, boxes, factor=1, patch=32), 8)
    assert (small - large).abs().mean() < 0.05
    shifted = crop_regions(latents, boxes + 16, factor=8, patch=4)
    assert (shifted - large).abs().mean() > 2 * (small - large).abs().mean()


# The loss -----------------------------------------------------------------------------------------


@pytest.fixture
def discriminator() -> RegionDiscriminator:
    torch.manual_seed(0)
    return RegionDiscriminator(width=8)


def test_gram_by_hand() -> None:
    features = torch.randn(2, 3, 4, 5)
    by_hand = torch.einsum("bchw,bdhw->bcd", features, features) / (3 * 4 * 5)
    assert torch.allclose(gram(features), by_hand, atol=1e-6)


def test_terms_are_the_papers(discriminator: RegionDiscriminator) -> None:
    predicted, real, weight = torch.randn(4, 4, 16, 16), torch.randn(4, 4, 16, 16), torch.tensor([0.5, 2.0])
    terms = generator_terms(discriminator, predicted, real, weight)
    with torch.no_grad():
        logits, features = discriminator(predicted)
        _, wanted = discriminator(real)
    assert logits.shape == (4, 1, 4, 4)
    by_picture = torch.log(1 - torch.sigmoid(logits)).mean((1, 2, 3)).view(2, 2).mean(1)
    assert float(terms.discriminative) == pytest.approx(float((weight * by_picture).mean()), rel=1e-5)
    style = 0.5 * (gram(features[0]) - gram(wanted[0])).abs().mean((1, 2))
    style = style + (gram(features[1]) - gram(wanted[1])).abs().mean((1, 2))
    assert float(terms.style) == pytest.approx(float((weight * style.view(2, 2).mean(1)).mean()), rel=1e-5)
    assert float(generator_terms(discriminator, real, real, weight).style) == 0


@pytest.mark.parametrize("saturating", [True, False])
def test_the_generator_moves_towards_real_and_leaves_the_discriminator(
    discriminator: RegionDiscriminator, saturating: bool
) -> None:
    predicted = torch.randn(2, 4, 16, 16, requires_grad=True)
    terms = generator_terms(discriminator, predicted, torch.randn(2, 4, 16, 16), torch.ones(2), saturating)
    terms.discriminative.backward()
    assert predicted.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.parameters())
    with torch.no_grad():
        before, _ = discriminator(predicted)
        after, _ = discriminator(predicted - 10 * predicted.grad)
    assert after.mean() > before.mean()


def test_a_discriminator_learns_to_tell(discriminator: RegionDiscriminator) -> None:
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3)
    weight = torch.ones(8)
    for _ in range(60):
        real = torch.randn(8, 4, 16, 16, generator=generator)
        predicted = torch.nn.functional.avg_pool2d(torch.randn(8, 4, 18, 18, generator=generator), 3, 1)
        loss = discriminator_loss(discriminator, predicted.requires_grad_(), real, weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert predicted.grad is None
    assert float(loss) < 0.5 < float(torch.tensor(2.0).log() * 2)


def test_the_facial_loss_is_the_sum_over_eyes_and_mouth(face: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    _, points = face
    loss = FacialLoss(width=8, discriminative=0.3, style=2.0)
    points, t = points.expand(3, -1, -1), torch.tensor([0.1, 0.3, 0.9])
    predicted, real = torch.randn(3, 4, 16, 16, requires_grad=True), torch.randn(3, 4, 16, 16)
    total, judged, terms = loss(predicted, real, points, t)
    assert set(terms) == {"eyes/discriminative", "eyes/style", "mouth/discriminative", "mouth/style"}
    by_hand = sum(0.3 * terms[f"{name}/discriminative"] + 2.0 * terms[f"{name}/style"] for name in ("eyes", "mouth"))
    assert float(total) == pytest.approx(float(by_hand), rel=1e-5)
    total.backward()
    # What is outside of the regions is not looked at.
    assert predicted.grad is not None
    assert not predicted.grad[..., -1].any()
    assert predicted.grad.any()
    assert all(parameter.grad is None for parameter in loss.parameters())
    before = predicted.grad.clone()
    judged.backward()
    assert torch.equal(predicted.grad, before), "what the discriminators learn moves nothing else"
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())
    constant = FacialLoss(width=8, weighting="constant")
    constant.load_state_dict(loss.state_dict())
    assert not torch.allclose(constant(predicted, real, points, t)[2]["eyes/style"], terms["eyes/style"])
    with pytest.raises(UsageError, match="weighting"):
        FacialLoss(weighting="linear")  # type: ignore[arg-type]
