"""What the tests of data sets share: a web server with its whims, data cards of their own, record files."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import yaml
from PIL import Image

import bench.protocol.card as card_module

PEOPLE = ("s1", "s2", "s3")
EXPECTED = {f"{person}/{number}.png" for person in PEOPLE for number in range(1, 5)}


@dataclass
class Served:
    """One file on the test server, and how the server misbehaves about it."""

    content: bytes
    kind: str = "application/octet-stream"
    etag: str | None = '"one"'
    ranges: bool = True
    announce: int = 0
    break_after: list[int] = field(default_factory=list)
    head: bool = True


class Server:
    """An HTTP server in a thread; `requests` lists (method, path, Range header) of what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, body: bool) -> None:
                asked = self.headers.get("Range")
                outer.requests.append((self.command, self.path, asked))
                served = outer.files.get(self.path)
                if served is None or (self.command == "HEAD" and not served.head):
                    self.send_response(404 if served is None else 405)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start, content = 0, served.content
                same = self.headers.get("If-Range") in (None, served.etag)
                if asked and served.ranges and same and int(asked[6:].partition("-")[0]) > len(content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if asked and served.ranges and same:
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    start = int(first)
                    content = content[start : int(last) + 1 if last else None]
                    self.send_response(206)
                    total = len(served.content) + served.announce
                    self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
                else:
                    self.send_response(200)
                self.send_header("Content-Type", served.kind)
                self.send_header("Content-Length", str(len(content) + served.announce))
                if served.etag:
                    self.send_header("ETag", served.etag)
                self.end_headers()
                if body:
                    stop = served.break_after.pop(0) if served.break_after else None
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(content[:stop])
                    if stop is not None or served.announce:
                        self.close_connection = True

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, path: str, content: bytes, **whims: object) -> str:
        """Serves a file; returns its address."""
        self.files[path] = Served(content, **whims)  # type: ignore[arg-type]
        return self.address + path

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    try:
        with mock.patch.dict(os.environ, {"no_proxy": "127.0.0.1"}):
            yield server
    finally:
        server.close()


def write_card(folder: Path, name: str, **fields: object) -> None:
    """Writes a data card into `folder/datasets`; what is not given is plain."""
    content = {
        "name": name,
        "title": f"Test set {name}",
        "licence": "free",
        "terms": "none",
        "citation": "nobody",
        "source": "made by a test",
        "obtain": "It is made by a test.",
        "layout": "identity_folders",
        "size": 64,
        "splits": {"rule": "hashed", "seed": 0, "test": 1, "validation": 0},
    } | fields
    path = folder / "datasets" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), "utf-8")


def use_cards(monkeypatch, folder: Path) -> None:
    """Makes `load_card` read the cards of a folder."""
    monkeypatch.setattr(card_module, "resource_root", lambda: folder)


def write_records(path: Path, faces: list[tuple[int, bytes]], index: bool = True) -> None:
    """Writes faces as insightface does: a header record, the pictures, then one record per person.

    Follows the description of the format (dmlc recordio and MXNet's IRHeader): a payload is split wherever the magic
    number stands at a multiple of four bytes.
    """
    magic = struct.pack("<I", 0xCED7230A)
    people = sorted({label for label, _ in faces})
    records = [struct.pack("<IfQQ", 2, 0.0, 0, 0) + struct.pack("<2f", len(faces) + 1, len(faces) + 1 + len(people))]
    for number, (label, content) in enumerate(faces, start=1):
        records.append(struct.pack("<IfQQ", 0, float(label), number, 0) + content)
    for label in people:
        records.append(struct.pack("<IfQQ", 2, float(label), 0, 0) + struct.pack("<2f", 1, 2))
    offsets, out = [], bytearray()
    for record in records:
        offsets.append(len(out))
        cuts = [at for at in range(0, len(record) - 3, 4) if record[at : at + 4] == magic]
        starts, ends = [0, *(at + 4 for at in cuts)], [*cuts, len(record)]
        for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
            flag = 0 if not cuts else 1 if part == 0 else 3 if part == len(cuts) else 2
            piece = record[start:end]
            out += magic + struct.pack("<I", flag << 29 | len(piece)) + piece + b"\0" * (-len(piece) % 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(out))
    if index:
        path.with_suffix(".idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)))


def png(path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.open(path).resize((64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def wrapped_people(source: Path, orl_root: Path) -> Path:
    """Identity folders in two wrapping folders, with what computers leave behind."""
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
