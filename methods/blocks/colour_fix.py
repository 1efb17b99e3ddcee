"""Colour correction of a restored picture by its LQ input, for whole batches.

A diffusion model restores detail but may shift colours. Two fixes, both from Wang et al., "Exploiting Diffusion Prior
for Real-World Image Super-Resolution" (StableSR), IJCV 2024: channel statistics as in AdaIN (Huang and Belongie, ICCV
2017), and the low frequencies of an à-trous wavelet decomposition. The numbers are those of the released code
(unbiased variance, five levels, replicated borders); how they are reached is our own: the decomposition is linear and
its details telescope, so that high(restored) + low(LQ) = restored + low(LQ - restored), one decomposition instead of
two, and the kernel is separable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from torch.nn import functional as F

from bench.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

ColourFix = Literal["wavelet", "adain", "none"]
COLOUR_FIXES = get_args(ColourFix)
LEVELS = 5
VARIANCE_FLOOR = 1e-5


def colour_fix(
    restored: Tensor,
    colours: Tensor,
    method: ColourFix = "wavelet",
    value_range: tuple[float, float] = (0.0, 1.0),
    levels: int = LEVELS,
) -> Tensor:
    """Gives `restored` the colours of `colours` and clamps the result to the range.

    Args:
        restored: (B, 3, H, W) in `value_range`.
        colours: The LQ image at the same size and range, (B, 3, H, W).
        method: `wavelet`, `adain`, or `none` (only clamps).
        value_range: Lowest and highest value: (0, 1) as images of the benchmark, (-1, 1) as a VAE's.
        levels: Of the wavelet decomposition. Five are meant for 512 px; each less reaches half as far.

    Returns:
        (B, 3, H, W) in `value_range`, the type of `restored`.

    Raises:
        UsageError: Another number of channels than three, sizes that differ, integers, an unknown method.
    """
    low, high = value_range
    if method == "wavelet":
        fixed = wavelet_colour_fix(restored, colours, levels)
    elif method == "adain":
        fixed = adain_colour_fix(restored, colours, floor=VARIANCE_FLOOR * ((high - low) / 2) ** 2)
    elif method == "none":
        fixed = restored
    else:
        raise unknown_name("colour fix", method, COLOUR_FIXES)
    return fixed.clamp(low, high)


def wavelet_colour_fix(restored: Tensor, colours: Tensor, levels: int = LEVELS) -> Tensor:
    """High frequencies of `restored` plus low frequencies of `colours`, not clamped.

    Args:
        restored: (B, 3, H, W), any range.
        colours: (B, 3, H, W), the same range.
        levels: Of the decomposition; five reach 62 pixels to each side.

    Returns:
        (B, 3, H, W), the type of `restored`; half precision is computed in float32.
    """
    _check(restored, colours)
    content, wanted = _widened(restored), _widened(colours)
    return (content + wavelet_low(wanted - content, levels)).to(restored.dtype)


def adain_colour_fix(restored: Tensor, colours: Tensor, floor: float = VARIANCE_FLOOR) -> Tensor:
    """Gives every channel of `restored` the mean and standard deviation of the same channel of `colours`, not clamped.

    Args:
        restored: (B, 3, H, W), any range; at least two pixels (the variance is the unbiased one).
        colours: (B, 3, H, W), the same range.
        floor: Added to both variances. 1e-5 belongs to the range [-1, 1]; `colour_fix` scales it for others.

    Returns:
        (B, 3, H, W), the type of `restored`; half precision is computed in float32.
    """
    _check(restored, colours)
    content = _widened(restored)
    mean, deviation = _statistics(content, floor)
    wanted_mean, wanted_deviation = _statistics(_widened(colours), floor)
    return ((content - mean) / deviation * wanted_deviation + wanted_mean).to(restored.dtype)


def wavelet_decompose(image: Tensor, levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """(high, low) with high + low = image; each (B, C, H, W)."""
    low = wavelet_low(image, levels)
    return image - low, low


def wavelet_low(image: Tensor, levels: int = LEVELS) -> Tensor:
    """Low frequencies of (B, C, H, W): `wavelet_blur` with radius 1, 2, 4, ... one after the other."""
    for level in range(levels):
        image = wavelet_blur(image, 2**level)
    return image


def wavelet_blur(image: Tensor, radius: int) -> Tensor:
    """À-trous blur: kernel outer([1/4, 1/2, 1/4]) with its taps `radius` apart, borders replicated.

    Args:
        image: (B, C, H, W) floating point, any number of channels and any size (also below `radius`).
        radius: Distance between taps in pixels.
    """
    height, width = image.shape[-2:]
    tall = F.pad(image, (0, 0, radius, radius), mode="replicate")
    image = 0.5 * image + 0.25 * (tall[..., :height, :] + tall[..., 2 * radius :, :])
    wide = F.pad(image, (radius, radius, 0, 0), mode="replicate")
    return 0.5 * image + 0.25 * (wide[..., :width] + wide[..., 2 * radius :])


def _widened(image: Tensor) -> Tensor:
    """Half precision as float32."""
    return image.float() if image.dtype.itemsize < 4 else image


def _statistics(image: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel, each (B, C, 1, 1)."""
    mean = image.mean(dim=(-2, -1), keepdim=True)
    return mean, (image.var(dim=(-2, -1), keepdim=True, correction=1) + floor).sqrt()


def _check(restored: Tensor, colours: Tensor) -> None:
    for name, image in (("restored", restored), ("LQ", colours)):
        if image.ndim != 4 or image.shape[1] != 3:
            hint = {1: " Repeat a grey image three times.", 4: " Drop the alpha channel of an RGBA image."}
            channels = image.shape[1] if image.ndim == 4 else None
            raise UsageError(
                f"The colour fix needs RGB batches (B, 3, H, W), but the {name} image is {tuple(image.shape)}."
                + hint.get(channels or 0, "")
            )
        if not image.is_floating_point():
            raise UsageError(f"The colour fix needs floating point images, but the {name} image is {image.dtype}.")
    if restored.shape != colours.shape:
        raise UsageError(
            f"The colour fix compares images of one size, but the restored is {tuple(restored.shape)} and the LQ "
            f"{tuple(colours.shape)}: resize the LQ image to the restored one's size first."
        )
