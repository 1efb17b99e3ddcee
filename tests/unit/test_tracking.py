"""Importing run folders into real MLflow stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bench.tracking.mlflow_store import (
    MARKER,
    PENDING,
    finished_runs,
    record_run,
    record_sweep,
    recorded_run,
    tracking_uri,
)
from bench.tracking.sweep import finish_sweep, job_environment, start_sweep
from tests.unit.run_folders import PROTOCOL_ID, make_run, score_frame

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh store in a folder whose name would trip careless URIs; the working directory is empty."""
    folder = tmp_path / "maison d'été, a=b [1] 50%#"
    monkeypatch.setenv("BENCH_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def stored(experiment="orl_heavy"):
    client = MlflowClient(tracking_uri=tracking_uri())
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id]) if found else []


def test_a_run_is_imported_once_with_all_it_holds(home, tmp_path):
    frame = score_frame(missing={("s29/6", "id")})
    folder = make_run(tmp_path / "runs" / "l'été, x=1 [a]", frame)
    (folder / "report.html").write_text("<p>report</p>")
    run_id = record_run(folder)
    assert run_id
    assert record_run(folder) == run_id == recorded_run(folder)
    client, runs = stored()
    assert [run.info.run_id for run in runs] == [run_id]
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["protocol_id"] == PROTOCOL_ID
    assert run.data.tags["method"] == "refine@demo"
    assert run.data.params["method.loss.cycle"] == "1.0"
    assert run.data.params["method.loss.identity"] == "null"
    assert run.data.params["list"] == "[1, 2]"
    assert len(run.data.params["long"]) == 500
    summary = json.loads((folder / "summary.json").read_text())
    identity = summary["metrics"]["id"]
    for suffix, key in (("", "mean"), (".low", "low"), (".high", "high"), (".n", "n")):
        assert run.data.metrics[f"id{suffix}"] == pytest.approx(identity[key])
    assert identity["n"] == 59
    assert "niqe" not in run.data.metrics
    assert run.data.metrics["niqe.n"] == 0
    names = {item.path for item in client.list_artifacts(run_id)}
    assert names == {
        "summary.json",
        "scores.parquet",
        "set_scores.parquet",
        "report.html",
        "config.yaml",
        "protocol.json",
        "environment.json",
        "images.json",
    }
    table = json.loads(Path(client.download_artifacts(run_id, "images.json", str(tmp_path))).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 60 and {row["identity"] for row in rows} == set(frame["identity"])
    expected = frame[frame.metric == "psnr"].set_index("image_id")["value"]
    assert {row["image_id"]: row["psnr"] for row in rows} == pytest.approx(expected.to_dict())
    assert next(row["id"] for row in rows if row["image_id"] == "s29/6") is None
    copy = Path(client.download_artifacts(run_id, "scores.parquet", str(tmp_path)))
    assert copy.read_bytes() == (folder / "scores.parquet").read_bytes()
    assert (home / "mlflow" / "mlflow.db").is_file()
    assert list(home.rglob("scores.parquet")), "artifacts lie beside the store"
    assert list(Path.cwd().iterdir()) == [], "the working directory stays clean"


def test_a_killed_import_leaves_no_double(home, tmp_path):
    folder = make_run(tmp_path / "run")
    run_id = record_run(folder)
    (folder / MARKER).unlink()
    assert record_run(folder) == run_id
    client, _ = stored()
    client.update_run(run_id, status="RUNNING")
    (folder / MARKER).unlink()
    second = record_run(folder)
    assert second != run_id
    assert [run.info.run_id for run in stored()[1]] == [second]


def test_scored_again_with_other_values_is_another_run(home, tmp_path):
    folder = make_run(tmp_path / "run")
    first = record_run(folder)
    make_run(folder, score_frame(shift=1))
    assert recorded_run(folder) is None
    assert record_run(folder) not in (None, first)
    assert len(stored()[1]) == 2


def test_failure_is_noted_and_repeated_by_sync(home, tmp_path, monkeypatch, caplog):
    folder = make_run(tmp_path / "runs" / "a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert record_run(folder) is None
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()
    assert "bench sync" in caplog.text
    pending = json.loads((folder / PENDING).read_text())
    assert pending["tracking_uri"] == "http://127.0.0.1:9"
    assert pending["reason"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))
    make_run(tmp_path / "runs" / "sweep" / "b")
    (tmp_path / "runs" / "unfinished").mkdir()
    assert finished_runs(tmp_path / "runs") == [tmp_path / "runs" / "a", tmp_path / "runs" / "sweep" / "b"]
    assert sync("--all") == 0
    assert not (folder / PENDING).exists()
    assert len(stored()[1]) == 2
    assert sync("--all", "--json") == 0
    assert len(stored()[1]) == 2


def sync(*words):
    import argparse

    from bench.cli import sync as verb

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(words))


def test_sync_refuses_what_is_no_run(home, tmp_path):
    from bench.errors import UsageError

    with pytest.raises(UsageError, match="--all"):
        sync()
    with pytest.raises(UsageError, match="does not exist"):
        sync(str(tmp_path / "nothing"))


def test_never_raises(home, tmp_path):
    assert record_run(tmp_path / "nothing") is None
    broken = make_run(tmp_path / "broken")
    (broken / "summary.json").write_text("{")
    assert record_run(broken) is None
    assert "summary.json" in json.loads((broken / PENDING).read_text())["reason"]


