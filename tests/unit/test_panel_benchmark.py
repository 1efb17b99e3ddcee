"""The benchmark of the panel beside pyiqa's loop, on few small pictures."""

from __future__ import annotations

import pytest

from bench.errors import UsageError
from bench.runs.panel_benchmark import COUNTERPARTS, measure_panel, run_words

pytest.importorskip("pyiqa")


def test_both_sides_score_the_same_pictures_and_agree() -> None:
    names = ["psnr_rgb", "ssim_y", "ms_ssim", "niqe", "brisque"]
    result = measure_panel(images=3, size=192, threads=1, loop=2, distinct=2, only=",".join(names))
    assert [metric["name"] for metric in result["metrics"]] == names
    assert (result["ours"]["images"], result["pyiqa"]["images"]) == (3, 2)
    for metric in result["metrics"]:
        assert metric["compared"] == 2, metric
        assert metric["within"], metric
        # Rounding luma shows, so that comparing on rounded luma is no formality.
        rounds = COUNTERPARTS[metric["name"]].rounds_luma
        assert (metric["own_luma"] is not None and metric["own_luma"] > metric["tolerance"]) == rounds, metric
    assert result["ratio"] > 0
    assert result["cpu_ratio"] > 0


def test_a_difference_beyond_the_tolerance_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(COUNTERPARTS, "psnr_y", COUNTERPARTS["psnr_y"]._replace(tolerance=1e-9))
    assert run_words(["metrics=psnr_y", "images=1", "size=192", "threads=1", "loop=1"], as_json=False) == 1
    assert " NO " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["metrics=fid"], ["size=64"], ["images=few"], ["frames=3"]])
def test_wrong_words_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        run_words(words, as_json=False)
