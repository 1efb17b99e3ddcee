"""Boards, the published numbers and the index as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.leaderboard import bought
from bench.leaderboard.bought import HEADING, interval_of, p_of, signed, what_references_bought
from bench.leaderboard.claim_marks import MARK
from bench.leaderboard.published import PublishedPaper, PublishedRow, format_published
from bench.leaderboard.ranking import COPY, INPUT
from bench.leaderboard.view import (
    COST_HEADINGS,
    NOT_RECOMPUTED,
    Cell,
    Row,
    View,
    interval_notes,
    power_note,
    symmetry_notes,
)

GENERATED = "<!-- Written by `bench leaderboard render` from the entries beside this file; edits are overwritten. -->"
TAGS = str.maketrans({"&": "&amp;", "<": "&lt;", "[": "\\["})
DIRECTION = {True: "higher is better", False: "lower is better", None: "not ranked"}


def board_markdown(view: View) -> str:
    """README.md of a board."""
    lines = [GENERATED, f"# {view.board.protocol}", "", *_table(view), "", *_footnotes(view), *_legend(view)]
    lines += _bought(view)
    if view.published:
        lines += ["", *_published(view)]
    lines += ["", *_identities(view), "", *_facts(view)]
    return "\n".join(lines) + "\n"


def index_markdown(views: Sequence[View], papers: Sequence[PublishedPaper]) -> str:
    """README.md of all boards."""
    lines = [
        GENERATED,
        "# Leaderboards",
        "",
        "One board per frozen protocol; numbers of different protocol ids are never ranked together.",
        "",
        "| protocol | protocol id | images | identities | methods |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for view in views:
        board = view.board
        methods = ", ".join(dict.fromkeys(entry["method"] for entry in board.entries))
        lines.append(
            f"| [{board.protocol}]({board.protocol}/README.md) | `{board.protocol_id}` | {view.images} | {view.people} "
            f"| {_escape(methods)} |"
        )
    if papers:
        lines += [
            "",
            "[Published numbers](published/README.md) of the papers "
            + ", ".join(paper.name for paper in papers)
            + " are kept apart: other pictures, other degradations, often other metrics of the same name.",
        ]
    return "\n".join(lines) + "\n"


def published_markdown(papers: Sequence[PublishedPaper]) -> str:
    """README.md of the published numbers: every row of every table."""
    lines = [
        GENERATED,
        "# Published numbers",
        "",
        "Transcribed from the papers' tables, every value as printed. They were measured on other pictures than ours, "
        'so none is ranked against a measured row; `bench reproduce PAPER/tableN` sets ours beside them. "-": the '
        "table prints no value.",
    ]
    for paper in papers:
        lines += ["", f"## {paper.title} ({paper.venue})", "", f"{paper.source}. Units: {units(paper)}."]
        for table, subject in paper.tables.items():
            rows = [row for row in paper.rows if row.table == table]
            lines += ["", f"### Table {table}: {subject}", "", *_published_table(paper, rows, None)]
            lines += _notes(rows)
    return "\n".join(lines) + "\n"


def cell_text(cell: Cell, bold: str = "**", raised: tuple[str, str] = (" <sup>", "</sup>")) -> str:
    """Mean, tie groups, interval and coverage of a cell as text."""
    text = f"{bold}{cell.text}{bold}" if cell.mark == "best" else cell.text
    text += f"{raised[0]}{cell.group}{raised[1]}" if cell.group else ""
    text += f" {cell.interval}" if cell.interval else ""
    return text + (f" ({cell.beside})" if cell.beside else "")


def _table(view: View) -> list[str]:
    marks = [_superscript(view.notes.get(column.name, [])) for column in view.columns]
    headings = [_data(column.heading) + mark for column, mark in zip(view.columns, marks, strict=True)]
    columns = ["method", "revision", *headings, *COST_HEADINGS]
    lines = [_row(columns), _row(["---", "---", *["---:"] * (len(columns) - 2)])]
    for row in view.rows:
        cells = [cell_text(replace(cell, text=_data(cell.text))) for cell in row.cells]
        lines.append(_row([_name(row), _revision(row), *cells, *(cell.text for cell in row.costs)]))
    for name in view.absent_rows:
        lines.append(_row([f"`{name}`", "not measured yet", *[""] * (len(columns) - 2)]))
    return lines


def _name(row: Row) -> str:
    mark = f"; **{MARK}**{_superscript(row.claims)}" if row.claims else ""
    return f"{_data(row.entry['title'])} (`{row.entry['method']}`){mark}"


def _revision(row: Row) -> str:
    seed = f" seed {row.entry['seed']}" if row.entry["seed"] else ""
    return f"`{row.entry['revision'][:12]}`{seed}"


def _superscript(numbers: list[int]) -> str:
    return f" <sup>{','.join(map(str, numbers))}</sup>" if numbers else ""


def _footnotes(view: View) -> list[str]:
    lines = [f"<sup>{number}</sup> {_data(text)}  " for number, text in enumerate(view.footnotes, 1)]
    return [*lines, ""] if lines else []


def legend(view: View) -> list[str]:
    """What the marks of a board mean and what its protocol can show, one sentence or two each."""
    power = power_note(view)
    return [
        "Best mean in bold. Letters instead of ranks: rows that share one are not shown to differ (two-sided sign-flip "
        "test on identity means, Holm over all pairs of rows of the metric, α = .05). Those not shown to differ from "
        "the best are the rows sharing any letter with the best mean (bold). ?: some pair has nothing complete in "
        "common and is not tested.",
        *symmetry_notes(view.board),
        *([power] if power else []),
        "(n/N): scored images, where not all are; the tests then use the identities both rows have scored in full.",
        f"`{INPUT}` is the degraded picture. IPS of `{COPY}` shows what copying scores: a method near it on IPS "
        f"may be copying, which ID tells apart. `{COPY}` takes no part in the ranking.",
        *(
            [
                f"{NOT_RECOMPUTED}: reported by others for a metric whose weights or package were absent where the "
                "row was accepted. Nobody checked such a number: it is never best or second and has no letters."
            ]
            if any(cell.remark for row in view.rows for cell in row.cells)
            else []
        ),
        "Time and memory are of the hardware below and no part of the ranking.",
    ]


def introduction(view: View) -> str:
    """What the numbers of a board are."""
    return (
        f"{view.images} images of {view.people} identities. Each number is the mean over identity means with its 95 % "
        f"interval over identities ({', '.join(interval_notes(view.board)) or 'none'})."
    )


def _legend(view: View) -> list[str]:
    first = f"Protocol id `{view.board.protocol_id}`: {_data(introduction(view))}"
    return [first, "", *(f"- {_data(line)}" for line in legend(view))]


def _identities(view: View) -> list[str]:
    lines = ["| metric | identity | direction |", "| --- | --- | --- |"]
    for column in view.columns:
        lines.append(_row([_data(column.title), _code(column.identity), DIRECTION[column.higher_is_better]]))
    for column in view.absent:
        lines.append(_row([_data(column.title), _code(column.identity), f"n/a ({_data(str(column.reason))})"]))
    return lines


def _facts(view: View) -> list[str]:
    lines = [
        "| row | seed | licence | paper | hardware | code | reported by | created |",
        _row(["---"] * 8),
    ]
    for row in view.rows:
        entry = row.entry
        facts = [
            entry["licence"],
            entry["paper"],
            hardware(entry),
            (entry["code_revision"] or "")[:12],
            reported(entry),
        ]
        name = f"`{entry['method']}@{entry['revision'][:12]}`"
        told = [_data(fact or "") for fact in (*facts, entry["created"])]
        lines.append(_row([name, str(entry["seed"]), *told]))
    return lines


def hardware(entry: dict[str, Any]) -> str:
    """What an entry was measured on, as text."""
    return ", ".join(f"{key} {value}" for key, value in entry["hardware"].items() if value not in (None, "", [], {}))


def reported(entry: dict[str, Any]) -> str:
    """Who reported an entry, and how many of its images were scored again here."""
    accepted = entry.get("accepted")
    again = f" ({accepted['recomputed']} images scored again on acceptance)" if accepted else ""
    return entry["reported_by"] + again


def _bought(view: View) -> list[str]:
    columns, rows = what_references_bought(view.board)
    if not rows:
        return []
    lines = ["", f"## {HEADING}", "", bought.introduction(), ""]
    lines.append(_row(["method", "without", *(_data(column.heading) for column in columns)]))
    lines.append(_row(["---", "---", *["---:"] * len(columns)]))
    for one in rows:
        tests = [one.tests.get(column.name) for column in columns]
        cells = [
            "n/a" if test is None else f"{signed(test.mean_difference)} {interval_of(test)} ({p_of(test)})"
            for test in tests
        ]
        names = [f"{_data(one.entry['title'])} (`{one.entry['method']}`)", f"`{one.without['method']}`"]
        lines.append(_row([*names, *map(_data, cells)]))
    return lines


def _published(view: View) -> list[str]:
    lines = [
        "## As published",
        "",
        "Same data set and degradation by name, **other protocol: not comparable with the rows above.**",
    ]
    for paper, rows in view.published:
        lines += ["", f"{paper.title} ({paper.venue}); {paper.source}. Units: {units(paper)}.", ""]
        lines += [*_published_table(paper, rows, view.board.protocol_id), *_notes(rows)]
    return lines


def units(paper: PublishedPaper, metrics: Sequence[str] | None = None) -> str:
    """Units of a paper's metrics, as far as it states them."""
    stated = [f"{name} {unit}" for name, unit in paper.units.items() if unit and (metrics is None or name in metrics)]
    return "; ".join(stated) or "none stated"


