"""`bench ls`: what it lists, and that listing imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.leaderboard.papers import load_table, table_ids
from bench.leaderboard.reproduce import _missing_data, reproduce
from bench.weights.catalogue import entries, entry, places

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
        *(["ls", name] for name in ("methods", "data", "metrics", "degradations", "papers", "weights")),
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


def test_metrics_of_whole_sets_are_listed_with_their_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    metrics = _listed(capsys, "metrics")
    sets = {name for name, row in metrics.items() if row["of"] == "set"}
    assert sets == {"fid_gt", "fid_ffhq", "kid_gt"}
    assert {metrics[name]["cost"] for name in sets} == {"medium"}
    assert metrics["fid_ffhq"]["weights"] == {"fid_inception": False, "fid_ffhq_statistics": False}
    (file,) = (path.name for path in places(entry("fid_inception")))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / file).write_bytes(b"only looked for, not read")
    assert _listed(capsys, "metrics")["kid_gt"]["weights"] == {"fid_inception": True}


def test_weights_that_metrics_name_are_in_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    named = {name for row in _listed(capsys, "metrics").values() for name in row["weights"] or ()}  # type: ignore[attr-defined]
    assert {"dlib_resnet", "yunet", "sface", "fid_inception"} <= named <= set(entries())


def test_papers_say_what_can_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    _missing_data.cache_clear()
    papers = _listed(capsys, "papers")
    assert list(papers) == table_ids()
    assert papers["refine/table1"]["title"] == load_table("refine/table1").title
    assert papers["refine/table1"]["can run"] is None
    for name, row in papers.items():
        shown = reproduce(load_table(name)).rows
        runnable = {one.method for one in shown if one.state == "can run"}
        assert runnable <= set(str(row["can run"] or "").split(", "))

    (tmp_path / "data" / "casia_webface").mkdir(parents=True)
    _missing_data.cache_clear()
    row = _listed(capsys, "papers")["refine/table1"]
    assert "refine" in str(row["can run"]).split(", ")
    _missing_data.cache_clear()


def test_the_table_holds_every_section_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    text = capsys.readouterr().out
    sections = ("methods:", "data:", "metrics:", "degradations:", "papers:", "weights:")
    for word in (*sections, "refine", "orl_light", "haarpsi", "kid_gt", "refine/table1"):
        assert word in text


def test_an_unknown_section_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "method"]) == 2
    assert "Did you mean 'methods'" in capsys.readouterr().err
