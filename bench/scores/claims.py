"""Claims of a method's paper, tested on ablations trained with several seeds.

`methods/<name>/claims.yaml` states variants and claims before the runs are made.

    python -m bench.scores.claims METHOD --runs FOLDER          # <FOLDER>/<variant>-<seed>-<protocol> -> claims.json
    python -m bench.scores.claims METHOD --card                 # claims.json -> the tables of the method's card

Values are averaged over the seeds per image and metric first; intervals and tests are over people, not over seeds.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bench.errors import BenchError, UsageError
from bench.scores.claims_file import (
    BETTER,
    Claim,
    ClaimsFile,
    card_path,
    claims_path,
    load_claims,
    read_results,
    results_path,
)

if TYPE_CHECKING:
    from bench.scores.compare import AveragedRuns
    from bench.scores.statistics import Comparison

SCHEMA = 1


@dataclass(frozen=True)
class VariantRuns:
    """Finished runs of one variant on one protocol.

    Attributes:
        seeds: Seeds of the training, as the folders' names say.
        protocol_id: Frozen id of the protocol.
        metrics: By metric `title`, `unit` and `higher_is_better`, as the runs' summaries state them.
        averaged: The runs and the mean over them.
    """

    seeds: list[int]
    protocol_id: str
    metrics: dict[str, dict[str, Any]]
    averaged: AveragedRuns


Found = Mapping[tuple[str, str], VariantRuns]


def evaluate(claims: ClaimsFile, folder: Path) -> dict[str, Any]:
    """Tests a method's claims on finished runs.

    Args:
        claims: What `claims.yaml` states.
        folder: Holds the run folders `<variant>-<seed>-<protocol>`.

    Returns:
        The content of `claims.json`: `schema`, `method`, `level`; `claims` with, for each claim, what is stated and
        `protocol_id`, `metric_identity`, `title`, `unit`, `higher_is_better`, `seeds`, `pairs` and `reproduced`; a pair
        for each variant that the claim is held against has `against`, both means over people (`mean`,
        `against_mean`) and those of each seed (`by_seed`, `against_by_seed`), `difference` with the bounds `low` and
        `high` of its 95 % interval, `interval`, `p`, `images`, `identities`, and whether it `holds`. `variants` has
        for each variant `title`, `words`, `note` and, by protocol and metric, `mean`, `low`, `high`, `interval`, `n`,
        `of`, `identities`, `by_seed` and what the metric is.

    Raises:
        UsageError: Runs are missing, unfinished, or of other settings, protocols or metrics than stated, or the
            variants of a claim have other seeds.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder. Give the one that holds the runs <variant>-<seed>-<protocol>.")
    found = {
        (variant, protocol): runs
        for variant in claims.variants
        for protocol in claims.protocols
        if (runs := _variant_runs(claims, folder, variant, protocol))
    }
    return {
        "schema": SCHEMA,
        "method": claims.method,
        "level": BETTER,
        "claims": {name: _tested(claim, name, found, folder) for name, claim in claims.claims.items()},
        "variants": {name: _tabled(claims, name, found) for name in claims.variants},
    }


def _variant_runs(claims: ClaimsFile, folder: Path, variant: str, protocol: str) -> VariantRuns | None:
    from bench.scores.compare import average_runs
    from bench.scores.summary import read_summary
    from bench.scores.table import read_table

    pattern = re.compile(rf"{re.escape(variant)}-(\d+)-{re.escape(protocol)}")
    paths = {int(match[1]): path for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))}
    if not paths:
        return None
    seeds = sorted(paths)
    if claims.seeds and seeds != list(claims.seeds):
        raise UsageError(
            f"{folder} has the seeds {_words(seeds)} of {variant} on {protocol}, but {claims_path(claims.method)} "
            f"states {_words(claims.seeds)}: all seeds that were stated count, and no others."
        )
    summaries = [read_summary(paths[seed]) for seed in seeds]
    for seed, summary in zip(seeds, summaries, strict=True):
        for key, wanted in (("protocol", protocol), ("method_name", claims.method)):
            if summary.get(key) != wanted:
                raise UsageError(f"{paths[seed]} has {key} {summary.get(key)!r}, not {wanted!r} as its name says.")
        if summary.get("failed"):
            raise UsageError(f"{paths[seed]} lacks {len(summary['failed'])} pictures: finish it with `bench run`.")
        _check_settings(paths[seed], claims, variant)
    tables = [read_table(paths[seed] / "scores.parquet") for seed in seeds]
    averaged = average_runs(tables, f"{variant} on {protocol}")
    return VariantRuns(seeds, str(tables[0]["protocol_id"].iloc[0]), summaries[0]["metrics"], averaged)


