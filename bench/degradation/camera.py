"""A camera's way from light to picture and back: colours, Bayer mosaic, sensor noise, demosaicing, response curves.

Every function takes pictures of one size as a batch and is differentiable in them. With `released=True` the
functions repeat the code released with RestorerID and CBDNet, which loses more than it needs to: zeros beyond the
border, curves read off at the nearest table entry, and colours clamped at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import UsageError

BAYER_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
CURVE_ENTRIES = 1024
SMALLEST_MOSAIC = 4
CHANNELS = "RGB"

# Linear sRGB to CIE XYZ, D65.
XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
# CIE XYZ to the raw colours of four cameras: Brooks et al., "Unprocessing Images for Learned Raw Denoising"
# (CVPR 2019), as used by CBDNet's and RestorerID's noise.
CAMERA_FROM_XYZ = (
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)
# Malvar, He & Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images"
# (ICASSP 2004), figure 2, times 8: green at a red or blue site; red or blue at a green site with such neighbours in
# its row (transposed: in its column); red at a blue site and the reverse.
GREEN_AT_COLOUR = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
COLOUR_IN_ROW = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
COLOUR_AT_OTHER = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))


def unprocess(
    pictures: Tensor, cameras: Tensor, inverse_curves: tuple[Tensor, Tensor] | None = None, released: bool = False
) -> Tensor:
    """Turns pictures into raw colours, before the mosaic: inverse response curve, sRGB decoding, XYZ, camera.

    The sRGB decoding follows also after a response curve, as in CBDNet's chain.

    Args:
        pictures: (B, 3, H, W) RGB in [0, 1]; values outside are clamped.
        cameras: (B, 3, 3) from `camera_matrices`.
        inverse_curves: Brightness (ascending) and irradiance, (B, N) each; None leaves the curve out.
        released: Whether curves and clamps are those of the released code.

    Returns:
        (B, 3, H, W) raw colours, about [0, 1]; bright colours may exceed 1 unless `released`.
    """
    brightness = pictures.clamp(0, 1)
    if inverse_curves is not None:
        brightness = look_up(brightness, *inverse_curves, interpolate=not released)
    raw = mix_channels(mix_channels(srgb_decode(brightness), _constant(XYZ_FROM_RGB, pictures)), cameras)
    return raw.clamp(0, 1) if released else raw


def process(
    raw: Tensor, cameras: Tensor, curves: tuple[Tensor, Tensor] | None = None, released: bool = False
) -> Tensor:
    """Turns demosaiced raw colours into pictures: XYZ, linear RGB, sRGB encoding, response curve.

    Args:
        raw: (B, 3, H, W) raw colours with white balance applied.
        cameras: (B, 3, 3) as given to `unprocess`.
        curves: Irradiance (ascending) and brightness, (B, N) each; None leaves the curve out.
        released: Whether curves and clamps are those of the released code.

    Returns:
        (B, 3, H, W) RGB in [0, 1].
    """
    xyz = mix_channels(raw, _inverse(cameras))
    if released:
        xyz = xyz.clamp(0, 1)
    linear = mix_channels(xyz, _inverse(_constant(XYZ_FROM_RGB, raw)))
    encoded = srgb_encode(linear.clamp(0, 1))
    return encoded if curves is None else look_up(encoded, *curves, interpolate=not released)


def camera_matrices(mixes: Tensor) -> Tensor:
    """XYZ to raw colours of random cameras: mixed from four real ones, each row divided by its sum.

    Args:
        mixes: (B, 4) weights of the four cameras, at least 0; they need not sum to 1.

    Returns:
        (B, 3, 3).
    """
    mixed = torch.einsum("bk,kij->bij", mixes / mixes.sum(1, keepdim=True), _constant(CAMERA_FROM_XYZ, mixes))
    return mixed / mixed.sum(2, keepdim=True)


def mix_channels(pictures: Tensor, matrices: Tensor) -> Tensor:
    """Multiplies each pixel of (B, 3, H, W) with a matrix, (3, 3) or (B, 3, 3)."""
    return (matrices @ pictures.flatten(2)).unflatten(2, pictures.shape[2:])


def srgb_decode(values: Tensor) -> Tensor:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(values <= 0.04045, values / 12.92, ((values.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def srgb_encode(values: Tensor) -> Tensor:
    """Values in sRGB of linear light in [0, 1] (IEC 61966-2-1)."""
    threshold = 0.0031308
    return torch.where(values <= threshold, values * 12.92, 1.055 * values.clamp(min=threshold) ** (1 / 2.4) - 0.055)


def look_up(values: Tensor, inputs: Tensor, outputs: Tensor, interpolate: bool = True) -> Tensor:
    """Reads tabulated curves off.

    Args:
        values: (B, ...) within the range of `inputs`.
        inputs: (B, N) or (N,), strictly ascending.
        outputs: Of the same shape.
        interpolate: Linear interpolation; False takes the output of the nearest input (the lower of two equally
            near ones), with the gradient of the interpolation.
    """
    inputs, outputs = (table.expand(len(values), -1).contiguous() for table in (inputs, outputs))
    flat = values.flatten(1)
    upper = torch.searchsorted(inputs, flat.detach().contiguous()).clamp(1, inputs.shape[1] - 1)
    lower = upper - 1
    start, end = inputs.gather(1, lower), inputs.gather(1, upper)
    low, high = outputs.gather(1, lower), outputs.gather(1, upper)
    found = low + (flat - start) * ((high - low) / (end - start))
    if not interpolate:
        nearest = torch.where(flat - start < end - flat, low, high)
        found = nearest + (found - found.detach()) if found.requires_grad else nearest
    return found.unflatten(1, values.shape[1:])


def gamma_polynomial_curves(exponents: Tensor, released: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tables of response curves f(x) = x^(a0 + a1 x) and of their inverses.

    The generalised gamma curve model of Ng, Chang & Tsui, "Using geometry invariants for camera response function
    estimation" (CVPR 2007). The entries are dense near black, where the curves are steep.

    Args:
        exponents: (B, 2) a0 and a1. Curves rise everywhere if a0 > 0, a0 + a1 > 0 and a0 > 0.14 a1.
        released: Tables of evenly spaced irradiance, and brightness for the inverse, as in the released code.

    Returns:
        Irradiance and brightness for `process`; brightness and irradiance for `unprocess`; (B, 1024) each. Unless
        `released`, interpolating the second pair undoes the first exactly.
    """
    even = torch.linspace(0, 1, CURVE_ENTRIES, dtype=exponents.dtype, device=exponents.device)
    irradiance = (even if released else even**3).expand(len(exponents), -1).contiguous()
    brightness = irradiance ** (exponents[:, :1] + exponents[:, 1:] * irradiance)
    if not released:
        return irradiance, brightness, brightness, irradiance
    levels = even.expand(len(exponents), -1).contiguous()
    return irradiance, brightness, levels, look_up(levels, brightness, irradiance)


