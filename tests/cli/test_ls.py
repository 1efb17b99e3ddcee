"""`bench ls`: what it lists, and that listing imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.cli.main import main

HEAVY = {"torch", "lightning", "hydra", "omegaconf", "mlflow", "pandas", "pyarrow", "cv2", "numpy", "PIL", "scipy"}
PROGRAM = """
import sys
from bench.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
print("IMPORTED", code, *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


def _listed(capsys: pytest.CaptureFixture[str], section: str) -> dict[str, dict[str, object]]:
    assert main(["ls", section, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == [section]
    return {row["name"]: row for row in content[section]}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["ls"],
        ["ls", "--json"],
        *(["ls", name] for name in ("methods", "data", "metrics", "degradations", "weights")),
    ],
    ids=" ".join,
)
def test_imports_nothing_heavy(words: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    code, *imported = done.stderr.splitlines()[-1].removeprefix("IMPORTED ").split()
    assert code == "0"
    assert "bench" in imported
    assert not set(imported) & HEAVY


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    methods = _listed(capsys, "methods")
    assert {"input", "copy_reference", "refine"} <= set(methods)
    assert "WACV 2025" in str(methods["refine"]["title"])
    assert set(methods["refine"]["weights"]) == {"demo", "paper"}  # type: ignore[call-overload]
    assert methods["input"]["weights"] == {}


def test_data_says_what_is_here(capsys: pytest.CaptureFixture[str], orl_root: object) -> None:
    data = _listed(capsys, "data")
    assert data["orl_heavy"]["present"] is True
    assert data["celebref_heavy"]["present"] is False
    assert "ORL" in str(data["orl_heavy"]["title"])


def test_metrics_weights_and_degradations(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = _listed(capsys, "metrics")
    assert (metrics["psnr_y"]["better"], metrics["psnr_y"]["unit"]) == ("higher", "dB")
    assert metrics["lmd_px"]["better"] == "lower"
    assert all(row["licence"] for row in metrics.values())
    weights = _listed(capsys, "weights")
    assert weights["yunet"]["verified"] == "computed"
    assert all(row["licence"] and row["present"] in (True, False) for row in weights.values())
    degradations = _listed(capsys, "degradations")
    assert "gaussian_blur 8-16" in str(degradations["heavy"]["steps"])


def test_the_table_holds_every_section_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    text = capsys.readouterr().out
    for word in ("methods:", "data:", "metrics:", "degradations:", "weights:", "refine", "orl_light", "haarpsi"):
        assert word in text


def test_an_unknown_section_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "method"]) == 2
    assert "Did you mean 'methods'" in capsys.readouterr().err
