"""`bench report` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.main import main
from tests.unit.run_folders import make_run, score_frame


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "l'été, a=b [1]"
    make_run(root / "input", score_frame("input"))
    make_run(root / "refine", score_frame("refine@demo", 1))
    monkeypatch.setenv("BENCH_RUNS", str(root))
    return root


def test_one_several_and_all(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "refine")]) == 0
    assert capsys.readouterr().out.strip() == str(runs / "refine" / "report.html")
    assert main(["report", str(runs / "input"), str(runs / "refine"), "-o", str(runs / "both.html")]) == 0
    assert "input and refine@demo on orl_heavy" in (runs / "both.html").read_text()
    capsys.readouterr()
    assert main(["report", "--index"]) == 0
    assert capsys.readouterr().out.strip() == str(runs / "index.html")
    text = (runs / "index.html").read_text()
    assert 'href="refine/report.html"' in text and 'href="input/report.html"' not in text
    assert main(["report", "--index", str(runs / "refine"), "-o", str(runs / "one.html")]) == 0
    assert "1 finished run " in (runs / "one.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--index"),
        (["a", "b"], "-o FILE.html"),
        (["--index", "nowhere"], "no folder"),
        (["a", "--index"], "leave out the run folders"),
        (["nowhere"], "does not exist"),
    ],
)
def test_wrong_usage_says_what_to_do(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
