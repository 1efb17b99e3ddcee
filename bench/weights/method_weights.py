"""Finds, reads and writes the weights files of methods (safetensors)."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import MissingError, UsageError
from bench.files import atomic_path, sha256_file
from bench.paths import bench_home
from bench.registry import method_targets

if TYPE_CHECKING:
    from torch import Tensor

    from bench.method import RestorationMethod


def weights_path(method: str, size: str, given: str | None = None) -> Path | None:
    """Where the weights of a method's size are, or None.

    Looked up in this order: `given` (the key `method.weights`), `<bench home>/weights/<method>_<size>`,
    the method's own folder.

    Raises:
        MissingError: `given` is not a file.
    """
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise MissingError(f"method.weights={given} is not a file. Train one with: bench train method={method}.")
        return path
    module = importlib.util.find_spec(method_targets()[method].partition(":")[0])
    folders = [bench_home() / "weights"]
    names = [f"{method}_{size}.safetensors"]
    if module and module.origin:
        folders.append(Path(module.origin).parent / "weights")
        names.append(f"{size}.safetensors")
    for folder, name in zip(folders, names, strict=False):
        if (folder / name).is_file():
            return folder / name
    return None


def default_weights(method: type[RestorationMethod], given: str | None = None) -> Path | None:
    """The weights file of a method without sizes: one of its own, else that of the catalogue which its spec names.

    Raises:
        MissingError: `given` is not a file, or the catalogue's file is nowhere.
        UsageError: The catalogue's file has another hash.
    """
    path = weights_path(method.spec.name, "default", given)
    if path is None and method.spec.weights is not None:
        from bench.weights.catalogue import locate

        return locate(method.spec.weights)
    return path


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a weights file.

    Raises:
        UsageError: The file is not a readable safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}.") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a weights file, whose tensors are not read.

    Raises:
        UsageError: The file is not a readable safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}.") from error


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors atomically; metadata that is no text is written as JSON.

    Tensors that are mapped from another file go from file to file, without a copy in memory. The same tensors and
    metadata give the same bytes.

    Raises:
        OSError: The operating system refuses, such as for want of space; safetensors hides that in an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(state), str(temporary), metadata={key: _text(value) for key, value in metadata.items()})
        except SafetensorError as error:
            if (found := re.search(r"os error (\d+)", str(error))) is None:
                raise
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        _sort_metadata(temporary)


def write_weights(path: Path, method: RestorationMethod, dtype: str, metadata: dict[str, Any]) -> str:
    """Writes a method's weights atomically and returns their SHA-256."""
    import torch

    kind = getattr(torch, dtype)
    state = {
        name: value.to(kind) if value.is_floating_point() else value for name, value in method.weights_state().items()
    }
    write_tensors(path, state, metadata)
    return sha256_file(path)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header, in place: safetensors writes them in an order that chance decides."""
    import json

    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        if len(text) > length:
            raise ValueError(f"{path} has a header of {length} bytes, of which {len(text)} would be made")
        stream.seek(8)
        stream.write(text.ljust(length))


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
