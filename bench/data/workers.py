"""Processes that work on pictures, one thread each, in the order of the tasks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(os.getpid(),)) as pool:
        try:
            for start in range(0, len(tasks), window):
                yield from pool.map(work, tasks[start : start + window], chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise IncompleteError(
                "A worker process died, most likely for want of memory. Give fewer with --workers; the same command "
                "goes on where this one stopped."
            ) from error
        except BaseException:
            # What workers write is written atomically: they can be ended anywhere, and an interrupt need not wait.
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
