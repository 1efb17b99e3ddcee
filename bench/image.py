"""Reading and writing pictures: one decode for every kind of file, one way to write a PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bench.errors import UsageError
from bench.files import write_bytes

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp"})
MAXIMUM_PIXELS = 100_000_000

Result = TypeVar("Result")


class UnreadableImageError(UsageError):
    """A picture file that cannot be decoded."""


def is_picture(path: Path) -> bool:
    """Whether the file's name says that it is a picture (hidden files are not)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_image(path: Path) -> np.ndarray:
    """Decodes a picture to 8-bit RGB.

    Grey, palette, CMYK and RGBA pictures are converted (transparency over black), 16-bit ones are
    scaled to 8 bits, EXIF rotation is applied.

    Args:
        path: Picture file.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, not a picture, or larger than
            100 million pixels.
    """
    return decode_image(read_content(path), str(path))


def read_content(path: Path) -> bytes:
    """Bytes of a picture file.

    Raises:
        UnreadableImageError: The file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"Cannot read the picture {path}: {error.strerror or error}.") from error


def decode_image(content: bytes, name: str) -> np.ndarray:
    """Decodes a picture from memory; see `read_image`.

    Args:
        content: The file's bytes.
        name: What to call the picture in an error message.
    """
    return with_picture(content, name, lambda picture: to_rgb(ImageOps.exif_transpose(picture)))


def with_picture(content: bytes, name: str, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of a picture that Pillow has decoded; the picture is closed after it.

    Args:
        content: The file's bytes.
        name: What to call the picture in an error message.
        use: Reads the picture; what is wrong with the file's content may come to light in it.

    Raises:
        UnreadableImageError: As for `read_image`.
    """
    if not content:
        raise UnreadableImageError(f"The picture {name} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content))
        with opened as picture:
            if picture.width * picture.height > MAXIMUM_PIXELS:
                raise UnreadableImageError(
                    f"The picture {name} has {picture.width}x{picture.height} pixels; at most "
                    f"{MAXIMUM_PIXELS:,} are read. Scale it down first."
                )
            picture.load()
            return use(picture)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"The picture {name} is too large: it declares far more than the {MAXIMUM_PIXELS:,} pixels that are read. "
            "Scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{name} is not a picture in a known format.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableImageError(f"The picture {name} is broken: {error}.") from error


def to_rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture that Pillow has decoded; see `read_image`."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        scale = 1.0 if values.max(initial=0) <= 255 else 255.0 / 65535.0
        grey = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture)
    return np.array(picture.convert("RGB"))  # a copy: torch warns about read-only arrays


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of an (H, W, 3) uint8 RGB picture, the same for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 RGB picture atomically."""
    write_bytes(path, encode_png(image))
