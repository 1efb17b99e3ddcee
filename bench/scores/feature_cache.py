"""Scores and features that were computed before, kept on disk by the content of the pictures.

Everything lies under `bench_home()/scores` (`$BENCH_HOME`): `values/` holds one small JSON file for each
set of files that were scored together (restored picture, ground truth, references), with a value for
each metric identity; `features/` holds one vector for each picture and network. Names are hashes of what
went in, so that a changed file or metric is never served an old number. Files are written atomically: any
number of processes may share the folder, and the worst that two writers can do is to lose an entry, which is
computed again. After each scoring the least recently used files are removed down to 90 % of the limit
(2 GB, or `$BENCH_CACHE_MB` megabytes). The folder can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UsageError
from bench.files import atomic_path, sha256_bytes, write_json
from bench.metrics.metric import Score
from bench.paths import bench_home

if TYPE_CHECKING:
    import numpy as np

    from bench.metrics.set_metric import FeatureNetwork

LIMIT_MB = 2000
LIMIT_VARIABLE = "BENCH_CACHE_MB"
_KEPT_SHARE = 0.9
_FEATURE_BATCH = 16


def content_key(*parts: object) -> str:
    """Hash of what decides a result: hashes of files, versions of what reads them. Parts must be JSON values."""
    return sha256_bytes(json.dumps(parts, ensure_ascii=False).encode("utf-8"))


def decoder_version() -> str:
    """What turns picture files into pixels."""
    import PIL

    return f"pillow {PIL.__version__}"


class ScoreCache:
    """Values and features by content.

    Args:
        folder: Where they lie; None for `bench_home()/scores`.
        active: Whether what is there is used; False computes everything anew and writes nothing.

    Raises:
        UsageError: `$BENCH_CACHE_MB` is not a number.
    """

    def __init__(self, folder: Path | None = None, active: bool = True) -> None:
        self.folder = bench_home() / "scores" if folder is None else folder
        self.active = active
        self.hits = self.misses = 0
        self._wrote = False
        try:
            self.limit = float(os.environ.get(LIMIT_VARIABLE, LIMIT_MB)) * 1e6
        except ValueError as error:
            raise UsageError(f"{LIMIT_VARIABLE}={os.environ[LIMIT_VARIABLE]} is not a number of megabytes.") from error

    def values(self, key: str) -> dict[str, Score]:
        """Scores by metric identity of the files behind `key` (see `content_key`); empty if there are none."""
        path = self._path("values", key, ".json")
        content = _read_json(path) if self.active else {}
        if content:
            _touch(path)
        return {identity: Score(value, reason) for identity, (value, reason) in content.items()}

    def add_values(self, key: str, scores: Mapping[str, Score]) -> None:
        """Keeps scores by metric identity beside those that are there."""
        if not self.active or not scores:
            return
        path = self._path("values", key, ".json")
        content = _read_json(path) | {identity: list(score) for identity, score in scores.items()}
        with contextlib.suppress(OSError):  # a full or read-only disk costs time, not scores
            write_json(path, content)
            self._wrote = True

    def features(self, network: FeatureNetwork, keys: Sequence[str], read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Features of pictures; only those that are not there are computed.

        Args:
            network: The network.
            keys: One per picture, a hash of its content.
            read: Decodes the picture of an index to (H, W, 3) uint8 RGB; called only where it is needed.

        Returns:
            (len(keys), D) float32.
        """
        import numpy as np

        identity = network.identity
        found = np.empty((len(keys), network.dimensions), dtype=np.float32)
        waiting: list[tuple[int, np.ndarray]] = []

        def compute() -> None:
            vectors = network.features(np.stack([picture for _, picture in waiting]))
            for (index, _), vector in zip(waiting, vectors, strict=True):
                found[index] = vector
                self._add_feature(content_key(identity, keys[index]), vector)
            waiting.clear()

        for index, key in enumerate(keys):
            stored = self._feature(content_key(identity, key), network.dimensions)
            if stored is not None:
                self.hits += 1
                found[index] = stored
                continue
            self.misses += 1
            picture = read(index)
            if waiting and (len(waiting) == _FEATURE_BATCH or waiting[0][1].shape != picture.shape):
                compute()
            waiting.append((index, picture))
        if waiting:
            compute()
        return found

    def prune(self) -> None:
        """Removes the least recently used files once they take more than the limit, if anything was written."""
        if not self._wrote:
            return
        files = []
        for path in self.folder.glob("*/*/*"):
            with contextlib.suppress(OSError):  # another process removed it
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        size = sum(entry[1] for entry in files)
        if size <= self.limit:
            return
        for _, own, path in sorted(files):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            size -= own
            if size <= _KEPT_SHARE * self.limit:
                return

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}{suffix}"

    def _feature(self, key: str, dimensions: int) -> np.ndarray | None:
        import numpy as np

        path = self._path("features", key, ".npy")
        if not self.active:
            return None
        try:
            vector: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            return None
        _touch(path)
        return vector if vector.shape == (dimensions,) else None

    def _add_feature(self, key: str, vector: np.ndarray) -> None:
        import numpy as np

        if not self.active:
            return
        with contextlib.suppress(OSError), atomic_path(self._path("features", key, ".npy")) as temporary:
            with temporary.open("wb") as stream:
                np.save(stream, np.asarray(vector, dtype=np.float32), allow_pickle=False)
            self._wrote = True


def _read_json(path: Path) -> dict[str, tuple[float | None, str | None]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _touch(path: Path) -> None:
    """Notes that a file was used."""
    with contextlib.suppress(OSError):
        os.utime(path)
