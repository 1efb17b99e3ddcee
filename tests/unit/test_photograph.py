"""What a photograph's file says beside its pixels, and what of it a restored one keeps."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin
from PIL.ExifTags import IFD

from bench.files import write_bytes
from bench.image import UnreadableImageError, read_image
from bench.photographs.photograph import Photograph, encode_photograph, read_photograph

ORIENTATION = 0x0112
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def write_photograph(path: Path, photograph: Photograph) -> None:
    write_bytes(path, encode_photograph(photograph, path.suffix))


def pixels(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ORIENTATION], found[0x010F] = orientation, "Camera"
    details = found.get_ifd(IFD.Exif)
    details[0xA002], details[0xA003], details[0x9003] = 60, 40, "1999:12:31 23:59:59"
    found.get_ifd(IFD.GPSInfo)[1] = "N"
    return found


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    source, target = tmp_path / f"a{suffix}", tmp_path / "b" / f"a{suffix}"
    Image.fromarray(pixels()).save(source, exif=exif(orientation), icc_profile=PROFILE, quality=95)
    with Image.open(source) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    photograph = read_photograph(source)
    assert np.array_equal(photograph.pixels, expected)
    assert photograph.size == ((60, 40) if orientation > 4 else (40, 60))
    write_photograph(target, photograph)
    assert np.array_equal(read_image(target), read_photograph(target).pixels)
    with Image.open(target) as written:
        assert written.size == photograph.size[::-1]
        found = written.getexif()
        assert found[ORIENTATION] == 1 and found[0x010F] == "Camera"
        assert written.info["icc_profile"] == PROFILE
        if suffix != ".tif":  # Pillow writes no directories below a TIFF's own
            details = found.get_ifd(IFD.Exif)
            assert (details[0xA002], details[0xA003]) == written.size
            assert details[0x9003] == "1999:12:31 23:59:59" and found.get_ifd(IFD.GPSInfo)[1] == "N"


def test_the_thumbnail_of_the_old_picture_is_dropped(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(pixels(8, 8)).save(thumbnail, "JPEG")
    body, first = thumbnail.getvalue(), 8
    # A TIFF directory with the orientation, and a second one with the thumbnail.
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    second = first + 2 + 12 + 4
    place = second + 2 + 24 + 4
    numbers = [(0x0201, place), (0x0202, len(body))]
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + n.to_bytes(4, "little") for tag, n in numbers
    )
    content = b"Exif\x00\x00II*\x00" + first.to_bytes(4, "little")
    content += b"\x01\x00" + entry + second.to_bytes(4, "little") + b"\x02\x00" + entries + bytes(4) + body
    source = tmp_path / "a.jpg"
    Image.fromarray(pixels()).save(source, exif=content)
    with Image.open(source) as opened:
        assert opened.getexif().get_ifd(IFD.IFD1)[0x0202] == len(body)
    photograph = read_photograph(source)
    assert photograph.exif is not None and body not in photograph.exif
    write_photograph(tmp_path / "b.jpg", photograph)
    assert body not in (tmp_path / "b.jpg").read_bytes()
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.getexif()[ORIENTATION] == 1 and not written.getexif().get_ifd(IFD.IFD1)


def test_jpegs_keep_colours_at_full_resolution(tmp_path: Path) -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 220
    content = encode_photograph(Photograph(stripes), ".jpg")
    with Image.open(io.BytesIO(content)) as written:
        assert [layer[1:3] for layer in written.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        assert np.abs(np.asarray(written).astype(int) - stripes).mean() < 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_comes_back(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(pixels())
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(pixels()[..., 0]))
        picture = picture.convert(mode)
    else:
        picture = picture.convert(mode)
    source = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(source)
    photograph = read_photograph(source)
    target = tmp_path / "b.png"
    write_photograph(target, photograph)
    again = read_photograph(target)
    assert np.array_equal(again.pixels, photograph.pixels)
    assert photograph.grey == (mode in ("L", "LA", "1", "I;16")) == photograph.colourless
    with Image.open(target) as written:
        expected = {"RGBA": "RGBA", "L": "L", "LA": "LA", "1": "L", "I;16": "L"}.get(mode, "RGB")
        assert written.mode == expected
    if mode in ("RGBA", "LA"):
        assert again.alpha is not None and np.array_equal(again.alpha, pixels()[..., 0])
        # What lies under transparency is kept, and not darkened as for the networks of the benchmark.
        if mode == "RGBA":
            assert np.array_equal(photograph.pixels, pixels())
        flat = read_photograph_of(encode_photograph(photograph, ".jpg"), tmp_path)
        assert flat.alpha is None and flat.pixels[5, 0].min() > 240


def read_photograph_of(content: bytes, folder: Path) -> Photograph:
    (folder / "flat.jpg").write_bytes(content)
    return read_photograph(folder / "flat.jpg")


def test_alpha_and_exif_follow_an_enlargement() -> None:
    photograph = Photograph(pixels(), alpha=pixels()[..., 1], exif=exif(1).tobytes())
    larger = photograph.with_pixels(pixels(80, 120))
    assert larger.alpha is not None and larger.alpha.shape == (80, 120)
    found = Image.Exif()
    found.load(larger.exif)
    details = found.get_ifd(IFD.Exif)
    assert (details[0xA002], details[0xA003]) == (120, 80)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match="not a picture"):
        read_photograph(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImageError, match="cannot be written"):
        write_photograph(tmp_path / "b.webp", Photograph(np.zeros((4, 17000, 3), np.uint8)))
    assert not (tmp_path / "b.webp").exists()


def test_pages_are_counted_without_smaller_copies(tmp_path: Path) -> None:
    first, second = Image.fromarray(pixels()), Image.fromarray(255 - pixels())
    for suffix in (".tif", ".png", ".webp"):
        first.save(tmp_path / f"two{suffix}", save_all=True, append_images=[second])
        first.save(tmp_path / f"one{suffix}")
        assert read_photograph(tmp_path / f"two{suffix}").pages == 2
        assert read_photograph(tmp_path / f"one{suffix}").pages == 1
    assert read_photograph(tmp_path / "two.tif").pixels.shape == (40, 60, 3)
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "small.tif"), True) as stream:
        first.save(stream, "TIFF")
        stream.newFrame()
        first.resize((20, 10)).save(stream, "TIFF", tiffinfo={0xFE: 1})
    with Image.open(tmp_path / "small.tif") as written:
        assert written.n_frames == 2  # type: ignore[attr-defined]
    assert read_photograph(tmp_path / "small.tif").pages == 1
    # The second picture of a camera's JPEG is a preview or a gain map.
    first.save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[second])
    photograph = read_photograph(tmp_path / "camera.jpg")
    assert photograph.pages == 1 and photograph.pixels.shape == (40, 60, 3)


def test_deeper_pictures_are_known(tmp_path: Path) -> None:
    deep = pixels().astype(np.uint16) * 257
    for suffix in (".png", ".tif", ".ppm"):
        cv2.imwrite(str(tmp_path / f"colour{suffix}"), deep)
        Image.fromarray(pixels()).save(tmp_path / f"eight{suffix}")
        assert read_photograph(tmp_path / f"colour{suffix}").bits == 16, suffix
        assert read_photograph(tmp_path / f"eight{suffix}").bits == 8, suffix
    cv2.imwrite(str(tmp_path / "grey.pgm"), deep[..., 0])
    assert read_photograph(tmp_path / "grey.pgm").bits == 16
    Image.fromarray(pixels()).convert("1").save(tmp_path / "one.tif")
    Image.fromarray(pixels()).save(tmp_path / "a.jpg")
    assert read_photograph(tmp_path / "one.tif").bits == 1 and read_photograph(tmp_path / "a.jpg").bits == 8


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey with this gamma."""

    def block(kind: bytes, body: bytes) -> bytes:
        return kind + bytes(4) + body

    white = b"".join(round(value * 65536).to_bytes(4, "big") for value in (0.9642, 1.0, 0.8249))
    tags = {
        b"desc": block(b"desc", (5).to_bytes(4, "big") + b"grey\0" + bytes(78)),
        b"cprt": block(b"text", b"none\0"),
        b"wtpt": block(b"XYZ ", white),
        b"kTRC": block(b"curv", (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")),
    }
    table, body, place = len(tags).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + (place + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content + bytes(-len(content) % 4)
    head = (128 + len(table) + len(body)).to_bytes(4, "big") + bytes(4) + bytes([2, 0x10, 0, 0])
    head += b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_converted_where_the_format_holds_no_grey(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(pixels()).convert("L")
    if mode == "LA":
        picture.putalpha(picture.copy())
    picture.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    photograph = read_photograph(tmp_path / "a.png")
    assert photograph.grey and photograph.icc_profile is not None
    write_photograph(tmp_path / "b.webp", photograph)
    with Image.open(tmp_path / "b.webp") as written:
        assert "icc_profile" not in written.info
        assert ("A" in written.getbands()) == (mode == "LA")
        found = np.asarray(written.convert("RGB"))[..., 1].astype(int)
    # Light that is even in numbers is brighter in the numbers of sRGB.
    dark = (photograph.pixels[..., 0] > 40) & (photograph.pixels[..., 0] < 80)
    assert (found[dark] - photograph.pixels[..., 0][dark]).min() > 30
    write_photograph(tmp_path / "b.tif", photograph)
    with Image.open(tmp_path / "b.tif") as written:
        assert written.mode == mode and written.info["icc_profile"] == photograph.icc_profile