def site_channels(pattern: str, height: int, width: int) -> Tensor:
    """Which channel (0 to 2) each site of a mosaic records, (H, W) int64.

    Raises:
        UsageError: `pattern` is none of `BAYER_PATTERNS`.
    """
    if pattern not in BAYER_PATTERNS:
        raise UsageError(f"{pattern!r} is no Bayer pattern. Choose from {', '.join(BAYER_PATTERNS)}.")
    tile = torch.tensor([CHANNELS.index(letter) for letter in pattern]).reshape(2, 2)
    return tile.repeat(-(-height // 2), -(-width // 2))[:height, :width]


def mosaic(raw: Tensor, pattern: str) -> Tensor:
    """Keeps of each pixel the one colour that its site records: (B, 3, H, W) to (B, 1, H, W)."""
    channels = site_channels(pattern, *raw.shape[2:]).to(raw.device)
    return raw.gather(1, channels.expand(len(raw), 1, -1, -1))


def site_gains(gains: Tensor, pattern: str, height: int, width: int) -> Tensor:
    """Gain of each site of a mosaic, (B, 1, H, W), from gains of red and blue, (B, 2)."""
    red, blue = gains.unbind(1)
    by_channel = torch.stack([red, torch.ones_like(red), blue], 1)
    return by_channel[:, site_channels(pattern, height, width).to(gains.device)].unsqueeze(1)


def add_sensor_noise(sites: Tensor, normal: Tensor, shot: Tensor, read: Tensor, released: bool = False) -> Tensor:
    """Adds shot and read noise of variance `shot * I + read` to the sites I of mosaics.

    The sensor saturates: noise takes no site below 0 or above 1. Sites out of this range without noise, of colours
    that the camera cannot record, are taken no further out, and none is clamped for itself unless `released`.

    Args:
        sites: (B, 1, H, W).
        normal: Standard normal field of the same shape.
        shot: (B,) variance per unit of light.
        read: (B,) variance in the dark.
        released: Whether to clamp all sites to [0, 1].
    """
    shot, read = (strength.reshape(-1, 1, 1, 1) for strength in (shot, read))
    # The square root has no gradient at 0.
    variance = (sites.clamp(min=0) * shot + read).clamp(min=1e-20)
    noisy = sites + normal * variance.sqrt()
    if released:
        return noisy.clamp(0, 1)
    clean = sites.detach()
    return torch.minimum(torch.maximum(noisy, clean.clamp(max=0)), clean.clamp(min=1))


def demosaic(sites: Tensor, pattern: str, zero_border: bool = False) -> Tensor:
    """Malvar's linear demosaicing: (B, 1, H, W) to (B, 3, H, W).

    Args:
        sites: Mosaics of one Bayer pattern.
        pattern: One of `BAYER_PATTERNS`.
        zero_border: Whether zeros lie beyond the border, as in the released code; else the mosaic is mirrored at its
            outermost sites, which keeps the pattern.

    Raises:
        UsageError: Unknown pattern, or a side below 4 px.
    """
    height, width = sites.shape[2:]
    if min(height, width) < SMALLEST_MOSAIC:
        raise UsageError(
            f"A picture of {height}x{width} px is too small to be demosaiced; {SMALLEST_MOSAIC} px at least."
        )
    # One more row and column complete the last tile of an odd side.
    margins = (2, 2 + width % 2, 2, 2 + height % 2)
    padded = F.pad(sites, margins) if zero_border else F.pad(sites, margins, mode="reflect")
    tiles = F.conv2d(padded, _tile_filters(pattern).to(sites), stride=2)
    return F.pixel_shuffle(tiles, 2)[..., :height, :width]


def _tile_filters(pattern: str) -> Tensor:
    """Filters (12, 1, 6, 6) that make the three channels at the four sites of a tile from what lies around it."""
    tile = site_channels(pattern, 2, 2)
    in_row = np.array(COLOUR_IN_ROW)
    filters = np.zeros((3, 2, 2, 6, 6))
    for row in range(2):
        for column in range(2):
            own, beside = int(tile[row, column]), int(tile[row, 1 - column])
            for channel in range(3):
                kernel: Sequence[Sequence[float]] | np.ndarray
                if channel == own:
                    kernel = np.zeros((5, 5))
                    kernel[2, 2] = 8
                elif channel == 1:
                    kernel = GREEN_AT_COLOUR
                elif own == 1:
                    kernel = in_row if channel == beside else in_row.T
                else:
                    kernel = COLOUR_AT_OTHER
                filters[channel, row, column, row : row + 5, column : column + 5] = kernel
    return torch.from_numpy(filters.reshape(12, 1, 6, 6) / 8)


def _constant(numbers: Sequence[object], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).to(like)


def _inverse(matrices: Tensor) -> Tensor:
    return torch.linalg.inv(matrices.double().cpu()).to(matrices)
