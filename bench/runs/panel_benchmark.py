"""Times the metrics that need no downloads beside pyiqa's documented loop: `python -m bench.runs.panel_benchmark`.

Both sides score the same PNG files with the same metrics, in float64, on the same number of processors. Ours is what
`bench score` does: each picture decoded once for all metrics, one process of one thread per processor. The other is
the loop of pyiqa's documentation, `pyiqa.create_metric(name)` once and then `metric(restored, truth)` on tensors for
each picture, with as many torch threads as there are processors. pyiqa's tensors are read once per picture too, by
its own reader. The sides take turns, in blocks, so that other work on the machine hits both alike.

Processor seconds hold what pyiqa's threads spend waiting for each other where other programs run: `threads=1` shows
the work alone.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from bench.errors import MissingError, UsageError, unknown_name
from bench.runs.panel_pictures import write_parameters, write_pictures

OPTIONS = {"images": 1000, "size": 512, "threads": 2, "loop": 100, "distinct": 64}
BLOCKS = 4
BLOCK_SMALLEST = 100  # fewer would time the start of our processes


class Counterpart(NamedTuple):
    """What pyiqa calls a metric of ours, and how far the values of two implementations may lie apart.

    What a method may lose before the gate objects is another matter, and stands in `configs/metrics`.

    Attributes:
        theirs: Name of pyiqa's metric.
        tolerance: Largest difference of the values, in the metric's unit.
        why: What makes the difference.
        on_their_luma: Whether ours is computed on pyiqa's luma too, and that value compared, so that the difference
            is that of the implementations. pyiqa rounds luma to whole levels, as ours does for NIQE alone; for SSIM
            that makes thousandths in flat regions. What is left as scored is printed beside it.
    """

    theirs: str
    tolerance: float
    why: str
    on_their_luma: bool = False


COUNTERPARTS = {
    "psnr_rgb": Counterpart("psnr", 0.01, "dB; pyiqa adds 1e-8 to the squared error"),
    "psnr_y": Counterpart("psnry", 0.01, "dB; pyiqa adds 1e-8 to the squared error"),
    "ssim_y": Counterpart("ssim", 1e-6, "pyiqa's window has float32 weights", on_their_luma=True),
    "ssim_rgb": Counterpart("ssimc", 2e-6, "pyiqa's window has float32 weights"),
    "ms_ssim": Counterpart("ms_ssim", 1e-6, "pyiqa's window has float32 weights", on_their_luma=True),
    "niqe": Counterpart("niqe", 1e-6, "as scored: luma midway between two levels goes to either", on_their_luma=True),
    "brisque": Counterpart("brisque", 1e-3, "pyiqa's support vectors are float32"),
}


def measure_panel(
    images: int = 1000, size: int = 512, threads: int = 2, loop: int = 100, distinct: int = 64, only: str | None = None
) -> dict[str, Any]:
    """Images per second of both sides, their ratio, and the largest difference of each metric.

    Args:
        images: Pictures that ours scores.
        size: Side in pixels.
        threads: Processors both sides may use.
        loop: Pictures that pyiqa's loop scores, at most `images`; its rate does not depend on how many.
        distinct: Different pictures; the others are further links to them.
        only: Metrics, joined by commas; None for all that both sides have here.

    Raises:
        MissingError: pyiqa is not installed.
        UsageError: A size too small, or an unknown metric.
    """
    from importlib.util import find_spec

    if find_spec("pyiqa") is None:
        raise MissingError('The comparison needs pyiqa: pip install "face-restoration-bench[full]"')
    if min(images, threads, loop, distinct) < 1 or size < 192:
        raise UsageError("images, threads, loop and distinct must be at least 1, and size at least 192 px.")
    names, absent = taking_part(only)
    with tempfile.TemporaryDirectory(prefix="bench-panel-") as folder, _pool() as ours, _pool() as theirs:
        root = Path(folder)
        write_pictures(root, images, size, min(distinct, images))
        parameters = write_parameters(root)
        shown = [f"{index:05d}" for index in range(images)]
        blocks = max(1, min(BLOCKS, loop, images // BLOCK_SMALLEST))
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "pyiqa": []}
        for block in range(blocks):
            jobs = [("ours", ours, _score_ours, images), ("pyiqa", theirs, _score_pyiqa, min(loop, images))]
            for side, pool, work, count in jobs if block % 2 == 0 else jobs[::-1]:
                part = shown[:count][block * count // blocks : (block + 1) * count // blocks]
                results[side].append(pool.apply(work, (str(root), part, names, threads, parameters)))
        on_theirs = ours.apply(_score_on_their_luma, (str(root), shown[:loop], names))
    sides = {side: _together(parts) for side, parts in results.items()}
    values = {side: entry.pop("values") for side, entry in sides.items()}
    return {
        "images": images,
        "size": size,
        "threads": threads,
        "loop": min(loop, images),
        "distinct": min(distinct, images),
        **sides,
        "ratio": sides["ours"]["images_per_second"] / sides["pyiqa"]["images_per_second"],
        "cpu_ratio": sides["pyiqa"]["cpu_seconds_per_image"] / sides["ours"]["cpu_seconds_per_image"],
        "metrics": [_difference(name, values, on_theirs) for name in names],
        "absent": absent,
    }


def taking_part(only: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Metrics that both sides have here, and why others are left out.

    Raises:
        UsageError: An unknown metric, or none is left.
    """
    from bench.registry import metric_classes

    asked = list(COUNTERPARTS) if only is None else [name.strip() for name in only.split(",")]
    for name in asked:
        if name not in COUNTERPARTS:
            raise unknown_name("metric with a counterpart in pyiqa", name, COUNTERPARTS)
    classes = metric_classes()
    absent = {name: "not among our metrics" for name in asked if name not in classes}
    absent |= {name: why for name in asked if name in classes and (why := classes[name]().unavailable())}
    names = [name for name in asked if name not in absent]
    if not names:
        raise UsageError(f"None of the metrics can be computed here: {absent}.")
    return names, absent


