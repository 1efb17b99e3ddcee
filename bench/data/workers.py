"""Processes that work on pictures, one thread each, in the order of the tasks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from bench.errors import IncompleteError

Task = TypeVar("Task")
Result = TypeVar("Result")
SMALL = 32
CHUNK = 4


def default_workers() -> int:
    """As many processes as this one may use processors, at most eight."""
    return min(8, len(os.sched_getaffinity(0)))


def each(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None = None) -> Iterator[Result]:
    """Results of `work` on each task, in order; few are held at a time.

    Args:
        work: A function of a module, so that other processes find it.
        tasks: What to work on, small and picklable.
        workers: Processes; `default_workers()` if None. With one, or few tasks, this process works itself.

    Raises:
        IncompleteError: A worker died, most likely for want of memory.
    """
    count = min(workers or default_workers(), max(1, len(tasks) // CHUNK))
    if count == 1 or len(tasks) < SMALL:
        _one_thread()
        yield from map(work, tasks)
        return
    window = count * CHUNK * 4
    own = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(os.getpid(),))
    with own as pool, ending_at_once(pool):
        try:
            for start in range(0, len(tasks), window):
                yield from pool.map(work, tasks[start : start + window], chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise IncompleteError(
                "A worker process died, most likely for want of memory. Give fewer with --workers; the same command "
                "goes on where this one stopped."
            ) from error


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Lets Ctrl-C pass unheeded inside the block, and in processes that are started there; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ending_at_once(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Ends a pool's processes when the block ends early: by an error, an interrupt, or as a closed generator.

    Waiting for what they hold would make a person press the keys again, in the middle of the clean-up. What
    they write has to be written atomically.
    """
    try:
        yield
    except BaseException:
        with ignoring_interrupts():
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
        raise


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _start(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends the work
    os.environ["OMP_NUM_THREADS"] = "1"
    _one_thread()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """Ends this process when the one that started it was killed; a pool's workers would wait forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
