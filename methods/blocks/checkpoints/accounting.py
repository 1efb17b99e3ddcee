"""Converts checkpoints between released names and ours, and accounts for every key.

A `Part` describes the tensors of one of our modules as a checkpoint names them. Parts compose: `convert` lets each take
its own keys; what no part takes must be named among the keys left out on purpose, or the conversion fails and says
which keys are missing, unexpected or of another shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.errors import MissingError, UsageError

SHOWN_KEYS = 8


@dataclass(frozen=True)
class Entry:
    """One released tensor and the tensors of ours that it holds.

    Attributes:
        released: Its name in the checkpoint, without the part's prefix.
        ours: Names in our module, several where the release fuses them.
        merge: Makes the released tensor from ours.
        split: Makes ours from the released one.
    """

    released: str
    ours: tuple[str, ...]
    merge: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Part:
    """The tensors of one of our modules as a checkpoint names them.

    Attributes:
        name: What the part is called in the result.
        prefix: What the part's keys begin with in the checkpoint ("" for none).
        entries: One for each released key.
        shapes: Shape of each of our tensors by name.
    """

    name: str
    prefix: str
    entries: tuple[Entry, ...]
    shapes: Mapping[str, torch.Size]

    def released_shapes(self) -> dict[str, torch.Size]:
        """Shape of every released key of this part, prefix included."""
        return {
            self.prefix + entry.released: entry.merge(
                [torch.empty(self.shapes[name], device="meta") for name in entry.ours]
            ).shape
            for entry in self.entries
        }


@dataclass(frozen=True)
class Conversion:
    """What a checkpoint held.

    Attributes:
        states: State of each part, by the part's name, under our names.
        left_out: Released tensors left out on purpose, which `restore` puts back.
        reasons: Why each of them is left out.
    """

    states: dict[str, dict[str, Tensor]]
    left_out: dict[str, Tensor]
    reasons: dict[str, str]


def same_tensor(released: str, ours: str) -> Entry:
    """An entry that only renames."""
    return Entry(released, (ours,), lambda tensors: tensors[0], lambda tensor: (tensor,))


def reshaped_tensor(released: str, ours: str, released_shape: Sequence[int], our_shape: Sequence[int]) -> Entry:
    """An entry that renames and reshapes (a linear layer released as a 1x1 convolution)."""
    return Entry(
        released,
        (ours,),
        lambda tensors: tensors[0].reshape(tuple(released_shape)),
        lambda tensor: (tensor.reshape(tuple(our_shape)),),
    )


def stacked_tensor(released: str, ours: Sequence[str]) -> Entry:
    """An entry whose released tensor stacks ours along the first dimension (query, key and value in one)."""
    return Entry(released, tuple(ours), lambda tensors: torch.cat(list(tensors)), lambda t: t.chunk(len(ours)))


def part_of(
    name: str,
    prefix: str,
    module: nn.Module,
    rename: Callable[[str], str],
    fused: Iterable[Entry] = (),
) -> Part:
    """A part in which every tensor of a module is renamed, except those that `fused` entries already cover.

    Args:
        name: What the part is called in the result.
        prefix: What the part's keys begin with in the checkpoint.
        module: The module; may be on the meta device.
        rename: Our name to the released one, both without prefix.
        fused: Entries that do more than rename.
    """
    shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
    fused = list(fused)
    covered = {key for entry in fused for key in entry.ours}
    renamed = [same_tensor(rename(key), key) for key in shapes if key not in covered]
    return Part(name, prefix, (*renamed, *fused), shapes)


def convert(
    checkpoint: Mapping[str, Tensor],
    parts: Sequence[Part],
    *,
    expected: str,
    source: str,
    left_out: Mapping[str, str] | None = None,
) -> Conversion:
    """Takes a checkpoint apart.

    Args:
        checkpoint: Released tensors by name.
        parts: What it must hold, each part completely.
        expected: The file that should have been given, for the error message.
        source: The file that was given.
        left_out: Regular expression for whole keys -> why they are not needed.

    Returns:
        The parts under our names, and what was left out.

    Raises:
        UsageError: Keys are missing, unexpected or of another shape.
    """
    wanted: dict[str, torch.Size] = {}
    for part in parts:
        shapes = part.released_shapes()
        if shared := wanted.keys() & shapes.keys():
            raise ValueError(f"part {part.name} takes keys another part takes too: {sorted(shared)[:SHOWN_KEYS]}")
        wanted |= shapes
    missing = [key for key in wanted if key not in checkpoint]
    reshaped = [
        f"{key} is {tuple(checkpoint[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in checkpoint and checkpoint[key].shape != shape
    ]
    reasons: dict[str, str] = {}
    unexpected = []
    for key in checkpoint:
        if key in wanted:
            continue
        reason = next((why for pattern, why in (left_out or {}).items() if re.fullmatch(pattern, key)), None)
        if reason is None:
            unexpected.append(key)
        else:
            reasons[key] = reason
    if missing or reshaped or unexpected:
        raise UsageError(_mismatch(source, expected, missing, unexpected, reshaped, len(wanted)))
    states: dict[str, dict[str, Tensor]] = {}
    for part in parts:
        state = states.setdefault(part.name, {})
        for entry in part.entries:
            state.update(zip(entry.ours, entry.split(checkpoint[part.prefix + entry.released]), strict=True))
    return Conversion(states, {key: checkpoint[key] for key in reasons}, reasons)


def restore(
    states: Mapping[str, Mapping[str, Tensor]], parts: Sequence[Part], left_out: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Puts a checkpoint together again under its released names.

    Args:
        states: State of each part, by the part's name, under our names.
        parts: How they are named in the release.
        left_out: Tensors to put back unchanged (`Conversion.left_out`).
    """
    checkpoint = {
        part.prefix + entry.released: entry.merge([states[part.name][name] for name in entry.ours]).contiguous()
        for part in parts
        for entry in part.entries
    }
    return {**checkpoint, **(left_out or {})}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a released file: safetensors, or a torch file read with `weights_only`.

    The state of a training checkpoint (`state_dict`, `params_ema`, `params`) is taken out of it; names of tensors in
    groups (`image_proj` and `ip_adapter` of IP-Adapter's files) are joined to the group's with a dot. Tensors are
    mapped from the file where its format allows, so that memory is needed only for those that are read.

    Raises:
        MissingError: There is no such file.
        UsageError: The file cannot be read without running code, or holds no tensors.
    """
    if not path.is_file():
        raise MissingError(f"{path} is not there. Give the path of a released checkpoint.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is not a readable safetensors file: {error}.") from error
    try:
        content = _load_torch_file(path)
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read without running the code inside it ({type(error).__name__}: {error}). "
            "Convert its state_dict to safetensors where you trust it, and give that file."
        ) from error
    for name in ("state_dict", "params_ema", "params"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    content = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        groups = {group: own for group, own in content.items() if isinstance(own, dict)}
        tensors = {f"{group}.{name}": own[name] for group, own in groups.items() for name in own}
        tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"{path} holds no tensors by name. Give a checkpoint of a network.")
    return cast(dict[str, Tensor], tensors)


class _Inert:
    """Stands in for a class that a training checkpoint names (a callback, a configuration): nothing of it runs."""

    def __new__(cls, *_: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _load_torch_file(path: Path) -> Any:
    """Content of a torch file, read with `weights_only`; foreign classes in it become `_Inert`."""
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":  # the format before torch 1.6, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    inert: list[Any] = [(type("Inert", (_Inert,), {}), name) for name in foreign]
    with torch.serialization.safe_globals(inert):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _mismatch(
    source: str, expected: str, missing: list[str], unexpected: list[str], reshaped: list[str], wanted: int
) -> str:
    lines = [f"{source} is not the expected checkpoint ({expected})."]
    for title, keys in (
        (f"{len(missing)} of {wanted} keys are missing", missing),
        (f"{len(unexpected)} keys are unexpected", unexpected),
        (f"{len(reshaped)} keys have another shape", reshaped),
    ):
        if keys:
            more = f", and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
            lines.append(f"{title}: {', '.join(sorted(keys)[:SHOWN_KEYS])}{more}.")
    lines.append("Give the file named above, or the size of the network that belongs to this file.")
    return "\n".join(lines)
