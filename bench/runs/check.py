"""Everything that would stop a run, looked for before it starts."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from bench.errors import BenchError, MissingError, UsageError

State = Literal["ok", "warning", "error"]
# Import names of what every run needs; a metric that lacks its package is null and stops nothing.
REQUIRED = (
    "torch", "lightning", "torchvision", "numpy", "scipy", "cv2", "PIL", "pandas", "pyarrow", "hydra", "omegaconf",
    "mlflow", "jinja2", "safetensors", "psutil",
)  # fmt: skip
REPORT_MB = 10


@dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Attributes:
        name: What was checked.
        state: "ok", "warning" (the run would go on) or "error" (it would stop).
        message: What was found, and for anything but "ok" what to do.
        exit_code: What `bench run` would return; 0 unless the state is "error".
    """

    name: str
    state: State
    message: str
    exit_code: int = 0


def check_run(words: list[str]) -> Iterator[Check]:
    """Checks a run that is described by the words of its command line.

    Args:
        words: `key=value` words, as of `bench run`.

    Yields:
        One outcome after the other. What needs the outcome of a failed check is left out.
    """
    from bench.config import compose

    yield _packages()
    config: dict[str, Any] = {}

    def configuration() -> str:
        config.update(compose("run", words))
        return f"{config['method']['name']} on {config['data']['name']}, seed {config['seed']}, size {config['size']}"

    yield (first := _attempt("configuration", configuration))
    if first.state == "error":
        return
    yield _attempt("trainer", lambda: _trainer(config))
    found: dict[str, Any] = {}
    for name, work in (("data", _data), ("protocol", _protocol)):
        yield (outcome := _attempt(name, lambda work=work: work(config, found)))  # type: ignore[misc]
        if outcome.state == "error":
            break
    yield from (lacking := _needs(config))
    if not lacking:
        yield _attempt("method", lambda: _method(config, found))
        if "protocol" in found and "method" in found and found["method"].personalises:
            yield _attempt("persons", lambda: _persons(config, found))
    yield _attempt("metrics", lambda: _metrics(config))
    yield _attempt("run folder", lambda: _run_folder(config, found))
    yield _attempt("disk", lambda: _disk(config, found))
    yield _attempt("memory", lambda: _memory(config, found))
    yield _attempt("mlflow", _tracking)


class RemarkError(Exception):
    """A warning in place of a result."""


def _attempt(name: str, work: Callable[[], str]) -> Check:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            message = work()
    except RemarkError as remark:
        return Check(name, "warning", str(remark))
    except BenchError as error:
        return Check(name, "error", str(error), error.exit_code)
    except Exception as error:
        return Check(name, "error", f"{type(error).__name__}: {error}", 1)
    said = " ".join(
        line.removeprefix("bench: ") for line in printed.getvalue().splitlines() if line.startswith("bench:")
    )
    return Check(name, "warning", f"{message}; {said}") if said else Check(name, "ok", message)


def _packages() -> Check:
    absent = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if absent:
        advice = "Install them with: pip install face-restoration-bench"
        return Check("packages", "error", f"Python packages are missing: {', '.join(absent)}. {advice}", 3)
    return Check("packages", "ok", f"all {len(REQUIRED)} that a run needs")


def _trainer(config: dict[str, Any]) -> str:
    import torch

    from bench.runs.trainer import trainer_options

    options = trainer_options(config["trainer"], training=False)
    gpus = torch.cuda.device_count()
    devices = options["devices"]
    if options["accelerator"] in ("gpu", "cuda") and isinstance(devices, int) and devices > gpus:
        raise UsageError(f"trainer.devices={devices}, but {gpus} GPUs are visible.")
    return f"{options['accelerator']} ({gpus} GPUs visible), precision {options['precision']}"


def _data(config: dict[str, Any], found: dict[str, Any]) -> str:
    from bench.protocol.card import data_root, load_card
    from bench.protocol.layout import list_photos

    card = load_card(config["data"]["card"])
    root = data_root(card, config["data"]["root"])
    photos = list_photos(card, root)
    people = len({photo.identity for photo in photos})
    found["root"] = root
    return f"{len(photos)} photographs of {people} people in {root}"


def _protocol(config: dict[str, Any], found: dict[str, Any]) -> str:
    """Plans the protocol, compares it with the frozen one, and makes its first picture."""
    from bench.protocol.freeze import committed_path, load_protocol, require_images
    from bench.protocol.pictures import ProtocolPictures
    from bench.protocol.protocol import DataSettings

    protocol = load_protocol(DataSettings(**config["data"]))
    require_images(protocol)
    ProtocolPictures(protocol, found["root"]).lq(protocol.images[0])
    found["protocol"] = protocol
    committed = committed_path(protocol.name)
    frozen = committed.is_file() and json.loads(committed.read_text("utf-8"))["id"] == protocol.id
    kind = "the committed one" if frozen else "frozen on this machine; no committed board holds it"
    return f"{protocol.name} [{protocol.id}], {len(protocol.images)} pictures to restore, {kind}"


def _needs(config: dict[str, Any]) -> list[Check]:
    """An error for each thing that the method lacks: released weights of its network, and what stands beside them."""
    from bench.config import method_settings
    from bench.registry import load_method
    from bench.runs.plan import choose_size
    from bench.weights import catalogue

    name, size = config["method"]["name"], config["size"]
    lacking: dict[str, str] = {}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                size, _ = choose_size(config)
            except MissingError:
                size = "demo" if size == "auto" else size
                entry = catalogue.entry_of_file(f"{name}_{size}.safetensors")
                if entry and not config["method"].get("weights") and (why := catalogue.missing(entry.name)):
                    lacking[entry.name] = why
            lacking |= load_method(name).absent(method_settings(config["method"], size))
    except BenchError:
        return []  # the check of the method says what is wrong
    return [Check(what, "error", why, MissingError.exit_code) for what, why in lacking.items()]


