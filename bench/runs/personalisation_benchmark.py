"""Times how a method learns a person, beside the same learning without any saving: `bench perf … against=plain`.

Both sides learn the same references with the same losses, number of samples and optimiser; they take turns, so that
other work on the machine hits both alike. What ours makes once for a person is charged to its iterations.
"""

from __future__ import annotations

import time
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from bench.config import method_settings
from bench.errors import UsageError
from bench.method import RestorationMethod
from bench.registry import load_method
from bench.runs.environment import environment
from bench.runs.performance import AUTOCAST, build, resident_peak_mb, sizes_to_measure
from bench.runs.trainer import trainer_options

PEOPLE = (1, 2, 4)
REFERENCES = (1, 3, 5)
GIVEN = 5
ROUNDS = 3
PLAIN_ITERATIONS = 5
#: For the rows that show how time grows.
SHORT = {"iterations": 20, "samples": 16}


class PlainLearning(Protocol):
    """A person's learning without any saving."""

    pattern: str

    def step(self) -> Tensor:
        """One iteration; returns the loss."""
        ...


class Timeable(Protocol):
    """What a method has whose learning can be timed."""

    def plain_personalisation(self, references: Tensor, seed: int) -> PlainLearning:
        """The same learning without any saving."""
        ...


def measure_personalisation(config: dict[str, Any]) -> dict[str, Any]:
    """Measures every size that is asked for (demo, and paper where there is a GPU).

    Args:
        config: The composed `configs/run.yaml`.

    Returns:
        `method`, `sizes` (one record each: `iterations`, `seconds_per_person`, `ours` and `plain` (seconds per
        iteration, medians of rounds), `ratio`, `rounds`, `by_people` and `by_references` (seconds), `state_bytes`,
        `peak_memory_mb`, `pattern`, `notes`), device, threads, hardware and versions.

    Raises:
        UsageError: The method learns no one, or the trainer settings do not work here.
    """
    options = trainer_options(config["trainer"], training=False)
    gpu = torch.cuda.is_available() and options["accelerator"] in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    name = config["method"]["name"]
    if not hasattr(load_method(name), "plain_personalisation"):
        raise UsageError(f"{name} learns no one before it restores: leave out against=plain.")
    autocast = AUTOCAST.get(str(options["precision"]))
    # As Lightning's: a cache would hand out the weights of before the last step.
    with torch.autocast(device.type, autocast, enabled=autocast is not None, cache_enabled=False):
        records = [_measure_size(config, size, device) for size in sizes_to_measure(config, gpu)]
    return {
        "method": name,
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "precision": str(options["precision"]),
        "sizes": records,
        **environment(),
    }


def _measure_size(config: dict[str, Any], size: str | None, device: torch.device) -> dict[str, Any]:
    notes: list[str] = []
    method = build(config, size, device, notes, check=False)
    if not method.personalises:
        raise UsageError(f"{method.label} learns no one with these settings: leave out against=plain.")
    side, iterations = method.native_size or 128, method.personal_iterations()
    references = torch.rand(GIVEN, 3, side, side, generator=torch.Generator().manual_seed(0))
    plain = cast(Timeable, method).plain_personalisation(references, 0)
    ours, plainly = [], []
    tensors: dict[str, Tensor] = {}
    for turn in range(ROUNDS):
        seconds, tensors = _learn(method, references, turn)
        ours.append(seconds / iterations)
        plainly.append(_timed(plain, device) / PLAIN_ITERATIONS)
    ratios = [theirs / mine for mine, theirs in zip(ours, plainly, strict=True)]
    short = _shortened(config, size, device)
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else resident_peak_mb()
    return {
        "size": size,
        "side": side,
        "iterations": iterations,
        "seconds_per_person": float(np.median(ours)) * iterations,
        "ours": float(np.median(ours)),
        "plain": float(np.median(plainly)),
        "ratio": float(np.median(ratios)),
        "rounds": ROUNDS,
        "by_people": {
            str(count): sum(_learn(short, references, person)[0] for person in range(count)) for count in PEOPLE
        },
        "by_references": {str(count): _learn(short, references[:count], 0)[0] for count in REFERENCES},
        "short": dict(SHORT),
        "state_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "peak_memory_mb": peak,
        "pattern": plain.pattern,
        "notes": notes,
    }


def _shortened(config: dict[str, Any], size: str | None, device: torch.device) -> RestorationMethod:
    """The method with a short learning."""
    own = method_settings(config["method"], size)["personalisation"]
    # Samples that are new in every iteration stay so.
    own = {**own, **SHORT, "samples": SHORT["samples"] if own["samples"] else 0}
    changed = {**config["method"], "personalisation": own}
    if size is not None:
        sizes = config["method"]["sizes"]
        changed = {**config["method"], "sizes": {**sizes, size: {**sizes[size], "personalisation": own}}}
    method = build({**config, "method": changed}, size, device, [], check=False)
    _learn(method, torch.rand(1, 3, method.native_size or 128, method.native_size or 128), 0)
    return method


def _learn(method: RestorationMethod, references: Tensor, seed: int) -> tuple[float, dict[str, Tensor]]:
    """Seconds of a whole learning, and what was learnt."""
    _wait(method.device)
    started = time.perf_counter()
    tensors = method.personalise(references, seed)
    _wait(method.device)
    return time.perf_counter() - started, tensors


def _timed(plain: PlainLearning, device: torch.device) -> float:
    plain.step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(PLAIN_ITERATIONS):
        plain.step()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
