"""A real MLflow server on loopback: away while a sweep runs, there when `bench sync` is called, and used by a run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

START_SECONDS = 180
RUN = ["data=orl_heavy_ci", "metrics.names=[psnr_y]", "leaderboard=false"]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """An MLflow server that keeps its runs and artifacts in a folder of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"mlflow server cannot start here: {(folder / 'log').read_text()[-400:]}")
            time.sleep(0.3)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(timeout=20)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def bench(*words: str, port: int, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "BENCH_HOME": str(folder / "home"),
        "BENCH_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def test_a_server_that_is_away_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    done = bench("run", "-m", "method=input,copy_reference", *RUN, port=port, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("bench sync") == 3, "each job and the sweep say what to do"
    runs = sorted(path.parent for path in (tmp_path / "runs").rglob("summary.json"))
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert len(runs) == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("comparison: ")]
    assert Path(said.removeprefix("comparison: ")).is_file()
    for folder in (*runs, sweep):
        assert "no server answers" in json.loads((folder / "mlflow_pending.json").read_text())["reason"]
    assert all((folder / "report.html").is_file() for folder in runs)
    assert bench("sync", "--all", port=port, folder=tmp_path).returncode == 4, "still away"

    with server(tmp_path / "server", port):
        synced = bench("sync", "--all", "--json", port=port, folder=tmp_path)
        assert synced.returncode == 0, synced.stderr
        outcomes = json.loads(synced.stdout)["runs"]
        assert [one["state"] for one in outcomes] == ["imported"] * 3
        assert not list((tmp_path / "runs").rglob("mlflow_pending.json"))
        again = json.loads(bench("sync", "--all", "--json", port=port, folder=tmp_path).stdout)["runs"]
        assert [one["state"] for one in again] == ["already there"] * 3
        direct = bench("run", "method=input", "seed=1", *RUN, port=port, folder=tmp_path)
        assert direct.returncode == 0 and "bench sync" not in direct.stderr, direct.stderr
        holds_everything(port, tmp_path, runs)
    assert not list((tmp_path / "home").rglob("mlflow.db")), "nothing went to the store of this machine"
    assert list((tmp_path / "server" / "artifacts").rglob("scores.parquet")), "the artifacts lie with the server"


def holds_everything(port: int, folder: Path, runs: list[Path]) -> None:
    """Asks the server, over HTTP alone, for what it was given."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("orl_heavy_ci")
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if "bench.sweep_parent" in run.data.tags]
    assert len(found) == 4 and len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    reports = {item.path for item in client.list_artifacts(parents[0].info.run_id)}
    assert {"sweep.json"} < reports and len(reports) == 2
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert {run.data.tags["bench.run_folder"] for run in children} == {str(one.resolve()) for one in runs}
    for run in children:
        source = Path(run.data.tags["bench.run_folder"])
        summary = json.loads((source / "summary.json").read_text())
        assert run.data.metrics["psnr_y"] == pytest.approx(summary["metrics"]["psnr_y"]["mean"])
        target = folder / "back" / run.info.run_id
        target.mkdir(parents=True)
        for name in ("scores.parquet", "report.html"):
            got = Path(client.download_artifacts(run.info.run_id, name, str(target)))
            assert got.read_bytes() == (source / name).read_bytes()
        assert len(pd.read_parquet(target / "scores.parquet")) == 12
