"""The quick methods on the 12-picture protocol, through the real command line: golden scores and the gate.

The golden files are written by hand from runs (`bench run method=refine data=orl_heavy_ci`), the baselines by
`record_baselines.py` beside this file; never by a test.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.cli.main import main
from bench.scores.compare import claim_lines, compare_tables
from bench.weights.method_weights import weights_path

BASELINES = Path(__file__).with_name("baselines") / "orl_heavy_ci"
TRAINED = ("refine", "restorerid", "authface")
QUICK = ("input", "copy_reference", *TRAINED)
NOISE = 0.05
# What other processors, thread counts and library builds may change in one picture's score.
TOLERANCE = {"psnr_y": 0.05, "ssim_y": 0.002, "haarpsi": 0.003, "id": 0.01, "ips": 0.01, "lmd_capped": 0.3}


def restore(request: pytest.FixtureRequest, folder: Path, method: str, *words: str) -> Path:
    """Runs a method into `folder` and prints the seconds past pytest's capture."""
    began = time.monotonic()
    settings = [f"method={method}", "data=orl_heavy_ci", f"run_dir={folder}", "leaderboard=false", *words]
    assert main(["run", *settings, "--json"]) == 0
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        sys.stderr.write(f"\n{folder.name} on orl_heavy_ci: {time.monotonic() - began:.1f} s\n")
    return folder


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    return {method: restore(request, base / method, method) for method in QUICK}


@pytest.fixture(scope="module")
def worse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> Path:
    """ReFine with noise of 5 % of each weight's deviation added to the shipped checkpoint."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    shipped = weights_path("refine", "demo")
    assert shipped is not None
    generator = torch.Generator().manual_seed(0)
    state = {}
    with safe_open(shipped, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            if weight.is_floating_point() and weight.numel() > 1:
                noise = torch.randn(weight.shape, generator=generator) * weight.float().std() * NOISE
                weight = (weight.float() + noise).to(weight.dtype)
            state[name] = weight
        metadata = file.metadata()
    base = tmp_path_factory.mktemp("worse")
    save_file(state, base / "worse.safetensors", metadata)
    return restore(request, base / "worse", "refine", f"method.weights={base / 'worse.safetensors'}")


@pytest.mark.parametrize("method", QUICK)
def test_the_gate_passes_what_is_shipped(
    runs: dict[str, Path], method: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in BASELINES.parent.rglob("*") if path.is_file()}
    code = main(["gate", str(runs[method]), "--against", str(BASELINES), "--markdown", str(tmp_path / "comment.md")])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "gate passed" in said
    assert (tmp_path / "comment.md").read_text("utf-8").count("### Gate passed") == 1
    assert {path: path.read_bytes() for path in BASELINES.parent.rglob("*") if path.is_file()} == before


def test_the_gate_stops_a_worse_checkpoint(worse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(worse), "--against", str(BASELINES), "--json"]) == 1
    changes = {one["metric"]: one for one in json.loads(capsys.readouterr().out)["runs"][0]["changes"]}
    assert changes["haarpsi"]["status"] == "regression"
    assert changes["haarpsi"]["p"] < 0.05
    assert -changes["haarpsi"]["difference"] > changes["haarpsi"]["tolerance"]
    assert not any(change["status"] == "improvement" for change in changes.values())


def test_the_same_checkpoint_equals_itself(runs: dict[str, Path]) -> None:
    assert main(["gate", str(runs["refine"]), "--against", str(runs["refine"])]) == 0


@pytest.mark.parametrize("method", TRAINED)
def test_scores_are_the_golden_ones(runs: dict[str, Path], method: str) -> None:
    golden = json.loads(Path(__file__).with_name(f"golden_{method}_orl_heavy_ci.json").read_text("utf-8"))
    summary = json.loads((runs[method] / "summary.json").read_text("utf-8"))
    assert summary["protocol_id"] == golden["protocol_id"]
    table = pd.read_parquet(runs[method] / "scores.parquet").set_index(["metric", "image_id"])["value"]
    for metric, tolerance in TOLERANCE.items():
        for image_id, expected in golden["scores"][metric].items():
            assert table[metric, image_id] == pytest.approx(expected, abs=tolerance), (metric, image_id)


def test_it_still_beats_its_input(runs: dict[str, Path]) -> None:
    tables = [pd.read_parquet(runs[name] / "scores.parquet") for name in ("refine", "input")]
    for table in tables:
        table["reason"] = table["reason"].astype(object).where(table["reason"].notna(), None)
    better = {"id": True, "haarpsi": True, "lmd_capped": False}
    comparisons, _ = compare_tables(tables[0], tables[1], list(better), better)
    by_name = {one.metric: one for one in comparisons}
    assert by_name["id"].better is True
    assert by_name["lmd_capped"].mean_difference < 0
    assert any(line.startswith("id: A beats B") for line in claim_lines(comparisons, {"claims": ["id"]}))


def test_the_report_is_one_file_without_addresses(runs: dict[str, Path]) -> None:
    page = (runs["refine"] / "report.html").read_text("utf-8")
    assert "orl_heavy_ci" in page
    # A reason may name the address of absent weights in words; nothing is loaded from one.
    assert not re.search(r"""(src|href|action|srcset)\s*=\s*["']?https?:|url\(\s*["']?https?:|@import""", page)
    assert len(re.findall(r"data:image/(?:png|webp);base64,", page)) >= 12
