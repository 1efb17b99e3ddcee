"""The outcome of the gate as tables: for a terminal and for a pull request's comment."""

from __future__ import annotations

from collections.abc import Sequence

from bench.leaderboard.gate import Change, Gate
from bench.report.terminal import number, p_value

MARKER = "<!-- bench gate: this comment is rewritten by every run of the gate -->"
COLUMNS = ["metric", "before", "after", "change [95 %]", "tolerance", "Holm p", "outcome", "why"]


def cells(change: Change) -> list[str]:
    """One line of the table, a cell for each of `COLUMNS`."""
    arrow = {True: " ↑", False: " ↓", None: ""}[change.higher_is_better]
    heading = f"{change.title}{f' ({change.unit})' if change.unit else ''}{arrow}"
    difference = "" if change.difference is None else f"{change.difference:+.4g}"
    if change.low is not None and change.high is not None:
        difference += f" [{change.low:+.4g}, {change.high:+.4g}]"
    tolerance = "" if change.tolerance is None else f"{change.tolerance:.3g}"
    why = change.why if change.coverage in change.why else f"{change.why} {change.coverage} scored".strip()
    return [
        heading,
        _mean(change.before),
        _mean(change.after),
        difference,
        tolerance,
        p_value(change.p),
        change.status,
        why,
    ]


def title(result: Gate) -> str:
    """What was compared with what."""
    return (
        f"{result.method} against {result.baseline} on {result.protocol} [{result.protocol_id}], "
        f"{result.images} images of {result.identities} identities"
    )


def verdict(results: Sequence[Gate]) -> str:
    """One line over all runs, such as "failed: 2 regressions, 1 improvement"."""
    changes = [change for result in results for change in result.changes]
    counts = [
        (sum(change.fails for change in changes), "regression"),
        (sum(change.status == "improvement" for change in changes), "improvement"),
    ]
    said = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count)
    return f"{'failed' if any(result.failed for result in results) else 'passed'}{f': {said}' if said else ''}"


def markdown(results: Sequence[Gate]) -> str:
    """Markdown for a comment: what changed in a table, the rest folded away.

    The first line is `MARKER`, by which the workflow finds the comment to rewrite.
    """
    lines = [MARKER, f"### Gate {verdict(results)}"]
    for result in results:
        changed = [change for change in result.changes if change.status != "unchanged"]
        same = [change for change in result.changes if change.status == "unchanged"]
        lines += ["", f"**{'✗' if result.failed else '✓'} {_escape(title(result))}**", ""]
        lines += _table(changed) if changed else ["Nothing changed beyond the tolerances."]
        if same:
            lines += ["", f"<details><summary>{len(same)} unchanged</summary>", "", *_table(same), "", "</details>"]
    lines += [
        "",
        f"A regression: worse by the exact paired test over identities (Holm, α = {results[0].alpha:g}) and by more "
        "than the tolerance; or a value that is no more."
        if results
        else "Nothing was compared.",
    ]
    return "\n".join(lines) + "\n"


def _table(changes: Sequence[Change]) -> list[str]:
    rows = []
    for change in changes:
        row = [_escape(cell) for cell in cells(change)]
        if change.fails:
            row[6] = f"**{row[6]}**"
        rows.append(f"| {' | '.join(row)} |")
    return [f"| {' | '.join(COLUMNS)} |", "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |", *rows]


def _mean(value: float | None) -> str:
    return "n/a" if value is None else number(value)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
