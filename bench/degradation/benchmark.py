"""Time per picture of degradations, by preset and by operator, beside BasicSR's and OpenCV's functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from bench.config import group_choices, read_preset
from bench.degradation.basicsr_chain import BasicsrChain
from bench.degradation.operators import OPERATORS
from bench.degradation.pipeline import DegradationPipeline, Theta, replay
from bench.errors import MissingError, UsageError

ROUNDS = 3
GPU_BATCH = 16
Result = TypeVar("Result")
# Operator, seconds of ours, seconds of BasicSR's counterpart.
Duration = tuple[str, float, float | None]


def measure_degradations(name: str, size: int = 512, images: int = 16, threads: int = 1) -> dict[str, Any]:
    """Times degradations on synthetic pictures on the CPU, one picture at a time.

    `ours` is single precision, as training uses it and as BasicSR's chain works: comparisons are about it. `double` is
    double precision, which makes the frozen and the recorded pictures (`bench data freeze`, `bench degrade`); it has no
    counterpart.

    Ours and BasicSR's functions take turns on the same records: whole chains, then each step by itself. Every figure is
    the median of three rounds. On a machine with a CUDA device the GPU is timed too, in batches.

    Args:
        name: A preset, or "all".
        size: Side of the pictures in pixels.
        images: How many pictures, each with a degradation of its own.
        threads: Threads of torch and OpenCV.

    Returns:
        `presets`: for each `name`, `ours`, `double` and `basicsr` (images per second; None where a step has no
        counterpart), `ratio` (of `ours`, above 1 where it is faster), `without_counterpart`, `gpu` and `gpu_ratio` (to
        ours on the CPU; None without a GPU), and `operators`: `name`, `calls`, `ours_ms` and `basicsr_ms` (per call),
        `ratio`, `share` of our time. `operators` beside `presets` counts all presets together. `missing` says why
        BasicSR's figures are absent, if all are.

    Raises:
        UsageError: Unknown preset, or a number that is too small.
    """
    for argument, value, least in (("size", size, 16), ("images", images, 1), ("threads", threads, 1)):
        if value < least:
            raise UsageError(f"{argument} must be at least {least}, got {value}.")
    names = list(group_choices("degradation")) if name == "all" else [name]
    pipelines = [DegradationPipeline(one, read_preset("degradation", one)["steps"], size) for one in names]
    chain, missing = _basicsr_chain()
    pictures = synthetic_pictures(images, size)
    with _threads(threads), torch.inference_mode():
        measured = [_measure(pipeline, pictures, chain) for pipeline in pipelines]
    return {
        "size": size,
        "images": images,
        "threads": threads,
        "dtype": "float32",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "missing": missing,
        "presets": [preset for preset, _ in measured],
        "operators": _by_operator([duration for _, durations in measured for duration in durations]),
    }


def synthetic_pictures(count: int, size: int) -> Tensor:
    """Soft shapes with fine texture, (count, 3, size, size) float32 in [0, 1]; the same on every call."""
    rng = np.random.default_rng(0)
    pictures = np.empty((count, 3, size, size), np.float32)
    for picture in pictures:
        shapes = cv2.resize(rng.random((12, 12, 3), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        texture = rng.standard_normal((size, size, 1), dtype=np.float32) * 0.02
        picture[:] = (shapes + texture).clip(0, 1).transpose(2, 0, 1)
    return torch.from_numpy(pictures)


def _measure(
    pipeline: DegradationPipeline, pictures: Tensor, chain: BasicsrChain | None
) -> tuple[dict[str, Any], list[Duration]]:
    """The figures of one preset, and how long each of its steps took."""
    thetas = pipeline.sample(range(len(pictures)), (int(pictures.shape[2]), int(pictures.shape[3])))
    steps = [step for theta in thetas for step in theta["steps"]]
    lacking = sorted({step["operator"] for step in steps if chain and not chain.supports(step)})
    complete = chain if not lacking else None
    _measure_picture(pictures[0], thetas[0], chain, complete)
    ours, theirs, durations = [], [], []
    double = [0.0] * ROUNDS
    for picture, theta in zip(pictures, thetas, strict=True):
        rounds = [_measure_picture(picture, theta, chain, complete) for _ in range(ROUNDS)]
        ours.append(float(np.median([one[0] for one in rounds])))
        theirs.append(float(np.median([one[1] for one in rounds])))
        durations += [_median_duration(of_step) for of_step in zip(*(one[2] for one in rounds), strict=True)]
        for position, seconds in enumerate(_double_rounds(picture, theta)):
            double[position] += seconds
    speed = len(pictures) / sum(ours)
    their_speed = len(pictures) / sum(theirs) if complete else None
    gpu = _images_per_second_on_gpu(pictures, thetas) if torch.cuda.is_available() else None
    preset = {
        "name": pipeline.name,
        "ours": speed,
        "double": len(pictures) / float(np.median(double)),
        "basicsr": their_speed,
        "ratio": speed / their_speed if their_speed else None,
        "without_counterpart": lacking,
        "gpu": gpu,
        "gpu_ratio": gpu / speed if gpu else None,
        "operators": _by_operator(durations),
    }
    return preset, durations


def _double_rounds(picture: Tensor, theta: Theta) -> list[float]:
    """Seconds of our whole chain in double precision, once per round."""
    precise = picture.double().unsqueeze(0)
    return [_timed(lambda: replay(precise, [theta]))[0] for _ in range(ROUNDS)]


def _measure_picture(
    picture: Tensor, theta: Theta, chain: BasicsrChain | None, complete: BasicsrChain | None
) -> tuple[float, float, list[Duration]]:
    """Seconds of our whole chain and of BasicSR's (0 where it lacks a step), and of each step by itself."""
    ours, _ = _timed(lambda: replay(picture.unsqueeze(0), [theta]))
    theirs = 0.0
    if complete is not None:
        start = to_bgr(picture)
        theirs, _ = _timed(lambda: complete.apply(start, theta["steps"]))
    durations = []
    for step in theta["steps"]:
        name, parameters = step["operator"], {key: value for key, value in step.items() if key != "operator"}
        # Records hold all that applying needs; the ranges of an operator serve sampling alone.
        operator = object.__new__(OPERATORS[name])
        their_seconds = None
        if chain is not None and chain.supports(step):
            their_seconds, _ = _timed(chain.work(to_bgr(picture), step))
        our_seconds, results = _timed(partial(operator.apply, [picture], [parameters]))
        picture = results[0]
        durations.append((name, our_seconds, their_seconds))
    return ours, theirs, durations


