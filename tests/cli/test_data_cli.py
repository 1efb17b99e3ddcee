"""`bench data`: what a user sees, exit codes, and the pictures that `freeze` writes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.cli.main import main
from bench.data import links
from bench.files import sha256_bytes
from bench.image import encode_png, read_image, write_png
from bench.protocol import freeze as freeze_module
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import Protocol
from tests.unit.data_helpers import running_server, use_cards, write_card

SHIPPED = Path(__file__).parents[2] / "datasets" / "protocols" / "orl_heavy.json"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BENCH_DATA", raising=False)
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path, orl_root: Path) -> Path:
    """Three people of ORL, four square pictures each."""
    for person in ("s1", "s2", "s3"):
        for number in range(1, 5):
            image = read_image(orl_root / person / f"{number}.pgm")
            write_png(tmp_path / "source" / person / f"{number}.png", image[10:102])
    return tmp_path / "source"


def listed(capsys) -> dict[str, dict[str, object]]:
    assert main(["data", "ls", "--json"]) == 0
    return {line["name"]: line for line in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("words", [["data", "--help"], ["data", "prepare", "--help"], ["data", "ls"]], ids=" ".join)
def test_help_and_ls_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom bench.cli.main import main\n"
        f"try:\n    code = main({words!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'lightning', 'hydra', 'mlflow', 'pandas', 'cv2', 'numpy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_ls_tells_present_absent_and_incomplete(orl_root: Path, home: Path, tmp_path: Path, capsys) -> None:
    lines = listed(capsys)
    assert (lines["orl"]["state"], lines["orl"]["pictures"], lines["orl"]["root"]) == ("present", 400, str(orl_root))
    assert (lines["celebref"]["state"], lines["celebref"]["root"], lines["celebref"]["expected"]) == (
        "absent",
        None,
        10555,
    )
    shutil.copytree(orl_root / "s1", home / "data" / "celebref" / "00001")
    (home / "data" / ".wider_test.preparing").mkdir()
    lines = listed(capsys)
    assert (lines["celebref"]["state"], lines["celebref"]["note"]) == ("incomplete", "10 of 10555 pictures")
    assert lines["wider_test"]["state"] == "incomplete"
    assert "not finished" in str(lines["wider_test"]["note"])
    assert main(["data", "ls"]) == 0
    text = capsys.readouterr().out
    assert all(line["licence"] in text for line in lines.values())


def test_prepare_and_verify(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    use_cards(monkeypatch, tmp_path)
    monkeypatch.setattr("bench.data.verify.resource_root", lambda: tmp_path)
    write_card(tmp_path, "made", statistics={"images": 12, "identities": 3})
    assert main(["data", "verify", "made"]) == 3
    assert "not here" in capsys.readouterr().err
    archive = Path(shutil.make_archive(str(tmp_path / "faces"), "zip", source))
    assert main(["data", "prepare", "made", "--from", str(archive)]) == 0
    shown = capsys.readouterr()
    assert "12 pictures of 3 identities" in shown.out
    assert f"unverified: {archive}: sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}" in shown.out
    assert main(["data", "prepare", "made", "--from", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made_now"] is False
    assert main(["data", "verify", "made"]) == 0
    assert capsys.readouterr().out.endswith("clean\n")
    root = tmp_path / "home" / "data" / "made"
    (root / "s3" / "4.png").unlink()
    assert main(["data", "verify", "made", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["missing"] == ["1 of 12 images (11 are there)", "s3/4.png"]
    (root / "s3" / "3.png").write_bytes(b"broken")
    assert main(["data", "verify", "made"]) == 1
    assert "unreadable" in capsys.readouterr().out


def test_prepare_elsewhere_says_how_to_use_it(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    use_cards(monkeypatch, tmp_path)
    write_card(tmp_path, "made")
    target = tmp_path / "célèb, [a]=b c"
    assert main(["data", "prepare", "made", "--from", str(source), "--to", str(target), "--link"]) == 0
    assert f"data.root={target}" in capsys.readouterr().out
    assert main(["data", "verify", "made", "--root", str(target), "--workers", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["prepare", "celebreff"], 2, "celebref"),
        (["prepare", "refine_real14"], 3, "not public"),
        (["prepare", "celebref", "--from", "/no/such.zip"], 3, "is not there"),
        (["verify", "orl", "key=value"], 2, "Cannot understand 'key=value'"),
        (["verify", "orl", "--identitys"], 2, "--identitys"),
        (["verify", "orl", "--workers", "0"], 2, "whole number"),
        (["freeze"], 2, "data=orl_heavy"),
        (["freeze", "data=orl_heawy"], 2, "orl_heavy"),
        (["frieze"], 2, "freeze"),
        ([], 2, "ACTION"),
    ],
    ids=str,
)
def test_mistakes_say_what_to_do(words: list[str], code: int, message: str, capsys) -> None:
    assert main(["data", *words]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_freeze_prints_the_id_and_writes_the_pictures(orl_root: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    shipped = json.loads(SHIPPED.read_text())
    assert main(["data", "freeze", "data=orl_heavy", "-o", str(out)]) == 0
    assert f"orl_heavy {shipped['id']}: 60 pictures of 12 identities" in capsys.readouterr().out
    assert json.loads((out / "protocol.json").read_text()) == shipped
    for image in shipped["images"]:
        for part, key in (("lq", "lq_sha256"), ("gt", "gt_sha256")):
            pixels = read_image(out / part / f"{image['image_id']}.png")
            assert sha256_bytes(pixels.tobytes()) == image[key]
        assert len(list((out / "reference" / image["image_id"]).iterdir())) == 5
    first = [path for path in sorted((out / "reference").rglob("*.png")) if path.parent.parent.name == "s29"]
    assert len({path.stat().st_ino for path in first}) == 5
    kept = (out / "lq/s30/6.png").stat().st_mtime_ns
    (out / "lq/s29/6.png").unlink()
    (out / "protocol.json").unlink()
    (out / ".protocol_id").write_text(shipped["id"])
    assert main(["data", "freeze", "data=orl_heavy", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 60
    assert (out / "lq/s29/6.png").is_file()
    assert (out / "lq/s30/6.png").stat().st_mtime_ns == kept
    assert main(["data", "freeze", "data=orl_light", "-o", str(out)]) == 2
    assert "holds the protocol" in capsys.readouterr().err
    assert main(["data", "freeze", "data=orl_light", "-o", str(orl_root)]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_freeze_writes_damaged_pictures_again(source: Path, tmp_path: Path, capsys) -> None:
    words = ["data=folder_heavy", f"data.root={source}", "data.size=64", "data.references=2", "data.name=mine"]
    out = tmp_path / "out"
    freeze = ["data", "freeze", *words, "-o", str(out)]
    assert main(freeze) == 0
    right = {path: read_image(path) for path in out.rglob("*.png")}
    lq, gt, reference = (sorted((out / part).rglob("*.png"))[-1] for part in ("lq", "gt", "reference"))
    other = right[lq].copy()
    other[0, 0] ^= 1
    capsys.readouterr()
    for path, content in ((lq, b""), (lq, encode_png(other)), (gt, gt.read_bytes()[:100]), (gt, right[gt][:9])):
        path.write_bytes(content if isinstance(content, bytes) else encode_png(content))
        assert main(freeze) == 0
        assert "1 pictures written" in capsys.readouterr().out
        assert all(np.array_equal(read_image(path), pixels) for path, pixels in right.items())
    for damage in (b"", encode_png(other)):
        reference.unlink()
        reference.write_bytes(damage)
        assert main(freeze) == 0
        assert all(np.array_equal(read_image(path), pixels) for path, pixels in right.items())
    (out / "protocol.json").write_text("[]")
    assert main(freeze) == 2
    assert "is no protocol" in capsys.readouterr().err


def test_freeze_writes_the_marks_of_a_probe(orl_root: Path, tmp_path: Path) -> None:
    """References are written as a method sees them."""
    words = ["data=orl_heavy_ci", "probe=marks", "data.identities=1", "data.targets=1"]
    assert main(["data", "freeze", *words, "-o", str(tmp_path / "out")]) == 0
    protocol = Protocol.from_dict(json.loads((tmp_path / "out" / "protocol.json").read_text()))
    pictures = ProtocolPictures(protocol, orl_root)
    for image in protocol.images:
        for rank, reference in enumerate(image.references):
            (path,) = (tmp_path / "out" / "reference" / image.image_id).glob(f"{rank}_*.png")
            assert np.array_equal(read_image(path), pictures.crop(reference))


def test_what_freeze_wrote_is_read_again_as_a_folder(source: Path, tmp_path: Path, capsys) -> None:
    words = ["data=folder_heavy", f"data.root={source}", "data.size=64", "data.references=2", "data.name=mine"]
    out = tmp_path / "out"
    assert main(["data", "freeze", *words, "-o", str(out), "--json"]) == 0
    frozen = json.loads(capsys.readouterr().out)
    assert frozen["pictures"] == 6
    again = ["data=folder", f"data.root={out}", "data.size=64", "data.references=2", "data.name=again"]
    assert main(["data", "freeze", *again, "-o", str(tmp_path / "second")]) == 0
    for path in sorted((out / "lq").rglob("*.png")):
        name = path.relative_to(out / "lq").with_suffix("")
        copies = [p for p in (tmp_path / "second" / "lq").rglob("*.png") if p.with_suffix("").match(str(name))]
        assert len(copies) == 1
        assert np.array_equal(read_image(copies[0]), read_image(path))
    assert len(list((tmp_path / "second" / "reference").rglob("*.png"))) == 12


def test_the_id_is_that_of_the_content(source: Path, tmp_path: Path, capsys) -> None:
    def frozen(root: Path, *words: str) -> str:
        given = [f"data.root={root}", "data.size=64", "data.references=1", "data.name=mine", *words]
        assert main(["data", "freeze", "data=folder_heavy", *given, "--json"]) == 0
        identifier: str = json.loads(capsys.readouterr().out)["id"]
        return identifier

    other = tmp_path / "another, [folder]"
    shutil.copytree(source, other)
    here = frozen(source)
    assert frozen(other) == here
    assert frozen(source, "metrics.names=[psnr_y]") == here
    reference = read_image(other / "s1" / "1.png")
    reference[5, 5, 0] ^= 1
    write_png(other / "s1" / "1.png", reference)
    given = ["data.size=64", "data.references=1", "data.name=other"]
    assert main(["data", "freeze", "data=folder_heavy", f"data.root={other}", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] != here


def test_commit_never_changes_a_committed_protocol(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(freeze_module, "committed_path", lambda name: tmp_path / f"{name}.json")
    words = ["data", "freeze", "data=orl_heavy_ci", "data.name=mine", "--commit"]
    assert main(words) == 0
    text = (tmp_path / "mine.json").read_text()
    assert json.loads(text)["name"] == "mine"
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "data.seed=1"]) == 2
    assert "data.name=" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == text


def test_check_links(monkeypatch, capsys) -> None:
    with running_server() as server:
        good = links.Link("data a", server.serve("/a.zip", b"PK" * 50), True, 100)
        page = links.Link("data b", server.serve("/b.zip", b"<html>", kind="text/html"), True)
        read = links.Link("data b", server.serve("/readme", b"<html>", kind="text/html"), False)
        size = links.Link("data c", server.serve("/c.zip", b"x"), True, 7)
        dead = links.Link("weights d", server.address + "/d.pth", True)
        monkeypatch.setattr(links, "all_links", lambda: [good, read])
        assert main(["data", "check-links"]) == 0
        assert "2 addresses, 0 bad" in capsys.readouterr().out
        monkeypatch.setattr(links, "all_links", lambda: [good, page, read, size, dead])
        assert main(["data", "check-links", "--json"]) == 1
        results = json.loads(capsys.readouterr().out)
        assert [result["ok"] for result in results] == [True, False, True, False, False]
        assert [result["status"] for result in results] == [200, 200, 200, 200, 404]
        assert all(method == "HEAD" or asked == "bytes=0-0" for method, _, asked in server.requests)
    monkeypatch.setattr(links, "all_links", lambda: [links.Link("data a", "http://127.0.0.1:9/a.zip", True)])
    assert main(["data", "check-links"]) == 3
    assert "No connection" in capsys.readouterr().err


def test_links_are_those_of_cards_and_weights() -> None:
    from bench.weights import catalogue

    found = {link.url: link for link in links.all_links()}
    assert found
    assert all(entry.url in found for entry in catalogue.entries().values() if entry.url)
    assert all(url.startswith(("https://", "http://")) and not url.endswith((".", ",", ")")) for url in found)


MEMORY = """
import resource, sys
from bench.cli.main import main
code = main(["data", "freeze", "data=folder_heavy", f"data.root={sys.argv[1]}", "data.size=64", "data.references=1",
             "data.name=mine", "-o", sys.argv[2]])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_memory_stays_flat_with_the_number_of_pictures(tmp_path: Path, orl_root: Path) -> None:
    """Ten times the pictures take no more memory than a record for each (landmark files spare the detection)."""
    peaks = []
    face = read_image(orl_root / "s1" / "1.pgm")[10:102]
    landmarks = "\n".join(f"{30 + n % 30} {30 + n % 40}" for n in range(68))
    for people in (10, 100):
        root = tmp_path / f"{people}"
        for person in range(people):
            for number in range(11):
                picture = face.copy()
                picture[0, 0] = (person, number, 0)
                write_png(root / f"p{person}" / f"{number}.png", picture)
                (root / f"p{person}" / f"{number}.png.txt").write_text(landmarks)
        words = [sys.executable, "-c", MEMORY, str(root), str(tmp_path / f"out{people}")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
        peaks.append(int(done.stderr.rpartition("PEAK")[2]))
        assert f"{people * 10} pictures" in done.stdout
    sys.stdout.write(f"peak memory of freezing 100 and 1,000 pictures: {peaks} MiB\n")
    assert peaks[1] - peaks[0] < 32
