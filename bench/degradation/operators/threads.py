"""Work that NumPy or OpenCV does picture by picture on the CPU, spread over threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_pictures(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Applies `work` to every item, in as many threads as torch may use (one in a loader's worker process).

    Args:
        work: Spends its time outside Python's interpreter lock and depends on its item alone.
        items: One per picture.

    Returns:
        The results in the order of the items.
    """
    queue = list(items)
    threads = min(len(queue), torch.get_num_threads())
    if threads < 2:
        return [work(item) for item in queue]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, queue))
