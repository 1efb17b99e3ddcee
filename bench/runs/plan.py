"""The first stage of a run: which protocol, which method with which weights, which folder."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.config import group_choices, method_settings
from bench.errors import MissingError, UsageError, unknown_name
from bench.files import sha256_bytes, sha256_file, write_json, write_text
from bench.method import RestorationMethod
from bench.paths import runs_root
from bench.protocol.card import data_root, load_card
from bench.protocol.freeze import load_protocol, require_images
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol
from bench.registry import load_method, load_metric
from bench.scores.panel import panel
from bench.weights.catalogue import entry_of_file, how_to_get
from bench.weights.method_weights import default_weights, read_metadata, weights_path

OVERWRITE = ("never", "missing", "always")
# Settings of the method that say where its network comes from, not which pictures it makes.
TRAINING_SETTINGS = ("weights", "training", "optimiser", "losses")
GENERATED = (
    "restored", "journal", "environment.json", "scores.parquet", "set_scores.parquet", "summary.json", "report.html",
    "mlflow.json",
)  # fmt: skip


@dataclass
class RunPlan:
    """What a run is about to do.

    Attributes:
        config: The composed configuration.
        protocol: The frozen protocol.
        pictures: Its pictures.
        method: The method, its weights loaded.
        revision: Hash of the weights and settings that make the pictures.
        weights: The weights file, or None where the method has none.
        metrics: Names of the metrics.
        run_dir: The run folder.
    """

    config: dict[str, Any]
    protocol: Protocol
    pictures: ProtocolPictures
    method: RestorationMethod
    revision: str
    weights: Path | None
    metrics: list[str]
    run_dir: Path


def choose_size(config: dict[str, Any]) -> tuple[str | None, Path | None]:
    """Which size of the method to run, and its weights file.

    `auto` means paper if its weights and all else it needs are present, else demo, with one line of warning where the
    method has a paper size.

    Raises:
        UsageError: The method has no such size.
        MissingError: The weights of the size are absent; the message says how to get them.
    """
    method, wanted = config["method"], config["size"]
    name, sizes = method["name"], method.get("sizes") or {}
    given = method.get("weights")
    if not sizes:
        return None, default_weights(load_method(name), given)
    if wanted not in ("auto", *sizes):
        raise unknown_name(f"size of {name}", wanted, ["auto", *sizes])
    known = [choice for choice in group_choices("data") if config["data"]["name"].startswith(choice)]
    train = f"bench train method={name} data={max(known, key=len, default='NAME')} size={{}}"
    why = ""
    if wanted == "auto":
        if given:
            metadata = read_metadata(Path(given).expanduser()) if Path(given).expanduser().is_file() else {}
            stored = metadata.get("size", "demo")
            return (stored if stored in sizes else "demo"), weights_path(name, stored, given)
        wanted, path, reason, advice = "demo", weights_path(name, "demo"), "", ""
        if "paper" in sizes:
            lacking: dict[str, str] = {}
            paper = weights_path(name, "paper")
            if paper is not None and not (lacking := load_method(name).absent(method_settings(method, "paper"))):
                return "paper", paper
            reason = f"no paper-size weights of {name} here"
            advice = f"To train them: {train.format('paper')}"
            if lacking:
                reason = f"{name}@paper lacks {', '.join(lacking)}"
                advice = f"What brings them: bench check method={name} size=paper"
            elif (released := entry_of_file(f"{name}_paper.safetensors")) is not None:
                advice = how_to_get(released)
        if path is not None:
            if reason:
                print(f"bench: {reason}, running {name}@demo. {advice}", file=sys.stderr)  # noqa: T201
            return "demo", path
        why = f"Neither size can run: {reason}. {advice}\n" if reason else ""
    path = weights_path(name, wanted, given)
    if path is None:
        released = entry_of_file(f"{name}_{wanted}.safetensors")
        get = f"{how_to_get(released)}\nLicence: {released.licence}\nOr train" if released else "Train"
        raise MissingError(
            f"{why}The weights of {name}@{wanted} are not here, and a network with random weights is never scored. "
            f"{get} them: {train.format(wanted)}, then give the file: method.weights=FILE."
        )
    return wanted, path


def build_method(config: dict[str, Any]) -> tuple[RestorationMethod, str, Path | None]:
    """The method with its weights, its revision, and the weights file.

    Raises:
        MissingError: Weights are absent.
        UsageError: Settings or weights do not fit the method.
    """
    size, path = choose_size(config)
    settings = method_settings(config["method"], size)
    method_class = load_method(settings["name"])
    if lacking := method_class.absent(settings):
        raise MissingError("\n".join(f"{what}: {why}" for what, why in lacking.items()))
    method = method_class(settings)
    left_out = (*TRAINING_SETTINGS, *method_class.not_in_revision)
    identity: dict[str, Any] = {key: _without_hub(value) for key, value in settings.items() if key not in left_out}
    if path is not None:
        state, metadata = method_class.read_weights_file(path)
        _check_architecture(method, metadata, path)
        try:
            method.load_weights_state(state)
        except RuntimeError as error:
            raise UsageError(f"The weights {path} do not fit {method.label}: {str(error).splitlines()[0]}") from error
        identity["weights_sha256"] = method.weights_sha256 = sha256_file(path)
    identity |= {"precision": config["trainer"]["precision"], "conditions": method.conditions()}
    method.eval().requires_grad_(False)
    return method, sha256_bytes(json.dumps(identity, sort_keys=True).encode("utf-8"))[:12], path


def _check_architecture(method: RestorationMethod, metadata: dict[str, str], path: Path) -> None:
    """Refuses weights that were trained with another architecture or ablation."""
    stored = json.loads(metadata.get("settings", "{}"))
    for key in method.architecture_keys:
        if key in stored and _without_hub(stored[key]) != _without_hub(method.settings.get(key)):
            raise UsageError(
                f"The weights {path} were trained with method.{key}={stored[key]}, this run has "
                f"{method.settings.get(key)}. Give the same settings, or train again: bench train "
                f"method={method.spec.name}."
            )


def _without_hub(value: Any) -> Any:
    """A base model's settings without the repositories it can be had from, which change nothing of it."""
    if not isinstance(value, dict) or "hub_ids" not in value:
        return value
    left = {key: own for key, own in value.items() if key != "hub_ids"}
    return left["name"] if set(left) == {"name"} else left


