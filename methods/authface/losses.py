"""AuthFace's time-aware latent facial feature loss, each part usable alone.

Source: AuthFace (Liang et al., ACM MM 2025), Eqs. 2-4. Two printed equations are not followed: Eq. 2 writes a product
of betas where DDIM (Song et al., ICLR 2021, Eq. 12) has one of alphas, and the text's logit is symmetric about a half,
which no logit is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from bench.data.augmentation import LEFT_RIGHT
from bench.errors import UsageError, unknown_name

Weighting = Literal["logit_normal", "exponential", "constant"]
Region = Literal["eyes", "mouth"]
REGIONS: tuple[Region, ...] = get_args(Region)
#: Eq. 3 is infinite at both ends of time.
END = 1e-3
#: Distance of the eyes in FFHQ's alignment to 512 px.
EYE_DISTANCE = 125.93
#: Sides of the regions in distances of the eyes: those of GFP-GAN (Wang et al., CVPR 2021) at 512 px, which enlarges
#: its boxes around the eyes by 1.4.
BOX_SIDES: Mapping[Region, float] = {"eyes": 80 * 1.4 / EYE_DISTANCE, "mouth": 120 / EYE_DISTANCE}
#: Sides of the patches that the discriminators read, in latent pixels.
PATCH = 16


# Time ---------------------------------------------------------------------------------------------


def time_weight(t: Tensor, m: float = -0.5, s: float = 1.0, form: Weighting = "logit_normal") -> Tensor:
    """Weight of the loss at a time (Eq. 3).

    Args:
        t: Timesteps over the schedule's length, in [0, 1]; moved to at least 1e-3 from both ends.
        m: Location.
        s: Scale, above 0.
        form: `logit_normal`: the density as printed, with the usual logit; its mode for m = -.5 and s = 1 is .2815.
            `exponential`: without the factor 1 / (t (1 - t)), scaled to 1 at its mode, the .37 that the text names.
            `constant`: 1, the paper's ablation.

    Returns:
        Of the shape of `t`.

    Raises:
        UsageError: There is no such form, or the scale is not positive.
    """
    if form not in get_args(Weighting):
        raise unknown_name("weighting of the facial loss", form, get_args(Weighting))
    if s <= 0:
        raise UsageError(f"The scale of the time weight must be above 0, got {s}.")
    if form == "constant":
        return torch.ones_like(t)
    t = t.clamp(END, 1 - END)
    exponential = torch.exp(-(torch.logit(t) - m).square() / (2 * s**2))
    if form == "exponential":
        return exponential
    return exponential / (s * math.sqrt(2 * math.pi) * t * (1 - t))


def predicted_latent(z_t: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The clean latent that predicted noise means (Eq. 2 in DDIM's form).

    Args:
        z_t: Noisy latents, (B, C, h, w).
        eps: Predicted noise, (B, C, h, w).
        alphas_cumprod: Product of the alphas up to each latent's timestep, (B,).

    Returns:
        (B, C, h, w).
    """
    alpha = alphas_cumprod.to(z_t).view(-1, *[1] * (z_t.dim() - 1))
    return (z_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()


# Regions ------------------------------------------------------------------------------------------


def inside(points: Tensor, size: int) -> Tensor:
    """Whether eyes and mouth of faces are in the picture, (B,).

    Args:
        points: (B, 5, 2), see `region_boxes`.
        size: Side of the pictures in pixels.
    """
    needed = points[:, [0, 1, 3, 4]]
    return ((needed >= 0) & (needed <= size - 1)).flatten(1).all(1)


def region_boxes(points: Tensor) -> dict[Region, Tensor]:
    """Boxes around eyes and mouth in a picture.

    Args:
        points: Five points of each face, (B, 5, 2), x and y in pixels: the eye on the left of the picture, the other
            one, nose, left and right corner of the mouth. How large a region is follows from how far apart the eyes
            are, so that it suits faces cut out more or less tightly.

    Returns:
        `eyes` (B, 2, 4), left and right of the picture; `mouth` (B, 1, 4); each x1, y1, x2, y2 in pixels, where a
        picture begins at 0 and ends at its size.
    """
    # A point is at a pixel's centre; a box begins and ends at edges.
    distance = (points[:, 1] - points[:, 0]).norm(dim=-1)[:, None, None]
    centres = {"eyes": points[:, :2], "mouth": points[:, 3:5].mean(1, keepdim=True)}
    found: dict[Region, Tensor] = {}
    for region in REGIONS:
        half = BOX_SIDES[region] * distance / 2
        centre = centres[region] + 0.5
        found[region] = torch.cat([centre - half, centre + half], dim=-1)
    return found


def flipped(points: Tensor, size: int) -> Tensor:
    """Points of mirrored pictures, a new tensor: left and right change places too.

    Args:
        points: (B, 5, 2), see `region_boxes`.
        size: Width of the pictures in pixels.
    """
    mirrored = points * points.new_tensor([-1, 1]) + points.new_tensor([size - 1, 0])
    return mirrored[:, LEFT_RIGHT]


def crop_regions(latents: Tensor, boxes: Tensor, factor: int = 8, patch: int = PATCH) -> Tensor:
    """Cuts regions out of latents.

    Args:
        latents: (B, C, h, w).
        boxes: (B, N, 4) in pixels of the pictures, see `region_boxes`.
        factor: Pixels per latent pixel along a side.
        patch: Side of the results.

    Returns:
        (B N, C, patch, patch), the regions of a picture one after the other; differentiable in `latents`.
    """
    patches: Tensor = roi_align(
        latents, list((boxes / factor).to(latents).unbind(0)), output_size=patch, sampling_ratio=2, aligned=True
    )
    return patches


# Discriminators -----------------------------------------------------------------------------------


class RegionDiscriminator(nn.Module):
    """Tells latents of real regions from predicted ones, and gives features for the style term.

    The paper does not give its form; this is GFP-GAN's facial component discriminator for latents: five convolutions,
    two of which halve the side, with features after the third and the fifth.

    Args:
        channels: Of the latents.
        width: Channels of the first convolution.
    """

    def __init__(self, channels: int = 4, width: int = 64) -> None:
        super().__init__()
        wide, wider = 2 * width, 4 * width
        self.first = nn.Sequential(_convolution(channels, width), _convolution(width, wide, stride=2))
        self.middle = _convolution(wide, wide)
        self.last = nn.Sequential(_convolution(wide, wider, stride=2), _convolution(wider, wider))
        self.judge = nn.Conv2d(wider, 1, 3, padding=1)

    def forward(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judges.

        Args:
            patches: (B, C, p, p).

        Returns:
            Logits (B, 1, p / 4, p / 4), above 0 for real; and features of two scales.
        """
        shallow = self.middle(self.first(patches))
        deep = self.last(shallow)
        return self.judge(deep), [shallow, deep]


def _convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.LeakyReLU(0.2))


def gram(features: Tensor) -> Tensor:
    """Gram matrices (B, C, C) of features (B, C, h, w), over C h w (Gatys et al., CVPR 2016)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / features[0].numel()


# The loss -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FacialTerms:
    """Terms of Eq. 4 for one region, weighted by time but not yet by lambda.

    Attributes:
        discriminative: One number.
        style: One number.
    """

    discriminative: Tensor
    style: Tensor


def generator_terms(
    discriminator: RegionDiscriminator,
    predicted: Tensor,
    real: Tensor,
    weight: Tensor,
    saturating: bool = True,
    style_scales: Sequence[float] = (0.5, 1.0),
) -> FacialTerms:
    """What the restoration network learns from a region (Eq. 4).

    Args:
        discriminator: Of the region; it takes no gradients here.
        predicted: Patches of predicted latents, (B N, C, p, p).
        real: Patches of the ground truth's latents, of the same shape.
        weight: Time weight of each picture, (B,).
        saturating: log(1 - D) as printed; else -log D, whose gradient does not vanish where D is sure.
        style_scales: Weights of the two scales of features, GFP-GAN's.
    """
    weight = weight.repeat_interleave(len(predicted) // len(weight))
    frozen = [(parameter, parameter.requires_grad) for parameter in discriminator.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    try:
        logits, features = discriminator(predicted)
        with torch.no_grad():
            _, wanted = discriminator(real)
    finally:
        for parameter, before in frozen:
            parameter.requires_grad_(before)
    # log(1 - sigmoid(x)) = -softplus(x); -log sigmoid(x) = softplus(-x).
    judged = (-F.softplus(logits) if saturating else F.softplus(-logits)).mean((1, 2, 3))
    styles = [
        scale * (gram(own) - gram(theirs)).abs().mean((1, 2))
        for scale, own, theirs in zip(style_scales, features, wanted, strict=True)
    ]
    return FacialTerms((weight * judged).mean(), (weight * torch.stack(styles).sum(0)).mean())


def discriminator_loss(discriminator: RegionDiscriminator, predicted: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """What a discriminator learns: real patches above 0, predicted ones below, weighted by time; one number.

    Arguments as of `generator_terms`; `predicted` takes no gradients.
    """
    weight = weight.repeat_interleave(len(predicted) // len(weight))
    real_logits, _ = discriminator(real.detach())
    logits, _ = discriminator(predicted.detach())
    loss = F.softplus(-real_logits).mean((1, 2, 3)) + F.softplus(logits).mean((1, 2, 3))
    return (weight * loss).mean()


class FacialLoss(nn.Module):
    """L_facial of Eq. 4, and what its discriminators learn beside it.

    Args:
        channels: Of the latents.
        width: See `RegionDiscriminator`.
        discriminative: lambda_d, which the paper does not give.
        style: lambda_s, which it does not give either.
        weighting: See `time_weight`.
        m: See `time_weight`.
        s: See `time_weight`.
        saturating: See `generator_terms`.
        patch: Side of the patches that the discriminators read.
    """

    def __init__(
        self,
        channels: int = 4,
        width: int = 64,
        discriminative: float = 0.01,
        style: float = 1.0,
        weighting: Weighting = "logit_normal",
        m: float = -0.5,
        s: float = 1.0,
        saturating: bool = True,
        patch: int = PATCH,
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleDict({region: RegionDiscriminator(channels, width) for region in REGIONS})
        self.discriminative, self.style, self.saturating = discriminative, style, saturating
        self.weighting, self.m, self.s, self.patch = weighting, m, s, patch
        time_weight(torch.zeros(1), m, s, weighting)

    def forward(
        self,
        predicted: Tensor,
        real: Tensor,
        points: Tensor,
        t: Tensor,
        factor: int = 8,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the restoration network learns, and what the discriminators learn of the same regions.

        Args:
            predicted: Predicted clean latents, (B, C, h, w), see `predicted_latent`.
            real: Latents of the ground truth, (B, C, h, w).
            points: Five points of the ground truth, (B, 5, 2), see `region_boxes`.
            t: Timesteps over the schedule's length, (B,).
            factor: Pixels per latent pixel along a side.
            seen: Which pictures show eyes and mouth, (B,), see `inside`; the others weigh nothing. All if not given.

        Returns:
            The network's loss, one number, which moves no discriminator; the discriminators', one number, which moves
            nothing else; and the terms of the first by `region/term`, detached and not yet weighted by lambda.
        """
        weight = time_weight(t, self.m, self.s, self.weighting)
        if seen is not None:
            weight = weight * seen.to(weight)
        network, discriminators = predicted.new_zeros(()), predicted.new_zeros(())
        terms: dict[str, Tensor] = {}
        for region, boxes in region_boxes(points).items():
            discriminator = cast(RegionDiscriminator, self.discriminators[region])
            ours, theirs = (crop_regions(latents, boxes, factor, self.patch) for latents in (predicted, real))
            own = generator_terms(discriminator, ours, theirs, weight, self.saturating)
            network = network + self.discriminative * own.discriminative + self.style * own.style
            discriminators = discriminators + discriminator_loss(discriminator, ours, theirs, weight)
            terms |= {f"{region}/discriminative": own.discriminative.detach(), f"{region}/style": own.style.detach()}
        return network, discriminators, terms
