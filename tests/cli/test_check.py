"""`bench check`: finds what would stop a run, and returns the code that the run would."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from bench.registry import load_metric
from bench.weights import catalogue
from bench.weights.catalogue import entry


def _check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    capsys.readouterr()
    code = main(["check", *words, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == code
    return code, {check["name"]: check for check in content["checks"]}


def test_a_run_that_would_work(capsys: pytest.CaptureFixture[str], orl_root: Path) -> None:
    code, checks = _check(capsys, "method=input", "data=orl_heavy_ci")
    assert code == 0
    assert list(checks) == [
        "packages", "configuration", "trainer", "data", "protocol", "method", "metrics", "set metrics", "run folder",
        "disk", "memory", "mlflow",
    ]  # fmt: skip
    assert "error" not in {check["state"] for check in checks.values()}
    assert "12 pictures" in checks["protocol"]["message"]
    assert "the committed one" in checks["protocol"]["message"]
    assert "400 photographs of 40 people" in checks["data"]["message"]


def test_a_line_for_each_check(capsys: pytest.CaptureFixture[str], orl_root: Path) -> None:
    assert main(["check", "method=input", "data=orl_heavy_ci"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all(line.split()[0] in ("ok", "warning") for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "name", "message"),
    [
        (["method=inptu"], 2, "configuration", "Did you mean 'input'"),
        (["method=input", "seeed=1"], 2, "configuration", "Did you mean seed"),
        (["method=input", "data=celebref_heavy"], 3, "data", "data.root=FOLDER"),
        (["method=input", "data.root=/no/where"], 3, "data", "/no/where"),
        (["method=refine", "method.weights=/no.safetensors"], 3, "method", "/no.safetensors"),
        (["method=refine", "size=papr"], 2, "method", "Did you mean 'paper'"),
        (["method=input", "trainer.accelerator=tpux"], 2, "trainer", "not known"),
        (["method=input", "trainer.strategy=fsdp"], 2, "trainer", "auto or ddp"),
        (["method=input", "metrics.names=[idd]"], 2, "metrics", "Did you mean 'id'"),
        (["method=input", "metrics.sets=[kid]"], 2, "set metrics", "Did you mean 'kid_gt'"),
        (["method=input", "metrics.sets=kid_gt"], 2, "configuration", "such as [kid_gt]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_carry_the_code_of_the_run(
    capsys: pytest.CaptureFixture[str], orl_root: Path, words: list[str], code: int, name: str, message: str
) -> None:
    data = [] if any(word.startswith("data=") for word in words) else ["data=orl_heavy_ci"]
    found, checks = _check(capsys, *words, *data)
    assert found == code
    assert (checks[name]["state"], checks[name]["exit_code"]) == ("error", code)
    assert message in checks[name]["message"]


def test_changed_data_is_noticed(capsys: pytest.CaptureFixture[str], orl_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "orl, [copy]=1"
    shutil.copytree(orl_root, root)
    assert _check(capsys, "method=input", "data=orl_heavy_ci", f"data.root={root}")[0] == 0
    (root / "s30" / "2.pgm").write_bytes((orl_root / "s31" / "2.pgm").read_bytes())
    code, checks = _check(capsys, "method=input", "data=orl_heavy_ci", f"data.root={root}")
    assert code == 2
    assert "s30/2.pgm" in checks["protocol"]["message"]


def test_an_absent_metric_is_a_warning(
    capsys: pytest.CaptureFixture[str], orl_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_metric("niqe"), "unavailable", lambda self: "needs the Python package nothing")
    code, checks = _check(capsys, "method=input", "data=orl_heavy_ci")
    assert code == 0
    assert checks["metrics"]["state"] == "warning"
    assert "niqe: needs the Python package nothing" in checks["metrics"]["message"]


def test_absent_weights_of_set_metrics_are_named_with_what_brings_them(
    capsys: pytest.CaptureFixture[str], orl_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "places", lambda wanted: [])
    check = _check(capsys, "method=input", "data=orl_heavy_ci")[1]["set metrics"]
    assert check["state"] == "warning"
    assert check["message"].startswith("3 of 3 will be null (fid_gt, fid_ffhq, kid_gt: Weights 'fid_inception'")
    assert entry("fid_inception").url in check["message"]
    assert _check(capsys, "method=input", "data=orl_heavy_ci", "metrics.sets=[]")[1]["set metrics"]["state"] == "ok"


def test_run_folders_of_others_are_refused(capsys: pytest.CaptureFixture[str], orl_root: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    a_file = tmp_path / "file"
    a_file.write_text("x")
    for folder, message in ((foreign, "no run folder"), (a_file, "is a file"), (a_file / "run", "is a file")):
        code, checks = _check(capsys, "method=input", "data=orl_heavy_ci", f"run_dir={folder}")
        assert code == 2
        assert message in checks["run folder"]["message"]
    (foreign / "run.json").write_text(json.dumps({"protocol_id": "other", "seed": 0}))
    code, checks = _check(capsys, "method=input", "data=orl_heavy_ci", f"run_dir={foreign}")
    assert code == 2
    assert "protocol_id" in checks["run folder"]["message"]
    assert sorted(path.name for path in foreign.iterdir()) == ["run.json", "thesis.tex"]


def test_a_store_that_cannot_be_written_is_a_warning(
    capsys: pytest.CaptureFixture[str], orl_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    code, checks = _check(capsys, "method=input", "data=orl_heavy_ci")
    assert (code, checks["mlflow"]["state"]) == (0, "warning")
    assert "bench sync" in checks["mlflow"]["message"]


def test_it_writes_no_run(capsys: pytest.CaptureFixture[str], orl_root: Path, tmp_path: Path) -> None:
    _check(capsys, "method=input", "data=orl_heavy_ci", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    assert "BENCH_RUN_DIR" not in os.environ
