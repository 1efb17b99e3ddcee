"""Archives of strangers: what is good arrives, what is malicious, damaged or too large does not."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data.archive import Limits, archive_kind, extract
from bench.data.recordio import read_faces
from bench.errors import MissingError, UsageError
from tests.unit.data_helpers import write_records

FILES = {"a/1.png": b"one" * 400, "a/deep/2.png": b"", "b c/ü.png": bytes(range(256)) * 20}
KINDS = {"zip": None, "tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def make_zip(path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        warnings.simplefilter("ignore")
        for name, content in entries:
            zipped.writestr(name, content)
    return path


def make_tar(path: Path, entries: list[tuple[tarfile.TarInfo | str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make(path: Path, kind: str, files: dict[str, bytes]) -> Path:
    if kind == "zip":
        return make_zip(path, list(files.items()))
    return make_tar(path, list(files.items()), KINDS[kind] or "w")


def unpacked(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tar_entry(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("kind", KINDS)
def test_good_archives_arrive_whole(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / "named_without_suffix", kind, FILES)
    assert archive_kind(archive) == kind
    assert extract(archive, tmp_path / "out") == len(FILES)
    assert unpacked(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_call_writes_only_what_is_missing(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / "set", kind, FILES)
    out = tmp_path / "out"
    extract(archive, out)
    (out / "b c/ü.png").unlink()
    before = (out / "a/1.png").stat().st_ino
    (out / "a/deep/2.png.unpacking").write_bytes(b"half")
    (out / "a/deep/2.png").unlink()
    extract(archive, out)
    assert unpacked(out) == FILES
    assert (out / "a/1.png").stat().st_ino == before


MALICIOUS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "tar dots": ("leads out", lambda p: make_tar(p, [("../evil", b"x")])),
    "tar inner dots": ("leads out", lambda p: make_tar(p, [("a/../../evil", b"x")])),
    "tar absolute": ("absolute", lambda p: make_tar(p, [("/tmp/evil", b"x")])),
    "tar symlink": ("link", lambda p: make_tar(p, [(tar_entry("a", tarfile.SYMTYPE, "/etc"), b"")])),
    "tar hard link": ("link", lambda p: make_tar(p, [(tar_entry("a", tarfile.LNKTYPE, "/etc/passwd"), b"")])),
    "tar device": ("device", lambda p: make_tar(p, [(tar_entry("a", tarfile.CHRTYPE), b"")])),
    "tar pipe": ("device", lambda p: make_tar(p, [(tar_entry("a", tarfile.FIFOTYPE), b"")])),
    "tar case": ("upper and lower case", lambda p: make_tar(p, [("a/B.png", b"1"), ("A/b.png", b"2")])),
    "tar twice": ("overwrite", lambda p: make_tar(p, [("a.png", b"1"), ("a.png", b"2")])),
    "tar accents": ("overwrite", lambda p: make_tar(p, [("é.png", b"1"), ("é.png", b"2")])),
    "tar depth": ("too many folders", lambda p: make_tar(p, [("/".join(["d"] * 1500) + "/1.png", b"x")])),
    "tar long name": ("too long", lambda p: make_tar(p, [("x" * 300 + ".png", b"x")])),
    "tar sparse": ("sparse", lambda p: make_tar(p, [(tar_entry("a", tarfile.GNUTYPE_SPARSE), b"")])),
    "zip depth": ("too many folders", lambda p: make_zip(p, [("d/" * 1500 + "1.png", b"x")])),
    "tar file and folder": ("both a file and a folder", lambda p: make_tar(p, [("a", b"1"), ("a/b", b"2")])),
    "zip dots": ("leads out", lambda p: make_zip(p, [("../evil", b"x")])),
    "zip backslash dots": ("leads out", lambda p: make_zip(p, [("a\\..\\..\\evil", b"x")])),
    "zip absolute": ("absolute", lambda p: make_zip(p, [("/tmp/evil", b"x")])),
    "zip drive": ("absolute", lambda p: make_zip(p, [("C:/evil", b"x")])),
    "zip symlink": ("link", lambda p: make_zip(p, [(zip_link("a"), b"/etc")])),
    "zip case": ("upper and lower case", lambda p: make_zip(p, [("x.PNG", b"1"), ("X.png", b"2")])),
    "zip twice": ("overwrite", lambda p: make_zip(p, [("x.png", b"1"), ("x.png", b"2")])),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_archives_are_refused(tmp_path: Path, case: str) -> None:
    message, build = MALICIOUS[case]
    archive = build(tmp_path / "set")
    with pytest.raises(UsageError, match=message):
        extract(archive, tmp_path / "inner" / "out")
    escaped = [*tmp_path.rglob("evil*"), *Path("/tmp").glob("evil")]
    assert escaped == []
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_bombs_are_refused_before_they_fill_the_disk(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / "bomb", kind, {f"{i}.png": bytes(1 << 20) for i in range(8)})
    with pytest.raises(UsageError, match=r"announce|far larger"):
        extract(archive, tmp_path / "out", Limits(free=1 << 20, ratio=20))
    assert sum(len(content) for content in unpacked(tmp_path / "out").values()) <= 1 << 20


def raw_header(kind: bytes, size: int) -> bytes:
    info = tar_entry("x", kind)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def pax_record(size: int) -> bytes:
    """One PAX record of so many bytes."""
    return f"{size} comment=".encode() + b"a" * (size - len(f"{size} comment=") - 1) + b"\n"


MEMBER = raw_header(tarfile.REGTYPE, 0)
END = bytes(1024)
PEAK = """
import resource, sys
from pathlib import Path
from bench.data.archive import extract
from bench.errors import UsageError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
except UsageError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"zeros"])
def test_endless_headers_and_zeros_take_no_memory(tmp_path: Path, kind: bytes) -> None:
    size = 256 << 20
    with gzip.open(tmp_path / "set.tar.gz", "wb", compresslevel=1) as stream:
        if kind == b"zeros":
            stream.write(MEMBER + END)
        else:
            stream.write(raw_header(kind, size) + f"{size} comment=".encode())
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20) if kind == b"zeros" else b"a" * (1 << 20))
    words = [sys.executable, "-c", PEAK, str(tmp_path / "set.tar.gz"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "headers of one member take more than 1 MiB, or the zeros" in done.stdout
    assert int(done.stdout.split()[-1]) < 64


def test_headers_within_headers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes((raw_header(tarfile.XHDTYPE, 512) + pax_record(512)) * 900 + MEMBER + END)
    with pytest.raises(UsageError, match="headers"):
        extract(tmp_path / "set.tar", tmp_path / "out")


def test_the_headers_that_archives_have_are_read(tmp_path: Path) -> None:
    name = "/".join(["d" * 120] * 3) + "/ü.png"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "set.tar", "w", format=form) as tar:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, {"comment": "x" * 100_000}
            tar.addfile(info, io.BytesIO(b"one"))
        # 4 MiB of zeros at the end, as tapes have
        with (tmp_path / "set.tar").open("ab") as stream:
            stream.write(bytes(4 << 20))
        assert extract(tmp_path / "set.tar", tmp_path / f"out{form}") == 1
        assert unpacked(tmp_path / f"out{form}") == {name: b"one"}


def test_a_method_that_python_cannot_read_is_named(tmp_path: Path) -> None:
    content = bytearray(make_zip(tmp_path / "set.zip", [("a.png", b"x" * 50)]).read_bytes())
    struct.pack_into("<H", content, 8, 9)
    struct.pack_into("<H", content, content.index(b"PK\x01\x02") + 10, 9)
    (tmp_path / "set.zip").write_bytes(bytes(content))
    with pytest.raises(UsageError, match=r"method 9.*Deflate64.*by hand") as caught:
        extract(tmp_path / "set.zip", tmp_path / "out")
    assert "damaged" not in str(caught.value)


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "lie.zip", [("a.png", bytes(100_000))])
    content = archive.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 10))
    archive.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged|larger than it announces"):
        extract(archive, tmp_path / "out")
    assert sum(map(len, unpacked(tmp_path / "out").values())) <= 10


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_members_are_refused(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / "many", kind, {f"{i}": b"" for i in range(30)})
    with pytest.raises(UsageError, match="members"):
        extract(archive, tmp_path / "out", Limits(members=20))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated_archives_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = random.Random(0)
    archive = make(tmp_path / "set", kind, {f"{i}.png": noise.randbytes(5000) for i in range(30)})
    whole = archive.read_bytes()
    if kind == "tar":
        whole = whole.rstrip(b"\0")
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=r"damaged or truncated|neither a zip nor a tar"):
        extract(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("*.unpacking"))


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "set.tar", [("1.png", b"x" * 512), ("2.png", b"y" * 512)])
    archive.write_bytes(archive.read_bytes()[:1024])
    with pytest.raises(UsageError, match="end mark"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives_are_refused(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0)
    archive = make(tmp_path / "set", kind, {f"{i}.png": noise.randbytes(5000) for i in range(30)})
    content = bytearray(archive.read_bytes())
    # In a plain tar only headers have a checksum: the third one is hit.
    at = 2 * (512 + 5120) + 3 if kind == "tar" else len(content) // 2
    content[at : at + 8] = b"\xff\x00\xff\x00\xff\x00\xff\x01"
    archive.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="damaged or truncated"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"Rar!\x1a\x07\x00 more", "RAR"),
        (b"just text", "neither a zip nor a tar"),
    ],
)
def test_what_is_no_archive_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        extract(tmp_path / "set.zip", tmp_path / "out")


