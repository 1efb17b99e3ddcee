"""Every kind of picture file decodes to 8-bit RGB, or is refused with its name and the reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.image import (
    MAXIMUM_PIXELS,
    UnreadableImageError,
    decode_image,
    encode_png,
    is_picture,
    read_image,
    write_png,
)


def _gradient(height: int = 12, width: int = 20) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 10, y * 15, 255 - x * 5], axis=-1).astype(np.uint8)


def _saved(tmp_path: Path, picture: Image.Image, name: str, **options: object) -> Path:
    path = tmp_path / name
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb_keeps_pixels_and_channel_order(tmp_path: Path) -> None:
    pixels = _gradient()
    for name in ("a.png", "a.bmp", "a.tif", "a.ppm"):
        found = read_image(_saved(tmp_path, Image.fromarray(pixels), name))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = _gradient()[..., 0]
    found = read_image(_saved(tmp_path, Image.fromarray(grey), "grey.png"))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, name: str) -> None:
    deep = (np.arange(240, dtype=np.uint16).reshape(12, 20) * 257).astype(np.uint16)
    found = read_image(_saved(tmp_path, Image.fromarray(deep), name))
    np.testing.assert_array_equal(found[..., 1], np.arange(240).reshape(12, 20))


def test_sixteen_bit_colour_is_scaled_to_eight(tmp_path: Path) -> None:
    """Pillow cannot write these, so the PNG is put together here."""
    pixels = _gradient()
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    )
    found = decode_image(content, "deep colour")
    assert np.abs(found.astype(int) - pixels.astype(int)).max() <= 1


def test_transparency_lies_over_black(tmp_path: Path) -> None:
    pixels = np.dstack([_gradient(), np.full((12, 20), 255, np.uint8)])
    pixels[:, :5, 3] = 0
    found = read_image(_saved(tmp_path, Image.fromarray(pixels), "alpha.png"))
    assert (found[:, :5] == 0).all()
    np.testing.assert_array_equal(found[:, 5:], _gradient()[:, 5:])


def test_palette_and_cmyk_are_converted(tmp_path: Path) -> None:
    flat = np.full((12, 20, 3), (200, 40, 90), np.uint8)
    palette = read_image(_saved(tmp_path, Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE), "p.png"))
    np.testing.assert_array_equal(palette, flat)
    cmyk = read_image(_saved(tmp_path, Image.fromarray(flat).convert("CMYK"), "c.tif"))
    np.testing.assert_array_equal(cmyk, flat)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turns: int) -> None:
    pixels = _gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(_saved(tmp_path, Image.fromarray(pixels), "turned.png", exif=exif))
    np.testing.assert_array_equal(found, np.rot90(pixels, turns))


def test_decoded_pictures_can_be_written_to(tmp_path: Path) -> None:
    found = read_image(_saved(tmp_path, Image.fromarray(_gradient()), "a.png"))
    found[0, 0] = 7
    assert found.flags.c_contiguous


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _declared(width: int, height: int) -> bytes:
    """A PNG that says it is large; decoding it would need that much memory."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + _chunk(b"IEND", b"")
    )


def _bytes(format_name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, format_name)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is text, not a picture", "not a picture"),
        (_bytes("PNG")[:500], "broken"),
        (_bytes("JPEG")[:700], "broken"),
        (_bytes("PNG")[:80] + b"\xff" * 200 + _bytes("PNG")[280:], "broken"),
        (_declared(10_001, 10_000), "10001x10000"),
        (_declared(60_000, 60_000), "too large"),
        (_declared(0, 10), ""),
    ],
    ids=["empty", "text", "cut off png", "cut off jpeg", "damaged", "huge", "a bomb", "no width"],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert "bad.png" in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_picture_at_the_limit_is_not_refused_for_its_size() -> None:
    side = int(MAXIMUM_PIXELS**0.5)
    with pytest.raises(UnreadableImageError, match="broken"):
        decode_image(_declared(side, side), "large")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UnreadableImageError, match="Cannot read"):
            read_image(path)


def test_png_round_trip_and_names(tmp_path: Path) -> None:
    pixels = _gradient()
    path = tmp_path / "é, [a]=b c" / "1.png"
    write_png(path, pixels)
    np.testing.assert_array_equal(read_image(path), pixels)
    assert encode_png(pixels) == path.read_bytes()
    assert is_picture(path)
    (tmp_path / ".hidden.png").write_bytes(b"x")
    assert not is_picture(tmp_path / ".hidden.png")
    assert not is_picture(tmp_path / "1.txt")
