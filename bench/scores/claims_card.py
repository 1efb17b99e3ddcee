"""Results of claims as the Markdown tables of a method's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.errors import UsageError
from bench.report.terminal import number, p_value
from bench.scores.claims_file import RULES

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"
ARROWS = {True: " ↑", False: " ↓", None: ""}


def with_tables(card: str, results: Mapping[str, Any], where: str) -> str:
    """A card with the tables of `claims.json` between its two markers.

    Args:
        card: Text of the card.
        results: Content of `claims.json`.
        where: The card's file, for messages.

    Raises:
        UsageError: The card does not have both markers, once each and in order.
    """
    before, after = require_markers(card, where)
    return f"{before}{BEGIN}\n{tables(results)}{END}{after}"


def require_markers(card: str, where: str) -> tuple[str, str]:
    """What stands before and after the markers of a card.

    Args:
        card: Text of the card.
        where: The card's file, for messages.

    Raises:
        UsageError: The card does not have both markers, once each and in order.
    """
    before, opened, rest = card.partition(f"{BEGIN}\n")
    _, closed, after = rest.partition(END)
    if not opened or not closed or BEGIN in rest or END in before or END in after:
        raise UsageError(f"{where} must have the lines {BEGIN} and {END}, once each: the tables stand between them.")
    return before, after


def tables(results: Mapping[str, Any]) -> str:
    """The variants by metric, one table for each protocol, how they were trained, then the claims."""
    protocols = list(dict.fromkeys(claim["protocol"] for claim in results["claims"].values()))
    kind = results.get("seeds_of", "training")
    lines = [
        f"**With {_trainings(results)}.** Values are averaged over the seeds per image, then over people. Intervals "
        f"(95 %) and tests are over people: they speak of these {kind}s, not of others. How far {kind}s differ "
        "shows by seed. Margins: `configs/metrics/standard.yaml`.",
    ]
    for protocol in protocols:
        lines += ["", *_variants(results, protocol)]
    lines += ["", "Trained:" if kind == "training" else "Learnt:"]
    lines += [f"- {one['title']}: {' '.join(one['budget'].split())}" for one in results["variants"].values()]
    if apart := results.get("row_trained_apart"):
        lines.append(f"- The row of the boards, apart from these: {' '.join(apart['budget'].split())}")
    lines += ["", *_claims(results)]
    return "\n".join(lines) + "\n"


def trainings(count: int, seeds_of: str = "training") -> str:
    """Such as "these 3 trainings of each variant", or runs where `seeds_of` says so."""
    if seeds_of == "run":
        runs = f"these {count} runs of each variant" if count > 1 else "one run of each variant"
        return f"{runs} with the same weights, in which whoever is learnt was learnt anew"
    return f"these {count} trainings of each variant" if count > 1 else "one training of each variant"


def by_seed(pair: Mapping[str, Any]) -> str:
    """The difference with each seed, such as "+0.01, −0.02"."""
    return ", ".join(map(_signed, pair["by_seed"]))


def figures(claim: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    """What was found in one comparison: "0.3 against 0.2, difference +0.1 […], p = 0.3, by seed +0.2, 0, not shown"."""
    unit = f" {claim['unit']}" if claim["unit"] else ""
    return (
        f"{number(pair['mean'])} against {number(pair['against_mean'])}{unit}, difference {_difference(pair)}, "
        f"p = {p_value(pair['p'])}, by seed {by_seed(pair)}, {pair['verdict']}".replace("p = <", "p < ")
    )


def _trainings(results: Mapping[str, Any]) -> str:
    counts = {len(claim["seeds"]) for claim in results["claims"].values()}
    seeds_of = results.get("seeds_of", "training")
    return trainings(counts.pop(), seeds_of) if len(counts) == 1 else f"the {seeds_of}s listed"


def _variants(results: Mapping[str, Any], protocol: str) -> list[str]:
    own = {
        name: one["protocols"][protocol] for name, one in results["variants"].items() if protocol in one["protocols"]
    }
    metrics = {name: metric for one in own.values() for name, metric in one["metrics"].items()}
    people = max(metric["identities"] for metric in metrics.values())
    images = max(metric["of"] for metric in metrics.values())
    head = [_heading(metric) for metric in metrics.values()]
    lines = [
        f"`{protocol}`: {people} people, {images} images.",
        "",
        _row(["variant", "seeds", *head]),
        _row(["---", "---", *["---:"] * len(head)]),
    ]
    for name, one in own.items():
        seeds = ", ".join(map(str, one["seeds"]))
        cells = [_cell(one["metrics"].get(metric)) for metric in metrics]
        lines.append(_row([results["variants"][name]["title"], seeds, *cells]))
    return lines


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["mean"] is None:
        return "n/a"
    text = number(metric["mean"])
    if metric["low"] is not None:
        text += f" [{number(metric['low'])}, {number(metric['high'])}]"
    if metric["n"] < metric["of"]:
        text += f" ({metric['n']}/{metric['of']})"
    return f"{text}<br>by seed {', '.join(map(number, metric['by_seed']))}"


def _claims(results: Mapping[str, Any]) -> list[str]:
    lines = [
        _row(
            [
                "claim",
                "source",
                "on",
                "held against",
                "found",
                "difference [95 %]",
                "by seed",
                "p",
                "asked",
                "reproduced?",
            ]
        ),
        _row(["---", "---", "---", "---", "---", "---:", "---:", "---:", "---", "---"]),
    ]
    titles = {name: one["title"] for name, one in results["variants"].items()}
    for claim in results["claims"].values():
        for index, pair in enumerate(claim["pairs"]):
            stated = (
                [claim["text"], claim["source"], f"`{claim['protocol']}`, {_heading(claim)}"] if not index else [""] * 3
            )
            verdict = "" if index else "**yes**" if claim["reproduced"] else "**no**"
            if not pair["holds"]:
                verdict = ": ".join(filter(None, [verdict, pair["verdict"]]))
            elif not claim["reproduced"]:
                verdict = f"{verdict} ({pair['verdict']} against this one)".strip()
            means = f"{number(pair['mean'])} against {number(pair['against_mean'])}"
            found = [titles[pair["against"]], means, _difference(pair), by_seed(pair), p_value(pair["p"])]
            lines.append(_row([*stated, *found, "" if index else _asked(claim), verdict]))
    rules = dict.fromkeys(claim["rule"] for claim in results["claims"].values())
    told = [f"- `{rule}`: {RULES[rule]}." for rule in rules]
    notes = [f"- {claim['text']}: {claim['note']}" for claim in results["claims"].values() if claim["note"]]
    return [*lines, "", *told, *notes]


def _asked(claim: Mapping[str, Any]) -> str:
    margin = claim["margin"]
    return f"`{claim['rule']}`" + ("" if margin is None else f", margin {margin:g}")


def _heading(metric: Mapping[str, Any]) -> str:
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['title']}{unit}{ARROWS[metric['higher_is_better']]}"


def _difference(pair: Mapping[str, Any]) -> str:
    text = _signed(pair["difference"])
    return text if pair["low"] is None else f"{text} [{_signed(pair['low'])}, {_signed(pair['high'])}]"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{number(abs(value))}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
