"""Tiles for images of any size: windows, Gaussian weights, blended sums, tiled VAE passes, padding.

A network trained on squares of 512 pixels sees windows of that size that overlap; what it returns for them is averaged
with weights that fall towards the borders, so that no border of a window shows. Source: Wang et al., "Exploiting
Diffusion Prior for Real-World Image Super-Resolution" (StableSR), IJCV 2024, progressive aggregation sampling:
latent windows of 64 with overlap 32, Gaussian weights of variance 0.01 in coordinates normalised by the window, noise
predictions averaged at every step.

The VAE passes here are ours and not `AutoencoderKL.enable_tiling`, because diffusers' windows start at multiples of
the stride and the last one keeps what is left, which may be a sliver of one latent column decoded without
surroundings (measured in the tests); they are square only; they do not tell the caller which window is being decoded,
which the encoder features of feature wrapping must follow; and they are a state of the model rather than of a call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, get_args

import torch

from bench.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

TilePreset = Literal["symmetric", "released_code"]
T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of a picture or a latent, in its own pixels; hashable, so that conditions can be kept by window."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), by which feature maps of a time-aware encoder are keyed."""
        return self.height, self.width

    def crop(self, picture: Tensor) -> Tensor:
        """View of (..., H, W) inside the window, (..., height, width)."""
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, factor: int) -> Window:
        """The same window in a picture that is `factor` times larger."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut into windows; every length in pixels of what is cut (for sampling: latent pixels).

    Attributes:
        tile: Side of a window. A picture smaller than that in one direction has windows of its own length there.
        overlap: Least number of pixels that neighbours share.
        preset: `symmetric`: windows lie at even distances. `released_code`, as in StableSR's release: they lie at
            multiples of tile - overlap, the last one is moved back to end at the border, and vertically the centre of
            the weights is height / 2 instead of (height - 1) / 2. A window moved back by a few pixels lets the
            border of its neighbour, which saw no surroundings, show near the picture's border.
        variance: Of the Gaussian, in coordinates normalised by the window's length.
        batch: Windows given to the network in one call (times images, times branches of guidance).
    """

    tile: int = 64
    overlap: int = 32
    preset: TilePreset = "symmetric"
    variance: float = 0.01
    batch: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise UsageError(
                f"Tiles of {self.tile} cannot overlap by {self.overlap}: the overlap must be at least 0 and less than "
                "the tile."
            )
        if self.batch < 1:
            raise UsageError(f"{self.batch} tiles per call: at least 1 is needed.")
        if self.variance <= 0:
            raise UsageError(f"A weight variance of {self.variance}: it must be positive.")
        if self.preset not in get_args(TilePreset):
            raise unknown_name("preset of tiles", self.preset, get_args(TilePreset))

    def windows(self, height: int, width: int) -> tuple[Window, ...]:
        """Windows that cover (height, width), row by row, all of the same size."""
        tall, wide = min(self.tile, height), min(self.tile, width)
        return tuple(Window(top, left, tall, wide) for top in self._starts(height) for left in self._starts(width))

    def _starts(self, length: int) -> list[int]:
        """First pixel of each tile along one direction; the last tile ends at the border."""
        if length < 1:
            raise UsageError(f"A picture with a side of {length} pixels has no tiles.")
        spare, stride = length - self.tile, self.tile - self.overlap
        if spare <= 0:
            return [0]
        if self.preset == "released_code":
            return [*range(0, spare, stride), spare]
        gaps = math.ceil(spare / stride)
        return [round(index * spare / gaps) for index in range(gaps + 1)]


