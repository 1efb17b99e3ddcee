"""Claims of a method's paper, tested on ablations trained with several seeds.

`methods/<name>/claims.yaml` states variants and claims before the runs are made.

    python -m bench.scores.claims METHOD --runs FOLDER          # <FOLDER>/<variant>-<seed>-<protocol> -> claims.json
    python -m bench.scores.claims METHOD --card                 # claims.json -> the tables of the method's card

A seed stands for one training, with weights of its own, or, with `seeds_of: run`, for one run of the same weights, in
which every person was learnt anew. Values are averaged over the seeds per image and metric first;
intervals and tests are over people and say nothing of other trainings than these.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, UsageError
from bench.scores.claims_file import (
    BETTER,
    CONTRADICTED,
    NOT_SHOWN,
    SHOWN,
    Claim,
    ClaimsFile,
    card_path,
    load_claims,
    read_results,
    results_path,
)
from bench.scores.claims_runs import VariantRuns, check_weights_across_protocols, listed, size_of, variant_runs

if TYPE_CHECKING:
    from bench.scores.statistics import Comparison

SCHEMA = 1
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
        `against_mean`), `difference` with the bounds `low` and `high` of its 95 % interval, `interval`, `p`, the
        difference of each seed (`by_seed`), `images`, `identities`, whether it `holds`, and the `verdict` in words.
        `variants` has for each variant `title`, `words`, `budget` and by protocol `protocol_id`, `label`, `seeds`,
        `revisions`, and by metric `mean`, `low`, `high`, `interval`, `n`, `of`, `identities`, `by_seed` and what the
        metric is.

    Raises:
        UsageError: Runs are missing, unfinished, or of other settings, sizes, protocols or metrics than stated; two
            seeds of a variant have the same weights; or the variants of a claim have other seeds.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder. Give the one that holds the runs <variant>-<seed>-<protocol>.")
    found = {
        (variant, protocol): runs
        for variant in claims.variants
        for protocol in claims.protocols
        if (runs := variant_runs(claims, folder, variant, protocol))
    }
    check_weights_across_protocols(found)
    apart = claims.row_trained_apart
    return {
        "schema": SCHEMA,
        "method": claims.method,
        **({"row_trained_apart": apart} if apart else {}),
        **({"seeds_of": claims.seeds_of} if claims.seeds_of != "training" else {}),
        "level": BETTER,
        "claims": {name: _tested(claim, name, found, folder) for name, claim in claims.claims.items()},
        "variants": {name: _tabled(claims, name, found) for name in claims.variants},
    }


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
                f"The claim {name} compares {claim.variant} with seeds {listed(own.seeds)} and {variant} with seeds "
                f"{listed(other.seeds)} on {claim.protocol}: make both with the same seeds."
            )
        if same := set(other.revisions) & set(own.revisions) if other is not own else set():
            raise UsageError(
                f"{variant} and {claim.variant} on {claim.protocol} both have a run of revision "
                f"{listed(sorted(same))}: the same weights and settings cannot stand for both."
            )
        if size_of(other.label) != size_of(claim.row):
            raise UsageError(
                f"The claim {name} is about the row {claim.row}, but {variant} on {claim.protocol} was run as "
                f"{other.label}: run every variant in the size of the row."
            )
        if claim.metric in other.averaged.skipped or claim.metric not in other.metrics:
            why = other.averaged.skipped.get(claim.metric, "its runs do not have it")
            raise UsageError(f"The claim {name} needs {claim.metric} of {variant} on {claim.protocol}: {why}.")
    if all(one.label != claim.row for one in found.values()):
        raise UsageError(
            f"The claim {name} marks the row {claim.row}, but {folder} has runs of "
            f"{listed(sorted({one.label for one in found.values()}))}: run the variant that stands on the board too."
        )
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


def _pair(claim: Claim, own: VariantRuns, other: VariantRuns, against: str) -> dict[str, Any]:
    from bench.scores.compare import shared_images
    from bench.scores.statistics import paired_comparison

    a, b = own.averaged, other.averaged
    one = paired_comparison(a.table, b.table, claim.metric, own.metrics[claim.metric]["higher_is_better"])
    images = shared_images(a.table, b.table, claim.metric)
    by_seed = [
        one - other for one, other in zip(a.by_run(claim.metric, images), b.by_run(claim.metric, images), strict=True)
    ]
    held = holds(claim.rule, one, claim.margin, by_seed)
    return {
        "against": against,
        "mean": one.mean_a,
        "against_mean": one.mean_b,
        "difference": one.mean_difference,
        **{key: getattr(one, key) for key in ("low", "high", "interval", "p")},
        "by_seed": by_seed,
        "images": one.n_images,
        "identities": one.n_identities,
        "holds": held,
        "verdict": SHOWN if held else CONTRADICTED if _other_way(claim.rule, one) else NOT_SHOWN,
    }


def holds(rule: str, one: Comparison, margin: float | None, by_seed: Sequence[float]) -> bool:
    """Whether a claim holds against one other variant.

    "better" asks for p < .01 of the two-sided sign-flip test, exact up to 20 people and not corrected, with the
    variant ahead, and ahead with every seed too: the test is over people, and people cannot tell what another training
    would have given. "tied" is equivalence: the 95 % interval lies within the margin on both sides. "not_lost" and
    "best_or_tied" are non-inferiority: it stays within the margin on the bad side; "best_or_tied" also holds where the
    variant is better.

    Args:
        rule: One of `bench.scores.claims_file.RULES`.
        one: Variant minus the other.
        margin: In the unit of the metric; None for "better".
        by_seed: The same difference with the weights of each seed.
    """
    from bench.scores.statistics import no_worse_than, tied

    ahead = all(value != 0 and (value > 0) == one.higher_is_better for value in by_seed)
    better = one.better_at(BETTER) is True and ahead
    if rule == "better" or margin is None:
        return better
    if rule == "tied":
        return tied(one, margin)
    return no_worse_than(one, margin) or (rule == "best_or_tied" and better)


def _other_way(rule: str, one: Comparison) -> bool:
    """Whether the 95 % interval of the difference lies wholly on the side on which the variant is worse."""
    if rule == "tied" or one.low is None or one.high is None or one.higher_is_better is None:
        return False
    return one.high < 0 if one.higher_is_better else one.low > 0


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
        protocols[protocol] = {
            **{key: getattr(runs, key) for key in ("protocol_id", "label", "seeds", "revisions")},
            "metrics": {},
        }
        for metric in chosen:
            own = summary[metric] | {key: runs.metrics[metric][key] for key in ("title", "unit", "higher_is_better")}
            scored = set(table.loc[(table["metric"] == metric) & table["value"].notna(), "image_id"])
            by_seed = runs.averaged.by_run(metric, scored) if scored else []
            protocols[protocol]["metrics"][metric] = own | {"by_seed": by_seed}
    return {"title": variant.title, "words": list(variant.words), "budget": variant.budget, "protocols": protocols}


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
    variants = {name: (own.title, list(own.words), own.budget) for name, own in claims.variants.items()}
    if variants != {name: (own["title"], own["words"], own["budget"]) for name, own in results["variants"].items()}:
        found.append(f"{results_path(method)} was made of other variants than claims.yaml states now.")
    if claims.seeds_of != results.get("seeds_of", "training"):
        found.append(f"{results_path(method)} says something else of what seeds stand for than claims.yaml now.")
    if claims.row_trained_apart != results.get("row_trained_apart"):
        found.append(f"{results_path(method)} says something else of the row's own training than claims.yaml now.")
    card = card_path(method)
    text = card.read_text("utf-8")
    if with_tables(text, results, str(card)) != text:
        found.append(f"{card} does not show what claims.json holds: run python -m bench.scores.claims {method} --card.")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Tests a method's claims, prints their tables as Markdown and writes them into its card."""
    from bench.files import write_json, write_text
    from bench.scores.claims_card import require_markers, tables, with_tables

    parser = argparse.ArgumentParser(prog="python -m bench.scores.claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method", metavar="METHOD", help="a method with a claims.yaml in its folder")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="test the claims on <variant>-<seed>-<protocol>")
    parser.add_argument("--card", action="store_true", help="write the tables into the method's card")
    arguments = parser.parse_args(words)
    try:
        if arguments.card:
            # Before anything is written: results and card change together or not at all.
            require_markers(card_path(arguments.method).read_text("utf-8"), str(card_path(arguments.method)))
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
