"""Times a diffusion method beside the documented loop of diffusers: `bench perf method=... against=pipeline`.

Both sides restore the same random pictures from the same noise with the same weights, type, solver, steps and batch.
They take turns, so that other work on the machine hits both alike, and each is charged everything from the LQ picture
to the restored one. Ratios on a CPU are those of processor seconds, which other programs on the machine do not lengthen
as they do the time on the clock. The `fast` preset takes its turn beside them. Then one training step is timed, and a
long row of pictures, whose last ones must take no longer than its first.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.config import method_settings
from bench.errors import UsageError
from bench.method import RestorationMethod
from bench.registry import load_method
from bench.runs.environment import environment
from bench.runs.performance import AUTOCAST, build, counted_flops, random_batch, resident_peak_mb, sizes_to_measure
from bench.runs.trainer import trainer_options

FEWEST_ROUNDS = 3
ENDS = 10
IMAGES_ON_CPU, IMAGES_ON_GPU = 20, 1000
TRAINING_STEPS = 3
# Dense bfloat16 products per second, without sparsity, from NVIDIA's data sheets "A100 Tensor Core GPU" (312 TFLOPS),
# "H100 Tensor Core GPU" (SXM 1,979 and PCIe 1,513 with sparsity, that is twice the dense figure) and "H200 Tensor Core
# GPU" (1,979 with sparsity). By the name the driver gives; the longer name is tried first.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class PlainPipeline(Protocol):
    """A method's model run as diffusers documents it."""

    @property
    def pattern(self) -> str:
        """The loop as text."""
        ...

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restored pictures (B, 3, H, W) in [0, 1]."""
        ...


class Comparable(Protocol):
    """What a method has that can be timed against diffusers' loop."""

    def plain_pipeline(self) -> PlainPipeline:
        """The same weights and settings in the documented loop."""
        ...

    def prepare_timed_training(self) -> None:
        """Decides which parameters are trained, whatever their values."""
        ...

    def random_training_batch(self, count: int) -> Any:
        """Input of `training_step`."""
        ...


class PlainTraining(Protocol):
    """A method's training step as diffusers documents it."""

    pattern: str
    optimiser: torch.optim.Optimizer

    def loss(self) -> Tensor:
        """The loss of a batch."""
        ...


@dataclass
class _Side:
    name: str
    restore: Callable[[FaceBatch], Tensor]
    steps: int
    dtype: str
    seconds: list[float]
    processor: list[float]
    memory_mb: float | None = None
    picture: Tensor | None = None


def measure_against_pipeline(config: dict[str, Any], seconds: float, images: int | None = None) -> dict[str, Any]:
    """Measures every size that is asked for (demo, and paper where there is a GPU).

    Args:
        config: The composed `configs/run.yaml`.
        seconds: Time to spend on the rounds of restorations, for each size.
        images: Length of the row of pictures; 1,000 on a GPU and 20 on a CPU if not given. 0 leaves it out.

    Returns:
        `method`, `sizes` (one record each: `sides`, `ratio`, `fast_ratio`, `difference`, `flat`, `training`,
        `pattern`, `notes`; a ratio is None where it would mean nothing), device, threads, hardware and versions.

    Raises:
        UsageError: The method has no counterpart among diffusers' pipelines, or settings are wrong.
    """
    options = trainer_options(config["trainer"], training=False)
    gpu = torch.cuda.is_available() and options["accelerator"] in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    name = config["method"]["name"]
    if not hasattr(load_method(name), "plain_pipeline"):
        raise UsageError(f"{name} has no counterpart among diffusers' pipelines: leave out against=pipeline.")
    images = (IMAGES_ON_GPU if gpu else IMAGES_ON_CPU) if images is None else images
    records = [_measure_size(config, size, device, seconds, images) for size in sizes_to_measure(config, gpu)]
    return {
        "method": name,
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": int(config["batch_size"]),
        "sizes": records,
        **environment(),
    }


