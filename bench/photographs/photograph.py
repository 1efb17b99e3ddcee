"""A photograph as one sees it, with what its file says of it beside the pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bench.files import write_bytes
from bench.image import UnreadableImageError, read_content, to_rgb, with_picture
from bench.photographs.upright_exif import resized_exif, upright_exif

#: Of what is written with losses: nothing that one sees is lost a second time.
JPEG_QUALITY, WEBP_QUALITY = 95, 95
WITH_ALPHA = frozenset({"PNG", "WEBP", "TIFF"})
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
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    exif: bytes | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None

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
    return Photograph(pixels, alpha, grey, exif, profile, dpi)


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


def encode_photograph(photograph: Photograph, suffix: str) -> bytes:
    """Bytes of a photograph's file.

    Args:
        photograph: The photograph.
        suffix: Says the format: `.jpg` (quality 95, colours at full resolution), `.png`, `.webp`, `.tif`, `.bmp`,
            `.pgm`, `.ppm`. Formats without transparency get white in its place.
    """
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
    said = {"exif": photograph.exif, "icc_profile": photograph.icc_profile, "dpi": photograph.dpi}
    options: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if kind == "JPEG":
        options |= {"quality": JPEG_QUALITY, "subsampling": 0, "optimize": True}
    elif kind == "WEBP":
        options |= {"quality": WEBP_QUALITY, "method": 4, "exact": True}
        picture = picture.convert("RGBA" if photograph.alpha is not None else "RGB")
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def write_photograph(path: Path, photograph: Photograph) -> None:
    """Writes a photograph atomically, in the format of the path's suffix.

    Raises:
        UnreadableImageError: The format cannot hold it, such as one that is too large for JPEG.
    """
    try:
        content = encode_photograph(photograph, path.suffix)
    except (ValueError, OSError) as error:
        raise UnreadableImageError(f"It cannot be written as {path.suffix}: {error}. Give another with -o.") from error
    write_bytes(path, content)
