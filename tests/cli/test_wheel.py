"""A wheel, installed elsewhere, works from an empty directory."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = r"^configs/degradation/(README\.md|strips/)|(^|/)\."

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True, timeout=300)
    return target


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """An empty directory, and an environment in which the installed copy is found."""
    folders = {"BENCH_HOME": tmp_path / "home", "BENCH_RUNS": tmp_path / "runs"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BENCH_")}
    environment |= {key: str(path) for key, path in folders.items()}
    environment["PYTHONPATH"] = str(installed)
    empty = tmp_path / "empty"
    empty.mkdir()
    return empty, environment


def _python(elsewhere: tuple[Path, dict[str, str]], *words: str) -> str:
    folder, environment = elsewhere
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--", *folders], capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    return {line for line in listed.stdout.splitlines() if (ROOT / line).is_file()}


def test_the_top_level_holds_two_packages(members: set[str]) -> None:
    top = {name.partition("/")[0] for name in members}
    assert {name for name in top if not name.endswith(".dist-info")} == {"bench", "methods"}


def test_every_tracked_file_is_inside(members: set[str]) -> None:
    packages = _tracked("bench", "methods")
    kept = [name for name in _tracked("configs", "datasets", "leaderboards") if not re.search(NOT_SHIPPED, name)]
    data = {f"bench/_data/{name}" for name in kept}
    assert len(packages) > 50
    assert len(data) > 10
    assert not (packages | data) - members


def test_pictures_for_readers_and_hidden_files_stay_outside(members: set[str]) -> None:
    data = {name.removeprefix("bench/_data/") for name in members if name.startswith("bench/_data/")}
    assert any(name.startswith("configs/degradation/") for name in data)
    assert not [name for name in data if re.search(NOT_SHIPPED, name)]
    assert not [name for name in members if name.endswith((".png", ".jpg", ".svg"))]


def test_an_editable_installation_finds_the_checkout(tmp_path: Path) -> None:
    from hatchling.build import build_editable

    with contextlib.chdir(ROOT), zipfile.ZipFile(tmp_path / build_editable(str(tmp_path))) as built:
        (path_file,) = (name for name in built.namelist() if name.endswith(".pth"))
        assert Path(built.read(path_file).decode().strip()).samefile(ROOT)


def test_cards_and_weights_are_inside(members: set[str]) -> None:
    cards = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("methods/*/README.md")}
    weights = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("methods/*/weights/*.safetensors")}
    assert cards
    assert cards | weights <= members


def test_the_licence_and_the_extras_are_stated(wheel: Path, members: set[str]) -> None:
    (metadata,) = (name for name in members if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert {"Provides-Extra: demo", "Provides-Extra: full", "Provides-Extra: dev"} <= set(text.splitlines())
    assert any(name.endswith("licenses/LICENSE") for name in members)


def test_help_works_from_an_empty_directory(elsewhere: tuple[Path, dict[str, str]]) -> None:
    assert "verbs:" in _python(elsewhere, "-m", "bench", "--help")


@pytest.mark.parametrize(("what", "expected"), [("data", "orl_heavy"), ("methods", "refine"), ("metrics", "haarpsi")])
def test_listing_works_from_an_empty_directory(
    elsewhere: tuple[Path, dict[str, str]], what: str, expected: str
) -> None:
    assert expected in _python(elsewhere, "-m", "bench", "ls", what)


def test_the_installed_copy_finds_its_own_data(elsewhere: tuple[Path, dict[str, str]], installed: Path) -> None:
    found = _python(elsewhere, "-c", "from bench.paths import resource_root; print(resource_root())").strip()
    assert Path(found) == installed / "bench" / "_data"
    assert {"configs", "datasets", "leaderboards"} <= {path.name for path in Path(found).iterdir()}


def test_a_run_works_from_an_empty_directory(elsewhere: tuple[Path, dict[str, str]], orl_root: Path) -> None:
    words = ["method=input", "data=orl_heavy_ci", "metrics.names=[psnr_y]", "run_dir=out"]
    _python(elsewhere, "-m", "bench", "run", *words)
    assert (elsewhere[0] / "out" / "summary.json").is_file()
    assert len(list((elsewhere[0] / "out" / "restored").rglob("*.png"))) == 12


def test_datasets_is_not_ours(elsewhere: tuple[Path, dict[str, str]], installed: Path) -> None:
    """Our folder of data cards must not shadow Hugging Face's package of the same name."""
    assert not (installed / "datasets").exists()
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("Hugging Face's datasets is not installed: install the dev extra")
    program = "import datasets; print(datasets.load_dataset.__module__, datasets.__file__)"
    printed = _python(elsewhere, "-c", program)
    assert printed.startswith("datasets.load")
    assert str(installed) not in printed
