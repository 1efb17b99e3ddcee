from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench.errors import MissingError
from methods.blocks.stylegan2 import StyleGAN2Discriminator
from methods.refine import losses


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def feature_distance() -> losses.FeatureDistance:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, stride=2, padding=1)

    def extract(image):
        fine = first(image)
        return [fine, second(fine.relu())]

    return losses.FeatureDistance(extract, weights=[0.5, 2.0])


def test_spatial_minimum_takes_the_minimum_at_every_pixel(pictures):
    restored, truth, reference = pictures
    a, b, c = (picture.numpy() for picture in pictures)
    expected = np.minimum(np.abs(a - b).mean(1), np.abs(a - c).mean(1)).mean()
    actual = losses.spatial_minimum_loss(restored, truth, reference)
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)
    assert float(actual) < min(np.abs(a - b).mean(), np.abs(a - c).mean())


def test_spatial_minimum_is_never_more_than_either_part(pictures, feature_distance):
    restored, truth, reference = pictures
    for distance in (losses.absolute_distance, feature_distance):
        value = losses.spatial_minimum_loss(restored, truth, reference, distance)
        assert value <= distance(restored, truth).mean()
        assert value <= distance(restored, reference).mean()


def test_only_the_truth_counts_where_the_reference_holds_no_picture(pictures):
    restored, truth, _ = pictures
    validity = torch.ones(2, 1, 16, 16)
    validity[..., :8] = 0
    value = losses.spatial_minimum_loss(restored, truth, restored, validity=validity)
    expected = losses.absolute_distance(restored, truth)[..., :8].sum() / validity.numel()
    torch.testing.assert_close(value, expected)


def test_copying_the_reference_costs_cycle_consistency_only(pictures):
    _, truth, reference = pictures

    def degrade(image):
        return nn.functional.avg_pool2d(image, 4)

    assert losses.spatial_minimum_loss(reference, truth, reference) == 0
    assert losses.cycle_consistency_loss(degrade(reference), degrade(truth)) > 0.05
    assert losses.cycle_consistency_loss(degrade(truth), degrade(truth)) == 0


def test_gradient_of_the_minimum_pulls_towards_the_nearer_picture():
    restored = torch.zeros(1, 3, 1, 2, requires_grad=True)
    truth = torch.tensor([0.1, 1.0]).expand(1, 3, 1, 2)
    reference = torch.tensor([-1.0, -0.1]).expand(1, 3, 1, 2)
    losses.spatial_minimum_loss(restored, truth, reference).backward()
    assert restored.grad is not None
    assert (restored.grad[..., 0] < 0).all() and (restored.grad[..., 1] > 0).all()


def test_feature_distance_against_numpy(pictures, feature_distance):
    a, b, _ = pictures
    layers = [
        (left.detach().double().numpy(), right.detach().double().numpy())
        for left, right in zip(
            feature_distance.feature_extractor(a), feature_distance.feature_extractor(b), strict=True
        )
    ]
    maps = []
    for left, right in layers:
        unit_left = left / np.sqrt((left**2).sum(1, keepdims=True))
        unit_right = right / np.sqrt((right**2).sum(1, keepdims=True))
        maps.append(((unit_left - unit_right) ** 2).sum(1))
    actual = feature_distance(a, b)
    assert actual.shape == (2, 1, 16, 16)
    coarse = torch.nn.functional.interpolate(torch.from_numpy(maps[1])[:, None], size=(16, 16), mode="bilinear")
    expected = 0.5 * torch.from_numpy(maps[0])[:, None] + 2.0 * coarse
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    assert feature_distance(a, a).abs().max() == 0


def test_feature_distance_has_finite_gradients_at_zero_features():
    distance = losses.FeatureDistance(lambda image: [image.relu()])
    image = torch.full((1, 3, 4, 4), -1.0, requires_grad=True)
    distance(image, torch.ones(1, 3, 4, 4)).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_shared_features_change_nothing(pictures, feature_distance):
    a, b, c = pictures
    combined = losses.WeightedDistance([(0.3, losses.absolute_distance), (1.5, feature_distance)])
    together = combined.to_many(a, [b, c])
    for other, value in zip((b, c), together, strict=True):
        alone = 0.3 * losses.absolute_distance(a, other) + 1.5 * feature_distance(a, other)
        torch.testing.assert_close(value, alone)


def test_wrong_number_of_layer_weights(pictures):
    distance = losses.FeatureDistance(lambda image: [image, image], weights=[1.0])
    with pytest.raises(ValueError, match="1 weights for 2 layers"):
        distance(pictures[0], pictures[1])


def test_identity_loss_against_numpy():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 8))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    actual = losses.identity_loss(torch.from_numpy(a), torch.from_numpy(b))
    assert float(actual) == pytest.approx(1 - cosine.mean())
    assert float(losses.identity_loss(torch.from_numpy(a), torch.from_numpy(3 * a))) == pytest.approx(0, abs=1e-12)


def test_adversarial_losses_against_numpy():
    real, fake = np.random.default_rng(0).normal(size=(2, 6, 1)) * 3
    generator = losses.adversarial_generator_loss(torch.from_numpy(fake))
    discriminator = losses.adversarial_discriminator_loss(torch.from_numpy(real), torch.from_numpy(fake))
    assert float(generator) == pytest.approx(np.log1p(np.exp(-fake)).mean())
    assert float(discriminator) == pytest.approx(np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean())


def test_r1_of_a_quadratic_is_known():
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = images.square().flatten(1).sum(1, keepdim=True)
    expected = 4 * images.detach().square().flatten(1).sum(1).mean()
    torch.testing.assert_close(losses.r1_penalty(logits, images), expected)


def test_r1_differentiates_twice_through_the_discriminator():
    torch.manual_seed(0)
    network = StyleGAN2Discriminator(16, narrow=1 / 64).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    weight = network.conv_body[1].conv2[1].weight

    def penalty():
        return losses.r1_penalty(network(images), images)

    (gradient,) = torch.autograd.grad(penalty(), weight)
    step = torch.zeros_like(weight)
    step.view(-1)[7] = 1e-5
    with torch.no_grad():
        weight += step
    up = penalty().item()
    with torch.no_grad():
        weight -= 2 * step
    down = penalty().item()
    assert gradient.flatten()[7].item() == pytest.approx((up - down) / 2e-5, rel=1e-4)


def test_lpips_without_the_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingError, match=r"pip install lpips.*FeatureDistance"):
        losses.lpips_distance()


def test_lpips_without_backbone_weights_says_what_to_do(monkeypatch, tmp_path):
    lpips = pytest.importorskip("lpips")

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(lpips, "LPIPS", refuse)
    with pytest.raises(MissingError, match=r"vgg.*no route to host.*FeatureDistance"):
        losses.lpips_distance("vgg")
