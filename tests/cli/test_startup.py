"""The command line answers questions about itself without the heavy packages."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "lightning", "pytorch_lightning", "hydra", "mlflow", "numpy", "pandas", "cv2"}
DUMP = """
import sys
from bench.cli.main import main
try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
print("MODULES", code or 0, *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def _imported(words: list[str]) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", DUMP.format(words=words)], capture_output=True, text=True, timeout=60, check=True
    )
    _, code, *names = done.stdout.splitlines()[-1].split()
    return int(code), set(names)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], [], *([verb, "--help"] for verb in ("run", "train", "ls", "personalise", "restore"))],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code, names = _imported(words)
    assert code == 0
    assert "bench" in names
    assert not names & HEAVY


@pytest.mark.parametrize("what", ["methods", "data", "metrics"])
def test_listing_imports_no_framework(what: str) -> None:
    code, names = _imported(["ls", what])
    assert code == 0
    assert not names & {"torch", "lightning", "pytorch_lightning", "hydra", "mlflow"}


def test_listing_methods_imports_what_a_listing_needs() -> None:
    code, names = _imported(["ls", "methods"])
    assert code == 0
    assert {"bench", "yaml"} <= names
    assert not names & (HEAVY | {"hashlib", "json", "pyarrow", "scipy", "PIL", "safetensors", "pooch"})


def test_a_wrong_verb_imports_nothing_heavy() -> None:
    code, names = _imported(["runn"])
    assert code == 2
    assert not names & HEAVY


def test_print_the_cost_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints how long help and a listing take beside an empty program; asserts no time, machines differ.

    On an idle machine `bench ls methods` is to take no more than .3 s.
    """

    def best(words: list[str]) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            done = subprocess.run([sys.executable, *words], capture_output=True, timeout=60, check=True)
            times.append(time.perf_counter() - started)
        assert words[0] != "-m" or done.stdout
        return min(times)

    empty = best(["-c", "pass"])
    for words in (["--help"], ["ls", "methods"]):
        shown, name = best(["-m", "bench", *words]), f"bench {' '.join(words)}"
        with capsys.disabled():
            sys.stdout.write(f"\n{name}: {shown:.3f} s, {shown / empty:.1f} times `python -c pass` ({empty:.3f} s)\n")