@contextmanager
def _pool() -> Iterator[Any]:
    """A process of its own, so that peak memory and thread counts of the sides do not mix."""
    from concurrent.futures import ProcessPoolExecutor

    class Pool:
        def __init__(self) -> None:
            self.executor = ProcessPoolExecutor(1, get_context("spawn"))

        def apply(self, work: Any, arguments: tuple[Any, ...]) -> Any:
            return self.executor.submit(work, *arguments).result()

    pool = Pool()
    try:
        yield pool
    finally:
        pool.executor.shutdown(wait=True, cancel_futures=True)


def _score_ours(
    root: str, names: list[str], metrics: list[str], threads: int, parameters: dict[str, str]
) -> dict[str, Any]:
    """Our side: `bench score`'s way through, starting its processes included."""
    from bench.data.workers import each
    from bench.scores.folders import ScoringTask, score_pair

    started, busy = time.perf_counter(), _cpu_seconds()
    tasks = [
        ScoringTask(name, Path(root, "restored", f"{name}.png"), Path(root, "truth", f"{name}.png"), (), tuple(metrics))
        for name in names
    ]
    values: dict[str, list[float | None]] = {metric: [] for metric in metrics}
    for found in each(score_pair, tasks, threads):
        if isinstance(found, str):
            raise UsageError(found)
        for metric in metrics:
            values[metric].append(found[metric].value)
    return _measured(started, busy, names, values)


def _score_pyiqa(
    root: str, names: list[str], metrics: list[str], threads: int, parameters: dict[str, str]
) -> dict[str, Any]:
    """The loop of pyiqa's documentation, over tensors. Making the metrics is not timed."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    import pyiqa
    from pyiqa.utils.img_util import imread2tensor

    torch.set_num_threads(threads)
    made = {}
    for metric in metrics:
        theirs = COUNTERPARTS[metric].theirs
        own = {"pretrained_model_path": parameters[theirs]} if theirs in parameters else {}
        made[metric] = pyiqa.create_metric(theirs, device=torch.device("cpu"), **own)
    started, busy = time.perf_counter(), _cpu_seconds()
    values: dict[str, list[float | None]] = {metric: [] for metric in metrics}
    for name in names:
        files = (str(Path(root, side, f"{name}.png")) for side in ("restored", "truth"))
        pair = [imread2tensor(file, rgb=True).unsqueeze(0).double() for file in files]
        for metric, compute in made.items():
            values[metric].append(float(compute(*pair) if compute.metric_mode == "FR" else compute(pair[0])))
    return _measured(started, busy, names, values)


def _score_on_their_luma(root: str, names: list[str], metrics: list[str]) -> dict[str, list[float | None]]:
    """Our values on pyiqa's luma, of the metrics that are compared so. Not timed."""
    import numpy as np
    from pyiqa.utils.color_util import to_y_channel

    from bench.image import read_image
    from bench.metrics.metric import ScoringBatch
    from bench.registry import load_metric

    chosen = {metric: load_metric(metric)() for metric in metrics if COUNTERPARTS[metric].on_their_luma}
    values: dict[str, list[float | None]] = {metric: [] for metric in chosen}
    for name in names if chosen else ():
        restored, truth = (read_image(Path(root, side, f"{name}.png"))[None] for side in ("restored", "truth"))
        batch = ScoringBatch([name], restored, truth, [[]], None, None, np.ones(restored.shape[:3], dtype=bool))
        batch.restored_luma = to_y_channel(batch.restored_double, 255, "yiq") / 255
        batch.truth_luma = to_y_channel(batch.truth_double, 255, "yiq") / 255
        for metric, own in chosen.items():
            values[metric].append(own.score_batch(batch)[0].value)
    return values


