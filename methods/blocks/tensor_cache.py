"""Tensors kept on disk by the hash of what they are made from: text tokens, latents, identity embeddings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.files import atomic_path, sha256_bytes, sha256_file, write_json
from bench.paths import bench_home


def cached_tensors(
    kind: str, content: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors from the cache, or made now and put there.

    Args:
        kind: Folder they are kept in, below `bench_home()/cache`.
        content: All that decides their values (hashes of weights and pictures, settings); JSON values only.
        make: Makes them when they are not there.

    Returns:
        Tensors on the CPU.
    """
    key = sha256_bytes(json.dumps(dict(content), sort_keys=True).encode())
    path = bench_home() / "cache" / kind / key[:2] / f"{key}.safetensors"
    if path.is_file():
        with contextlib.suppress(Exception):
            return load_file(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary))
    return tensors


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed again only when its size or time of change is another."""
    index = bench_home() / "cache" / "digests.json"
    status = path.resolve().stat()
    stamp = [status.st_size, status.st_mtime_ns]
    known: dict[str, Any] = {}
    if index.is_file():
        with contextlib.suppress(ValueError):
            known = json.loads(index.read_text(encoding="utf-8"))
    name = str(path.resolve())
    if name in known and known[name][:2] == stamp:
        return str(known[name][2])
    digest = sha256_file(path)
    write_json(index, {**known, name: [*stamp, digest]})
    return digest
