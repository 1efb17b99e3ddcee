"""`bench data export`: what another program is given, and that its results find their way back."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench.cli.main import main
from bench.config import compose
from bench.data.export import export_protocol, layout_for, plan_export
from bench.data.frozen import WrittenProtocol
from bench.errors import UsageError
from bench.protocol.freeze import load_protocol
from bench.protocol.protocol import DataSettings, Protocol
from bench.systems.card import cards

DATA = "data=orl_heavy_ci"
SHORT = [DATA, "leaderboard=false", "metrics.names=[psnr_y,haarpsi]", "metrics.sets=[]"]


@pytest.fixture(scope="module")
def settings(orl_root: Path) -> DataSettings:
    return DataSettings(**compose("run", ["method=input", DATA])["data"])


@pytest.fixture(scope="module")
def protocol(settings: DataSettings) -> Protocol:
    return load_protocol(settings)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("frozen") / "out"
    assert main(["data", "freeze", DATA, "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "for_dmdnet"
    assert main(["data", "export", DATA, "--for", "dmdnet", "-o", str(folder)]) == 0
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_pictures_are_the_frozen_ones_and_none_is_the_ground_truth(exported: Path, frozen: Path) -> None:
    lq, truth = digests(frozen / "lq"), digests(frozen / "gt")
    assert digests(exported / "lq") == {name.replace("/", "__"): digest for name, digest in lq.items()}
    assert not set(truth.values()) & set(digests(exported).values())


def test_the_manifest_says_what_is_whose(exported: Path, protocol: Protocol) -> None:
    manifest = json.loads((exported / "manifest.json").read_text("utf-8"))
    assert (manifest["protocol_id"], manifest["layout"], manifest["system"]) == (protocol.id, "list", "dmdnet")
    assert [one["image_id"] for one in manifest["images"]] == list(protocol.image_ids)
    for one, image in zip(manifest["images"], protocol.images, strict=True):
        assert one["identity"] == image.identity
        assert len(one["references"]) == len(image.references)
        assert all((exported / name).is_file() for name in (one["lq"], *one["references"]))
    with (exported / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["lq"] for row in rows] == [one["lq"] for one in manifest["images"]]
    assert {row["protocol_id"] for row in rows} == {protocol.id}
    for line, one in zip((exported / "list.txt").read_text().splitlines(), manifest["images"], strict=True):
        lq, references, landmarks = line.split("\t")
        assert Path(lq) == (exported / one["lq"]).resolve()
        assert {path.name for path in Path(references).iterdir()} == {Path(name).name for name in one["references"]}
        assert Path(landmarks).name == Path(references).name


def test_what_a_program_makes_of_it_is_scored(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that copies its input scores as the input does, whatever it adds to the names."""
    (tmp_path / "restored").mkdir()
    for path in (exported / "lq").iterdir():
        shutil.copyfile(path, tmp_path / "restored" / f"{path.stem}_out.png")
        (tmp_path / "restored" / f"{path.stem}_before.png").write_bytes(b"left alone")
    words = [f"method.root={tmp_path / 'restored'}", "method.system=copies", "method.suffix=_out"]
    tables = []
    for name, method in (("mine", ["method=precomputed", *words]), ("input", ["method=input"])):
        assert main(["run", *method, *SHORT, f"run_dir={tmp_path / name}", "--json"]) == 0
        tables.append(pd.read_parquet(tmp_path / name / "scores.parquet").set_index(["metric", "image_id"])["value"])
    pd.testing.assert_series_equal(tables[0].sort_index(), tables[1].sort_index(), atol=1e-6)
    assert '"precomputed+copies"' in capsys.readouterr().out