def gaussian_weights(
    height: int,
    width: int,
    variance: float = 0.01,
    preset: TilePreset = "symmetric",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weights of a window's pixels, (height, width), positive, 1 where both centres fall on a pixel.

    exp(-((x - centre) / length)² / (2 variance)) in both directions. The centre is (length - 1) / 2; with
    `released_code` the vertical one is height / 2. The release also divides by sqrt(2 pi variance), which an average
    does not see.

    Args:
        height: Rows of the window.
        width: Columns of the window.
        variance: Variance in coordinates normalised by the window's length.
        preset: Where the vertical centre lies.
        dtype: Of the result; float32 if not given.
    """

    def line(length: int, centre: float) -> Tensor:
        offsets = (torch.arange(length, dtype=torch.float64) - centre) / length
        return torch.exp(-offsets.square() / (2 * variance))

    rows = line(height, height / 2 if preset == "released_code" else (height - 1) / 2)
    return torch.outer(rows, line(width, (width - 1) / 2)).to(dtype or torch.float32)


class Blend:
    """Weighted average of windows of a picture: `add` each window's content, then take `result`.

    Sums are kept in float32 whatever the content's type, on the device of what is added.

    Args:
        height: Rows of the whole.
        width: Columns of the whole.
        windows: All windows that will be added, each once.
        weights: (h, w) of one window, see `gaussian_weights`.
    """

    def __init__(self, height: int, width: int, windows: Sequence[Window], weights: Tensor) -> None:
        self._size = (height, width)
        self._weights = weights.float()
        total = torch.zeros(height, width, device=weights.device)
        for window in windows:
            window.crop(total).add_(self._weights)
        self._shares = {window: self._weights / window.crop(total) for window in windows}
        self._sum: Tensor | None = None

    def add(self, window: Window, content: Tensor) -> None:
        """Adds (B, C, h, w) at its place."""
        if self._sum is None:
            self._sum = torch.zeros(*content.shape[:2], *self._size, device=content.device)
        window.crop(self._sum).addcmul_(content.float(), self._shares[window])

    def result(self) -> Tensor:
        """The average (B, C, H, W), float32; the next `add` begins a new one."""
        if self._sum is None:
            raise UsageError("Nothing was added to a blend of tiles.")
        blended, self._sum = self._sum, None
        return blended


def make_blend(tiling: Tiling, height: int, width: int, device: torch.device | str = "cpu", factor: int = 1) -> Blend:
    """Blend for the windows of (height, width), each and the whole enlarged `factor` times."""
    windows = [window.scaled(factor) for window in tiling.windows(height, width)]
    weights = gaussian_weights(windows[0].height, windows[0].width, tiling.variance, tiling.preset)
    return Blend(height * factor, width * factor, windows, weights.to(device))


class WindowCache(Generic[T]):
    """Keeps what was computed for a window, so that a condition is computed once and not at every step.

    Args:
        make: Condition of one window, for instance the VAE's latent of the LQ picture inside it.
    """

    def __init__(self, make: Callable[[Window], T]) -> None:
        self._make = make
        self._kept: dict[Hashable, T] = {}

    def __call__(self, window: Window) -> T:
        """The condition of `window`, computed at its first use."""
        if window not in self._kept:
            self._kept[window] = self._make(window)
        return self._kept[window]

    def __len__(self) -> int:
        return len(self._kept)


def tiled_decode(
    decode: Callable[[Tensor, Window], Tensor], latent: Tensor, tiling: Tiling | None = None, factor: int = 8
) -> Tensor:
    """Decodes a latent of any size window by window.

    Args:
        decode: Gives the picture (B, 3, h * factor, w * factor) of a latent (B, C, h, w); the window is told in latent
            pixels (for features of the encoder that belong to it). May return another number of channels.
        latent: (B, C, H, W). Called once with the whole where it fits into a tile: the result is then `decode`'s own.
        tiling: In latent pixels.
        factor: Pixels per latent pixel.

    Returns:
        (B, 3, H * factor, W * factor); float32 where there is more than one window.
    """
    tiling = tiling or Tiling()
    height, width = latent.shape[-2:]
    windows = tiling.windows(height, width)
    if len(windows) == 1:
        return decode(latent, windows[0])
    blend = make_blend(tiling, height, width, latent.device, factor)
    for window in windows:
        blend.add(window.scaled(factor), decode(window.crop(latent), window))
    return blend.result()


def tiled_encode(
    encode: Callable[[Tensor, Window], Tensor], image: Tensor, tiling: Tiling | None = None, factor: int = 8
) -> Tensor:
    """Encodes an image of any size window by window.

    Args:
        encode: Gives what is to be blended, (B, C, h, w), from (B, 3, h * factor, w * factor): the mean of the
            posterior, or its parameters. A sample must be drawn after blending, from blended parameters: an average
            of independent samples has too little variance. The window is told in latent pixels.
        image: (B, 3, H, W), sides multiples of `factor` (see `pad_to_multiple`).
        tiling: In latent pixels.
        factor: Pixels per latent pixel.

    Returns:
        (B, C, H / factor, W / factor).

    Raises:
        UsageError: A side is not a multiple of `factor`.
    """
    tiling = tiling or Tiling()
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise UsageError(f"An image of {height}x{width} is no multiple of {factor} pixels: pad it first.")
    windows = tiling.windows(height // factor, width // factor)
    if len(windows) == 1:
        return encode(image, windows[0])
    blend = make_blend(tiling, height // factor, width // factor, image.device)
    for window in windows:
        blend.add(window, encode(window.scaled(factor).crop(image), window))
    return blend.result()


@dataclass(frozen=True)
class Padding:
    """What `pad_to_multiple` added, and how to take it away again."""

    height: int
    width: int

    def cut(self, picture: Tensor, factor: int = 1) -> Tensor:
        """The unpadded part of (..., H, W), of a picture `factor` times as large as the one that was padded."""
        return picture[..., : self.height * factor, : self.width * factor]


def pad_to_multiple(image: Tensor, multiple: int = 64, minimum: int = 0) -> tuple[Tensor, Padding]:
    """Reflects an image over its lower and right border until both sides are multiples.

    64 is what a Stable Diffusion UNet needs: 8 pixels per latent pixel and three halvings. Reflection repeats as
    often as needed, so that an image may be smaller than what is added to it.

    Args:
        image: (B, C, H, W), any range.
        multiple: Of both sides of the result.
        minimum: Least side of the result.

    Returns:
        The padded image, and what cuts a result back to the size of `image`.
    """
    height, width = image.shape[-2:]
    padding = Padding(height, width)
    tall, wide = (math.ceil(max(side, minimum) / multiple) * multiple for side in (height, width))
    if tall != height:
        image = image.index_select(-2, _reflected(height, tall, image.device))
    if wide != width:
        image = image.index_select(-1, _reflected(width, wide, image.device))
    return image, padding


@functools.lru_cache(maxsize=64)
def _reflected_indices(length: int, target: int) -> tuple[int, ...]:
    period = max(1, 2 * (length - 1))
    return tuple(min(i % period, period - i % period) if length > 1 else 0 for i in range(target))


def _reflected(length: int, target: int, device: torch.device) -> Tensor:
    """Indices 0 .. length-1, length-2 .. 0, 1 .. up to `target` of them."""
    return torch.tensor(_reflected_indices(length, target), device=device)