def _published_table(paper: PublishedPaper, rows: list[PublishedRow], protocol_id: str | None) -> list[str]:
    metrics = paper.metrics(rows)
    columns = ["method", "table", "data", "references", *(_data(paper.heading(name)) for name in metrics)]
    columns += ["protocol"] if protocol_id else []
    lines = [_row(columns), _row(["---", "---", "---", *["---:"] * (len(metrics) + 1), *["---"] * bool(protocol_id)])]
    for row in rows:
        cells = [
            *map(_data, (row.method, row.table, row.where)),
            "?" if row.references is None else str(row.references),
        ]
        cells += [format_published(row.metrics.get(name)) for name in metrics]
        lines.append(_row([*cells, row.mark(protocol_id)] if protocol_id else cells))
    return lines


def notes(rows: Sequence[PublishedRow]) -> list[str]:
    """What a reader must know of published rows, each sentence once with the rows it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            about.setdefault(row.note, []).append(f"{row.method} (table {row.table}, {row.where})")
    return [
        f"Note{'' if len(names) == len(rows) else ' on ' + ', '.join(names)}: {note}." for note, names in about.items()
    ]


def _notes(rows: Sequence[PublishedRow]) -> list[str]:
    return [line for note in notes(rows) for line in ("", _data(note))]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(one) for one in cells) + " |"


def _data(text: str) -> str:
    """Text of entries and papers, in which no tag and no character reference is meant as one."""
    parts = re.split(r"(`[^`]*`)", text)
    # Within `code` Markdown shows every character as it is.
    return "".join(
        part if part.startswith("`") and part.endswith("`") and len(part) > 1 else part.translate(TAGS)
        for part in parts
    )


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