def metric_names(config: dict[str, Any]) -> list[str]:
    """The metrics of a run: those of the configuration, a probe's own, and those of several degradations."""
    data = config["data"]
    return panel(
        config["metrics"]["names"],
        several=isinstance(data["degradation"], list),
        probed=data.get("probe") is not None,
    )


def plan(config: dict[str, Any]) -> RunPlan:
    """Composes, checks and writes down what a run is about to do.

    Raises:
        UsageError: Wrong settings, or the folder belongs to another run.
        MissingError: Data, weights or a package are absent.
    """
    if config["overwrite"] not in OVERWRITE:
        raise unknown_name("value of overwrite", str(config["overwrite"]), OVERWRITE)
    metrics = metric_names(config)
    for name in metrics:
        load_metric(name)
    settings = DataSettings(**config["data"])
    protocol = load_protocol(settings)
    require_images(protocol)
    method, revision, weights = build_method(config)
    run_dir = runs_root() / protocol.name / f"{method.label}-{revision[:8]}-{protocol.id[:8]}-seed{config['seed']}"
    if config["run_dir"]:
        run_dir = Path(config["run_dir"]).expanduser()
    root = data_root(load_card(protocol.card), settings.root)
    return RunPlan(config, protocol, ProtocolPictures(protocol, root), method, revision, weights, metrics, run_dir)


def claim(plan: RunPlan) -> None:
    """Writes protocol and configuration into the run folder, unless it is another run's.

    Raises:
        UsageError: The folder belongs to another run, or is no run folder at all.
    """
    run_dir, config, protocol = plan.run_dir, plan.config, plan.protocol
    mark = {
        "protocol_id": protocol.id,
        "method": plan.method.label,
        "method_revision": plan.revision,
        "seed": config["seed"],
        "batch_size": config["batch_size"],
    }
    marker = run_dir / "run.json"
    if run_dir.is_file():
        raise UsageError(f"run_dir={run_dir} is a file.")
    if marker.is_file() and config["overwrite"] != "always":
        found = json.loads(marker.read_text("utf-8"))
        if found != mark:
            different = ", ".join(
                f"{key} {found.get(key)} there, {mark[key]} here" for key in mark if found.get(key) != mark[key]
            )
            raise UsageError(
                f"The folder {run_dir} belongs to another run ({different}). Choose another run_dir, or add "
                "overwrite=always to replace it."
            )
        if config["overwrite"] == "never":
            raise UsageError(f"The folder {run_dir} holds this run already (overwrite=never).")
    elif not marker.is_file() and any(path.name[0] != "." for path in run_dir.iterdir()):
        raise UsageError(f"The folder {run_dir} is not empty and no run folder. Choose another run_dir.")
    if config["overwrite"] == "always":
        for name in GENERATED:
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    # The mark comes first: a folder that has it can always be finished or replaced.
    write_json(marker, mark)
    write_text(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    write_json(run_dir / "protocol.json", protocol.as_dict())
