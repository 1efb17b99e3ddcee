"""`bench reproduce` from the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.cli.main import main
from bench.leaderboard import papers
from bench.leaderboard.papers import table_ids
from bench.leaderboard.published import read_published


def test_all_tables_as_json_hold_every_published_value(capsys):
    assert main(["reproduce", "all", "--json"]) == 0
    tables = {table["table"]: table for table in json.loads(capsys.readouterr().out)}
    assert set(tables) == set(table_ids())
    for name, paper in read_published().items():
        for number in paper.tables:
            rows = tables[f"{name}/table{number}"]["rows"]
            printed = [row for row in paper.rows if row.table == number]
            assert [row["method"] for row in rows][: len(printed)] == [row.method for row in printed]
            for row, published in zip(rows, printed, strict=False):
                assert {key: value["published"] for key, value in row["metrics"].items()} == published.metrics


def test_one_table_for_people(capsys):
    assert main(["reproduce", "refine/table1"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("refine ")]
    for value in ("23.77", "0.803", "0.158", "4.011", "49.46", "0.4649", "data missing"):
        assert value in lines[0]
    for needed in (
        "same protocol?",
        "ours | published | difference",
        "casia_webface",
        "outputs missing",
        "get it:",
    ):
        assert needed in out
    assert "lpips ↓" in out
    assert "psnr ↑" in out


def test_measured_rows_show_three_numbers(capsys):
    assert main(["reproduce", "refine/table2", "--data", "orl_heavy"]) == 0
    out = capsys.readouterr().out
    assert "| - | -" in out
    assert "no: orl_heavy in place of the paper's data" in out
    assert "measured: refine" in out


def test_list(capsys):
    assert main(["reproduce", "--list", "--json"]) == 0
    listed = {row["table"]: row["published_rows"] for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(table_ids())
    assert sum(listed.values()) == 96
    assert listed["authface/table1"] == 28
    assert main(["reproduce", "--list"]) == 0
    assert "pfstorer/table2" in capsys.readouterr().out


def test_mistakes_are_said(capsys):
    assert main(["reproduce"]) == 2
    assert "--list" in capsys.readouterr().err
    assert main(["reproduce", "refine/tabel1"]) == 2
    assert "'refine/table1'" in capsys.readouterr().err
    assert main(["reproduce", "refine/table1", "--data", "orl_hevy"]) == 2
    assert "'orl_heavy'" in capsys.readouterr().err


def test_dry_run_prints_the_commands_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))
    assert main(["reproduce", "pfstorer/table1", "pfstorer/table2", "--data", "orl_heavy_ci", "--dry-run"]) == 0
    said = capsys.readouterr()
    learns, run = "method=pfstorer method.personalisation", "bench run data=orl_heavy_ci"
    assert said.err.splitlines() == [
        f"[1/5] {run} method=input",
        f"[2/5] {run} method=pfstorer",
        f"[3/5] {run} {learns}.tunes=nothing",
        f"[4/5] {run} {learns}.tunes=unet method.personalisation.generative=0",
        f"[5/5] {run} {learns}.gamma=false",
    ], "each command once"
    assert "can run: input" in said.out
    assert not (tmp_path / "runs").exists()


def test_a_released_file_is_looked_for_by_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    words = ["reproduce", "pfstorer/table1", "--data", "orl_heavy_ci", "--dry-run"]
    assert main(words) == 0
    assert f"looked for as {tmp_path}/weights/codeformer.pth" in capsys.readouterr().out
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/codeformer.pth").write_bytes(b"")
    assert main(words) == 0
    assert f"method.model=codeformer method.weights={tmp_path}/weights/codeformer.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_run_runs_what_can_run_and_reuses_it(capsys, tmp_path, monkeypatch, orl_root):
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))
    table = papers.load_table("pfstorer/table1")
    rows = table.rows | {"pfstorer": replace(table.rows["pfstorer"], cannot="to learn twelve people takes minutes")}
    monkeypatch.setattr(papers, "load_table", lambda name: replace(table, rows=rows))
    words = ["reproduce", "pfstorer/table1", "--data", "orl_heavy_ci", "--run", "--json"]
    assert main(words) == 0
    row = json.loads(capsys.readouterr().out)[0]["rows"][0]
    assert (row["method"], row["state"]) == ("input", "measured")
    summary = json.loads(next((tmp_path / "runs").rglob("summary.json")).read_text())
    assert row["metrics"]["id"]["ours"] == pytest.approx(100 * summary["metrics"]["id"]["mean"])
    assert row["metrics"]["id"]["difference"] == pytest.approx(100 * summary["metrics"]["id"]["mean"] - 21.85)
    assert row["metrics"]["id"]["our_identity"] == summary["metrics"]["id"]["identity"]
    assert main(words) == 0
    assert "nothing of this can run here" in capsys.readouterr().err