def test_a_home_mlflow_cannot_use_is_said(home, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "what?"))
    folder = make_run(tmp_path / "run")
    assert record_run(folder) is None
    assert "MLFLOW_TRACKING_URI" in json.loads((folder / PENDING).read_text())["reason"]


def test_the_configured_store_is_respected(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    folder = make_run(tmp_path / "run")
    assert record_run(folder)
    assert (tmp_path / "mine.db").is_file()
    assert (tmp_path / "artifacts").is_dir()
    assert not (home / "mlflow" / "mlflow.db").exists()
    assert list(Path.cwd().iterdir()) == []


def test_four_processes_on_a_fresh_store_all_arrive(home, tmp_path):
    folders = [make_run(tmp_path / f"run{index}", score_frame(seed=index)) for index in range(4)]
    code = (
        "import sys; from pathlib import Path; from bench.tracking.mlflow_store import record_run; "
        "print(record_run(Path(sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for folder in folders
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    ids = [out.strip() for out, _ in outputs]
    assert all(process.returncode == 0 for process in processes), outputs
    assert "None" not in ids, outputs
    assert [err for _, err in outputs] == [""] * 4, "a finished run is told nothing about MLflow's tables"
    assert {run.info.run_id for run in stored()[1]} == set(ids)
    assert len(set(ids)) == 4


def sweep_of_two(tmp_path, monkeypatch, codes=(0, 0), protocols=("orl_heavy", "orl_heavy")):
    """Two jobs of a sweep, recorded as `bench run -m` does it."""
    root = tmp_path / "runs"
    folder = start_sweep(["method=input,refine"], [["method=input"], ["method=refine"]], root)
    ids = []
    for position, (method, protocol) in enumerate(zip(("input", "refine@demo"), protocols, strict=True), start=1):
        if codes[position - 1] not in (0, 4):
            continue
        run = make_run(root / method, score_frame(method, position), pictures=True, protocol=protocol)
        for name, value in job_environment(folder, position).items():
            monkeypatch.setenv(name, value)
        ids.append(record_run(run))
        monkeypatch.delenv("BENCH_SWEEP")
    finish_sweep(folder, codes)
    return folder, ids


def test_a_sweep_is_a_parent_with_a_child_per_job(home, tmp_path, monkeypatch):
    folder, ids = sweep_of_two(tmp_path, monkeypatch)
    parents = record_sweep(folder)
    client, runs = stored()
    assert len(runs) == 3 and len(parents) == 1
    parent = client.get_run(parents[0])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["command"] == "bench run -m method=input,refine"
    assert {run.info.run_id for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0]} == set(ids)
    assert [client.get_run(one).data.tags["bench.job"] for one in ids] == ["1", "2"]
    names = {item.path for item in client.list_artifacts(parents[0])}
    assert "sweep.json" in names and any(name.startswith("report-orl_heavy") for name in names)
    assert record_sweep(folder) == parents, "nothing is done twice"
    again, same = sweep_of_two(tmp_path, monkeypatch)
    assert again == folder and same == ids and record_sweep(folder) == parents
    assert len(stored()[1]) == 3, "the same command again goes on with the same sweep"


def test_a_sweep_over_two_protocols_has_a_parent_in_each(home, tmp_path, monkeypatch):
    folder, ids = sweep_of_two(tmp_path, monkeypatch, protocols=("orl_heavy", "orl_light"))
    assert len(record_sweep(folder)) == 2
    for experiment, child in (("orl_heavy", ids[0]), ("orl_light", ids[1])):
        client, runs = stored(experiment)
        assert len(runs) == 2
        parent = client.get_run(child).data.tags["mlflow.parentRunId"]
        assert parent in {run.info.run_id for run in runs} - {child}


def test_a_failed_job_marks_the_sweep(home, tmp_path, monkeypatch):
    folder, _ = sweep_of_two(tmp_path, monkeypatch, codes=(0, 3))
    parents = record_sweep(folder)
    parent = MlflowClient(tracking_uri=tracking_uri()).get_run(parents[0])
    assert parent.info.status == "FAILED" and parent.data.metrics["jobs_failed"] == 1
    assert json.loads((folder / "sweep.json").read_text())["jobs"][1] == {
        "words": ["method=refine"],
        "exit_code": 3,
        "run_dir": None,
    }


def test_a_run_recorded_before_joins_the_sweep_it_is_run_in(home, tmp_path, monkeypatch):
    alone = record_run(make_run(tmp_path / "runs" / "input", score_frame("input", 1), pictures=True))
    assert alone
    folder, ids = sweep_of_two(tmp_path, monkeypatch)
    assert ids[0] == alone, "not imported again"
    assert record_sweep(folder)[0] == stored()[0].get_run(alone).data.tags["mlflow.parentRunId"]


def test_a_broken_sweep_variable_does_not_stop_the_import(home, tmp_path, monkeypatch):
    for value in ("{", '{"folder": "/nowhere", "job": 1}', "[]", '{"job": 1}'):
        monkeypatch.setenv("BENCH_SWEEP", value)
        assert record_run(make_run(tmp_path / "run"))


def test_passwords_in_the_address_are_not_written_down(home, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9/path")
    folder = make_run(tmp_path / "run")
    assert record_run(folder) is None
    assert "secret" not in (folder / PENDING).read_text() + caplog.text
    assert json.loads((folder / PENDING).read_text())["tracking_uri"] == "http://127.0.0.1:9/path"