def _measure_size(
    config: dict[str, Any], size: str | None, device: torch.device, seconds: float, images: int
) -> dict[str, Any]:
    notes: list[str] = []
    count, gpu = int(config["batch_size"]), device.type == "cuda"
    given_type = method_settings(config["method"], size).get("inference_dtype", "auto")
    compared: dict[str, Any] = {"inference_dtype": "bfloat16"} if gpu and given_type == "auto" else {}
    sides: list[_Side] = []

    def add(name: str, changes: dict[str, Any]) -> RestorationMethod:
        allocated = torch.cuda.memory_allocated(device) if gpu else 0
        method = build(_changed(config, size, changes), size, device, notes)
        side = _Side(name, method.restore_at_native_size, _steps(method), _dtype(method), [], [])
        side.memory_mb = (torch.cuda.memory_allocated(device) - allocated) / 1e6 if gpu else None
        sides.append(side)
        return method

    ours = add("ours", compared)
    plain = cast(Comparable, ours).plain_pipeline()
    sides.insert(0, _Side("diffusers", plain.restore, _steps(ours), _dtype(ours), [], [], sides[0].memory_mb))
    if gpu and not ours.settings.get("compile"):
        add("ours, compiled", {**compared, "compile": True})
    if compared:  # what the settings say
        add("ours, float32", {"inference_dtype": "float32"})
    fast_sampling = {**ours.settings["sampling"], "preset": "fast"}
    add("fast preset", {"sampling": fast_sampling})
    batch = random_batch(ours, count, ours.native_size or int(config["data"]["size"]), device)
    _take_turns(sides, batch, seconds)
    by_name = {side.name: side for side in sides}
    rows = [_row(side, by_name["diffusers"], count) for side in sides]
    sampling = cast(Any, ours).sampler.settings
    guided = getattr(ours, "guided", sampling.guidance != 1)
    if guided and (share := sampling.guided_share) < 1:
        notes.append(f"ours guides {share:.0%} of the steps, diffusers' pattern all: pictures are not compared")
        for row in rows:
            row.update(largest_difference_255=None, mean_difference_255=None)
    slow, fast = by_name.get("ours, float32", by_name["ours"]), by_name["fast preset"]
    if slow.steps <= fast.steps:
        notes.append(f"ours takes {slow.steps} steps and the fast preset {fast.steps}: the two are not compared")
    # Read before training, whose peak is another figure.
    peak = by_name["ours"].memory_mb if gpu else resident_peak_mb()
    record = {
        "size": size,
        "side": int(batch.lq.shape[-1]),
        "sides": rows,
        "pattern": plain.pattern,
        "ratio": _ratio(by_name["diffusers"], by_name["ours"]),
        "compiled_ratio": _ratio(by_name["diffusers"], by_name.get("ours, compiled")),
        "fast_ratio": _ratio(slow, fast) if slow.steps > fast.steps else None,
        "flat": _flat(ours, count, images, batch) if images else None,
        "peak_memory_mb": peak,
        "notes": list(dict.fromkeys(notes)),
    }
    # What was timed makes room: its networks and those of a training may not fit beside each other.
    sides.clear()
    by_name.clear()
    del ours, plain, slow, fast
    gc.collect()  # a Lightning module is part of cycles
    if gpu:
        torch.cuda.empty_cache()
    return record | {"training": _training(config, size, device)}


