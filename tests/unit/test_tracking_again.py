"""Runs and sweeps that come to an MLflow store a second time: lost, scored again, reported again, one by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.tracking.mlflow_store import (
    MARKER,
    PARENT,
    PENDING,
    SUPERSEDED,
    forget_lost,
    record_run,
    recorded_run,
    recorded_sweep,
)
from bench.tracking.sweep import finish_sweep, sweep_folder, sweep_reports
from tests.unit.run_folders import make_run, score_frame
from tests.unit.test_tracking import REPOSITORY, home, stored, sweep_of_two, sync

__all__ = ["home"]


def states(capsys):
    return [one["state"] for one in json.loads(capsys.readouterr().out)["runs"]]


def test_what_the_store_lost_is_imported_again(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))
    folder, ids = sweep_of_two(tmp_path, monkeypatch)
    assert sync(str(folder), "--json") == 0
    assert states(capsys) == ["already there", "already there", "imported"], "a sweep's folder brings its jobs"
    assert recorded_sweep(folder)
    client, _ = stored()
    client.delete_run(ids[0])
    client.delete_run(recorded_sweep(folder)[0])
    assert sync("--all", "--json") == 0
    assert states(capsys) == ["imported", "already there", "imported"]
    parent, runs = recorded_sweep(folder)[0], stored()[1]
    children = {run.info.run_id for run in runs if run.data.tags.get(PARENT) == parent}
    assert len(runs) == 3 and len(children) == 2 and ids[1] in children and ids[0] not in children
    shutil.rmtree(home / "mlflow")
    # In a process of its own: MLflow keeps the removed file open in this one.
    again = [sys.executable, "-m", "bench", "sync", "--all", "--json"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(again, capture_output=True, text=True, env=environment, timeout=240, check=True)
    assert [one["state"] for one in json.loads(done.stdout)["runs"]] == ["imported"] * 3


def test_a_store_that_is_away_is_not_taken_at_its_markers_word(home, tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    marker = {"tracking_uri": "http://127.0.0.1:9", "experiment": "orl_heavy", "run_id": "abc", "sweep": None}
    from bench.files import sha256_file

    marker |= {"scores_sha256": sha256_file(folder / "scores.parquet"), "report_sha256": None}
    (folder / MARKER).write_text(json.dumps(marker))
    assert recorded_run(folder) == "abc"
    assert "no server answers" in forget_lost([folder]) and (folder / MARKER).is_file()
    assert sync(str(folder)) == 4
    told = capsys.readouterr()
    assert "not checked" in told.out and "no server answers" in told.err and "already there" not in told.out


def test_again_under_an_apostrophe_and_with_another_report(home, tmp_path):
    folder = make_run(tmp_path / "l'été")
    (folder / "report.html").write_text("first")
    first = record_run(folder)
    (folder / MARKER).unlink()
    assert record_run(folder) == first, "found by its scores, whatever its folder is called"
    assert len(stored()[1]) == 1
    (folder / "report.html").write_text("second")
    assert recorded_run(folder) is None
    assert record_run(folder) == first and recorded_run(folder) == first
    client, runs = stored()
    assert len(runs) == 1
    copy = client.download_artifacts(first, "report.html", str(tmp_path))
    assert Path(copy).read_text() == "second"
    twin = shutil.copytree(folder, tmp_path / "copy")
    (twin / MARKER).unlink()
    assert record_run(twin) != first, "the same scores in another folder are another run"


def test_a_job_scored_again_takes_the_place_of_the_first(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))
    folder, ids = sweep_of_two(tmp_path, monkeypatch)
    child = tmp_path / "runs" / "input"
    assert sweep_folder(child, tmp_path) == folder
    make_run(child, score_frame("input", 5), pictures=False)
    assert sync(str(child), "--json") == 0
    assert states(capsys) == ["imported", "imported"], "the finished sweep is completed with its job"
    client, runs = stored()
    (again,) = {run.info.run_id for run in runs if run.data.tags.get("bench.job") == "1"} - {ids[0]}
    (parent,) = recorded_sweep(folder)
    assert client.get_run(parent).info.status == "FINISHED"
    assert {run.info.run_id for run in runs if run.data.tags.get(PARENT) == parent} == {again, ids[1]}
    assert client.get_run(ids[0]).data.tags[SUPERSEDED] == again
    make_run(child, score_frame("input", 1), pictures=False)
    assert record_run(child) == ids[0], "the first scores are back"
    runs = stored()[1]
    assert {run.info.run_id for run in runs if run.data.tags.get(PARENT) == parent} == set(ids)
    assert SUPERSEDED not in client.get_run(ids[0]).data.tags


def test_sync_tells_folders_apart(tmp_path, monkeypatch, caplog):
    from bench.tracking.sweep import start_sweep

    folder = start_sweep(["method=input"], [["method=input"]], tmp_path)
    with pytest.raises(UsageError, match="has not finished"):
        sync(str(folder))
    finish_sweep(folder, [1])
    assert sweep_reports(folder) == []
    (folder / "sweep.json").write_text("{")
    with pytest.raises(UsageError, match="record of a sweep"):
        sync(str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = make_run(tmp_path / "a run")
    assert record_run(run) is None and (run / PENDING).is_file()
    assert f"bench sync '{run}'" in caplog.text, "the command can be copied"
