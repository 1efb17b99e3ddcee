"""A photograph as one sees it, with what its file says of it beside the pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PpmImagePlugin, TiffImagePlugin

from bench.image import UnreadableImageError, read_content, to_rgb, with_picture
from bench.photographs.upright_exif import resized_exif, upright_exif

#: Of what is written with losses: nothing that one sees is lost a second time.
JPEG_QUALITY, WEBP_QUALITY = 95, 95
WITH_ALPHA = frozenset({"PNG", "WEBP", "TIFF"})
#: Formats whose further pictures are pages or frames. Those of a camera's JPEG are previews and gain maps.
WITH_PAGES = frozenset({"TIFF", "PNG", "WEBP"})
#: In a TIFF's NewSubfileType: a smaller copy of another page, and a mask of one.
NO_PAGE = 0b101
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE = 0x00FE, 0x0102
PNG_DEPTH_AT = 24
COLOUR_SPACE = slice(16, 20)
TURNED_BY_A_QUARTER = (5, 6, 7, 8)
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Photograph:
    """A photograph, upright.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, in the colour space of `icc_profile`; what lies under transparency is kept.
        alpha: (H, W) uint8, or None.
        grey: Whether the file holds one channel of colour.
        exif: EXIF of a picture that stands upright and has no thumbnail, or None.
        icc_profile: The colour profile, or None.
        dpi: Resolution across and down, or None.
        pages: How many pictures the file holds; this is the first.
        bits: Per channel in the file.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    exif: bytes | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    pages: int = 1
    bits: int = 8

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def colourless(self) -> bool:
        """Whether all pixels are grey, also in a file with three channels."""
        first = self.pixels[..., 0]
        return self.grey or all(np.array_equal(first, self.pixels[..., channel]) for channel in (1, 2))

    def with_pixels(self, pixels: np.ndarray) -> Photograph:
        """The photograph with other pixels, (H', W', 3) uint8 RGB; alpha and EXIF follow their size."""
        height, width = pixels.shape[:2]
        if (height, width) == self.size:
            return replace(self, pixels=pixels)
        alpha = self.alpha
        if alpha is not None:
            alpha = np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))
        return replace(self, pixels=pixels, alpha=alpha, exif=resized_exif(self.exif, width, height))


def read_photograph(path: Path) -> Photograph:
    """Reads a photograph and turns it as its EXIF says.

    Args:
        path: Picture file, of any kind that `bench.image` reads.

    Raises:
        UnreadableImageError: It cannot be decoded.
    """
    content = read_content(path)
    return with_picture(content, str(path), lambda picture: _photograph(picture, content))


def _photograph(picture: Image.Image, content: bytes) -> Photograph:
    # Of a TIFF nothing but the pixels is left once these are decoded.
    with Image.open(io.BytesIO(content)) as undecoded:
        orientation = undecoded.getexif().get(ORIENTATION, 1)
        exif, dpi = upright_exif(undecoded), undecoded.info.get("dpi")
        bits, pages = _bits(undecoded, content), _pages(undecoded)
    upright, profile = ImageOps.exif_transpose(picture), picture.info.get("icc_profile")
    if upright.mode == "P" or "transparency" in upright.info:
        transparent = "transparency" in upright.info
        upright = upright.convert("RGBA" if transparent else "RGB")
    alpha = np.array(upright.getchannel("A")) if "A" in upright.getbands() else None
    grey = upright.mode in ("1", "L", "LA", "La", "F") or upright.mode.startswith("I")
    if upright.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        upright, profile = _in_srgb(upright, profile), None
    pixels = np.array(upright.convert("RGB")) if alpha is not None else to_rgb(upright)
    if dpi is not None:
        across, down = (float(value) for value in dpi)
        dpi = (down, across) if orientation in TURNED_BY_A_QUARTER else (across, down)
        dpi = dpi if min(dpi) > 0 else None
    return Photograph(pixels, alpha, grey, exif, profile, dpi, pages, bits)


def _bits(undecoded: Image.Image, content: bytes) -> int:
    """Bits per channel in the file: Pillow decodes most of what is deeper to 8 bits without a word."""
    if undecoded.format == "PNG":
        return content[PNG_DEPTH_AT]
    if isinstance(undecoded, TiffImagePlugin.TiffImageFile):
        return max(undecoded.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    if isinstance(undecoded, PpmImagePlugin.PpmImageFile) and undecoded.tile:
        parts = undecoded.tile[0].args
        if isinstance(parts, tuple) and isinstance(parts[-1], int) and parts[-1] > 255:
            return 16
    return 16 if undecoded.mode.startswith("I") or undecoded.mode == "F" else 8


def _pages(undecoded: Image.Image) -> int:
    """How many pictures a file holds, without smaller copies and masks; leaves another of them current."""
    frames: int = getattr(undecoded, "n_frames", 1) if undecoded.format in WITH_PAGES else 1
    if frames == 1 or not isinstance(undecoded, TiffImagePlugin.TiffImageFile):
        return frames
    pages = 1
    for number in range(1, frames):
        undecoded.seek(number)
        pages += not undecoded.tag_v2.get(NEW_SUBFILE_TYPE, 0) & NO_PAGE
    return pages


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the picture's profile, which belongs to other channels than RGB; Pillow's own rule without one."""
    from PIL import ImageCms

    if profile is not None:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return picture.convert("RGB")


def _grey_in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Grey, with or without alpha, by its profile in RGB, for a format that holds no grey."""
    converted = _in_srgb(picture.getchannel("L"), profile)
    if "A" in picture.getbands():
        converted.putalpha(picture.getchannel("A"))
    return converted


def encode_photograph(photograph: Photograph, suffix: str) -> bytes:
    """Bytes of a photograph's file.

    Args:
        photograph: The photograph.
        suffix: Says the format: `.jpg` (quality 95, colours at full resolution), `.png`, `.webp`, `.tif`, `.bmp`,
            `.pgm`, `.ppm`. Formats without transparency get white in its place.

    Raises:
        UnreadableImageError: The format cannot hold it, such as one that is too large for JPEG.
    """
    try:
        return _encoded(photograph, suffix)
    except (ValueError, OSError) as error:
        raise UnreadableImageError(f"It cannot be written as {suffix}: {error}. Give another with -o.") from error


def _encoded(photograph: Photograph, suffix: str) -> bytes:
    kind = Image.registered_extensions()[suffix.lower()]
    picture = Image.fromarray(photograph.pixels)
    if photograph.grey or suffix.lower() == ".pgm":
        picture = picture.getchannel(0) if photograph.colourless else picture.convert("L")
    if photograph.alpha is not None:
        alpha = Image.fromarray(photograph.alpha)
        if kind in WITH_ALPHA:
            picture.putalpha(alpha)
        else:
            picture = Image.composite(picture, Image.new(picture.mode, picture.size, "white"), alpha)
    profile = photograph.icc_profile
    if kind == "WEBP" and photograph.grey and profile is not None and profile[COLOUR_SPACE] == b"GRAY":
        picture, profile = _grey_in_srgb(picture, profile), None
    said = {"exif": photograph.exif, "icc_profile": profile, "dpi": photograph.dpi}
    options: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if kind == "JPEG":
        options |= {"quality": JPEG_QUALITY, "subsampling": 0, "optimize": True}
    elif kind == "WEBP":
        options |= {"quality": WEBP_QUALITY, "method": 4, "exact": True}
        picture = picture.convert("RGBA" if photograph.alpha is not None else "RGB")
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
