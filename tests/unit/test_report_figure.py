"""The figure of a report: columns in order, every pixel as it is, images spread from worst to best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cli.main import main
from bench.errors import UsageError
from bench.report.content import read_runs
from bench.report.figure import GAP, TITLE, write_figure
from tests.unit.run_folders import OrlPictures, make_run, score_frame

SIDE = 128


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "input", score_frame("input"), pictures=True),
        make_run(root / "refine", score_frame("refine@demo", 1), pictures=True),
    ]


def panel(figure: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = TITLE + row * (SIDE + GAP), column * (SIDE + GAP)
    return figure[top : top + SIDE, left : left + SIDE]


def test_columns_are_lq_reference_methods_and_truth_to_the_pixel(runs: list[Path], tmp_path: Path) -> None:
    images = ["s30/7", "s29/6"]
    assert write_figure(runs, tmp_path / "figure.png", images, pictures=OrlPictures) == images
    figure, source = np.asarray(Image.open(tmp_path / "figure.png")), OrlPictures(runs[1])
    assert figure.shape == (TITLE + 2 * SIDE + GAP, 4 * SIDE + 3 * GAP, 3)
    for row, image in enumerate(images):
        shown = [source.lq(image), source.references(image)[0], source.restored(image), source.truth(image)]
        for column, pixels in enumerate(shown):
            np.testing.assert_array_equal(panel(figure, row, column), pixels)


def test_images_are_spread_from_the_worst_to_the_best(runs: list[Path], tmp_path: Path) -> None:
    shown = write_figure(runs, tmp_path / "figure.webp", rows=3, pictures=OrlPictures)
    values = read_runs(runs)[1].values("id").sort_values(kind="stable")
    assert shown == [values.index[0], values.index[round((len(values) - 1) / 2)], values.index[-1]]


def test_a_picture_that_is_not_there_leaves_its_place_empty(runs: list[Path], tmp_path: Path) -> None:
    class Without(OrlPictures):
        def restored(self, image_id: str) -> np.ndarray:
            raise OSError(image_id)

    write_figure(runs, tmp_path / "figure.png", ["s29/6"], pictures=Without)
    assert (panel(np.asarray(Image.open(tmp_path / "figure.png")), 0, 2) == 255).all()


def test_what_cannot_be_shown_is_said(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="s29/6"):
        write_figure(runs, tmp_path / "figure.png", ["s29/66"], pictures=OrlPictures)
    with pytest.raises(UsageError, match="must be a picture"):
        write_figure(runs, tmp_path / "figure.pdf", pictures=OrlPictures)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "2"], "--figure FILE"),
        (["--figure", "a.png", "-o", "b.html"], "leave out -o"),
        (["--figure", "a.png", "--images", "s29/6", "--rows", "2"], "leave one out"),
        (["--figure", "a.png", "--rows", "0"], "at least 1"),
    ],
)
def test_options_that_do_not_go_together(
    runs: list[Path], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs[1]), *words]) == 2
    assert said in capsys.readouterr().err