def to_bgr(picture: Tensor) -> np.ndarray:
    """A (3, H, W) RGB picture as `BasicsrChain` takes it."""
    return np.ascontiguousarray(picture.numpy()[::-1].transpose(1, 2, 0))


def _median_duration(rounds: Sequence[Duration]) -> Duration:
    theirs = [seconds for _, _, seconds in rounds if seconds is not None]
    return rounds[0][0], float(np.median([one[1] for one in rounds])), float(np.median(theirs)) if theirs else None


def _by_operator(durations: Sequence[Duration]) -> list[dict[str, Any]]:
    """Milliseconds per picture and shares of each operator, the costliest first."""
    total = sum(ours for _, ours, _ in durations)
    rows = []
    for name in {name for name, _, _ in durations}:
        own = [one for one in durations if one[0] == name]
        compared = [(ours, theirs) for _, ours, theirs in own if theirs is not None]
        their_mean = sum(theirs for _, theirs in compared) / len(compared) if compared else None
        rows.append(
            {
                "name": name,
                "calls": len(own),
                "ours_ms": sum(ours for _, ours, _ in own) / len(own) * 1e3,
                "basicsr_ms": None if their_mean is None else their_mean * 1e3,
                "ratio": sum(theirs for _, theirs in compared) / sum(ours for ours, _ in compared)
                if compared
                else None,
                "share": sum(ours for _, ours, _ in own) / total,
            }
        )
    return sorted(rows, key=lambda row: -row["share"])


def _images_per_second_on_gpu(pictures: Tensor, thetas: Sequence[Theta]) -> float:
    """Batches of pictures that are on the GPU already, degraded there."""
    batches = [
        (pictures[start : start + GPU_BATCH].cuda(), thetas[start : start + GPU_BATCH])
        for start in range(0, len(pictures), GPU_BATCH)
    ]

    def work() -> None:
        for batch, records in batches:
            replay(batch, records)
        torch.cuda.synchronize()

    work()
    return len(pictures) / float(np.median([_timed(work)[0] for _ in range(ROUNDS)]))


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _basicsr_chain() -> tuple[BasicsrChain | None, str | None]:
    try:
        return BasicsrChain(), None
    except MissingError as error:
        return None, str(error)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Limits torch and OpenCV to a number of threads, and keeps OpenCV's warnings about BasicSR's calls quiet."""
    logging: Any = cv2.utils.logging
    before = torch.get_num_threads(), cv2.getNumThreads(), logging.getLogLevel()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
        logging.setLogLevel(before[2])