def _method(config: dict[str, Any], found: dict[str, Any]) -> str:
    from bench.runs.plan import build_method

    method, revision, path = build_method(config)
    parameters = sum(parameter.numel() for parameter in method.parameters())
    found.update(method=method, revision=revision, parameters=parameters)
    weights = f"weights {path}" if path else "no weights needed"
    if path is None and parameters:
        raise MissingError(f"No weights of {method.label} were found; give them with method.weights=FILE.")
    return f"{method.label}, {parameters:,} parameters, {weights}, revision {revision}"


def _persons(config: dict[str, Any], found: dict[str, Any]) -> str:
    from bench.personal_state import state_path
    from bench.protocol.card import load_card
    from bench.protocol.pictures import ProtocolPictures
    from bench.runs.personalise import is_kept, people, source_of

    method, protocol = found["method"], found["protocol"]
    pictures = ProtocolPictures(protocol, found["root"])
    method.personal_settings()
    persons, known = people(protocol.images), 0
    for person in persons:
        try:
            source = source_of(pictures, person, int(config["seed"]), load_card(protocol.card))
        except BenchError as error:
            raise RemarkError(f"{person.identity} cannot be learnt, and its pictures will fail: {error}") from error
        known += is_kept(state_path(method, source.key(method, str(config["trainer"]["precision"]))))
    return f"{len(persons)} people, {known} known; {method.personal_iterations()} iterations for each of the others"


def _metrics(config: dict[str, Any]) -> str:
    from bench.registry import load_metric
    from bench.runs.plan import metric_names

    names = metric_names(config)
    reasons = {name: reason for name in names if (reason := load_metric(name)().unavailable())}
    if reasons:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise RemarkError(f"{len(reasons)} of {len(names)} will be null ({listed})")
    return f"all {len(names)} available: {', '.join(names)}"


def _run_folder(config: dict[str, Any], found: dict[str, Any]) -> str:
    from bench.paths import runs_root

    given = config["run_dir"]
    folder = Path(given).expanduser() if given else runs_root()
    place = _existing(folder)
    if folder.is_file() or not place.is_dir():
        raise UsageError(f"run_dir={folder} is a file, or lies in one. Choose another run_dir.")
    if not os.access(place, os.W_OK):
        raise UsageError(f"Cannot write to {place}. Choose another run_dir, or set BENCH_RUNS.")
    if not given or not folder.is_dir() or not any(folder.iterdir()) or config["overwrite"] == "always":
        return f"{folder} can be written"
    marker = folder / "run.json"
    if not marker.is_file():
        raise UsageError(f"The folder {folder} is not empty and no run folder. Choose another run_dir.")
    mark = json.loads(marker.read_text("utf-8"))
    ours = {"seed": config["seed"]}
    if "protocol" in found:
        ours["protocol_id"] = found["protocol"].id
    if "method" in found:
        ours |= {"method": found["method"].label, "method_revision": found["revision"]}
    if different := [key for key, value in ours.items() if mark.get(key) != value]:
        raise UsageError(
            f"The folder {folder} belongs to another run ({', '.join(different)} differ). Choose another run_dir, or "
            "add overwrite=always to replace it."
        )
    if config["overwrite"] == "never":
        raise UsageError(f"The folder {folder} holds this run already (overwrite=never).")
    return f"{folder} holds this run; it would go on there"


def _disk(config: dict[str, Any], found: dict[str, Any]) -> str:
    """An upper bound: restored pictures as if PNG saved nothing, and the report."""
    from bench.paths import runs_root

    count = len(found["protocol"].images) if "protocol" in found else 0
    needed = REPORT_MB + count * int(config["data"]["size"]) ** 2 * 3 / 1e6
    folder = _existing(Path(config["run_dir"]).expanduser() if config["run_dir"] else runs_root())
    free = shutil.disk_usage(folder).free / 1e6
    if free < needed:
        raise MissingError(f"About {needed:.0f} MB are needed, {free:.0f} MB are free under {folder}.")
    return f"about {needed:.0f} MB needed, {free / 1e3:.1f} GB free"


def _memory(config: dict[str, Any], found: dict[str, Any]) -> str:
    """Compares a rough estimate with what is free."""
    import psutil
    import torch

    from bench.memory import restoring_mb

    method = found.get("method")
    side = (method.native_size if method else None) or int(config["data"]["size"])
    needed = restoring_mb(found.get("parameters", 0), int(config["batch_size"]), side)
    gpu = torch.cuda.is_available() and config["trainer"]["accelerator"] != "cpu"
    free = (torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available) / 1e6
    where = "on the GPU" if gpu else "of main memory"
    if free < needed:
        raise RemarkError(f"roughly {needed:.0f} MB are needed and {free:.0f} MB {where} are free; try batch_size=1")
    return f"roughly {needed:.0f} MB needed, {free / 1e3:.1f} GB {where} free"


def _tracking() -> str:
    """Whether the store can be written; tracking never stops a run, so that this is a warning at most."""
    from bench.tracking.mlflow_store import tracking_uri

    uri = tracking_uri()
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return f"{uri} (a server; not asked)"
    path = Path(uri.removeprefix("sqlite:///").removeprefix("file://")).absolute()
    place = _existing(path)
    try:
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is read-only")
        with tempfile.TemporaryFile(dir=path.parent if path.is_file() else place):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise RemarkError(f"cannot write to {place} ({reason}); record the run later with bench sync") from error
    return f"{uri} can be written"


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
