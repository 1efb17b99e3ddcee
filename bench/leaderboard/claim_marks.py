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
from bench.scores.claims_card import figures
from bench.scores.claims_file import RULES, read_results

FIELD = "claims_not_reproduced"
MARK = "claim not reproduced"


def claims_not_reproduced(label: str, protocol: str, protocol_id: str) -> list[dict[str, Any]] | None:
    """What the method of a row states about claims that name the row, were tested on its protocol, and did not hold.

    Args:
        label: Label of the row, such as "restorerid@demo".
        protocol: Name of the row's protocol.
        protocol_id: Its frozen id; a claim tested on other pictures marks nothing.

    Returns:
        As in an entry (`schema.CLAIM`), with the comparisons that the claim failed in; None where the method is not
        known or has no results of claims, so that nothing can be said.

    Raises:
        UsageError: The results are unreadable.
    """
    method = re.split(r"[+@]", label, maxsplit=1)[0]
    results = read_results(method) if method in method_targets() else None
    if results is None:
        return None
    found = []
    for name, claim in results["claims"].items():
        named = (claim["row"], claim["protocol"], claim["protocol_id"])
        if named == (label, protocol, protocol_id) and not claim["reproduced"]:
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
            found.append({"claim": name, **own, "pairs": pairs})
    return found


def with_todays_claims(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with the marks that its method's `claims.json` gives today; results of others bear none of ours."""
    if "accepted" in entry:
        return entry
    found = claims_not_reproduced(entry["method"], entry["protocol"], entry["protocol_id"])
    if found is None:
        return entry
    rest = {key: value for key, value in entry.items() if key != FIELD}
    return {**rest, FIELD: found} if found else rest


def same_marks(summary: Mapping[str, Any], listed: Mapping[str, Any]) -> bool:
    """Whether a run would be listed with the marks that its listed entry has."""
    found = claims_not_reproduced(summary["method"], summary["protocol"], summary["protocol_id"])
    return found is None or found == listed.get(FIELD, [])


def claim_text(claim: Mapping[str, Any]) -> str:
    """Footnote of a claim that was not reproduced, with its figures."""
    number = len(claim["seeds"])
    seeds = f"{number} seed{'s' * (number > 1)} each"
    pairs = "; ".join(f"{pair['variant']} against {pair['against']}: {figures(claim, pair)}" for pair in claim["pairs"])
    return (
        f"{MARK[0].upper()}{MARK[1:]}: {claim['text'].rstrip('.')} ({claim['source']}). {claim['title']} of {pairs} "
        f"({seeds}; asked: {RULES.get(claim['rule'], claim['rule'])})."
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
