"""`bench personalise`: learnt once, resumable at any moment, clear about what is wrong with references."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli.main import main as bench
from bench.personal_state import read_state
from methods.pfstorer import personal_training
from methods.pfstorer.personal_training import PersonalTraining
from tests.cli.personal_helpers import aligned, few, new_weights


def main(words: list[str]) -> int:
    return bench([*words, "--aligned"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without persons; the interrupts that `main` ignores are heeded again after each test."""
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    handler = signal.getsignal(signal.SIGINT)
    yield tmp_path / "home"
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def three(tmp_path: Path, orl_root: Path) -> list[str]:
    return aligned(tmp_path / "anna é", orl_root, "s1/1", "s1/2", "s1/3")


def nothing_learnt(home: Path) -> bool:
    return not list(home.rglob("*.safetensors"))


def test_a_person_is_learnt_once(
    tmp_path: Path, home: Path, weights: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "new folder" / "a.safetensors", tmp_path / "b.safetensors"
    assert main(["personalise", *few(weights), "--reference", *three, "-o", str(first)]) == 0
    state, shown = read_state(first), capsys.readouterr()
    assert state.key in shown.out and state.base in shown.out and str(first) in shown.out
    assert "learnt the person" in shown.out and " s " in shown.out and " MB" in shown.out
    assert shown.err == ""
    # The words may stand anywhere among the files.
    words = ["--reference", three[0], *few(weights), *three[1:], "-o", str(second), "--json"]
    assert main(["personalise", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["known"] and result["iterations"] == 0
    assert (result["key"], result["base"], result["references"]) == (state.key, state.base, 3)
    assert result["bytes"] == second.stat().st_size
    assert first.read_bytes() == second.read_bytes()
    assert main(["personalise", *few(weights), "--reference", *three, "-o", str(second)]) == 0
    assert "knows this person already; nothing was learnt" in capsys.readouterr().out
    assert not list(home.rglob("*.unfinished.safetensors"))


def test_seed_and_references_make_another_person(
    tmp_path: Path, weights: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = []
    for number, words in enumerate(([*three], [*three, "--seed", "1"], [*three, "seed=2"], [*three[:2]])):
        out = tmp_path / f"{number}.safetensors"
        assert main(["personalise", *few(weights, 1), "--reference", *words, "-o", str(out), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        keys.append(result["key"])
        assert not result["known"] and result["base"] == read_state(out).base
    assert len(set(keys)) == 4


def test_what_is_strange_about_references_is_said(
    tmp_path: Path, orl_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.safetensors")
    large = aligned(tmp_path / "large", orl_root, "s1/1", "s1/2", side=256)
    small = aligned(tmp_path / "small", orl_root, "s1/3", side=100)
    (other,) = aligned(tmp_path / "other", orl_root, "s2/1")
    Image.new("RGB", (128, 128), (90, 80, 70)).save(tmp_path / "flat.png")
    references = [*large, *small, other, str(tmp_path / "flat.png"), large[0]]
    assert main(["personalise", *few(weights, 1), "--reference", *references, "-o", out]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, parts in zip(
        lines,
        (
            (large[0], "the same picture"),
            (small[0], "100x100", "128x128"),
            ("flat.png", "No face"),
            (other, "somebody else"),
        ),
        strict=True,
    ):
        assert all(part in line for part in parts), line
    assert main(["personalise", *few(weights, 1), "--reference", large[0], "-o", out]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "one reference only" in line and "3 to 5" in line
    assert main(["personalise", *few(weights, 1), "--reference", large[0], other, "-o", out]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert large[0] in line and other in line and "different people" in line


def test_bad_references_are_named_and_nothing_is_written(
    tmp_path: Path, home: Path, weights: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(Path(three[0]).read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    out = tmp_path / "out" / "a.safetensors"
    for name, message in (
        ("wide.png", "300x200.*[Aa]ligned square"),
        ("broken.png", "broken"),
        ("text.jpg", "not a picture"),
        ("empty.png", "empty"),
        ("absent.png", "No such file"),
        (".", "directory"),
    ):
        path = str(tmp_path / name)
        assert main(["personalise", *few(weights), "--reference", *three, path, "-o", str(out)]) == 2, name
        error = capsys.readouterr().err
        assert path in error
        assert re.search(message, error), error
        assert "Traceback" not in error
    assert not out.parent.exists()
    assert nothing_learnt(home)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["method=refine"], ["refine", "learns nothing", "pfstorer"]),
        (["method=input", "--seed", "3"], ["input", "pfstorer"]),
        (["method=nobody"], ["Unknown method", "pfstorer"]),
        ([], ["Which method?"]),
        (["method=pfstorer", "data=orl_heavy"], ["takes no data="]),
        (["method=pfstorer", "seed=1", "--seed", "1"], ["both given"]),
        (["method=pfstorer", "--sead", "1"], ["Unknown option"]),
    ],
)
def test_wrong_calls_are_refused(
    tmp_path: Path, home: Path, three: list[str], capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    assert main(["personalise", *words, "--reference", *three, "-o", str(tmp_path / "a.safetensors")]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert nothing_learnt(home)


def test_settings_that_learn_nothing_are_refused(
    tmp_path: Path, home: Path, weights: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*few(weights), "method.personalisation.tunes=nothing"]
    assert main(["personalise", *words, "--reference", *three, "-o", str(tmp_path / "a.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "pfstorer+base@demo learns nothing" in error and "Methods that do: dual_pivot, pfstorer" in error
    words = [*few(weights), "trainer=ddp_cpu"]
    assert main(["personalise", *words, "--reference", *three, "-o", str(tmp_path / "a.safetensors")]) == 2
    assert "One process" in capsys.readouterr().err
    assert nothing_learnt(home)


def test_an_output_that_cannot_be_is_refused_before_learning(
    tmp_path: Path, home: Path, weights: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out, message in (
        (str(tmp_path), "is a folder"),
        (three[0], "must be named so"),
        (str(tmp_path / "file" / "a.safetensors"), "Cannot write"),
    ):
        before = Path(three[0]).read_bytes()
        assert main(["personalise", *few(weights), "--reference", *three, "-o", out]) == 2
        assert message in capsys.readouterr().err
        assert Path(three[0]).read_bytes() == before
    assert nothing_learnt(home)


def test_an_interrupted_learning_ends_with_the_same_bytes(
    tmp_path: Path,
    home: Path,
    weights: Path,
    three: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(personal_training, "KEEP_EVERY", {"blocks": 1, "unet": 1})
    out = tmp_path / "a.safetensors"
    words = ["personalise", *few(weights, 5), "--reference", *three, "-o", str(out)]
    assert main(words) == 0
    whole = out.read_bytes()
    for path in [*home.rglob("*.safetensors"), out]:
        path.unlink()
    real = PersonalTraining.step
    for last in (2, 4):

        def step(self: PersonalTraining, last: int = last) -> Any:
            if self.iteration == last:
                raise KeyboardInterrupt
            return real(self)

        monkeypatch.setattr(PersonalTraining, "step", step)
        capsys.readouterr()
        assert main(words) == 130
        assert "The same command goes on" in capsys.readouterr().err
        assert not out.exists()
    monkeypatch.setattr(PersonalTraining, "step", real)
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    assert "going on after iteration 4" in shown.err
    assert json.loads(shown.out)["iterations"] == 1
    assert out.read_bytes() == whole
    assert not list(home.rglob("*.unfinished.safetensors"))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, home: Path, weights: Path, three: list[str]
) -> None:
    """A limit on the size of a file stands for the full disk."""
    out = tmp_path / "out" / "a.safetensors"
    words = ["personalise", *few(weights), "--reference", *three, "-o", str(out)]
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from bench.cli.main import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *words, "--aligned"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "ulimit -f" in done.stderr and "Traceback" not in done.stderr
    assert not out.exists()
    assert nothing_learnt(home)
    assert main(words) == 0


@pytest.mark.slow
def test_a_killed_learning_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, home: Path, weights: Path, three: list[str]
) -> None:
    out, whole = tmp_path / "a.safetensors", tmp_path / "whole.safetensors"
    words = ["personalise", *few(weights, 60), "--aligned", "--reference", *three, "-o"]
    command = [sys.executable, "-m", "bench", *words, str(out)]
    call = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while call.poll() is None and time.monotonic() < deadline and not list(home.rglob("*.unfinished.safetensors")):
        time.sleep(0.01)
    assert call.poll() is None, "the learning ended before it could be killed"
    call.send_signal(signal.SIGKILL)
    call.wait()
    assert list(home.rglob("*.unfinished.safetensors"))
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on after iteration" in done.stderr
    elsewhere = {**os.environ, "BENCH_HOME": str(tmp_path / "elsewhere")}
    command = [sys.executable, "-m", "bench", *words, str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=elsewhere)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole.read_bytes()
