"""Freezing many pictures takes no more memory than freezing few."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.image import write_png

SIDE = 256
FEW, MANY = 80, 240
FREEZE = """
import resource, sys
from dataclasses import replace
import torch
from bench.config import compose
from bench.protocol.freeze import freeze
from bench.protocol.protocol import DataSettings
torch.set_num_threads(1)
root, size = sys.argv[1:]
words = ["method=input", "data=folder", "data.degradation=bicubic_x8", f"data.root={root}", f"data.size={size}"]
protocol = freeze(replace(DataSettings(**compose("run", words)["data"]), references=0))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(protocol.images), peak * (1 if sys.platform == "darwin" else 1024))
"""


def _peak_memory(folder: Path, count: int) -> int:
    """Bytes that a process of its own holds at most while it freezes so many pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        write_png(folder / f"{number}.png", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", FREEZE, str(folder), str(SIDE)], capture_output=True, text=True, timeout=300, check=True
    )
    images, peak = (int(word) for word in done.stdout.split()[-2:])
    assert images == count
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    # Both counts exceed the few decoded photographs that are kept.
    growth = _peak_memory(tmp_path / "many", MANY) - _peak_memory(tmp_path / "few", FEW)
    pixels_kept = (MANY - FEW) * SIDE * SIDE * 3
    print(f"\n{MANY - FEW} further pictures: {growth / 1e6:.1f} MB; one copy of each is {pixels_kept / 1e6:.1f} MB")  # noqa: T201
    assert growth < pixels_kept / 2
