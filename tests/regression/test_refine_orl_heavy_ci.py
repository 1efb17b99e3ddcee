"""The shipped ReFine on the 12-picture protocol, through the real command line, against golden scores.

The golden file is written by hand from a run (`bench run method=refine data=orl_heavy_ci`), never by a test.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bench.cli.main import main
from bench.scores.compare import claim_lines, compare_tables

GOLDEN = Path(__file__).with_name("golden_refine_orl_heavy_ci.json")
# What other processors, thread counts and library builds may change in one picture's score.
TOLERANCE = {"psnr_y": 0.05, "ssim_y": 0.002, "haarpsi": 0.003, "id": 0.01, "ips": 0.01, "lmd_capped": 0.3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> dict[str, Path]:
    folders = {}
    for method in ("input", "refine"):
        folders[method] = tmp_path_factory.mktemp("runs") / method
        words = [f"method={method}", "data=orl_heavy_ci", f"run_dir={folders[method]}", "leaderboard=false", "--json"]
        assert main(["run", *words]) == 0
    return folders


def test_scores_are_the_golden_ones(runs: dict[str, Path]) -> None:
    golden = json.loads(GOLDEN.read_text("utf-8"))
    summary = json.loads((runs["refine"] / "summary.json").read_text("utf-8"))
    assert summary["protocol_id"] == golden["protocol_id"]
    table = pd.read_parquet(runs["refine"] / "scores.parquet").set_index(["metric", "image_id"])["value"]
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
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    assert page.count("data:image/png;base64,") >= 12