def _cpu_seconds() -> float:
    """Processor time of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _measured(started: float, busy: float, names: list[str], values: dict[str, list[float | None]]) -> dict[str, Any]:
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": _cpu_seconds() - busy,
        "count": len(names),
        "peak_memory_mb": max(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e6,
        "values": values,
    }


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    count = sum(part["count"] for part in parts)
    values: dict[str, list[float | None]] = {}
    for part in parts:
        for name, own in part["values"].items():
            values.setdefault(name, []).extend(own)
    return {
        "images": count,
        "images_per_second": count / sum(part["seconds"] for part in parts),
        "cpu_seconds_per_image": sum(part["cpu_seconds"] for part in parts) / count,
        "peak_memory_mb": max(part["peak_memory_mb"] for part in parts),
        "values": values,
    }


def _difference(
    name: str, values: dict[str, dict[str, list[float | None]]], on_theirs: dict[str, list[float | None]]
) -> dict[str, Any]:
    """Largest difference over the pictures both sides scored; on pyiqa's luma where `Counterpart` says so."""
    counterpart = COUNTERPARTS[name]
    theirs = values["pyiqa"][name]
    compared, largest = _largest(on_theirs.get(name, values["ours"][name]), theirs)
    return {
        "name": name,
        "pyiqa": counterpart.theirs,
        "compared": compared,
        "largest_difference": largest,
        "own_luma": _largest(values["ours"][name], theirs)[1] if name in on_theirs else None,
        "tolerance": counterpart.tolerance,
        "within": largest is not None and largest <= counterpart.tolerance and compared == len(theirs),
        "why": counterpart.why,
    }


def _largest(ours: list[float | None], theirs: list[float | None]) -> tuple[int, float | None]:
    """How many pictures have a value on both sides, and the largest difference of these."""
    pairs = zip(ours, theirs, strict=False)
    apart = [abs(a - b) for a, b in pairs if a is not None and b is not None and math.isfinite(b)]
    return len(apart), max(apart, default=None)


def main(words: list[str] | None = None) -> int:
    """Measures and prints; `key=value` words change `OPTIONS`. Returns 1 where a metric differs too much."""
    parser = argparse.ArgumentParser(prog="python -m bench.runs.panel_benchmark", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help=", ".join(f"{k}={v}" for k, v in OPTIONS.items())
    )
    arguments = parser.parse_args(words)
    return run_words(arguments.options, arguments.json)


def run_words(words: list[str], as_json: bool) -> int:
    """`main` on parsed words.

    Raises:
        UsageError: An unknown key, or a value that is no whole number.
    """
    options: dict[str, Any] = dict(OPTIONS)
    only = None
    for word in words:
        key, _, value = word.partition("=")
        if key == "metrics":
            only = None if value == "offline" else value
        elif key not in options:
            raise unknown_name("key of the panel's benchmark", key, ["metrics", *options])
        elif not value.isdecimal():
            raise UsageError(f"{key} must be a whole number, got {value!r}.")
        else:
            options[key] = int(value)
    result = measure_panel(**options, only=only)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        _print(result)
    return 0 if all(metric["within"] for metric in result["metrics"]) else 1


def _print(result: dict[str, Any]) -> None:
    from bench.report.terminal import print_table

    rows = [
        [
            title,
            str(entry["images"]),
            f"{entry['images_per_second']:.2f}",
            f"{entry['cpu_seconds_per_image']:.3f}",
            f"{entry['peak_memory_mb']:.0f} MB",
        ]
        for title, entry in (("bench score", result["ours"]), ("pyiqa's loop", result["pyiqa"]))
    ]
    title = f"{len(result['metrics'])} metrics, {result['size']} px, {result['threads']} processors"
    print_table(["", "images", "images/s", "processor s/image", "peak memory of a process"], rows, title)
    print(f"{result['ratio']:.2f} times the images/s, {result['cpu_ratio']:.2f} times fewer processor seconds\n")  # noqa: T201
    rows = [
        [
            metric["name"],
            metric["pyiqa"],
            _figure(metric["largest_difference"]),
            f"{metric['tolerance']:g}",
            "yes" if metric["within"] else "NO",
            _figure(metric["own_luma"]),
            metric["why"],
        ]
        for metric in result["metrics"]
    ]
    different = min(result["loop"], result["distinct"])
    compared = f"over {result['loop']} pictures, {different} of them different"
    print_table(["metric", "pyiqa", "largest difference", "tolerance", "within", "as scored", "why"], rows, compared)
    if any(metric["own_luma"] is not None for metric in result["metrics"]):
        print("pyiqa rounds luma to whole levels, ours does for NIQE alone: compared on pyiqa's luma, and as scored")  # noqa: T201
    for name, reason in result["absent"].items():
        print(f"left out: {name}: {reason}")  # noqa: T201


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(main())
