"""Latency, throughput, memory, parameters and FLOPs of a method, on random pictures."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.batch import FaceBatch
from bench.config import method_settings
from bench.errors import MissingError, UsageError, unknown_name
from bench.method import RestorationMethod
from bench.registry import load_method
from bench.runs.environment import environment
from bench.runs.trainer import trainer_options
from bench.weights.method_weights import default_weights, weights_path

WARM_UP = 2
FEWEST = 5
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def measure(config: dict[str, Any], seconds: float = 20.0) -> dict[str, Any]:
    """Measures every size of a method that is asked for.

    With `size=auto` that is `demo`, and `paper` where there is a GPU. Nothing is scored, so that a
    network whose weights are absent is timed with random ones, and the result says so.

    Args:
        config: The composed `configs/run.yaml`.
        seconds: Time to spend on latencies and again on batch sizes, for each size.

    Returns:
        `method`, `sizes` (one record each, see `measure_size`), `precision`, `device`, hardware, versions.

    Raises:
        UsageError: The method has no such size, or the trainer settings do not work here.
    """
    options = trainer_options(config["trainer"], training=False)
    precision = str(options["precision"])
    if precision not in ("32-true", *AUTOCAST):
        raise unknown_name("precision for bench perf", precision, ["32-true", *AUTOCAST])
    gpu = torch.cuda.is_available() and options["accelerator"] in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    records = [measure_size(config, size, device, precision, seconds) for size in sizes_to_measure(config, gpu)]
    return {
        "method": config["method"]["name"],
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "sizes": records,
        **environment(),
    }


def sizes_to_measure(config: dict[str, Any], gpu: bool) -> list[str | None]:
    """The sizes that a configuration asks for; with `auto` the demo, and on a GPU the paper's too.

    Raises:
        UsageError: The method has no such size.
    """
    sizes = config["method"].get("sizes") or {}
    wanted = config["size"]
    if not sizes:
        return [None]
    if wanted != "auto":
        if wanted not in sizes:
            raise unknown_name(f"size of {config['method']['name']}", str(wanted), ["auto", *sizes])
        return [wanted]
    return [name for name in ("demo", "paper") if name in sizes and (gpu or name == "demo")] or list(sizes)


def measure_size(
    config: dict[str, Any], size: str | None, device: torch.device, precision: str, seconds: float
) -> dict[str, Any]:
    """Measures one size of a method.

    Args:
        config: The composed `configs/run.yaml`.
        size: Name of the size; None for a method without sizes.
        device: Where to run.
        precision: "32-true", "16-mixed" or "bf16-mixed".
        seconds: Time to spend on latencies, and again on batch sizes.

    Returns:
        `size`, `side` (pixels), `parameters`, `dtype`, `latency_ms` {p50, p95, n} at batch size 1,
        `throughput` {images_per_second, batch_size}, `by_batch_size`, `gflops` (an addition and a
        multiplication count as two; None where none is counted), `peak_memory_mb`, `memory_growth_mb`
        and `notes`.
    """
    notes: list[str] = []
    before = resident_peak_mb()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    method = build(config, size, device, notes)
    side = method.native_size or int(config["data"]["size"])
    autocast = AUTOCAST.get(precision)
    with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        latencies = _latencies(method, random_batch(method, 1, side, device), seconds)
        by_batch_size = _throughput(method, side, device, seconds, notes)
    best = max(by_batch_size, key=lambda count: by_batch_size[count])
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else resident_peak_mb()
    growth = peak if device.type == "cuda" else peak - before
    return {
        "size": size,
        "side": side,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "dtype": str(next((p.dtype for p in method.parameters()), torch.float32)).removeprefix("torch."),
        "latency_ms": {
            "p50": float(np.percentile(latencies, 50)) * 1e3,
            "p95": float(np.percentile(latencies, 95)) * 1e3,
            "n": len(latencies),
        },
        "throughput": {"images_per_second": by_batch_size[best], "batch_size": best},
        "by_batch_size": by_batch_size,
        # Counted last, so that the counter's own memory and time enter nothing.
        "gflops": _flops(method, random_batch(method, 1, side, device)),
        "peak_memory_mb": peak,
        "memory_growth_mb": growth,
        "notes": notes,
    }


def random_batch(method: RestorationMethod, count: int, side: int, device: torch.device) -> FaceBatch:
    """Random pictures with as many references as the method reads, two where it reads several."""
    generator = torch.Generator().manual_seed(0)
    references = {"none": 0, "one": 1, "several": 2}[method.spec.references]
    return FaceBatch(
        lq=torch.rand(count, 3, side, side, generator=generator),
        references=torch.rand(count, references, 3, side, side, generator=generator),
        reference_mask=torch.ones(count, references, dtype=torch.bool),
        image_ids=[f"random/{position}" for position in range(count)],
        identities=["random"] * count,
        seeds=list(range(count)),
    ).to(device)


def build(
    config: dict[str, Any], size: str | None, device: torch.device, notes: list[str], check: bool = True
) -> RestorationMethod:
    """A method ready to be timed, with random weights where its own are absent.

    Args:
        config: The composed `configs/run.yaml`.
        size: Name of the size; None for a method without sizes.
        device: Where to run.
        notes: What is random or replaced is added here.
        check: Whether to restore a picture first, which loads what is loaded on first use.

    Raises:
        UsageError: The weights do not fit.
        MissingError: Something is absent that has no replacement.
    """
    settings = method_settings(config["method"], size)
    name = settings["name"]
    torch.manual_seed(0)
    method = load_method(name)(settings)
    if sum(1 for _ in method.parameters()) or settings.get("weights") or method.spec.weights:
        given = settings.get("weights")
        path: Path | None = weights_path(name, size, given) if size else default_weights(type(method), given)
        if path is None:
            notes.append("random weights, for timing only: its weights are not here")
        else:
            try:
                method.load_weights_state(type(method).read_weights_file(path)[0])
            except RuntimeError as error:
                raise UsageError(
                    f"The weights {path} do not fit {method.label}: {str(error).splitlines()[0]}"
                ) from error
    prepare: Any = getattr(method, "prepare_for_timing", None)
    if prepare is not None:
        notes += prepare(random_weights=any("random weights" in note for note in notes))
    method.eval().requires_grad_(False).to(device)
    if not check:
        return method
    side = method.native_size or int(config["data"]["size"])
    try:
        with torch.inference_mode():
            method.restore_at_native_size(random_batch(method, 1, side, device))
    except MissingError as error:
        if settings.get("identity") in (None, "sface"):
            raise
        notes[:] = [f"sface in place of the recogniser {settings['identity']}: {str(error).splitlines()[0]}"]
        substituted = {**config["method"], "identity": "sface"}
        if size is not None:
            substituted["sizes"] = {size: {**config["method"]["sizes"][size], "identity": "sface"}}
        return build({**config, "method": substituted}, size, device, notes)
    return method


def _run(method: RestorationMethod, batch: FaceBatch) -> float:
    """Seconds one batch takes, the GPU's work included."""
    if batch.lq.is_cuda:
        torch.cuda.synchronize(batch.lq.device)
    started = time.perf_counter()
    method.restore_at_native_size(batch)
    if batch.lq.is_cuda:
        torch.cuda.synchronize(batch.lq.device)
    return time.perf_counter() - started


