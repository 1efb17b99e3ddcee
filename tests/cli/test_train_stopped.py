"""A training that is told to end says that it goes on, and ends without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Tests that run in the background ignore interrupts, and what they start would inherit that.
HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_training_told_to_end_says_how_it_goes_on(tmp_path: Path, orl_root: Path, by: signal.Signals) -> None:
    words = ["method=autoencoder", "data=orl_heavy", "method.training.batch_size=1", f"run_dir={tmp_path / 'run'}"]
    call = subprocess.Popen(
        [sys.executable, "-c", HEEDING, sys.executable, "-m", "bench", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert call.stderr is not None
    for line in call.stderr:
        if line.startswith("trained"):
            break
    call.send_signal(by)
    _, error = call.communicate(timeout=120)
    assert call.returncode == 130
    assert "The same command goes on" in error
    assert "Traceback" not in error
