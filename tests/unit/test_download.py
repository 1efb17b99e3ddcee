"""Downloads: whole or not at all, resumed where they broke off, never a web page, never another file."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.data import download
from bench.errors import MissingError, UsageError
from tests.unit.data_helpers import Server, running_server

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def ranges(server: Server) -> list[str | None]:
    return [asked for method, _, asked in server.requests if method == "GET"]


def test_a_whole_file_arrives_and_leaves_no_part(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "in" / "set.zip"
    assert download.fetch(server.serve("/set.zip", CONTENT), target, len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")] == ["set.zip"]
    download.fetch(server.address + "/set.zip", target)
    assert len(server.requests) == 1


def test_what_breaks_off_goes_on_in_the_same_call(server: Server, tmp_path: Path) -> None:
    url = server.serve("/set.zip", CONTENT, break_after=[100_000, 50_000])
    assert download.fetch(url, tmp_path / "set.zip", pause=0).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_asks_for_the_rest_only(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    url = server.serve("/set.zip", CONTENT, break_after=[120_000])
    with pytest.raises(MissingError, match="120,000 bytes are kept"):
        download.fetch(url, tmp_path / "set.zip", pause=0)
    assert not (tmp_path / "set.zip").exists()
    assert (tmp_path / "set.zip.part").stat().st_size == 120_000
    assert download.fetch(url, tmp_path / "set.zip", pause=0).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=120000-"]


@pytest.mark.parametrize("whims", [{"etag": '"two"'}, {"ranges": False}, {"etag": None}], ids=str)
def test_a_part_of_another_file_is_never_gone_on_with(server: Server, tmp_path: Path, monkeypatch, whims) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    url = server.serve("/set.zip", b"old" * 100_000, break_after=[90_000], **{**whims, "etag": whims.get("etag", "")})
    server.files["/set.zip"].etag = None if "etag" in whims and whims["etag"] is None else '"one"'
    with pytest.raises(MissingError):
        download.fetch(url, tmp_path / "set.zip", pause=0)
    server.serve("/set.zip", CONTENT, **whims)
    assert download.fetch(url, tmp_path / "set.zip", pause=0).read_bytes() == CONTENT


def test_a_truncated_file_is_never_taken_for_whole(server: Server, tmp_path: Path) -> None:
    url = server.serve("/set.zip", CONTENT, announce=1000)
    with pytest.raises(MissingError, match="truncated: 300,000 of 301,000 bytes"):
        download.fetch(url, tmp_path / "set.zip", pause=0)
    assert not (tmp_path / "set.zip").exists()


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    url = server.serve("/set.zip", CONTENT)
    (tmp_path / "set.zip.part").write_bytes(CONTENT + b"more")
    note = {"url": url, "validator": '"one"', "size": None}
    (tmp_path / "set.zip.part.json").write_text(json.dumps(note))
    assert download.fetch(url, tmp_path / "set.zip", pause=0).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"\n <!DOCTYPE html><html>log in</html>", "application/zip"), (b"quota exceeded", "text/html")],
)
def test_a_web_page_is_no_archive(server: Server, tmp_path: Path, content: bytes, kind: str) -> None:
    with pytest.raises(UsageError, match="web page"):
        download.fetch(server.serve("/set.zip", content, kind=kind), tmp_path / "set.zip")
    assert [path for path in tmp_path.iterdir() if path.suffix in (".zip", ".part")] == []


def test_another_size_than_the_cards_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"300,000 bytes.*299,999"):
        download.fetch(server.serve("/set.zip", CONTENT), tmp_path / "set.zip", 299_999)
    assert not (tmp_path / "set.zip").exists()


def test_dead_addresses_say_what_to_do(server: Server, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(MissingError, match=r"404.*--from"):
        download.fetch(server.address + "/nothing.zip", tmp_path / "set.zip")
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with pytest.raises(MissingError, match=r"Could not download.*--from"):
        download.fetch("http://127.0.0.1:9/set.zip", tmp_path / "set.zip", pause=0)


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    url = server.serve("/set.zip", CONTENT)
    threads = [threading.Thread(target=download.fetch, args=(url, tmp_path / "set.zip")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert len(ranges(server)) == 1


def test_a_full_disk_keeps_the_part_and_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    url = server.serve("/set.zip", CONTENT)
    target = tmp_path / "set.zip"
    code = (
        "import resource, sys; from pathlib import Path; from bench.data import download\n"
        "from bench.errors import MissingError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))\n"
        "try:\n    download.fetch(sys.argv[1], Path(sys.argv[2]), pause=0)\n"
        "except MissingError as error:\n    print(error); sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url, str(target)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "No space left" in done.stdout
    assert not target.exists()
    assert 0 < (tmp_path / "set.zip.part").stat().st_size <= 200_000
    assert download.fetch(url, target).read_bytes() == CONTENT
    assert ranges(server)[-1] is not None


def test_names_from_addresses() -> None:
    assert download.name_of("https://a.b/c/Celeb%20Ref.zip?download=1#x") == "Celeb Ref.zip"
    assert download.name_of("https://a.b/") == "download"
    assert "/" not in download.name_of("https://a.b/..%2F..%2Fetc%2Fpasswd")
    assert not download.is_url("ftp://a.b/c")


def test_hashes_are_checked_or_locked(own_home: Path, tmp_path: Path, capsys) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert download.check_archive("faces", archive, {"sha256": digest, "bytes": len(CONTENT)}, None) == (digest, True)
    assert download.check_archive("faces", archive, None, digest.upper()) == (digest, True)
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="the data card faces says 0000"):
        download.check_archive("faces", archive, {"sha256": "0" * 64}, digest)
    with pytest.raises(UsageError, match="--sha256 says 1111"):
        download.check_archive("faces", archive, None, "1" * 64)
    with pytest.raises(UsageError, match="truncated"):
        download.check_archive("faces", archive, {"bytes": len(CONTENT) + 1}, None)
    known = {"name": "set.zip", "sha256": None}
    assert download.check_archive("faces", archive, known, None) == (digest, False)
    download.lock_hashes({"faces/set.zip": digest})
    assert f"locked to sha256 {digest}" in capsys.readouterr().err
    download.lock_hashes({"faces/set.zip": "0" * 64})
    assert json.loads((own_home / "downloads" / "locks.json").read_text()) == {"faces/set.zip": digest}
    assert capsys.readouterr().err == ""
    archive.write_bytes(CONTENT[:-1])
    with pytest.raises(UsageError, match="not the file that was used before"):
        download.check_archive("faces", archive, known, None)
    assert download.check_archive("faces", archive, None, None)[1] is False


def test_probing_downloads_nothing(server: Server) -> None:
    url = server.serve("/set.zip", CONTENT)
    assert download.probe(url)["bytes"] == len(CONTENT)
    assert ranges(server) == []
    assert download.probe(server.serve("/no-head.zip", CONTENT, head=False)) == {
        "status": 200,
        "bytes": len(CONTENT),
        "type": "application/octet-stream",
        "note": "",
    }
    assert download.probe(server.address + "/nothing.zip")["status"] == 404
    assert download.probe("http://127.0.0.1:9/x")["status"] is None
