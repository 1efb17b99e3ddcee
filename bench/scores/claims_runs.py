"""Finished runs of ablations trained with several seeds, and whether they are what `claims.yaml` states."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bench.errors import UsageError
from bench.scores.claims_file import ClaimsFile, claims_path

if TYPE_CHECKING:
    from bench.scores.compare import AveragedRuns


@dataclass(frozen=True)
class VariantRuns:
    """Finished runs of one variant on one protocol.

    Attributes:
        label: Label of the runs, such as "restorerid@demo".
        seeds: Seeds of the training, as the folders' names say.
        revisions: Of each seed the hash of weights and settings; no two are the same, unless seeds are those of runs.
        protocol_id: Frozen id of the protocol.
        metrics: By metric `title`, `unit` and `higher_is_better`, as the runs' summaries state them.
        averaged: The runs and the mean over them.
    """

    label: str
    seeds: list[int]
    revisions: list[str]
    protocol_id: str
    metrics: dict[str, dict[str, Any]]
    averaged: AveragedRuns


def variant_runs(claims: ClaimsFile, folder: Path, variant: str, protocol: str) -> VariantRuns | None:
    """The runs of a variant on a protocol, or None where the folder has none.

    Raises:
        UsageError: They are not what is stated, or two of them are of one training (seeds of runs: of two trainings).
    """
    from bench.scores.compare import average_runs
    from bench.scores.summary import read_summary
    from bench.scores.table import read_table

    pattern = re.compile(rf"{re.escape(variant)}-(0|[1-9]\d*)-{re.escape(protocol)}")
    paths = {int(match[1]): path for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))}
    if not paths:
        return None
    seeds = sorted(paths)
    if claims.seeds and seeds != list(claims.seeds):
        raise UsageError(
            f"{folder} has the seeds {listed(seeds)} of {variant} on {protocol}, but {claims_path(claims.method)} "
            f"states {listed(claims.seeds)}: all seeds that were stated count, and no others."
        )
    summaries = [read_summary(paths[seed]) for seed in seeds]
    for seed, summary in zip(seeds, summaries, strict=True):
        for key, wanted in (("protocol", protocol), ("method_name", claims.method)):
            if summary.get(key) != wanted:
                raise UsageError(f"{paths[seed]} has {key} {summary.get(key)!r}, not {wanted!r} as its name says.")
        if summary.get("failed"):
            raise UsageError(f"{paths[seed]} lacks {len(summary['failed'])} pictures: finish it with `bench run`.")
        if claims.seeds_of == "run" and summary["seed"] != seed:
            raise UsageError(f"{paths[seed]} was run with seed {summary['seed']}, not {seed} as its name says.")
        _check_settings(paths[seed], claims, variant, str(summary["method"]), seed)
    labels = sorted({str(summary["method"]) for summary in summaries})
    if len(labels) > 1:
        raise UsageError(f"The runs of {variant} on {protocol} must be of one row, but they are {listed(labels)}.")
    tables = [read_table(paths[seed] / "scores.parquet") for seed in seeds]
    revisions = [str(table["method_revision"].iloc[0]) for table in tables]
    if claims.seeds_of == "training":
        _check_trainings(variant, protocol, dict(zip(seeds, revisions, strict=True)), paths)
    elif len(set(revisions)) > 1:
        raise UsageError(
            f"The runs of {variant} on {protocol} have the revisions {listed(sorted(set(revisions)))}: with seeds_of: "
            "run they must differ in seed alone."
        )
    averaged = average_runs(tables, f"{variant} on {protocol}")
    protocol_id = str(tables[0]["protocol_id"].iloc[0])
    return VariantRuns(labels[0], seeds, revisions, protocol_id, summaries[0]["metrics"], averaged)


def _check_trainings(variant: str, protocol: str, revisions: Mapping[int, str], paths: Mapping[int, Path]) -> None:
    """Refuses two seeds with the same weights: one training that was only sampled twice."""
    from bench.files import sha256_file

    weights = {seed: _weights(_method_of(path)) for seed, path in paths.items()}
    hashes = {seed: sha256_file(file) for seed, file in weights.items() if file is not None}
    for made, what in ((revisions, "revision"), (hashes, "weights of SHA-256")):
        first: dict[str, int] = {}
        for seed, own in made.items():
            if own in first:
                raise UsageError(
                    f"The runs {paths[first[own]].name} and {paths[seed].name} have the same {what} {own}: one "
                    f"training of {variant} was sampled twice on {protocol}. Train each seed, and give each run its "
                    "own method.weights=FILE."
                )
            first[own] = seed


def check_weights_across_protocols(found: Mapping[tuple[str, str], VariantRuns]) -> None:
    """Refuses a variant whose runs on two protocols are of other weights.

    Raises:
        UsageError: They are.
    """
    first: dict[str, tuple[str, VariantRuns]] = {}
    for (variant, protocol), runs in found.items():
        before, other = first.setdefault(variant, (protocol, runs))
        for seed, own in zip(runs.seeds, runs.revisions, strict=True):
            if seed in other.seeds and (there := other.revisions[other.seeds.index(seed)]) != own:
                raise UsageError(
                    f"{variant} with seed {seed} has the revision {there} on {before} and {own} on {protocol}: run the "
                    "same weights and settings on both."
                )


def _method_of(run: Path) -> dict[str, Any]:
    """The settings of the method that a run used."""
    try:
        settings: dict[str, Any] = dict(yaml.safe_load((run / "config.yaml").read_text("utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the settings of the method in {run / 'config.yaml'}: {error}") from error
    return settings


def _weights(settings: Mapping[str, Any]) -> Path | None:
    """The weights file that was named for a run, where it is still there."""
    path = Path(str(settings.get("weights") or "")).expanduser()
    return path if path.is_file() else None


def _check_settings(run: Path, claims: ClaimsFile, variant: str, label: str, seed: int) -> None:
    """Refuses a run whose settings are not its variant's, or whose weights name another seed of their training."""
    from bench.config import method_settings
    from bench.registry import load_method
    from bench.runs.plan import TRAINING_SETTINGS
    from bench.weights.method_weights import read_metadata

    given = _method_of(run)
    wanted = _composed(claims.method, claims.variants[variant].words)
    size = size_of(label) or None
    there, stated = (_flat(method_settings(settings, size)) for settings in (given, wanted))
    # What is in no revision changes no picture of a finished network, unless it is what tells the variants apart.
    left_out = (*TRAINING_SETTINGS, *load_method(claims.method).not_in_revision)
    told = {word.partition("=")[0].partition(".")[2] for own in claims.variants.values() for word in own.words}
    for key in sorted(there.keys() | stated.keys()):
        named = any(key == own or key.startswith(f"{own}.") for own in told)
        if not named and key.partition(".")[0] in left_out:
            continue
        if there.get(key, "(none)") != stated.get(key, "(none)"):
            raise UsageError(
                f"{run} was made with method.{key} {there.get(key, '(none)')}, but {variant} states "
                f"{stated.get(key, '(none)')}."
            )
    path = _weights(given)
    if claims.seeds_of == "run" and given.get("weights"):
        raise UsageError(
            f"{run} was made with method.weights={given['weights']}: with seeds_of: run every variant has the shipped "
            "weights."
        )
    if path is not None:
        trained = json.loads(read_metadata(path).get("settings") or "{}").get("seed", seed)
        if trained != seed:
            raise UsageError(f"{run} was made with {path}, which was trained with seed {trained}, not {seed}.")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; an empty mapping stands as it is."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def size_of(label: str) -> str:
    """Size in a row's label, such as "demo"; "" where it names none."""
    return label.partition("@")[2]


@cache
def _composed(method: str, words: tuple[str, ...]) -> dict[str, Any]:
    from bench.config import compose

    settings: dict[str, Any] = compose("run", [f"method={method}", *words])["method"]
    return settings


def listed(values: Sequence[Any]) -> str:
    """Values as a list in a sentence."""
    return ", ".join(map(str, values)) or "(none)"