def _changed(config: dict[str, Any], size: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with settings of one size changed."""
    changed = copy.deepcopy(config)
    target = changed["method"] if size is None else changed["method"]["sizes"][size]
    target.update(changes)
    return changed


def _steps(method: Any) -> int:
    return int(method.sampler.settings.steps)


def _dtype(method: Any) -> str:
    return str(next(method.network_for_inference().parameters()).dtype).removeprefix("torch.")


def _take_turns(sides: list[_Side], batch: FaceBatch, seconds: float) -> None:
    """Times the sides in rounds; the first, untimed one gives the pictures and the memory."""
    for side in sides:
        allocated = 0
        if batch.lq.is_cuda:
            allocated = torch.cuda.memory_allocated(batch.lq.device)
            torch.cuda.reset_peak_memory_stats(batch.lq.device)
        _timed(side, batch)
        if batch.lq.is_cuda and side.memory_mb is not None:
            side.memory_mb += (torch.cuda.max_memory_allocated(batch.lq.device) - allocated) / 1e6
    started = time.perf_counter()
    while len(sides[0].seconds) < FEWEST_ROUNDS or time.perf_counter() - started < seconds:
        for side in sides:
            elapsed, work = _timed(side, batch)
            side.seconds.append(elapsed)
            side.processor.append(work)


def _timed(side: _Side, batch: FaceBatch) -> tuple[float, float]:
    """Seconds on the clock and on the processors of one batch."""
    if batch.lq.is_cuda:
        torch.cuda.synchronize(batch.lq.device)
    started, started_work = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        picture = side.restore(batch)
    if batch.lq.is_cuda:
        torch.cuda.synchronize(batch.lq.device)
    elapsed = time.perf_counter() - started, time.process_time() - started_work
    side.picture = picture.float().cpu()
    return elapsed


def _row(side: _Side, reference: _Side, count: int) -> dict[str, Any]:
    assert side.picture is not None and reference.picture is not None
    apart = (side.picture - reference.picture).abs() * 255
    comparable = side is not reference and side.steps == reference.steps and side.name != "fast preset"
    return {
        "name": side.name,
        "steps": side.steps,
        "dtype": side.dtype,
        "seconds_per_image": float(np.median(side.seconds)) / count,
        "processor_seconds_per_image": float(np.median(side.processor)) / count,
        "rounds": len(side.seconds),
        "faster_than_diffusers": _ratio(reference, side),
        "largest_difference_255": float(apart.max()) if comparable else None,
        "mean_difference_255": float(apart.mean()) if comparable else None,
        "peak_memory_mb": side.memory_mb,
    }


def _ratio(slow: _Side, quick: _Side | None) -> float | None:
    """How many times quicker: the median over rounds, in each of which both sides met the same machine."""
    if quick is None:
        return None
    on_gpu = slow.memory_mb is not None
    pairs = zip(*((side.seconds if on_gpu else side.processor) for side in (slow, quick)), strict=True)
    return float(np.median([a / b for a, b in pairs]))


def _flat(method: RestorationMethod, count: int, images: int, batch: FaceBatch) -> dict[str, Any]:
    """Seconds per image (on a CPU processor seconds) at both ends of a row of pictures sent through `predict_step`."""
    taken: list[float] = []
    while len(taken) < images:
        started = time.process_time()
        outcomes = method.predict_step(batch)
        work = (time.process_time() - started) / count
        for outcome, elapsed in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            taken.append(elapsed if batch.lq.is_cuda else work)
    ends = min(ENDS, len(taken) // 2) or 1
    first, last = float(np.mean(taken[:ends])), float(np.mean(taken[-ends:]))
    return {"images": len(taken), "ends": ends, "first": first, "last": last, "ratio": last / first}


def _training(config: dict[str, Any], size: str | None, device: torch.device) -> dict[str, Any]:
    """Samples per second of a training step on random latents, and on a known GPU the model FLOPs utilisation.

    Where the method knows diffusers' documented training step, the two take turns.
    """
    method = build(config, size, torch.device("cpu"), [], check=False).train().to(device)
    for parameter in method.parameters():
        parameter.requires_grad_(True)
    cast(Comparable, method).prepare_timed_training()
    optimiser: Any = method.configure_optimizers()
    method.__dict__.update(optimizers=lambda: optimiser, log=lambda *_, **__: None)
    count = int(method.settings["training"]["batch_size"])
    batch = cast(Comparable, method).random_training_batch(count).to(device)
    precision = str(config["trainer"]["precision"])
    autocast = torch.bfloat16 if device.type == "cuda" and precision == "32-true" else AUTOCAST.get(precision)

    def stepping(loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            optimiser.zero_grad()
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        return step

    def timed(step: Callable[[], None]) -> tuple[float, float]:
        """Seconds on the clock, and those to compare by: on a CPU of the processors."""
        started, started_work = time.perf_counter(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
        return elapsed, elapsed if device.type == "cuda" else time.process_time() - started_work

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ours = stepping(lambda: cast(Tensor, method.training_step(batch, 0)), optimiser)
    for _ in range(2):  # warms up; the optimiser's state is there from the second one on
        timed(ours)
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    documented: Any = getattr(method, "plain_training", lambda count: None)
    plain = cast("PlainTraining | None", documented(count))
    theirs = None if plain is None else stepping(plain.loss, plain.optimiser)
    if theirs is not None:
        timed(theirs)
    taken, ratios = [], []
    for _ in range(TRAINING_STEPS):
        elapsed, own = timed(ours)
        taken.append(elapsed)
        if theirs is not None:
            ratios.append(timed(theirs)[1] / own)
    seconds = float(np.median(taken))
    flops = counted_flops(ours)
    peak = _peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    known = peak is not None and autocast is torch.bfloat16 and flops is not None
    return {
        "stage": method.settings["training"]["stage"],
        "batch_size": count,
        "dtype": str(autocast or torch.float32).removeprefix("torch."),
        "samples_per_second": count / seconds,
        "faster_than_diffusers": float(np.median(ratios)) if ratios else None,
        "pattern": None if plain is None else plain.pattern,
        "peak_memory_mb": memory,
        "gflops": None if flops is None else flops / 1e9,
        "peak_tflops": None if peak is None else peak / 1e12,
        "model_flops_utilisation": flops / seconds / peak if known and flops and peak else None,
    }


def _peak_flops(name: str) -> float | None:
    for known in sorted(PEAK_FLOPS, key=len, reverse=True):
        if name.startswith(known):
            return PEAK_FLOPS[known]
    return None
