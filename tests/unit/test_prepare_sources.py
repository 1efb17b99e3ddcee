"""What a data set is made from: several sources, names, what does not fit, what changed, what is locked."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from bench.data import gather as gather_module
from bench.data.prepare import prepare, staging_folder
from bench.errors import UsageError
from bench.image import SUFFIXES
from bench.protocol.card import load_card
from bench.protocol.layout import list_photos
from tests.unit.data_helpers import (
    put,
    running_server,
    write_card,
    zipped,
)

pytestmark = pytest.mark.usefixtures("places")

AUTO = {"layout": "auto", "splits": {"rule": "all_test"}}


def archive(path: Path, names: list[str], content: bytes) -> str:
    with zipfile.ZipFile(path, "w") as stream:
        for name in names:
            stream.writestr(name, content + name.encode())
    return str(path)


@pytest.mark.parametrize("layout", ["auto", "identity_folders"])
def test_people_of_archives_wrapped_differently_all_arrive(people: Path, tmp_path: Path, layout: str) -> None:
    content = (people / "download/Faces/s1/1.png").read_bytes()
    first = archive(tmp_path / "one.zip", ["p1/1.png", "p1/2.png"], content)
    second = archive(tmp_path / "two.zip", ["part 2/p2/1.png", "part 2/p3/1.png"], content)
    write_card(tmp_path, "made", **{**AUTO, "layout": layout})
    done = prepare("made", [first, second])
    assert {photo.identity for photo in list_photos(load_card("made"), done.root)} == {"p1", "p2", "p3"}
    assert (done.record["pictures"], done.record["not_taken"]["count"]) == (4, 0)


def test_what_does_not_fit_is_counted_and_named(people: Path, tmp_path: Path, capsys) -> None:
    content = (people / "download/Faces/s1/1.png").read_bytes()
    mixed = archive(tmp_path / "mixed.zip", ["p1/1.png", "p1/2.png", "more/p2/1.png", "sample.png"], content)
    write_card(tmp_path, "made")
    done = prepare("made", [mixed])
    assert done.record["pictures"] == 2
    left = [f"{tmp_path}/mixed.zip/sample.png", f"{tmp_path}/mixed.zip/more/p2/1.png"]
    assert done.record["not_taken"] == {"count": 2, "first": left}
    said = capsys.readouterr().err
    assert "2 pictures do not fit the layout" in said
    assert all(path in said for path in left)


def test_a_source_that_gives_nothing_is_refused(people: Path, tmp_path: Path) -> None:
    content = (people / "download/Faces/s1/1.png").read_bytes()
    first = archive(tmp_path / "one.zip", ["s1/1.png"], content)
    second = archive(tmp_path / "two.zip", ["other/1.png"], content)
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    with pytest.raises(UsageError, match=r"Nothing in .*two\.zip fits"):
        prepare("made", [first, second])
    write_card(tmp_path, "own", **AUTO)
    loose = archive(tmp_path / "loose.zip", ["1.png"], content)
    with pytest.raises(UsageError, match="different layouts"):
        prepare("own", [first, loose])
    assert not list((tmp_path / "home" / "data").glob("[!.]*"))


CASES = {
    "people": ["p1/1.png", "p2/1.png"],
    "people and a stray picture": ["p1/1.png", "p1/2.png", "p2/1.png", "stray.png"],
    "one person": ["p1/1.png", "p1/2.png"],
    "flat": ["1.png", "2.png"],
    "years": ["2019/a/1.png", "2020/a/1.png"],
    "pairs of people": ["gt/p1/1.png", "gt/p1/2.png", "lq/p1/1.png", "lq/p1/2.png", "reference/p1/x.png"],
    "pairs": ["gt/1.png", "lq/1.png"],
    "LQ of one person": ["lq/p1/1.png"],
}


# A folder of loose pictures in an archive is a person, as it is on a disk: "flat" is not wrapped.
@pytest.mark.parametrize(
    ("case", "wrap"), [(case, wrap) for case in CASES for wrap in ("", "set/")[: 2 - (case == "flat")]]
)
def test_a_folder_prepared_is_read_like_the_folder_itself(people: Path, tmp_path: Path, case: str, wrap: str) -> None:
    content = (people / "download/Faces/s1/1.png").read_bytes()
    for name in CASES[case]:
        put(tmp_path / "plain" / name, content)
    write_card(tmp_path, "made", **AUTO)
    done = prepare("made", [archive(tmp_path / "set.zip", [wrap + name for name in CASES[case]], content)])
    card = load_card("made")
    assert list_photos(card, done.root) == list_photos(card, tmp_path / "plain")


def test_linked_folders_are_people_too(people: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for person in ("s1", "s2"):
        (tmp_path / "linked" / person).symlink_to(people / "download" / "Faces" / person)
    write_card(tmp_path, "made", **AUTO)
    (tmp_path / "linked" / "circle").symlink_to(tmp_path / "linked")
    record = prepare("made", [str(tmp_path / "linked")]).record
    assert (record["identities"], record["not_taken"]["count"]) == (2, 0)


@pytest.mark.parametrize("change", ["content", "added", "removed", "time"])
def test_a_folder_that_changed_is_not_taken_for_the_same(people: Path, tmp_path: Path, change: str) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    assert prepare("made", [str(people)]).fresh
    assert not prepare("made", [str(people)]).fresh
    picture = people / "download" / "Faces" / "s2" / "1.png"
    if change == "content":
        picture.write_bytes(picture.read_bytes() + b"x")
    elif change == "added":
        put(picture.with_name("9.png"), b"x")
    elif change == "removed":
        picture.unlink()
    else:
        os.utime(picture, (1, 1))
    with pytest.raises(UsageError, match=r"changed since .* was made from it.*--to"):
        prepare("made", [str(people)])


def test_only_files_of_the_card_are_locked_and_only_when_all_is_done(people: Path, tmp_path: Path, capsys) -> None:
    file = {"name": "faces.zip", "url": None, "sha256": None, "bytes": None, "verified": "unverified"}
    write_card(tmp_path, "made", identity_pattern="s\\d+", files=[file])
    locks = tmp_path / "home/downloads/locks.json"
    given = zipped(people, tmp_path / "faces.zip")
    whole = given.read_bytes()
    for wrong, message in ((whole[:-100], "damaged or truncated"), (b"<html>log in</html>", "web page")):
        given.write_bytes(wrong)
        with pytest.raises(UsageError, match=message):
            prepare("made", [str(given)])
    archive(given, ["nobody/1.png"], b"x")
    with pytest.raises(UsageError, match="not the layout"):
        prepare("made", [str(given)])
    assert not locks.exists()
    given.write_bytes(whole)
    assert prepare("made", [str(given)]).record["sources"][0]["verified"] is False
    assert json.loads(locks.read_text()) == {"made/faces.zip": hashlib.sha256(whole).hexdigest()}
    assert "unverified, locked to sha256" in capsys.readouterr().err
    archive(given, ["s1/1.png"], b"x")
    with pytest.raises(UsageError, match="not the file that was used before"):
        prepare("made", [str(given)], tmp_path / "other")


def test_an_address_of_the_card_is_locked(people: Path, tmp_path: Path) -> None:
    whole = zipped(people, tmp_path / "faces.zip").read_bytes()
    with running_server() as server:
        url = server.serve("/share/x", whole)
        file = {"name": "all the faces", "url": url, "sha256": None, "bytes": None, "verified": "unverified"}
        write_card(tmp_path, "made", identity_pattern="s\\d+", files=[file])
        prepare("made")
        write_card(tmp_path, "bare", identity_pattern="s\\d+")
        prepare("bare", [url])
    locks = json.loads((tmp_path / "home/downloads/locks.json").read_text())
    assert locks == {"made/all the faces": hashlib.sha256(whole).hexdigest()}


def test_two_archives_of_one_name_are_two_data_sets(people: Path, tmp_path: Path) -> None:
    content = (people / "download/Faces/s1/1.png").read_bytes()
    write_card(tmp_path, "made", **AUTO)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        given = archive(tmp_path / place / "photos.zip", ["p1/1.png", f"{place}/1.png"], content)
        assert prepare("made", [given], tmp_path / f"out {place}").fresh


BAD_NAMES = {"not UTF-8": b"caf\xe9", "line break": b"a\nb", "escape": b"\x1b[31m"}


@pytest.mark.parametrize("what", ["picture", "person"])
@pytest.mark.parametrize("case", BAD_NAMES)
def test_names_that_no_list_can_hold_are_refused_by_name(people: Path, tmp_path: Path, case: str, what: str) -> None:
    write_card(tmp_path, "made", **AUTO)
    name = os.fsdecode(BAD_NAMES[case])
    faces = people / "download" / "Faces"
    if what == "picture":
        put(faces / "s1" / f"{name}.png", (faces / "s1" / "1.png").read_bytes())
    else:
        (faces / "s2").rename(faces / name)
    with pytest.raises(UsageError, match="UTF-8") as caught:
        prepare("made", [str(people)])
    assert ascii(name)[1:-1] in str(caught.value)
    str(caught.value).encode()
    assert not staging_folder(tmp_path / "home" / "data" / "made").exists()
    put(tmp_path / "fine" / "s1" / "Icon\r", b"left by a Mac")
    put(tmp_path / "fine" / "s1" / "1.png", b"x")
    assert prepare("made", [str(tmp_path / "fine")], tmp_path / "other").fresh


def test_a_separator_of_lines_in_a_name_is_kept(people: Path, tmp_path: Path, monkeypatch) -> None:
    from bench.data.verify import verify

    write_card(tmp_path, "made", identity_pattern="s\\d+")
    monkeypatch.setattr("bench.data.verify.resource_root", lambda: tmp_path)
    faces = people / "download" / "Faces"
    (faces / "s1" / "2.png").rename(faces / "s1" / "a\u2028b.png")
    prepare("made", [str(people)])
    result = verify("made", workers=1)
    assert (result.missing, result.problems, result.pictures) == ([], [], 12)


def test_a_refusal_names_the_archive_and_no_folder_that_is_gone(tmp_path: Path) -> None:
    write_card(tmp_path, "made", identity_pattern="\\d{5}")
    given = archive(tmp_path / "faces.tar.zip", ["people/ada/1.png"], b"x")
    with pytest.raises(UsageError, match="not the layout") as caught:
        prepare("made", [given])
    assert given in str(caught.value)
    assert ".preparing" not in str(caught.value)


def test_the_suffixes_are_those_that_are_read() -> None:
    assert set(gather_module.SUFFIXES) == SUFFIXES
