from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from methods.blocks.stylegan2 import ModulatedConv2d, StyleGAN2Discriminator, fir_upsample, minibatch_deviation
from methods.refine.landmark_network import LandmarkNetwork, landmark_loss
from methods.refine.network import MaskFusion, ReFineNetwork

SIZE = 16


def build(**changes) -> ReFineNetwork:
    torch.manual_seed(0)
    settings = {"narrow": 1 / 64, "style_dim": 12, "mlp_layers_prior": 1, "identity_dim": 6, "from_scratch": True}
    return ReFineNetwork(SIZE, **{**settings, **changes}).double()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "lq": torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64) * 2 - 1,
        "warped_reference": torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64) * 2 - 1,
        "validity": (torch.rand(3, 1, SIZE, SIZE) > 0.3).double(),
        "identity": F.normalize(torch.randn(3, 6, dtype=torch.float64)),
    }


def test_every_trained_parameter_gets_a_gradient(inputs):
    network = build()
    network(**inputs).square().mean().backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen and all("style_mlp" in n or n.startswith("prior.style_conv") for n in frozen)


def test_parameters_fall_into_two_groups():
    network = build()
    prior, new = list(network.prior_parameters()), list(network.new_parameters())
    assert not {id(p) for p in prior} & {id(p) for p in new}
    assert len(prior) + len(new) == sum(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("channels", [6, 7])
def test_invalid_pixels_of_the_reference_are_never_read(inputs, channels):
    network = build(input_channels=channels)
    before = network(**inputs)
    noise = 100 * torch.randn_like(inputs["warped_reference"])
    inputs["warped_reference"] = inputs["warped_reference"] + noise * (1 - inputs["validity"])
    torch.testing.assert_close(network(**inputs), before)


def test_an_absent_reference_is_not_read_and_leaves_its_neighbours_alone(inputs):
    network = build()
    present = torch.tensor([True, False, True])
    before, full = network(**inputs, reference_present=present), network(**inputs)
    torch.testing.assert_close(before[[0, 2]], full[[0, 2]])
    assert (before[1] - full[1]).abs().max() > 1e-3
    for name in ("warped_reference", "identity"):
        inputs[name] = inputs[name].clone()
        inputs[name][1] = 5
    inputs["validity"][1] = 1
    torch.testing.assert_close(network(**inputs, reference_present=present), before)


@pytest.mark.parametrize(("warped", "identity"), list(itertools.product([True, False], repeat=2)))
def test_ablations_cut_exactly_their_input(inputs, warped, identity):
    network = build(use_warped_reference=warped, use_identity=identity)
    before = network(**inputs)
    other = network(**{**inputs, "warped_reference": -inputs["warped_reference"]})
    assert torch.equal(before, other) != warped
    other = network(**{**inputs, "identity": -inputs["identity"]})
    assert torch.equal(before, other) != identity


def test_masks_come_with_the_picture(inputs):
    network = build(from_scratch=False)
    out = network(**inputs, return_masks=True)
    torch.testing.assert_close(out.image, network(**inputs))
    assert [mask.shape[-1] for mask in out.masks] == [4, 8, 8, 16, 16]
    expected = torch.sigmoid(torch.tensor(-2.0, dtype=torch.float64))
    assert all(torch.allclose(mask, expected) for mask in out.masks)


@pytest.mark.parametrize("side", [1, 3])
def test_fusion_interpolates_by_the_convolution_of_both(side):
    torch.manual_seed(0)
    fusion = MaskFusion(5, side=side)
    torch.nn.init.normal_(fusion.conv.weight)
    encoder, decoder = torch.randn(2, 2, 5, 6, 8)
    fused, mask = fusion(encoder, decoder)
    expected = torch.sigmoid(fusion.conv(torch.cat([encoder, decoder], dim=1)))
    torch.testing.assert_close(mask, expected)
    torch.testing.assert_close(fused, expected * encoder + (1 - expected) * decoder)


def test_pictures_do_not_depend_on_their_batch(inputs):
    network = build()
    together = network(**inputs)
    for index in range(3):
        alone = network(**{name: tensor[index : index + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone, together[index : index + 1])


def test_other_input_channels_are_refused():
    with pytest.raises(ValueError, match="input_channels"):
        build(input_channels=4)


@pytest.mark.parametrize("upsample", [False, True])
def test_modulating_activations_equals_modulating_weights(upsample):
    torch.manual_seed(0)
    layer = ModulatedConv2d(4, 6, 3, 5, upsample=upsample).double()
    features, style = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    expected = []
    for picture, scales in zip(features, layer.modulation(style), strict=True):
        weight = layer.scale * layer.weight[0] * scales[None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
        if upsample:
            out = F.conv_transpose2d(picture[None], weight.transpose(0, 1), stride=2)
            kernel = (layer.kernel * 4).expand(6, 1, 4, 4)
            expected.append(F.conv2d(out, kernel.double(), padding=1, groups=6))
        else:
            expected.append(F.conv2d(picture[None], weight, padding=1))
    torch.testing.assert_close(layer(features, style), torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_upsampling_keeps_a_constant():
    kernel = ModulatedConv2d(1, 1, 3, 2, upsample=True).kernel
    doubled = fir_upsample(torch.full((1, 2, 8, 8), 0.7), kernel)
    torch.testing.assert_close(doubled[..., 2:-2, 2:-2], torch.full((1, 2, 12, 12), 0.7))


@pytest.mark.parametrize("batch", [1, 3, 4, 6])
def test_discriminator_takes_any_batch(batch):
    network = StyleGAN2Discriminator(16, narrow=1 / 64)
    logits = network(torch.randn(batch, 3, 16, 16))
    assert logits.shape == (batch, 1) and torch.isfinite(logits).all()


def test_minibatch_deviation_against_its_definition():
    features = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    added = minibatch_deviation(features)[:, 3]
    for first in range(2):
        members = features.numpy()[first::2]
        assert torch.allclose(added[first::2], torch.tensor(members.std(axis=0).mean()), atol=1e-6)


def test_landmark_network_learns_a_dot():
    torch.manual_seed(0)
    network = LandmarkNetwork(points=1, width=8)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def sample(count):
        where = torch.rand(count, 1, 2) * 44 + 10
        distance = (x - where[..., :1, None]).square() + (y - where[..., 1:, None]).square()
        return ((-distance / 18).exp() * 2 - 1).expand(-1, 3, -1, -1), where

    for _ in range(60):
        image, where = sample(8)
        optimiser.zero_grad()
        landmark_loss(network(image), where, side=64).backward()
        optimiser.step()
    image, where = sample(16)
    with torch.no_grad():
        assert (network(image) - where).norm(dim=-1).mean() < 2.5


@torch.no_grad()
def test_landmark_coordinates_follow_the_size_and_not_the_batch():
    torch.manual_seed(0)
    network = LandmarkNetwork().eval()
    large = torch.rand(2, 3, 128, 128)
    small = F.interpolate(large, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close((network(large) + 0.5) / 2, network(small) + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(network(small)[:1], network(small[:1]), atol=1e-4, rtol=0)
    assert network(torch.rand(1, 3, 100, 128)).shape == (1, 5, 2)


def test_landmark_loss_is_zero_only_at_the_truth():
    truth = torch.rand(2, 5, 2) * 128
    assert landmark_loss(truth, truth, 128) == 0
    # Far from the truth: |d| / side - beta / 2 on half of the coordinates.
    away = truth + torch.tensor([12.8, 0.0])
    assert landmark_loss(away, truth, 128).item() == pytest.approx((0.1 - 0.005) / 2, rel=1e-4)


@pytest.mark.parametrize("mask_kernel", [1, 3])
def test_half_precision_runs_near_full_precision(inputs, mask_kernel):
    network = build(mask_kernel=mask_kernel).float()
    inputs = {name: tensor.float() for name, tensor in inputs.items()}
    expected = network(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(**inputs)
    mixed.float().square().mean().backward()
    half = network.bfloat16()(**{name: tensor.bfloat16() for name, tensor in inputs.items()})
    for image in (mixed, half):
        assert (image.float() - expected).abs().mean() < 0.05 * expected.std()


def test_channels_last_changes_nothing(inputs):
    network = build()
    expected = network(**inputs)
    maps = {n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in inputs.items()}
    torch.testing.assert_close(network(**maps), expected)


@torch.no_grad()
def test_paper_size_restores_a_picture():
    torch.manual_seed(0)
    network = ReFineNetwork(512)
    picture = torch.rand(1, 3, 512, 512) * 2 - 1
    image = network(picture, picture, torch.ones(1, 1, 512, 512), F.normalize(torch.randn(1, 512)))
    assert image.shape == picture.shape and torch.isfinite(image).all()
