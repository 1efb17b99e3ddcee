"""What a method's `claims.yaml` states, and where it and the results of its claims lie."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError, unknown_name
from bench.registry import method_targets

BETTER = 0.01
RULES = {
    "better": (
        f"better at p < {BETTER:g} (exact two-sided sign-flip test on identity means, not corrected), and ahead with "
        "the weights of every seed"
    ),
    "tied": "the whole 95 % interval of the difference lies within the margin",
    "best_or_tied": (
        "no worse than each of the others: better by the rule `better`, or the 95 % bound on the bad side of the "
        "difference stays within the margin"
    ),
    "not_lost": "the 95 % bound on the bad side of the difference stays within the margin",
}
# Which margins of configs/metrics/standard.yaml a rule goes by.
MARGINS = {"tied": "tied", "best_or_tied": "tied", "not_lost": "not_lost"}
FILE_KEYS = {"variants", "claims", "metrics", "seeds", "seeds_of", "row_trained_apart"}
SEEDS_OF = ("training", "run")
APART_KEYS = {"revision", "budget"}
SHOWN = "shown"
NOT_SHOWN = "not shown"
CONTRADICTED = "contradicted: the difference goes the other way"
VARIANT_KEYS = {"title", "words", "budget"}
CLAIM_KEYS = {"text", "source", "protocol", "metric", "variant", "against", "rule"}
CLAIM_OPTIONAL = {"row", "note"}


@dataclass(frozen=True)
class Variant:
    """One ablation.

    Attributes:
        title: Its name in tables.
        words: Words `method.key=value` of `bench run`; what they do not name is as the method has it.
        budget: How long it was trained, such as "3000 batches of 16 in one stage".
    """

    title: str
    words: tuple[str, ...]
    budget: str


@dataclass(frozen=True)
class Claim:
    """A claim, stated before the runs were made.

    Attributes:
        text: What is claimed.
        source: Where the paper claims it, such as "Table 3".
        protocol: Name of the protocol it is tested on.
        metric: Name of the metric.
        variant: Name of the variant it is about.
        against: Variants it is held against.
        rule: One of `RULES`.
        row: Label of the board's row that is marked where the claim is not reproduced; one of the variants has it, and
            all of them have its size.
        note: What was found out about it, or "".
        margin: Margin of the rule, in the unit of the metric; None for "better".
    """

    text: str
    source: str
    protocol: str
    metric: str
    variant: str
    against: tuple[str, ...]
    rule: str
    row: str
    note: str
    margin: float | None

    def as_json(self) -> dict[str, Any]:
        """What is stated, for `claims.json`."""
        return {**vars(self), "against": list(self.against)}


@dataclass(frozen=True)
class ClaimsFile:
    """A method's claims.

    Attributes:
        method: Name of the method.
        variants: By name, in the order of the table.
        claims: By name.
        metrics: Metrics of the table beside those of claims.
        seeds: Seeds that every variant was trained with; empty for whichever all have.
        seeds_of: `training`: each seed stands for a training with weights of its own. `run`: all variants have the same
            weights, and each seed stands for a run of `bench run`, in which every person was learnt anew.
        row_trained_apart: Where the weights of the boards' row are none of the seeds': their `revision` and `budget`.
            The row is marked all the same.
    """

    method: str
    variants: dict[str, Variant]
    claims: dict[str, Claim]
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    row_trained_apart: dict[str, str] | None = None
    seeds_of: str = "training"

    @property
    def protocols(self) -> list[str]:
        """Protocols of the claims, in order."""
        return list(dict.fromkeys(claim.protocol for claim in self.claims.values()))

    @property
    def table_metrics(self) -> list[str]:
        """Metrics of the tables: those of the claims first."""
        return list(dict.fromkeys([*(claim.metric for claim in self.claims.values()), *self.metrics]))


def method_folder(method: str) -> Path:
    """Folder of a method's code and card.

    Raises:
        UsageError: No method has this name.
    """
    targets = method_targets()
    if method not in targets:
        raise unknown_name("method", method, targets)
    spec = importlib.util.find_spec(targets[method].partition(":")[0])
    if spec is None or spec.origin is None:
        raise UsageError(f"The module of {method} ({targets[method]}) has no file.")
    return Path(spec.origin).parent


def claims_path(method: str) -> Path:
    """Where a method's claims are stated."""
    return method_folder(method) / "claims.yaml"


def results_path(method: str) -> Path:
    """Where the results of a method's claims are."""
    return method_folder(method) / "claims.json"


def card_path(method: str) -> Path:
    """A method's card."""
    return method_folder(method) / "README.md"


