"""`bench run method=precomputed`: another program's pictures as a row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import pytest

from bench.cli.main import main

DATA = ["data=orl_heavy_ci", "leaderboard=false", "metrics.names=[psnr_y,haarpsi]", "metrics.sets=[]"]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> Path:
    """The LQ pictures of the protocol, as a program would be given them."""
    folder = tmp_path_factory.mktemp("frozen")
    assert main(["data", "freeze", "data=orl_heavy_ci", "-o", str(folder / "out")]) == 0
    return folder / "out/lq"


def run(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], pd.Series]:
    capsys.readouterr()
    code = main(["run", *words, *DATA, f"run_dir={folder}", "--json"])
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    table = pd.read_parquet(folder / "scores.parquet").set_index(["metric", "image_id"])["value"]
    return code, summary, table


def test_untouched_pictures_score_as_the_input_does(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=precomputed", f"method.root={frozen}", "method.system=nothing"]
    code, summary, scores = run(words, tmp_path / "mine", capsys)
    assert code == 0 and summary["method"] == "precomputed+nothing" and not summary["failed"]
    _, _, expected = run(["method=input"], tmp_path / "input", capsys)
    # The LQ pictures on disk have 8 bits, as those that methods are given.
    pd.testing.assert_series_equal(scores.sort_index(), expected.sort_index(), atol=1e-6)


def test_what_is_missing_broken_or_of_another_size_fails_alone(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "restored"
    shutil.copytree(frozen, folder)
    (folder / "s29/6.png").unlink()
    (folder / "s30/6.png").write_bytes(b"no picture")
    picture = cv2.imread(str(folder / "s31/6.png"))
    cv2.imwrite(str(folder / "s31/6.png"), picture[:64, :64])
    code, summary, scores = run(["method=precomputed", f"method.root={folder}"], tmp_path / "run", capsys)
    assert code != 0
    assert set(summary["failed"]) == {"s29/6", "s30/6", "s31/6"}
    said = json.dumps(summary["failed"])
    assert "has no picture s29/6" in said
    assert "64x64 px, the protocol's pictures are 128x128" in said
    assert scores["psnr_y"].notna().sum() == 9


def test_other_pictures_are_another_row(frozen: Path, tmp_path: Path) -> None:
    from methods.precomputed.module import Precomputed

    folder = tmp_path / "restored"
    shutil.copytree(frozen, folder)
    settings = {"name": "precomputed", "root": str(folder), "system": None}
    before = Precomputed(settings).conditions()
    shutil.copytree(folder, tmp_path / "moved")
    assert Precomputed(settings | {"root": str(tmp_path / "moved")}).conditions() == before
    cv2.imwrite(str(folder / "s29/6.png"), cv2.imread(str(folder / "s30/6.png")))
    assert Precomputed(settings).conditions() != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Nothing says where they are"),
        (["method.root=nowhere"], "is not a folder"),
        (["method.root=.", "method.system=Code Former"], "is no name"),
    ],
)
def test_wrong_settings_are_said(
    words: list[str], said: str, tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "method=precomputed", *words, *DATA, f"run_dir={tmp_path / 'run'}"]) in (2, 3)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_files_of_one_picture_are_refused(frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "restored"
    shutil.copytree(frozen, folder)
    shutil.copy(folder / "s29/6.png", folder / "s29/6.bmp")
    assert main(["run", "method=precomputed", f"method.root={folder}", *DATA, f"run_dir={tmp_path / 'run'}"]) == 2
    assert "are of one picture" in capsys.readouterr().err
