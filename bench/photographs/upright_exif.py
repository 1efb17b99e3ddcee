"""EXIF for pixels that were turned upright: orientation 1, no thumbnail, no word on how the old file was stored."""

from __future__ import annotations

import struct

from PIL import Image
from PIL.ExifTags import IFD

ORIENTATION, SOFTWARE_SIZE = 0x0112, (0xA002, 0xA003)
#: Tags that say how a TIFF lays out its pixels, and the profiles and notes that it keeps in tags: none is true of, or
#: belongs into, another file.
LAYOUT = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 297, 317, 320, 322, 323}
    | {324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
    | {700, 33723, 34377, 34675}
)


def upright_exif(picture: Image.Image) -> bytes | None:
    """What a picture's EXIF says when the picture has been turned as that EXIF asks.

    Args:
        picture: Opened, not decoded. The EXIF that it keeps is changed.

    Returns:
        EXIF as `Image.save` takes it; None where there is none, or none that can be written.
    """
    found = picture.getexif()
    if not len(found):
        return None
    turned = found.get(ORIENTATION, 1) in (5, 6, 7, 8)
    width, height = (picture.height, picture.width) if turned else picture.size
    for tag in LAYOUT & set(found):
        del found[tag]
    if ORIENTATION in found:
        found[ORIENTATION] = 1
    return _written(found, width, height)


def resized_exif(exif: bytes | None, width: int, height: int) -> bytes | None:
    """The EXIF of a picture that was brought to another size."""
    if exif is None:
        return None
    found = Image.Exif()
    found.load(exif)
    return _written(found, width, height)


def _written(exif: Image.Exif, width: int, height: int) -> bytes | None:
    try:
        details = exif.get_ifd(IFD.Exif)
        for tag, value in zip(SOFTWARE_SIZE, (width, height), strict=True):
            if tag in details:
                details[tag] = value
        # Pillow writes the main directory and those below it, and never the second one, which holds the thumbnail.
        return exif.tobytes()
    except (struct.error, TypeError, ValueError, OverflowError, SyntaxError):
        return None  # tags that break the format's own rules
