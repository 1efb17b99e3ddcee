"""`bench run` as a user calls it: exact over processes, resumable at any moment, clear about what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bench.cli.main import main

METRICS = "metrics.names=[psnr_y,ssim_y,haarpsi,id,lmd_capped]"


def bench(*words: str, wait: bool = True) -> subprocess.CompletedProcess[str] | subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "BENCH_RUN_DIR"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *words]
    if wait:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    return subprocess.Popen(command, text=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def celebref_like(folder: Path, orl_root: Path, people: int = 7, side: int = 512) -> Path:
    """A folder in Celeb-Ref's layout (five-digit person folders with gaps), made from ORL photographs."""
    for person in range(people):
        own = folder / f"{5 + 3 * person:05d}"
        own.mkdir(parents=True)
        for number in range(2):
            photo = Image.open(orl_root / f"s{29 + person}" / f"{number + 1}.pgm").convert("RGB")
            photo.crop((0, 10, 92, 102)).resize((side, side), Image.Resampling.BICUBIC).save(own / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> Path:
    return celebref_like(tmp_path_factory.mktemp("data") / "célèb, [ref]=1 x", orl_root)


def words(seven: Path, run_dir: Path, *more: str, method: str = "input") -> list[str]:
    return [
        "run", f"method={method}", "data=celebref_heavy", f"data.root={seven}", f"run_dir={run_dir}", METRICS,
        "data.size=128", "leaderboard=false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(seven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = bench(*words(seven, run_dir, method="refine"))
    assert done.returncode == 0, done.stderr
    assert "data set" not in done.stderr
    return run_dir


def same_table(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(
        pd.read_parquet(one / "scores.parquet"), pd.read_parquet(other / "scores.parquet"), check_exact=True
    )
    for picture in (one / "restored").rglob("*.png"):
        assert picture.read_bytes() == (other / picture.relative_to(one)).read_bytes(), picture


def test_the_run_folder_is_complete(whole: Path) -> None:
    for name in (
        "config.yaml",
        "protocol.json",
        "environment.json",
        "scores.parquet",
        "set_scores.parquet",
        "report.html",
    ):
        assert (whole / name).is_file(), name
    summary = json.loads((whole / "summary.json").read_text("utf-8"))
    protocol = json.loads((whole / "protocol.json").read_text("utf-8"))
    assert summary["protocol_id"] == protocol["id"]
    assert summary["images"] == summary["of"] == 7
    assert len(list((whole / "restored").rglob("*.png"))) == 7
    for metric in summary["metrics"].values():
        assert metric["low"] <= metric["mean"] <= metric["high"]
        assert metric["n"] == metric["of"] == 7
        assert metric["identity"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(seven: Path, whole: Path, tmp_path: Path, processes: int) -> None:
    done = bench(*words(seven, tmp_path / "run", "trainer=ddp_cpu", f"trainer.devices={processes}", method="refine"))
    assert done.returncode == 0, done.stderr
    same_table(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(seven: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    moments = random.Random(7)

    def lines(stage: str) -> int:
        """Pictures a stage has finished so far, over all attempts."""
        return sum(path.read_bytes().count(b"\n") for path in (run_dir / "journal" / stage).glob("*.jsonl"))

    for stage in ("restore", "restore", "score"):
        before_this_attempt = lines(stage)
        process = bench(*words(seven, run_dir, method="refine"), wait=False)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and lines(stage) == before_this_attempt:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.1))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lines(stage) > before_this_attempt, "the kill did not hit the stage at work"
        assert not list(run_dir.rglob("scores.parquet"))
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "restored").rglob("*.png") if path.name[0] != "."}
    done = bench(*words(seven, run_dir, method="refine"))
    assert done.returncode == 0, done.stderr
    same_table(whole, run_dir)
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items()), (
        "a finished picture was made twice"
    )


def test_between_batch_sizes_scores_stay_within_the_bounds(seven: Path, whole: Path, tmp_path: Path) -> None:
    done = bench(*words(seven, tmp_path / "run", "batch_size=4", method="refine"))
    assert done.returncode == 0, done.stderr
    bounds = {"psnr_y": 0.01, "ssim_y": 1e-4, "haarpsi": 1e-3, "id": 1e-3, "lmd_capped": 0.05}
    one = pd.read_parquet(whole / "scores.parquet").set_index(["metric", "image_id"])["value"]
    other = pd.read_parquet(tmp_path / "run/scores.parquet").set_index(["metric", "image_id"])["value"]
    worst = (one - other).abs().groupby("metric").max()
    assert all(worst[metric] <= bound for metric, bound in bounds.items()), worst


def test_a_second_call_restores_nothing(seven: Path, whole: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in (whole / "restored").rglob("*.png")}
    assert bench(*words(seven, whole, method="refine")).returncode == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (whole / "restored").rglob("*.png")}