def read_results(method: str) -> dict[str, Any] | None:
    """Results of a method's claims; None where it has none.

    Raises:
        UsageError: The file is unreadable.
    """
    path = results_path(method)
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {path}: {error}") from error
    if not isinstance(results, dict) or results.get("schema") != 1:
        raise UsageError(f"{path} holds no results of claims of schema 1: run python -m bench.scores.claims {method}.")
    return results


def load_claims(method: str) -> ClaimsFile:
    """Reads a method's `claims.yaml`.

    Raises:
        UsageError: It is missing, or states something that is not understood.
    """
    path = claims_path(method)
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: {method} states no claims.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read {path}: {error}") from error
    _check_keys(content, {"variants", "claims"}, FILE_KEYS, str(path))
    variants = {str(name): _variant(own, f"{path}: variants.{name}") for name, own in content["variants"].items()}
    claims = {
        str(name): _claim(own, method, variants, f"{path}: claims.{name}") for name, own in content["claims"].items()
    }
    seeds, metrics = content.get("seeds") or [], content.get("metrics") or []
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"{path}: seeds must be different whole numbers, got {seeds!r}.")
    apart = content.get("row_trained_apart")
    if apart is not None:
        _check_keys(apart, APART_KEYS, APART_KEYS, f"{path}: row_trained_apart")
        apart = {key: str(value) for key, value in apart.items()}
    seeds_of = str(content.get("seeds_of", "training"))
    if seeds_of not in SEEDS_OF:
        raise unknown_name(f"value of seeds_of in {path}", seeds_of, SEEDS_OF)
    if apart is not None and seeds_of == "run":
        raise UsageError(f"{path}: with seeds_of: run all rows have the same weights; leave out row_trained_apart.")
    return ClaimsFile(method, variants, claims, tuple(map(str, metrics)), tuple(sorted(seeds)), apart, seeds_of)


def _variant(own: Any, where: str) -> Variant:
    own = own or {}
    _check_keys(own, {"title", "budget"}, VARIANT_KEYS, where)
    words = tuple(map(str, own.get("words") or []))
    for word in words:
        if not word.startswith("method.") or "=" not in word:
            raise UsageError(f"{where}: {word!r} is no word method.key=value of `bench run`.")
    if not (budget := str(own["budget"] or "").strip()):
        raise UsageError(f"{where}: budget must say how many batches it was trained on.")
    return Variant(str(own["title"]), words, budget)


def _claim(own: Any, method: str, variants: Mapping[str, Variant], where: str) -> Claim:
    _check_keys(own, CLAIM_KEYS, CLAIM_KEYS | CLAIM_OPTIONAL, where)
    rule, variant = str(own["rule"]), str(own["variant"])
    if rule not in RULES:
        raise unknown_name(f"rule in {where}", rule, RULES)
    stated = own["against"]
    against = tuple(map(str, stated)) if isinstance(stated, list) else (str(stated),)
    for name in (variant, *against):
        if name not in variants:
            raise unknown_name(f"variant in {where}", name, variants)
    if variant in against or len(set(against)) < len(against) or not against:
        raise UsageError(f"{where}: against must name other variants than {variant}, each once.")
    if len(against) > 1 and rule != "best_or_tied":
        raise UsageError(f"{where}: the rule {rule} is of two variants; several in against go with best_or_tied.")
    metric = str(own["metric"])
    return Claim(
        text=str(own["text"]),
        source=str(own["source"]),
        protocol=str(own["protocol"]),
        metric=metric,
        variant=variant,
        against=against,
        rule=rule,
        row=str(own.get("row", f"{method}@demo")),
        note=str(own.get("note", "")),
        margin=_margin(rule, metric, where),
    )


def _margin(rule: str, metric: str, where: str) -> float | None:
    from bench.config import read_preset

    if rule not in MARGINS:
        return None
    margins: dict[str, float] = read_preset("metrics", "standard").get(MARGINS[rule], {})
    if metric not in margins:
        raise UsageError(
            f"{where}: configs/metrics/standard.yaml has no margin of {metric} under {MARGINS[rule]}, only of "
            f"{', '.join(margins)}: the rule {rule} cannot be tested on it."
        )
    return float(margins[metric])


def _check_keys(own: Any, needed: set[str], known: set[str], where: str) -> None:
    if not isinstance(own, dict):
        raise UsageError(f"{where} must be a mapping, got {own!r:.80}.")
    missing, unknown = sorted(needed - own.keys()), sorted(map(str, own.keys() - known))
    if missing or unknown:
        found = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise UsageError(f"{where} {' and '.join(found)}.")
