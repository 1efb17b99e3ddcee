"""Weights for methods that ship none: what a method promises does not depend on its training."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _weights_of_every_method() -> Iterator[None]:
    """Writes random weights, no tensor of them zero, where a method has none of its demo size; removes them again."""
    import torch

    from bench.config import compose, method_settings
    from bench.paths import bench_home
    from bench.registry import load_method, method_targets
    from bench.weights.method_weights import weights_path, write_tensors

    written = []
    for name in sorted(method_targets()):
        config = compose("run", [f"method={name}"])["method"]
        if "demo" not in (config.get("sizes") or {}) or weights_path(name, "demo"):
            continue
        settings = method_settings(config, "demo")
        rng = torch.Generator().manual_seed(0)
        state = {
            tensor: value + 0.02 * torch.randn(value.shape, generator=rng)
            for tensor, value in load_method(name)(settings).weights_state().items()
        }
        path = bench_home() / "weights" / f"{name}_demo.safetensors"
        write_tensors(path, state, {"method": name, "size": "demo", "settings": json.dumps(settings)})
        written.append(path)
    yield
    for path in written:
        path.unlink()