def test_a_folder_of_another_run_is_refused(seven: Path, whole: Path) -> None:
    done = bench(*words(seven, whole, method="input"))
    assert done.returncode == 2
    assert "belongs to another run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_picture_is_named_and_stops_no_other(seven: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(seven, folder)
    whole_picture = (folder / "00008/1.png").read_bytes()
    (folder / "00008/0.png").write_bytes(whole_picture[: len(whole_picture) // 2])
    Image.open(folder / "00008/1.png").point(lambda level: level // 2).save(folder / "00008/2.png")
    done = bench(*words(folder, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "00008/0.png" in done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text("utf-8"))
    assert summary["images"] == 7


def test_a_method_that_fails_on_one_picture_finishes_the_others(seven: Path, tmp_path: Path) -> None:
    package = tmp_path / "site" / "methods_elsewhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "fragile.py").write_text(
        "from bench.method import MethodSpec, RestorationMethod\n"
        "class Fragile(RestorationMethod):\n"
        "    spec = MethodSpec(name='fragile', title='Fragile', references='none')\n"
        "    def restore(self, batch):\n"
        "        if '00014/1' in batch.image_ids:\n"
        "            raise RuntimeError('no luck')\n"
        "        return batch.lq\n"
    )
    metadata = tmp_path / "site" / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bench.methods]\nfragile = methods_elsewhere.fragile:Fragile\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{Path.cwd()}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *words(seven, tmp_path / "run", "batch_size=4", method="fragile")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 4, done.stderr
    assert "00014/1" in done.stdout
    assert "no luck" in done.stdout
    table = pd.read_parquet(tmp_path / "run/scores.parquet")
    missing = table[table["value"].isna()]
    assert set(missing["image_id"]) == {"00014/1"}
    assert missing["reason"].str.contains("no luck").all()


@pytest.mark.parametrize(
    ("given", "code", "hint"),
    [
        (["method=refin"], 2, "refine"),
        (["method=input", "data=orl_hevy"], 2, "orl_heavy"),
        (["method=input", "sed=3"], 2, "seed"),
        (["method=input", "data.degradatio=light"], 2, "data.degradation"),
        (["method=input,refine"], 2, "-m"),
        (["data=orl_heavy"], 2, "method="),
        (["method=input", "overwrite=perhaps"], 2, "missing"),
        (["method=input", "data=celebref_heavy"], 3, "data.root=FOLDER"),
        (["method=input", "data=celebref_heavy", "data.root=nowhere"], 3, "nowhere"),
        (["method=refine", "size=paper", "data=orl_heavy"], 3, "bench train method=refine"),
        (["method=refine", "method.weights=none.safetensors"], 3, "none.safetensors"),
    ],
)
def test_mistakes_are_explained(
    given: list[str], code: int, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *given, f"run_dir={tmp_path / 'run'}"]) == code
    error = capsys.readouterr().err
    assert hint in error
    assert len(error.strip().splitlines()) <= 2


def test_a_folder_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "00005").mkdir()
    assert main(["run", "method=input", "data=celebref_heavy", f"data.root={tmp_path}"]) == 3
    assert "one folder per person" in capsys.readouterr().err
