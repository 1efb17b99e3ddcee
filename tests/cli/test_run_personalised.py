"""`bench run` of a method that is tuned for each identity: learns everyone once, alone or in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.cli.main import main
from bench.personal_state import read_state
from bench.runs.journal import read_journals

P = "method.personalisation"
WORDS = [
    "method=pfstorer", "data=orl_heavy_ci", "data.identities=4", "data.name=orl_four", "leaderboard=false",
    "metrics.names=[haarpsi]",
    f"{P}.iterations=4", f"{P}.samples=4", f"{P}.sites=every_second", "method.self_ensemble=false",
]  # fmt: skip
PEOPLE = 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(folder: Path, *words: str) -> int:
    return main(["run", *WORDS, f"run_dir={folder}", *words])


def states(home: Path) -> dict[str, bytes]:
    found = sorted((home / "personal" / "pfstorer").glob("*.safetensors"))
    return {path.stem: path.read_bytes() for path in found if "unfinished" not in path.name}


def learnt(folder: Path) -> list[dict[str, Any]]:
    return read_journals(folder / "journal" / "personalise")


def in_a_process(home: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "BENCH_RUN_DIR"}
    environment |= {"BENCH_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(bench.__file__).parents[1])}
    command = [sys.executable, "-m", "bench", "run", *WORDS, f"run_dir={folder}", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_everyone_is_learnt_once(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *WORDS]) == 0
    assert f"{PEOPLE} people, 0 known; 4 iterations for each of the others" in capsys.readouterr().out
    assert run(tmp_path / "run") == 0
    assert main(["check", *WORDS]) == 0
    assert f"{PEOPLE} people, {PEOPLE} known" in capsys.readouterr().out
    first = states(home)
    assert len(first) == len(learnt(tmp_path / "run")) == PEOPLE
    assert run(tmp_path / "run") == 0
    assert len(learnt(tmp_path / "run")) == PEOPLE, "the second run learns nobody"
    assert run(tmp_path / "again") == 0
    assert learnt(tmp_path / "again") == [], "another run finds the states"
    # One state less: that person alone is learnt, to the same bytes.
    key = sorted(first)[2]
    (home / "personal" / "pfstorer" / f"{key}.safetensors").unlink()
    assert run(tmp_path / "run") == 0
    assert [entry["key"] for entry in learnt(tmp_path / "run")[PEOPLE:]] == [key]
    assert states(home) == first
    # Half a state is none.
    (home / "personal" / "pfstorer" / f"{key}.safetensors").write_bytes(first[key][:1000])
    assert run(tmp_path / "run") == 0
    assert states(home) == first
    assert run(tmp_path / "run", "overwrite=always", "seed=1") == 0
    assert len(states(home)) == 2 * PEOPLE, "another seed learns others"


def test_two_processes_share_the_people(home: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "one") == 0
    other = tmp_path / "other"
    with in_a_process(other, tmp_path / "two", "trainer=ddp_cpu") as process:
        _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert states(other) == states(home)
    shares = [len((tmp_path / f"two/journal/personalise/{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert shares == [PEOPLE // 2, PEOPLE // 2]
    for picture in sorted((tmp_path / "one/restored").rglob("*.png")):
        assert picture.read_bytes() == (tmp_path / "two" / picture.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_within_a_person(home: Path, tmp_path: Path) -> None:
    longer = [f"{P}.iterations=60", f"{P}.batch_size=1"]
    with in_a_process(home, tmp_path / "killed", *longer) as process:
        folder = home / "personal" / "pfstorer"
        deadline = time.monotonic() + 300
        while not list(folder.glob("*.unfinished.safetensors")) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (unfinished,) = folder.glob("*.unfinished.safetensors")
    key = unfinished.name.partition(".")[0]
    assert not (folder / f"{key}.safetensors").exists()
    assert run(tmp_path / "killed", *longer) == 0
    assert not list(folder.glob("*.unfinished.safetensors"))
    gone_on = read_state(folder / f"{key}.safetensors")
    (folder / f"{key}.safetensors").unlink()
    assert run(tmp_path / "killed", *longer) == 0
    whole = read_state(folder / f"{key}.safetensors")
    assert whole.tensors.keys() == gone_on.tensors.keys()
    assert [name for name, value in whole.tensors.items() if not torch.equal(value, gone_on.tensors[name])] == []


def test_a_person_who_cannot_be_learnt_stops_no_other(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.errors import UsageError
    from methods.pfstorer.module import PFStorer

    learn, met = PFStorer.personalise, []

    def fails_for_the_second(method: PFStorer, *arguments: Any, **named: Any) -> Any:
        met.append(1)
        if len(met) == 2:
            raise UsageError("these references teach nothing.")
        return learn(method, *arguments, **named)

    monkeypatch.setattr(PFStorer, "personalise", fails_for_the_second)
    assert run(tmp_path / "run") == 4
    summary = json.loads((tmp_path / "run/summary.json").read_text("utf-8"))
    assert (summary["images"], summary["of"]) == (PEOPLE - 1, PEOPLE)
    (reason,) = summary["failed"].values()
    assert "these references teach nothing" in reason
    assert "could not be learnt" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("BENCH_HOME", str(home))
    assert run(tmp_path / "run") == 0, "the same command goes on"