def _latencies(method: RestorationMethod, batch: FaceBatch, seconds: float) -> list[float]:
    for _ in range(WARM_UP):
        _run(method, batch)
    found: list[float] = []
    while len(found) < FEWEST or (sum(found) < seconds and len(found) < 200):
        found.append(_run(method, batch))
    return found


def _throughput(
    method: RestorationMethod, side: int, device: torch.device, seconds: float, notes: list[str]
) -> dict[int, float]:
    """Images per second by batch size; stops where a larger one is not faster, or does not fit."""
    found: dict[int, float] = {}
    for count in BATCH_SIZES:
        batch = random_batch(method, count, side, device)
        try:
            _run(method, batch)
            times = [_run(method, batch)]
            while sum(times) < seconds / len(BATCH_SIZES) and len(times) < 20:
                times.append(_run(method, batch))
        except torch.cuda.OutOfMemoryError:
            notes.append(f"a batch of {count} does not fit the GPU's memory")
            torch.cuda.empty_cache()
            break
        rate = count / float(np.median(times))
        slower = bool(found) and rate < 0.98 * max(found.values())
        found[count] = rate
        if slower or sum(times) > seconds:
            break
    return found


def _flops(method: RestorationMethod, batch: FaceBatch) -> float | None:
    # Under inference_mode the counter misses what is not decomposed.
    with torch.no_grad():
        flops = counted_flops(lambda: method.restore_at_native_size(batch))
    return None if flops is None else flops / 1e9


def counted_flops(work: Callable[[], object]) -> float | None:
    """Floating-point operations of some work, an addition and a multiplication counted as two; None for none."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) or None


def resident_peak_mb() -> float:
    """Largest memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
