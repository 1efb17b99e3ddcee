"""`bench degrade`: the same bytes every time, nothing lost, nothing overwritten."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.cli.main import main
from bench.config import read_preset
from bench.degradation.folder import output_paths
from bench.degradation.operators.jpeg import JPEG
from bench.degradation.pipeline import DegradationPipeline
from bench.degradation.records import appending, read_records
from bench.image import read_image, write_png
from bench.seeds import derive_seed


@pytest.fixture
def photos(tmp_path: Path, orl_root: Path) -> Path:
    """Four pictures in folders with names that shells and parsers trip over."""
    folder = tmp_path / "in é"
    for name in ("1.pgm", "2.pgm", "s, [1]=é/3.pgm", "s, [1]=é/deep er/10.pgm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(orl_root / "s1" / Path(name).name, folder / name)
    return folder


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pngs_mirror_the_folder_and_the_records_say_how(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out, put=[1]"
    assert main(["degrade", str(photos), "-o", str(out), "--preset", "heavy", "--seed", "3"]) == 0
    names = {"1.png", "2.png", "s, [1]=é/3.png", "s, [1]=é/deep er/10.png"}
    assert set(_tree(out)) == names | {"theta.jsonl", "contact_sheet.png"}
    records = read_records(out / "theta.jsonl")
    assert set(records) == {name.replace(".png", ".pgm") for name in names}
    record = records["s, [1]=é/3.pgm"]
    # The seed and the scaling of the ranges, worked out here a second time.
    pipeline = DegradationPipeline("heavy", read_preset("degradation", "heavy")["steps"], 92)
    seed = derive_seed("heavy", 3, "s, [1]=é/3.pgm")
    assert record["theta"] == pipeline.sample([seed], (112, 92))[0]
    assert record["size"] == [112, 92]
    degraded, clean = read_image(out / "1.png"), read_image(photos / "1.pgm")
    assert degraded.shape == clean.shape
    assert np.abs(degraded.astype(int) - clean).mean() > 3
    sheet = read_image(out / "contact_sheet.png")
    assert sheet.shape[1] > 4 * 2 * 92
    assert sheet.std() > 10


def test_again_replayed_and_alone_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    first, second, third, alone = (tmp_path / name for name in ("a", "b", "c", "d"))
    assert main(["degrade", str(photos), "-o", str(first)]) == 0
    assert main(["degrade", str(photos), "-o", str(second)]) == 0
    replay = ["--replay", str(first / "theta.jsonl")]
    assert main(["degrade", str(photos), "-o", str(third), *replay]) == 0
    assert _tree(first) == _tree(second) == _tree(third)
    (photos / "1.pgm").unlink()
    assert main(["degrade", str(photos), "-o", str(alone)]) == 0
    assert _tree(alone)["2.png"] == _tree(first)["2.png"]
    other = tmp_path / "e"
    assert main(["degrade", str(photos), "-o", str(other), "--seed", "1"]) == 0
    assert _tree(other)["2.png"] != _tree(first)["2.png"]


def test_any_number_of_workers_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    outputs = {workers: tmp_path / f"out{workers}" for workers in (1, 2, 3)}
    for workers, out in outputs.items():
        assert main(["degrade", str(photos), "-o", str(out), "--workers", str(workers)]) == 0
    assert _tree(outputs[1]) == _tree(outputs[2]) == _tree(outputs[3])
    replayed = tmp_path / "replayed"
    replay = ["--replay", str(outputs[3] / "theta.jsonl"), "--workers", "2"]
    assert main(["degrade", str(photos), "-o", str(replayed), *replay]) == 0
    assert _tree(replayed) == _tree(outputs[1])


def test_workers_name_what_failed_and_keep_what_is_done(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "text.jpg").write_text("no picture")
    out = tmp_path / "out"
    main(["degrade", str(photos), "-o", str(out)])
    whole = _tree(out)
    (out / "2.png").unlink()
    capsys.readouterr()
    assert main(["degrade", str(photos), "-o", str(out), "--workers", "2", "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert (result["written"], result["kept"], set(result["failed"])) == (1, 3, {"text.jpg"})
    assert _tree(out) == whole


def test_interrupting_workers_ends_clean_and_can_be_resumed(tmp_path: Path, orl_root: Path) -> None:
    folder, out, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    folder.mkdir()
    for copy in range(400):
        shutil.copy(orl_root / "s1" / f"{copy % 10 + 1}.pgm", folder / f"{copy}.pgm")
    words = [sys.executable, "-m", "bench", "degrade", str(folder), "--workers", "2"]
    # Tests that run in the background ignore interrupts, and what they start would inherit that.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    call = subprocess.Popen(
        [sys.executable, "-c", heeding, *words, "-o", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    records = out / "theta.jsonl"
    deadline = time.monotonic() + 60
    while not (records.is_file() and records.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    # As a terminal does it: the whole group, workers included, and the keys pressed until it ends. Nothing may be left
    # that holds its output open.
    while call.poll() is None:
        os.killpg(call.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            call.wait(0.1)
    _, error = call.communicate(timeout=60)
    assert call.returncode == 130
    assert "stopped" in error
    assert "Traceback" not in error
    done = len(read_records(records))
    assert 0 < done < 400
    assert main(["degrade", str(folder), "-o", str(out)]) == 0
    assert main(["degrade", str(folder), "-o", str(whole)]) == 0
    assert _tree(out) == _tree(whole)


def test_a_stopped_call_goes_on(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["degrade", str(photos), "-o", str(out)])
    whole = _tree(out)
    lines = (out / "theta.jsonl").read_bytes().splitlines(keepends=True)
    # As a kill leaves it: a line cut short, a picture without its line, and one that was cut short.
    (out / "theta.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    damaged = json.loads(lines[0])["output"]
    (out / damaged).write_bytes(b"half")
    capsys.readouterr()
    assert main(["degrade", str(photos), "-o", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["written"], result["kept"]) == (3, 1)
    assert _tree(out) == whole
    assert main(["degrade", str(photos), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 4
    assert main(["degrade", str(photos), "-o", str(out), "--json", "--seed", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 4


def test_unreadable_pictures_are_named_and_stop_no_other(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("no picture")
    assert main(["degrade", str(photos), "-o", str(tmp_path / "out"), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert result["written"] == 4
    assert set(result["failed"]) == {"empty.png", "text.jpg"}
    assert "empty (0 bytes)" in result["failed"]["empty.png"]


def test_same_names_with_different_suffixes_do_not_meet(photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.open(photos / "1.pgm").save(photos / "1.jpg")
    assert main(["degrade", str(photos), "-o", str(tmp_path / "out")]) == 0
    assert {"1.jpg.png", "1.pgm.png", "2.png"} <= set(_tree(tmp_path / "out"))
    assert len(set(output_paths(["a.png", "a.jpg", "a.jpg.png", "A.bmp"]).values())) == 4
    assert output_paths(["contact_sheet.jpg"])["contact_sheet.jpg"] != "contact_sheet.png"


def test_size_scales_the_ranges(photos: Path, tmp_path: Path) -> None:
    assert main(["degrade", str(photos), "-o", str(tmp_path / "out"), "--size", "128"]) == 0
    records = read_records(tmp_path / "out" / "theta.jsonl")
    assert {record["theta"]["steps"][0]["kernel_size"] for record in records.values()} == {11}


def test_mistakes_are_explained(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _tree(photos)
    (tmp_path / "none").mkdir()
    cases = [
        ([str(tmp_path / "none"), "-o", str(tmp_path / "o")], "holds no pictures"),
        ([str(tmp_path / "missing"), "-o", str(tmp_path / "o")], "is not a folder"),
        ([str(photos), "-o", str(photos)], "overlaps"),
        ([str(photos), "-o", str(photos / "out")], "overlaps"),
        ([str(photos), "-o", str(photos.parent / "none" / ".." / photos.name / "x")], "overlaps"),
        ([str(photos), "-o", str(tmp_path / "o"), "--preset", "havy"], "Did you mean 'heavy'"),
        ([str(photos), "-o", str(tmp_path / "o"), "--size", "big"], "neither 'native' nor"),
        ([str(photos), "-o", str(tmp_path / "o"), "--replay", str(tmp_path / "no.jsonl")], "Cannot read"),
        ([str(photos)], "-o"),
        ([str(photos), "-o", str(tmp_path / "o"), "--seed", "x"], "--seed"),
        ([str(photos), "-o", str(tmp_path / "o"), "--workers", "0"], "at least 1"),
        ([str(photos), "-o", str(photos.parent / "a file")], "is a file"),
        ([str(photos), "-o", str(photos.parent / "theirs")], "is none of ours"),
        ([str(photos), "-o", str(tmp_path / "o"), "--replay", "r", "--seed", "0", "--preset", "heavy"], "leave out"),
        ([str(photos), "-o", str(tmp_path / "o"), "--replay", str(tmp_path / "empty.jsonl")], "holds no degradation"),
        ([str(photos), "-o", str(tmp_path / "o"), "--replay", str(tmp_path / "other.jsonl")], "name no picture"),
        ([str(photos), "-o", str(tmp_path / "o"), "--preset", "../data/orl"], "Unknown degradation preset"),
    ]
    (photos.parent / "a file").write_text("mine")
    (photos.parent / "theirs").mkdir()
    (photos.parent / "theirs" / "contact_sheet.png").write_bytes(b"mine")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "other.jsonl").write_text('{"path": "x.png", "theta": {"steps": []}}\n')
    for words, message in cases:
        assert main(["degrade", *words]) == 2
        assert message in capsys.readouterr().err
    assert _tree(photos) == before
    assert not (tmp_path / "o").exists()


def test_a_record_of_another_picture_is_not_replayed(
    photos: Path, tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["degrade", str(photos), "-o", str(out)])
    shutil.copy(orl_root / "s2" / "1.pgm", photos / "1.pgm")
    shutil.copy(orl_root / "s2" / "5.pgm", photos / "5.pgm")
    capsys.readouterr()
    code = main(["degrade", str(photos), "-o", str(tmp_path / "b"), "--replay", str(out / "theta.jsonl"), "--json"])
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert code == 4
    assert "not the picture" in failed["1.pgm"]
    assert "no line" in failed["5.pgm"]


def _edit(file: Path, **changes: object) -> None:
    """Replaces values of the record of 1.pgm; `None` takes a value away."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    (own,) = (line for line in lines if line["path"] == "1.pgm")
    own |= changes
    kept = [{key: value for key, value in line.items() if value is not None} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def test_another_version_of_an_operator_is_named_in_replay_and_stale_when_resuming(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(["degrade", str(photos), "-o", str(out)]) == 0
    record = read_records(out / "theta.jsonl")["1.pgm"]
    assert record["versions"]["jpeg"] == JPEG.version
    assert set(record["versions"]) == {step["operator"] for step in record["theta"]["steps"]}
    monkeypatch.setattr(JPEG, "version", 7)
    capsys.readouterr()
    replay = ["--replay", str(out / "theta.jsonl"), "--json"]
    assert main(["degrade", str(photos), "-o", str(tmp_path / "b"), *replay]) == 4
    result = json.loads(capsys.readouterr().out)
    assert result["written"] == 0
    assert "jpeg (version 1 there, 7 here)" in result["failed"]["1.pgm"]
    assert not list((tmp_path / "b").rglob("*.png"))
    assert main(["degrade", str(photos), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 4
    assert read_records(out / "theta.jsonl")["1.pgm"]["versions"]["jpeg"] == 7


def test_an_edited_record_fails_and_the_others_do_not(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    main(["degrade", str(photos), "-o", str(out)])
    records = out / "theta.jsonl"
    theta = read_records(records)["1.pgm"]["theta"]
    changed = [{**step, **({"sigma_x": 1.0} if "sigma_x" in step else {})} for step in theta["steps"]]
    _edit(records, theta={**theta, "steps": changed})
    capsys.readouterr()
    assert main(["degrade", str(photos), "-o", str(again), "--replay", str(records), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert (result["written"], set(result["failed"])) == (3, {"1.pgm"})
    assert "The record of 1.pgm gives another picture" in result["failed"]["1.pgm"]
    assert not (again / "1.png").exists()
    assert (again / "2.png").read_bytes() == (out / "2.png").read_bytes()
    _edit(records, output_sha256=None)
    assert main(["degrade", str(photos), "-o", str(again), "--replay", str(records)]) == 0
    assert (again / "1.png").read_bytes() != (out / "1.png").read_bytes()


BLUR = {"operator": "gaussian_blur", "kernel_size": 5, "sigma_x": 1, "sigma_y": 1, "angle": 0}
NOISE = {"operator": "gaussian_noise", "sigma": 1, "grey": False, "seed": 1}
BACK = {"operator": "resize_back", "height": 112, "width": 92}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": {"steps": "ab"}}, "list of steps"),
        ({"theta": [1]}, "list of steps"),
        ({"theta": {"steps": [{}]}}, "Unknown degradation operator"),
        ({"theta": {"steps": [{"operator": ["jpeg"]}]}}, "Unknown degradation operator"),
        ({"theta": {"steps": [{"operator": "maybe", "probability": 1, "steps": []}]}}, "holds other steps"),
        ({"theta": {"steps": [{"operator": "jpeg", "quality": 50.5}]}}, "whole number from 1 to 100"),
        ({"theta": {"steps": [{"operator": "jpeg", "quality": 500}]}}, "whole number from 1 to 100"),
        ({"theta": {"steps": [{"operator": "jpeg"}]}}, "jpeg cannot be applied .*quality"),
        ({"theta": {"steps": [{**BLUR, "sigma_x": 0}]}}, "above 0"),
        ({"theta": {"steps": [{**BLUR, "kernel_size": -5}]}}, "odd whole number"),
        ({"theta": {"steps": [{**BLUR, "angle": "x"}]}}, "gaussian_blur cannot be applied"),
        (
            {"theta": {"steps": [{"operator": "gaussian_noise", "sigma": float("nan"), "grey": False, "seed": 1}]}},
            "NaN",
        ),
        ({"theta": {"steps": [{"operator": "gaussian_noise", "sigma": 1, "grey": False, "seed": -1}]}}, "cannot be"),
        ({"theta": {"steps": [{"operator": "downscale", "height": 0, "width": 4}, BACK]}}, "cannot be resized"),
        ({"theta": {"steps": [{"operator": "downscale", "height": 20, "width": 20}]}}, "resize_back"),
        ({"theta": {"steps": [{"operator": "bicubic_downscale", "factor": 0}, BACK]}}, "at least 1"),
        ({"theta": {"steps": [{"operator": "colour_shift", "shift": [1, 2]}]}}, "colour_shift cannot be applied"),
        ({"theta": {"steps": [{"operator": "poisson_noise", "photons": 0, "grey": False, "seed": 1}]}}, "photons"),
        ({"size": 5}, "whole numbers"),
        ({"size": [112, 91]}, "not the picture"),
        ({"versions": [1]}, "versions"),
    ],
)
def test_a_damaged_record_fails_its_picture_alone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    for name in ("2.pgm", "s, [1]=é/3.pgm"):
        (photos / name).unlink()
    records = tmp_path / "theta.jsonl"
    lines = [
        {"path": path, "theta": {"steps": [{"operator": "grey"}]}} for path in ("1.pgm", "s, [1]=é/deep er/10.pgm")
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    _edit(records, **changes)
    assert main(["degrade", str(photos), "-o", str(tmp_path / "out"), "--replay", str(records), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert (result["written"], set(result["failed"])) == (1, {"1.pgm"})
    assert re.search(message, result["failed"]["1.pgm"])


def test_a_first_line_cut_short_does_not_stop_the_next_call(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    main(["degrade", str(photos), "-o", str(whole)])
    out.mkdir()
    shutil.copy(whole / "1.png", out / "1.png")
    (out / "theta.jsonl").write_bytes((whole / "theta.jsonl").read_bytes()[:30])
    assert main(["degrade", str(photos), "-o", str(out)]) == 0
    assert _tree(out) == _tree(whole)
    capsys.readouterr()
    half = tmp_path / "half.jsonl"
    half.write_bytes((whole / "theta.jsonl").read_bytes()[:30])
    assert main(["degrade", str(photos), "-o", str(tmp_path / "b"), "--replay", str(half)]) == 2
    assert "holds no degradation records" in capsys.readouterr().err


def test_a_line_cut_short_does_not_spoil_the_one_appended_after_it(tmp_path: Path) -> None:
    path = tmp_path / "theta.jsonl"
    path.write_text('{"path": "half')
    with appending(path) as stream:
        stream.write('{"path": "a", "theta": {"steps": []}}\n')
    assert set(read_records(path)) == {"a"}


def test_files_that_no_record_names_are_not_overwritten(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.png").write_bytes(b"mine")
    assert main(["degrade", str(photos), "-o", str(out), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert (result["written"], set(result["failed"])) == (3, {"1.pgm"})
    assert "no record names it" in result["failed"]["1.pgm"]
    assert (out / "1.png").read_bytes() == b"mine"


def test_pngs_of_pictures_that_are_gone_are_removed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["degrade", str(photos), "-o", str(out)])
    (out / "notes.png").write_bytes(b"mine")
    for name in ("1.pgm", "2.pgm"):
        (photos / name).unlink()
    (out / "2.png").write_bytes(b"changed by hand")
    capsys.readouterr()
    assert main(["degrade", str(photos), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert not (out / "1.png").exists()
    assert (out / "2.png").read_bytes() == b"changed by hand"
    assert (out / "notes.png").read_bytes() == b"mine"


def test_a_record_can_remove_nothing_outside_of_the_output(photos: Path, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside.png"
    main(["degrade", str(photos), "-o", str(out)])
    shutil.copy(out / "1.png", outside)
    _edit(out / "theta.jsonl", path="gone.pgm", output="../outside.png")
    assert main(["degrade", str(photos), "-o", str(out)]) == 0
    assert outside.exists()


def test_folders_that_cannot_be_read_are_reported(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str | Path = ".") -> object:
        if str(path).endswith("deep er"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(["degrade", str(photos), "-o", str(tmp_path / "out"), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert result["written"] == 3
    assert "Permission denied" in result["failed"]["s, [1]=é/deep er/"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_ends_with_one_line_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, workers: str
) -> None:
    """A limit on the size of a file stands for the full disk: the kernel refuses the write."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = [sys.executable, "-m", "bench", "degrade", str(photos), "-o", str(out), "--workers", workers]
    call = subprocess.run(
        ["bash", "-c", 'ulimit -f 4; exec "$@"', "-", *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert call.returncode == 4
    assert "Traceback" not in call.stderr
    assert "the same command goes on" in call.stderr
    assert not [name for name in _tree(out) if ".partial" in name]
    assert main(["degrade", str(photos), "-o", str(out)]) == 0
    assert main(["degrade", str(photos), "-o", str(whole)]) == 0
    assert _tree(out) == _tree(whole)


def test_an_output_that_cannot_be_made_is_explained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["degrade", str(photos), "-o", str(tmp_path / "file" / "below")]) == 4
    assert "Cannot write to" in capsys.readouterr().err


def test_tiny_pictures_are_degraded_or_refused_as_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    for side in (1, 2, 3, 5):
        write_png(folder / f"{side}.png", np.full((side, side, 3), 90, np.uint8))
    for preset in ("heavy", "light", "gfpgan"):
        out = tmp_path / preset
        assert main(["degrade", str(folder), "-o", str(out), "--preset", preset, "--json"]) == 4
        result = json.loads(capsys.readouterr().out)
        assert (result["written"], set(result["failed"])) == (3, {"1.png"})
        assert "too small" in result["failed"]["1.png"]
