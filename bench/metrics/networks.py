"""What metrics with trained networks share: weights from the catalogue, checked against the network, loaded once.

The networks are the classes of the published packages, never written again here. Those classes download their
weights where they are built; here they are built empty, then filled from files that the catalogue has verified.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from bench.errors import BenchError, UsageError
from bench.metrics.common import version
from bench.metrics.metric import Metric, Score, ScoringBatch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

INSTALL = 'install it with: pip install "face-restoration-bench[full]"'


class NetworkMetric(Metric):
    """A metric computed by networks whose weights are in the catalogue.

    Attributes:
        packages: Distribution and module of every package it needs.
        weights: Names in the weights catalogue, in the order in which `build` is given the files.
    """

    packages: ClassVar[tuple[tuple[str, str], ...]]
    weights: ClassVar[tuple[str, ...]]

    def unavailable(self) -> str | None:
        """The first package or weights file that is absent, and how to get it."""
        from bench.weights import catalogue

        for distribution, module in self.packages:
            if importlib.util.find_spec(module) is None:
                return f"needs the Python package {distribution}; {INSTALL}"
        reasons = (catalogue.missing(name) for name in self.weights)
        return next((f"weights missing: {reason}" for reason in reasons if reason), None)

    def build(self, *files: Path) -> nn.Module:
        """The network in evaluation mode, from the files of `weights`.

        Raises:
            UsageError: A file does not fit the network.
        """
        raise NotImplementedError

    def network(self, device: str = "cpu") -> nn.Module:
        """The network on a device, built once per process and file."""
        from bench.weights import catalogue

        files = tuple(catalogue.locate(name) for name in self.weights)
        times = tuple(path.stat().st_mtime_ns for path in files)
        return _shared_network(type(self), files, times, device)  # type: ignore[arg-type]

    def score_batch(self, batch: ScoringBatch) -> list[Score]:
        """As for every metric; a file that does not fit its network leaves nulls with that reason."""
        try:
            return super().score_batch(batch)
        except BenchError as error:
            return [Score(None, str(error))] * len(batch)


@cache
def _shared_network(kind: Any, files: tuple[Path, ...], _: tuple[int, ...], device: str) -> nn.Module:
    network: nn.Module = kind().build(*files).eval().to(device)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def implementation(distribution: str) -> str:
    """Name and version of a distribution, for identities."""
    return f"{distribution} {version(distribution)}"


def weights_of(name: str) -> str:
    """First digits of a weights file's hash, or "absent"; the same before and after its first use."""
    from bench.weights import catalogue

    return "absent" if catalogue.missing(name) else catalogue.short_hash(name)


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a weights file, which is read as data and never as a program.

    Args:
        path: A safetensors file, or one of torch.
        key: Entry of the file that holds the tensors, where they are not at its top.

    Raises:
        UsageError: The file is neither, or holds something else than tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is not a readable file of weights ({reason}). Remove it and get it again.") from error
    if key is not None and isinstance(content, dict):
        content = content.get(key, content)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UsageError(f"{path} holds no plain table of tensors. Remove it and get it again.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def fill(network: nn.Module, state: dict[str, Tensor], path: Path, ignored: str = "$^") -> None:
    """Puts tensors into a network, all of them or none.

    Args:
        network: Network to fill.
        state: Its tensors by name.
        path: Where they come from, for the message.
        ignored: Pattern of the network's own names that the file need not hold.

    Raises:
        UsageError: Names or shapes differ.
    """
    own = network.state_dict()
    absent = [name for name in own if name not in state and not re.search(ignored, name)]
    foreign = [name for name in state if name not in own]
    misshapen = [name for name in state if name in own and state[name].shape != own[name].shape]
    if absent or foreign or misshapen:
        kinds = {"missing": absent, "not part of it": foreign, "of another shape": misshapen}
        told = ", ".join(f"{len(names)} {kind} (such as {names[0]})" for kind, names in kinds.items() if names)
        raise UsageError(
            f"{path} does not hold the weights of {type(network).__name__}: of its tensors, {told}. "
            "Replace the file by the one that the catalogue names (bench ls weights)."
        )
    network.load_state_dict(state, strict=False)


@contextmanager
def replaced(module: str, name: str, value: Any) -> Iterator[None]:
    """Exchanges a name of a module for a while: how a download inside a constructor is left out."""
    place = importlib.import_module(module)
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def selected(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def column(values: Tensor) -> Sequence[float]:
    """The numbers of a (B,), (B, 1) or (B, 1, 1, 1) tensor."""
    return [float(value) for value in values.detach().double().cpu().reshape(-1)]
