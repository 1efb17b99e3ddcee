"""What the operating system refuses ends in one line, for every verb."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.main import main


def test_a_path_through_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["data", "freeze", "data=orl_heavy_ci", "-o", str(tmp_path / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert "file, not a folder" in error
    assert "Traceback" not in error


def test_a_full_disk_is_one_line_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    words = f"data freeze data=orl_heavy_ci -o {tmp_path / 'out'}".split()
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from bench.cli.main import main; import bench.config, bench.protocol.freeze;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "protocol.json").exists()
    assert not list((tmp_path / "out").rglob(".partial-*"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody can make another")
def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "freeze", "data=orl_heavy_ci", "-o", "/proc/nope/x"]) == 2
    error = capsys.readouterr().err
    assert "/proc/nope" in error
    assert "Give another path" in error
