"""`bench gate` on run folders, run folders and boards: exit codes, tables, JSON and the Markdown file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.leaderboard.entry import add
from bench.leaderboard.gate_table import MARKER
from tests.unit.run_folders import make_run, score_frame


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    frames = {
        "before": score_frame(shift=1.0, seed=1),
        "worse": score_frame(shift=0.0, seed=2),
        "better": score_frame(shift=2.0, seed=3),
        "gap": score_frame(shift=2.0, seed=3, missing={("s29/6", "id")}),
        "other": score_frame(shift=1.0, protocol_id="fedcba9876543210"),
    }
    return {name: make_run(tmp_path / f"l'été {name}", frame) for name, frame in frames.items()}


def test_exit_codes(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = str(folders["before"])
    assert main(["gate", before, "--against", before]) == 0
    assert main(["gate", str(folders["better"]), "--against", before]) == 0
    assert main(["gate", str(folders["worse"]), "--against", before]) == 1
    assert "gate failed: 3 regressions" in capsys.readouterr().out
    assert main(["gate", str(folders["gap"]), "--against", before]) == 1
    assert "lost coverage: 59/60, was 60/60" in capsys.readouterr().out
    assert main(["gate", str(folders["gap"]), "--against", before, "--metrics", "psnr, lmd"]) == 0
    assert main(["gate", str(folders["other"]), "--against", before]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert main(["gate", before, "--against", before, "--alpha", "2"]) == 2
    assert main(["gate", before, "--against", before, "--alpha", "0.0001"]) == 2
    assert "no loss could ever fail" in capsys.readouterr().err
    assert main(["gate", "--against", before]) == 2
    assert main(["gate", before, "--against", before, "--metrics", ","]) == 2
    assert "names no metric" in capsys.readouterr().err
    assert main(["gate", str(folders["before"] / "none"), "--against", before]) == 2


def test_several_runs_give_one_comment(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "boards"
    add(folders["before"], board)
    runs = [str(folders[name]) for name in ("better", "worse")]
    comment = tmp_path / "deep" / "comment.md"
    words = ["gate", *runs, "--against", str(board / "orl_heavy"), "--markdown", str(comment), "--json"]
    assert main(words) == 1
    result = json.loads(capsys.readouterr().out)
    assert [run["failed"] for run in result["runs"]] == [False, True]
    assert {one["status"] for one in result["runs"][0]["changes"]} == {"improvement"}
    text = comment.read_text("utf-8")
    assert text.count(MARKER) == 1
    assert (text.count("**✓"), text.count("**✗"), text.count("**regression**")) == (1, 1, 3)
    assert main([*words[:-1]]) == 1
    assert comment.read_text("utf-8") == text


def test_help_and_overview_name_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words, needed in (([], "hold runs against"), (["gate", "--help"], "--against")):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        assert needed in capsys.readouterr().out