def listing(capsys: pytest.CaptureFixture[str], system: list[str], folder: Path) -> list[str]:
    """The lines that an export for a system prints."""
    capsys.readouterr()
    assert main(["data", "export", DATA, *system, "-o", str(folder)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", sorted(cards()))
def test_an_export_says_what_is_written_and_the_words_that_read_it(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("bench.data.export.export_protocol", lambda *_: WrittenProtocol(exported, 0, 12))
    own = cards()[name]
    lines = listing(capsys, ["--for", name, "--layout", own.layout or "flat"], tmp_path)
    assert {f"note: {trap}" for trap in own.traps} <= set(lines)
    assert lines[-2] == f"it writes: {own.gives or 'not known (' + own.unverified['gives'] + ')'}"
    results = " ".join(own.results or ["method.root=OUT"])
    assert lines[-1] == f"then: bench run method=precomputed method.system={name} {results} {DATA}"


def test_the_words_that_an_export_prints_read_the_pictures(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its program would, names get what DMDNet adds; the printed words alone find them."""
    monkeypatch.chdir(tmp_path)
    last = listing(capsys, ["--for", "dmdnet"], exported)[-1]
    words = last.removeprefix("then: bench run ").split()
    root = next(word.partition("=")[2] for word in words if word.startswith("method.root="))
    (tmp_path / root).mkdir()
    for path in (exported / "lq").iterdir():
        shutil.copyfile(path, tmp_path / root / f"{path.stem}_GS.png")
        (tmp_path / root / f"{path.stem}_G.png").write_bytes(b"the generic result")
    short = [word for word in SHORT if word != DATA]
    assert main(["run", *words, *short, f"run_dir={tmp_path / 'run'}", "--json"]) == 0
    scores = pd.read_parquet(tmp_path / "run" / "scores.parquet")
    assert scores["value"].notna().all()
    assert set(scores["method"]) == {"precomputed+dmdnet"}


def test_a_stopped_export_goes_on(
    exported: Path, tmp_path: Path, settings: DataSettings, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.data import export

    folder = tmp_path / "out"
    whole, calls = export.write_png, []

    def stops(path: Path, pixels: object) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        whole(path, pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write_png", stops)
    with pytest.raises(KeyboardInterrupt):
        export_protocol(protocol, settings, "image_folders", folder)
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    (folder / "lq" / ".partial-1.png").write_bytes(b"half")
    done = export_protocol(protocol, settings, "image_folders", folder)
    assert (done.written, done.kept) == (9, 3)
    assert not list(folder.rglob(".*"))
    (folder / "lq/s29__6.png").write_bytes(b"broken")
    again = export_protocol(protocol, settings, "image_folders", folder)
    assert (again.written, again.kept) == (1, 11)
    assert digests(folder / "lq") == digests(exported / "lq")


@pytest.mark.parametrize("links", [True, False])
def test_a_reference_is_replaced_whole_or_not_at_all(
    tmp_path: Path, settings: DataSettings, protocol: Protocol, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    from bench.data import frozen as module

    def refused(*_: object) -> None:
        raise OSError("no links here")

    def stops(_: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    pictures = module.ProtocolPictures(protocol, module.data_root(module.load_card(protocol.card), settings.root))
    photo, first = protocol.images[0].references[0], {}  # type: ignore[var-annotated]
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    module.write_reference(pictures, photo, one, first)
    two.write_bytes(b"of an earlier call")
    if not links:
        monkeypatch.setattr(module.os, "link", refused)
        monkeypatch.setattr(module.shutil, "copyfile", stops)
        with pytest.raises(KeyboardInterrupt):
            module.write_reference(pictures, photo, two, first)
        assert two.read_bytes() == b"of an earlier call"
        monkeypatch.undo()
        monkeypatch.setattr(module.os, "link", refused)
    module.write_reference(pictures, photo, two, first)
    assert two.read_bytes() == one.read_bytes()
    assert two.samefile(one) == links
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}


def test_folders_that_hold_anything_else_are_refused(
    exported: Path, tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: list[str], said: str) -> None:
        before = digests(tmp_path)
        assert main(["data", "export", *words]) == 2
        assert said in capsys.readouterr().err
        assert digests(tmp_path) == before

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    refused([DATA, "--layout", "flat", "-o", str(foreign)], "holds other files")
    copied = tmp_path / "copied"
    shutil.copytree(exported, copied)
    refused([DATA, "--layout", "flat", "-o", str(copied)], "as list, not that of")
    refused(["data=orl_heavy", "--for", "dmdnet", "-o", str(copied)], "holds the export of")
    (copied / "lq/result.png").write_bytes(b"restored")
    refused([DATA, "--for", "dmdnet", "-o", str(copied)], "lq/result.png")
    (copied / "lq/result.png").unlink()
    (copied / "landmarks/s29").mkdir(parents=True)
    (copied / "landmarks/s29/0_1.png.txt").write_text("1 2\n")
    assert main(["data", "export", DATA, "--for", "dmdnet", "-o", str(copied)]) == 0, "its landmarks are its own"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([DATA], 2, "--for SYSTEM"),
        ([DATA, "--for", "dmdnett"], 2, "Did you mean 'dmdnet'"),
        ([DATA, "--for", "gfrnet"], 2, "Give --layout"),
        ([DATA, "--layout", "heap"], 2, "Unknown layout 'heap'"),
        (["--for", "vqfr"], 2, "bench data export data=orl_heavy"),
        (["data=celebref_heavy", "--for", "vqfr"], 3, "celebref"),
    ],
)
def test_what_is_missing_is_said(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    orl_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    assert main(["data", "export", *words, "-o", str(tmp_path / "out")]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_layouts(protocol: Protocol) -> None:
    def files(layout: str, of: Protocol = protocol) -> list[str]:
        return [path for _, path in plan_export(of, layout)[0].references]

    assert files("flat") == []
    assert files("same_name") == ["reference/s29__6.png"]
    assert files("identity_folders")[0].startswith("reference/s29/0_")
    assert files("image_folders")[0].startswith("reference/s29__6/0_")
    assert layout_for("mystyle", None) == "identity_folders"
    assert layout_for("mystyle", "flat") == "flat"
    first = protocol.images[0]
    other = replace(first, image_id="s29/7", references=first.references[::-1])
    mixed = replace(protocol, images=(*protocol.images, other))
    with pytest.raises(UsageError, match="different references"):
        plan_export(mixed, "identity_folders")
    assert files("list", mixed)[0].startswith("reference/s29__6/0_"), "a folder for each picture instead"
    bare = replace(protocol, images=(replace(first, references=()),))
    with pytest.raises(UsageError, match="has no reference"):
        plan_export(bare, "same_name")
    twins = replace(protocol, images=(first, replace(first, image_id="s29__6")))
    with pytest.raises(UsageError, match="one name"):
        plan_export(twins, "flat")
