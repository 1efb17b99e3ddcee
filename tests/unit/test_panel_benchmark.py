"""The benchmark of the panel beside pyiqa's loop, on few small pictures."""

from __future__ import annotations

import pytest

from bench.errors import UsageError
from bench.runs.panel_benchmark import COUNTERPARTS, _difference, measure_panel, run_words


@pytest.mark.slow
def test_both_sides_score_the_same_pictures_and_agree() -> None:
    pytest.importorskip("pyiqa")
    names = ["psnr_rgb", "ssim_y", "ms_ssim", "niqe", "brisque"]
    result = measure_panel(images=3, size=192, threads=1, loop=2, distinct=2, only=",".join(names))
    assert [metric["name"] for metric in result["metrics"]] == names
    assert (result["ours"]["images"], result["pyiqa"]["images"]) == (3, 2)
    for metric in result["metrics"]:
        assert metric["compared"] == 2, metric
        assert metric["within"], metric
        assert (metric["own_luma"] is not None) == COUNTERPARTS[metric["name"]].on_their_luma, metric
        # Rounding luma shows, so that comparing on pyiqa's luma is no formality.
        if metric["name"] in ("ssim_y", "ms_ssim"):
            assert metric["own_luma"] > 10 * metric["tolerance"], metric
    assert result["ratio"] > 0
    assert result["cpu_ratio"] > 0


@pytest.mark.parametrize(
    ("ours", "within", "compared"),
    [([30.0, 31.0], True, 2), ([30.0, 31.02], False, 2), ([30.0, None], False, 1), ([None, None], False, 0)],
)
def test_what_differs_too_much_or_has_no_value_is_not_within(
    ours: list[float | None], within: bool, compared: int
) -> None:
    found = _difference("psnr_y", {"ours": {"psnr_y": [*ours, 99.0]}, "pyiqa": {"psnr_y": [30.0, 31.0]}}, {})
    assert (found["within"], found["compared"], found["own_luma"]) == (within, compared, None)


def test_where_lumas_differ_theirs_is_compared() -> None:
    found = _difference("ssim_y", {"ours": {"ssim_y": [0.9]}, "pyiqa": {"ssim_y": [0.898]}}, {"ssim_y": [0.898]})
    assert (found["largest_difference"], found["within"]) == (0.0, True)
    assert found["own_luma"] == pytest.approx(0.002)


@pytest.mark.parametrize("words", [["metrics=fid"], ["size=64"], ["images=few"], ["frames=3"]])
def test_wrong_words_are_refused(words: list[str]) -> None:
    pytest.importorskip("pyiqa")
    with pytest.raises(UsageError):
        run_words(words, as_json=False)
