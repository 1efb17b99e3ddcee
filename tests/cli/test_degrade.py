"""`bench degrade`: the same bytes every time, nothing lost, nothing overwritten."""

from __future__ import annotations

import json
import os
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
from bench.degradation.folder import output_paths, read_records
from bench.degradation.pipeline import DegradationPipeline
from bench.image import read_image
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
    replay = ["--replay", str(first / "theta.jsonl"), "--seed", "99"]
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
    replay = ["--replay", str(outputs[3] / "theta.jsonl"), "--seed", "9", "--workers", "2"]
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
    for copy in range(60):
        shutil.copy(orl_root / "s1" / f"{copy % 10 + 1}.pgm", folder / f"{copy}.pgm")
    words = [sys.executable, "-m", "bench", "degrade", str(folder), "--workers", "2"]
    call = subprocess.Popen(
        [*words, "-o", str(out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    records = out / "theta.jsonl"
    deadline = time.monotonic() + 60
    while not (records.is_file() and records.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    # As a terminal does it: the whole group, workers included.
    os.killpg(call.pid, signal.SIGINT)
    _, error = call.communicate(timeout=60)
    assert call.returncode == 130
    assert "stopped" in error
    assert "Traceback" not in error
    done = len(read_records(records))
    assert 0 < done < 60
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
    ]
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
