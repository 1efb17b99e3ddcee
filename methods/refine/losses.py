"""Losses of ReFine, each usable alone.

Source: "Copy or Not? Reference-Based Face Image Restoration with Fine Details" (WACV 2025), Sec. 3.3,
Eq. 2-4. Pictures are (B, 3, H, W) in [-1, 1]. An element-wise distance L(a, b) maps two of them to
(B, 1, H, W); the paper uses LPIPS with its layers brought back to the picture's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ElementwiseDistance(Protocol):
    """A distance at every pixel."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Maps two pictures (B, 3, H, W) to their distance (B, 1, H, W), zero where they agree."""


def absolute_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over channels of |a - b|, (B, 1, H, W)."""
    return (a - b).abs().mean(dim=1, keepdim=True)


class FeatureDistance:
    """LPIPS-like distance on the features of any network (Zhang et al., CVPR 2018, Eq. 1).

    At every layer l, features are brought to unit length over channels and their squared differences
    summed; layers are upsampled bilinearly to the picture and summed with one weight each:
    d(a, b) = sum_l w_l up(sum_c (f_l(a)_c - f_l(b)_c)^2). Gradients reach `a` and `b`; freeze the
    network's own parameters yourself.

    Args:
        feature_extractor: Maps pictures (B, 3, H, W) to a list of features (B, C_l, H_l, W_l).
        weights: One weight per layer; all 1 if absent.
    """

    def __init__(
        self, feature_extractor: Callable[[Tensor], Sequence[Tensor]], weights: Sequence[float] | None = None
    ) -> None:
        self.feature_extractor = feature_extractor
        self.weights = None if weights is None else list(weights)

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of unit length over channels, one tensor per layer."""
        return [
            layer * torch.rsqrt(layer.square().sum(dim=1, keepdim=True) + 1e-10)
            for layer in self.feature_extractor(image)
        ]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Distance (B, 1, *size) between two results of `features`.

        Raises:
            ValueError: The number of layers is not that of the weights.
        """
        weights = self.weights or [1.0] * len(a)
        if len(weights) != len(a):
            raise ValueError(f"{len(weights)} weights for {len(a)} layers")
        parts = []
        for weight, left, right in zip(weights, a, b, strict=True):
            layer = weight * (left - right).square().sum(dim=1, keepdim=True)
            if layer.shape[-2:] != tuple(size):
                layer = F.interpolate(layer, size=tuple(size), mode="bilinear", align_corners=False)
            parts.append(layer)
        return torch.stack(parts).sum(dim=0)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of two pictures (B, 3, H, W), as (B, 1, H, W)."""
        return self.between(self.features(a), self.features(b), a.shape[-2:])

    def to_many(self, a: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        """Distances from `a` to each of `others`; the features of `a` are computed once."""
        features = self.features(a)
        return [self.between(features, self.features(other), a.shape[-2:]) for other in others]


class WeightedDistance:
    """Weighted sum of element-wise distances.

    Args:
        parts: Pairs of weight and distance.
    """

    def __init__(self, parts: Sequence[tuple[float, ElementwiseDistance]]) -> None:
        if not parts:
            raise ValueError("WeightedDistance needs at least one distance")
        self.parts = list(parts)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of two pictures (B, 3, H, W), as (B, 1, H, W)."""
        return self.to_many(a, [b])[0]

    def to_many(self, a: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        """Distances from `a` to each of `others`."""
        columns = [[weight * values for values in distances_to(distance, a, others)] for weight, distance in self.parts]
        return [torch.stack(row).sum(dim=0) for row in zip(*columns, strict=True)]


def distances_to(distance: ElementwiseDistance, a: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    """Distances from `a` to each of `others`, sharing work where the distance knows how to."""
    if isinstance(distance, (FeatureDistance, WeightedDistance)):
        return distance.to_many(a, others)
    return [distance(a, other) for other in others]


def lpips_distance(net: str = "vgg") -> ElementwiseDistance:
    """LPIPS at every pixel (package `lpips`, `spatial=True`), as in the paper.

    Args:
        net: Backbone, "vgg", "alex" or "squeeze".

    Returns:
        A frozen distance on pictures in [-1, 1]; it is an `nn.Module`, so `.to(device)` works.

    Raises:
        MissingError: The package or the backbone's weights are absent.
    """
    from bench.errors import MissingError

    offline = "Offline, use FeatureDistance on a network that is present, or absolute_distance."
    try:
        import lpips
    except ImportError as error:
        raise MissingError(
            f"LPIPS needs the package 'lpips', which is not installed. Install it: pip install lpips. {offline}"
        ) from error
    try:
        module: nn.Module = lpips.LPIPS(net=net, spatial=True, verbose=False)
    except Exception as error:  # the download inside torchvision fails in many ways
        raise MissingError(
            f"The backbone weights of LPIPS ({net}) are neither in torch's cache ({torch.hub.get_dir()}) nor could "
            f"they be downloaded ({error}). Put them there, or connect to the network and try again. {offline}"
        ) from error
    return module.eval().requires_grad_(False)


def spatial_minimum_loss(
    restored: Tensor,
    truth: Tensor,
    warped_reference: Tensor,
    distance: ElementwiseDistance = absolute_distance,
    validity: Tensor | None = None,
) -> Tensor:
    """L_min = E[min(L(x_hat, x), L(x_hat, y_w))], the minimum taken at every pixel (Eq. 2).

    Args:
        restored: x_hat, (B, 3, H, W).
        truth: x, (B, 3, H, W).
        warped_reference: y_w, (B, 3, H, W).
        distance: Element-wise distance L.
        validity: (B, 1, H, W); where it is 0 the reference holds no picture and only the truth counts.

    Returns:
        A scalar, never more than E[L(x_hat, x)], nor (without `validity`) than E[L(x_hat, y_w)].
    """
    to_truth, to_reference = distances_to(distance, restored, [truth, warped_reference])
    nearest = torch.minimum(to_truth, to_reference)
    if validity is not None:
        nearest = torch.where(validity > 0, nearest, to_truth)
    return nearest.mean()


def cycle_consistency_loss(redegraded: Tensor, lq: Tensor, distance: ElementwiseDistance = absolute_distance) -> Tensor:
    """L_cycle = E[L(T(x_hat, theta), x_d)] (Eq. 3).

    Args:
        redegraded: T(x_hat, theta) with the theta that made `lq`, (B, 3, H, W).
        lq: x_d, (B, 3, H, W).
        distance: Element-wise distance L, that of Eq. 2 in the paper.

    Returns:
        A scalar.
    """
    return distance(redegraded, lq).mean()


def identity_loss(embedding_restored: Tensor, embedding_reference: Tensor, present: Tensor | None = None) -> Tensor:
    """L_id = 1 - cos(I(x_hat), I(y)), averaged over pictures (Eq. 4).

    Args:
        embedding_restored: I(x_hat), (B, D), any length.
        embedding_reference: I(y), (B, D), any length.
        present: (B,) bool: pictures that have a reference; the others do not count. All by default.

    Returns:
        A scalar in [0, 2].
    """
    loss = 1 - F.cosine_similarity(embedding_restored, embedding_reference, dim=1)
    if present is None:
        return loss.mean()
    return (loss * present).sum() / present.sum().clamp(min=1)


def adversarial_generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator, E[softplus(-D(x_hat))]."""
    return F.softplus(-fake_logits).mean()


def adversarial_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator, E[softplus(-D(x))] + E[softplus(D(x_hat))]."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """R1 = E[|grad_x D(x)|^2] (Mescheder et al., ICML 2018, Eq. 9), without the factor gamma / 2.

    Args:
        real_logits: D(x), (B, 1), computed from `real_images`.
        real_images: x, (B, 3, H, W), with `requires_grad`.

    Returns:
        A scalar that can be differentiated once more.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()
