"""Claims of a method's paper that were not reproduced, on its rows of boards.

`python -m bench.leaderboard.claim_marks FOLDER` brings the entries below a folder up to the methods' `claims.json`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.files import write_json
from bench.leaderboard.schema import CLAIM, CLAIM_PAIR, validate
from bench.registry import method_targets
from bench.scores.claims_card import figures, trainings
from bench.scores.claims_file import RULES, read_results

FIELD = "claims_not_reproduced"
MARK = "claim not reproduced"


def claims_not_reproduced(entry: Mapping[str, Any], revision: str) -> list[dict[str, Any]] | None:
    """What the method of a row states about claims that name the row, were tested on its protocol, and did not hold.

    Args:
        entry: Entry of the row, or the summary of a run: `method` (the label), `protocol` and `protocol_id`. A claim
            tested on other pictures marks nothing.
        revision: Hash of the row's weights and settings. A claim tested with other weights marks nothing, unless the
            results name these as those of the row, trained apart; the mark then says so.

    Returns:
        As in an entry (`schema.CLAIM`), with the comparisons that the claim failed in; None where the method is not
        known or has no results of claims, so that nothing can be said.

    Raises:
        UsageError: The results are unreadable.
    """
    label = str(entry["method"])
    results = _results(label)
    if results is None:
        return None
    if revision not in tested_revisions(results, label):
        return []
    row = (label, entry["protocol"], entry["protocol_id"])
    apart: dict[str, Any] = {} if revision in _of_runs(results, label) else {"row_trained_apart": True}
    if results.get("seeds_of") == "run":
        apart["seeds_of"] = "run"
    found = []
    for name, claim in results["claims"].items():
        if (claim["row"], claim["protocol"], claim["protocol_id"]) == row and not claim["reproduced"]:
            titles = {own: variant["title"] for own, variant in results["variants"].items()}
            pairs = [
                {
                    **{key: pair[key] for key in CLAIM_PAIR if key in pair},
                    "variant": titles[claim["variant"]],
                    "against": titles[pair["against"]],
                }
                for pair in claim["pairs"]
                if not pair["holds"]
            ]
            own = {key: claim[key] for key in CLAIM if key in claim}
            found.append({"claim": name, **own, **apart, "pairs": pairs})
    return found


def _results(label: str) -> dict[str, Any] | None:
    method = re.split(r"[+@]", label, maxsplit=1)[0]
    return read_results(method) if method in method_targets() else None


def tested_revisions(results: Mapping[str, Any], label: str) -> set[str]:
    """Revisions that claims about a row's label speak of: one for each training, and that of a row trained apart."""
    apart = results.get("row_trained_apart")
    if apart and any(claim["row"] == label for claim in results["claims"].values()):
        return _of_runs(results, label) | {apart["revision"]}
    return _of_runs(results, label)


def _of_runs(results: Mapping[str, Any], label: str) -> set[str]:
    runs = (own for variant in results["variants"].values() for own in variant["protocols"].values())
    return {revision for own in runs if own["label"] == label for revision in own["revisions"]}


def outdated_tests(entry: Mapping[str, Any]) -> str | None:
    """Why the tests of a row's claims say nothing of it: they were made with other weights, or on other pictures."""
    if "accepted" in entry or (results := _results(str(entry["method"]))) is None:
        return None
    label, revision = str(entry["method"]), str(entry["revision"])
    claims = [
        claim for claim in results["claims"].values() if (claim["row"], claim["protocol"]) == (label, entry["protocol"])
    ]
    if not claims:
        return None
    method, again = results["method"], "test them again with python -m bench.scores.claims"
    if results.get("row_trained_apart"):
        again = f"name the new revision in row_trained_apart of {method}'s claims.yaml, or {again}"
    tested = tested_revisions(results, label)
    if revision not in tested:
        return (
            f"{label}'s claims were tested with other weights: its revision is {revision}, claims.json has "
            f"{', '.join(sorted(tested)) or 'none'}; {again} {method}."
        )
    ids = sorted({claim["protocol_id"] for claim in claims})
    if ids != [entry["protocol_id"]]:
        return (
            f"{label}'s claims were tested on {entry['protocol']} {', '.join(ids)}, this row is of "
            f"{entry['protocol_id']}; {again} {method}."
        )
    return None


def with_todays_claims(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with the marks that its method's `claims.json` gives today; results of others bear none of ours."""
    if "accepted" in entry:
        return entry
    found = claims_not_reproduced(entry, entry["revision"])
    if found is None:
        return entry
    rest = {key: value for key, value in entry.items() if key != FIELD}
    return {**rest, FIELD: found} if found else rest


def same_marks(summary: Mapping[str, Any], listed: Mapping[str, Any]) -> bool:
    """Whether a run would be listed with the marks that its listed entry has."""
    found = claims_not_reproduced(summary, summary["method_revision"])
    return found is None or found == listed.get(FIELD, [])


def claim_text(claim: Mapping[str, Any]) -> str:
    """Footnote of a claim that was not shown to hold, with its figures."""
    pairs = "; ".join(f"{pair['variant']} against {pair['against']}: {figures(claim, pair)}" for pair in claim["pairs"])
    return (
        f"{MARK[0].upper()}{MARK[1:]}: {claim['text'].rstrip('.')} ({claim['source']}). {claim['title']} of {pairs} "
        f"(tested over people, for {trainings(len(claim['seeds']), claim.get('seeds_of', 'training'))}; asked: "
        f"{RULES.get(claim['rule'], claim['rule'])})."
        + (" The weights of this row were trained apart from these." if claim.get("row_trained_apart") else "")
    )


def main(folders: Sequence[str]) -> None:
    """Rewrites the entries below some folders whose marks changed and prints which."""
    from bench.leaderboard.entry import read_entry

    for folder in folders:
        for path in sorted(Path(folder).rglob("*@*.json")):
            entry = read_entry(path)
            changed = with_todays_claims(entry)
            if changed != entry:
                validate(changed, str(path))
                write_json(path, changed)
                names = ", ".join(claim["claim"] for claim in changed.get(FIELD, [])) or "none"
                sys.stdout.write(f"{path}: claims not reproduced: {names}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