def test_a_password_is_asked_for_in_words(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "set.zip", [("a.png", b"x" * 50)])
    content = bytearray(archive.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    content[6] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="password"):
        extract(archive, tmp_path / "out")


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    archive = make_zip(tmp_path / "set.zip", [("a.png", os.urandom(5000))])
    monkeypatch.setattr("bench.data.archive.shutil.disk_usage", lambda _: type("U", (), {"free": 4000})())
    with pytest.raises(MissingError, match=r"5,000 bytes.*4,000 free"):
        extract(archive, tmp_path / "out")
    assert unpacked(tmp_path / "out") == {}


MAGIC = struct.pack("<I", 0xCED7230A)
# Magic numbers where a writer splits (multiples of four after the 24-byte header) and where it does not.
FACES = [(7, b"\xff\xd8jpeg one"), (7, b"\x89PNG" + MAGIC + b"tail" + MAGIC), (12, b"abc" + MAGIC + b"d"), (3, MAGIC)]


@pytest.mark.parametrize("index", [True, False])
def test_records_come_back_byte_by_byte(tmp_path: Path, index: bool) -> None:
    write_records(tmp_path / "train.rec", FACES, index)
    faces = list(read_faces(tmp_path / "train.rec"))
    assert [(face.label, face.content) for face in faces] == FACES
    assert [face.path for face in faces][:2] == ["000007/00000001.jpg", "000007/00000002.png"]


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    write_records(path, FACES)
    whole = path.read_bytes()
    for content, message in (
        (whole[:-6], "truncated"),
        (whole[:40], "truncated"),
        (b"\x00" + whole[1:], "not an MXNet record file"),
        (whole[: len(whole) - 40], "truncated|names"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            list(read_faces(path))
    path.write_bytes(whole)
    path.with_suffix(".idx").write_text("0\t0\n1\tnonsense\n")
    with pytest.raises(UsageError, match="not an index"):
        list(read_faces(path))
