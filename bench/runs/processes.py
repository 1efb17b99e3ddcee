"""Which process of a distributed run this is, and how the first one tells the others the run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

RUN_DIR_VARIABLE = "BENCH_RUN_DIR"


def is_first_process() -> bool:
    """Whether this process decides for all, known before any process group exists."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return int(os.environ[variable]) == 0
    return True


@contextlib.contextmanager
def shared_run_dir(chosen: Path) -> Iterator[Path]:
    """The run folder: `chosen` in the first process, the one it handed on in the others."""
    if not is_first_process():
        yield Path(os.environ.get(RUN_DIR_VARIABLE) or chosen)
        return
    os.environ[RUN_DIR_VARIABLE] = str(chosen)
    try:
        yield chosen
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)