def _check_settings(run: Path, claims: ClaimsFile, variant: str) -> None:
    """Refuses a run whose settings are not its variant's, in what tells the variants apart."""
    try:
        given = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["method"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the settings of the method in {run / 'config.yaml'}: {error}") from error
    wanted = _composed(claims.method, claims.variants[variant].words)
    keys = {word.partition("=")[0] for own in claims.variants.values() for word in own.words}
    for key in sorted(keys):
        parts = key.split(".")[1:]
        if (there := _values(given, parts)) != (stated := _values(wanted, parts)):
            raise UsageError(f"{run} was made with {key} {_words(there)}, but {variant} states {_words(stated)}.")


@cache
def _composed(method: str, words: tuple[str, ...]) -> dict[str, Any]:
    from bench.config import compose

    settings: dict[str, Any] = compose("run", [f"method={method}", *words])["method"]
    return settings


def _values(settings: Mapping[str, Any], parts: Sequence[str]) -> list[Any]:
    """Values of a setting: the common one, else that of each size."""
    found = []
    for start in (settings, *(settings.get("sizes") or {}).values()):
        value: Any = start
        for part in parts:
            value = value.get(part, KeyError) if isinstance(value, Mapping) else KeyError
        if value is not KeyError:
            found.append(value)
    return found


def _tested(claim: Claim, name: str, found: Found, folder: Path) -> dict[str, Any]:
    runs = {}
    for variant in (claim.variant, *claim.against):
        if (variant, claim.protocol) not in found:
            raise UsageError(
                f"The claim {name} needs runs of {variant} on {claim.protocol}, but {folder} has no "
                f"{variant}-<seed>-{claim.protocol}."
            )
        runs[variant] = found[variant, claim.protocol]
    own = runs[claim.variant]
    for variant, other in runs.items():
        if other.seeds != own.seeds:
            raise UsageError(
                f"The claim {name} compares {claim.variant} with seeds {_words(own.seeds)} and {variant} with seeds "
                f"{_words(other.seeds)} on {claim.protocol}: train and run both with the same seeds."
            )
        if same := _made(other) & _made(own) if other is not own else set():
            raise UsageError(
                f"{variant} and {claim.variant} on {claim.protocol} both have a run of revision and seed "
                f"{_words(sorted(same))}: the same weights and settings cannot stand for both."
            )
        if claim.metric in other.averaged.skipped or claim.metric not in other.metrics:
            why = other.averaged.skipped.get(claim.metric, "its runs do not have it")
            raise UsageError(f"The claim {name} needs {claim.metric} of {variant} on {claim.protocol}: {why}.")
    metric = own.metrics[claim.metric]
    if metric["higher_is_better"] is None and claim.rule != "tied":
        raise UsageError(f"The claim {name} asks which is better by {claim.metric}, which has no direction.")
    pairs = [_pair(claim, own, runs[variant], variant) for variant in claim.against]
    return {
        **claim.as_json(),
        "protocol_id": own.protocol_id,
        "metric_identity": metric["identity"],
        **{key: metric[key] for key in ("title", "unit", "higher_is_better")},
        "seeds": own.seeds,
        "pairs": pairs,
        "reproduced": all(pair["holds"] for pair in pairs),
    }


def _made(runs: VariantRuns) -> set[str]:
    firsts = (table.iloc[0] for table in runs.averaged.runs)
    return {f"{first['method_revision']}, {first['seed']}" for first in firsts}


def _pair(claim: Claim, own: VariantRuns, other: VariantRuns, against: str) -> dict[str, Any]:
    from bench.scores.compare import shared_images
    from bench.scores.statistics import paired_comparison

    a, b = own.averaged, other.averaged
    one = paired_comparison(a.table, b.table, claim.metric, own.metrics[claim.metric]["higher_is_better"])
    images = shared_images(a.table, b.table, claim.metric)
    return {
        "against": against,
        "mean": one.mean_a,
        "against_mean": one.mean_b,
        "difference": one.mean_difference,
        **{key: getattr(one, key) for key in ("low", "high", "interval", "p")},
        "by_seed": a.by_run(claim.metric, images),
        "against_by_seed": b.by_run(claim.metric, images),
        "images": one.n_images,
        "identities": one.n_identities,
        "holds": holds(claim.rule, one, claim.margin),
    }


def holds(rule: str, one: Comparison, margin: float | None) -> bool:
    """Whether a claim holds against one other variant.

    "better" asks for p < .01 of the two-sided sign-flip test, exact up to 20 people and not corrected, with the
    variant ahead. "tied" and "not_lost" go by the 95 % interval and the margin. "best_or_tied" holds where the
    variant is better or tied by these two rules; a difference whose interval reaches beyond the margin on either side
    and that the test does not show is neither.

    Args:
        rule: One of `bench.scores.claims_file.RULES`.
        one: Variant minus the other.
        margin: In the unit of the metric; None for "better".
    """
    from bench.scores.statistics import no_worse_than, tied

    better = one.better_at(BETTER) is True
    if rule == "better" or margin is None:
        return better
    if rule == "not_lost":
        return no_worse_than(one, margin)
    return tied(one, margin) or (rule == "best_or_tied" and better)


def _tabled(claims: ClaimsFile, name: str, found: Found) -> dict[str, Any]:
    from bench.registry import metric_classes
    from bench.scores.summary import summarise

    variant = claims.variants[name]
    protocols: dict[str, Any] = {}
    for protocol in claims.protocols:
        if (runs := found.get((name, protocol))) is None:
            continue
        table = runs.averaged.table
        chosen = [metric for metric in claims.table_metrics if metric in set(table["metric"])]
        known = {metric: own for metric, own in metric_classes().items() if metric in chosen}
        summary = summarise(table[table["metric"].isin(chosen)], known)
        protocols[protocol] = {"protocol_id": runs.protocol_id, "seeds": runs.seeds, "metrics": {}}
        for metric in chosen:
            own = summary[metric] | {key: runs.metrics[metric][key] for key in ("title", "unit", "higher_is_better")}
            scored = set(table.loc[(table["metric"] == metric) & table["value"].notna(), "image_id"])
            by_seed = runs.averaged.by_run(metric, scored) if scored else []
            protocols[protocol]["metrics"][metric] = own | {"by_seed": by_seed}
    return {"title": variant.title, "words": list(variant.words), "note": variant.note, "protocols": protocols}


def disagreements(method: str) -> list[str]:
    """Where a method's claims, their results and its card do not say the same, a sentence each.

    Raises:
        UsageError: A file is unreadable.
    """
    from bench.scores.claims_card import with_tables

    results = read_results(method)
    if results is None:
        return []
    claims = load_claims(method)
    found = []
    stated = {name: claim.as_json() for name, claim in claims.claims.items()}
    tested = {
        name: {key: value for key, value in own.items() if key in stated.get(name, own)}
        for name, own in results["claims"].items()
    }
    if stated != tested:
        odd = sorted(name for name in stated.keys() | tested.keys() if stated.get(name) != tested.get(name))
        found.append(f"{results_path(method)} was made of other claims than claims.yaml states now: {', '.join(odd)}.")
    variants = {name: (own.title, list(own.words), own.note) for name, own in claims.variants.items()}
    if variants != {name: (own["title"], own["words"], own["note"]) for name, own in results["variants"].items()}:
        found.append(f"{results_path(method)} was made of other variants than claims.yaml states now.")
    card = card_path(method)
    text = card.read_text("utf-8")
    if with_tables(text, results, str(card)) != text:
        found.append(f"{card} does not show what claims.json holds: run python -m bench.scores.claims {method} --card.")
    return found


def _words(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "(none)"


def main(words: Sequence[str] | None = None) -> int:
    """Tests a method's claims, prints their tables as Markdown and writes them into its card."""
    from bench.files import write_json, write_text
    from bench.scores.claims_card import tables, with_tables

    parser = argparse.ArgumentParser(prog="python -m bench.scores.claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method", metavar="METHOD", help="a method with a claims.yaml in its folder")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="test the claims on <variant>-<seed>-<protocol>")
    parser.add_argument("--card", action="store_true", help="write the tables into the method's card")
    arguments = parser.parse_args(words)
    try:
        if arguments.runs:
            write_json(results_path(arguments.method), evaluate(load_claims(arguments.method), arguments.runs))
        results = read_results(arguments.method)
        if results is None:
            raise UsageError(f"There is no {results_path(arguments.method)} yet: give --runs FOLDER.")
        if arguments.card:
            card = card_path(arguments.method)
            write_text(card, with_tables(card.read_text("utf-8"), results, str(card)))
        sys.stdout.write(tables(results))
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
