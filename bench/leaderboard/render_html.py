"""Boards, the published numbers and the index as single HTML files: no network, sortable, filterable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.leaderboard import bought
from bench.leaderboard.bought import HEADING, interval_of, p_of, signed, what_references_bought
from bench.leaderboard.claim_marks import MARK
from bench.leaderboard.published import PublishedPaper, PublishedRow, format_published
from bench.leaderboard.render_markdown import DIRECTION, hardware, introduction, legend, notes, reported, units
from bench.leaderboard.view import COST_HEADINGS, Cell, Row, View

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
FIRST = {True: "descending", False: "ascending", None: "ascending"}


def board_html(view: View) -> str:
    """Page of a board."""
    facts = [(column.title, f"{column.identity} ({DIRECTION[column.higher_is_better]})") for column in view.columns]
    facts += [(column.title, f"{column.identity}: n/a ({column.reason})") for column in view.absent]
    tables = [_measured(view), *_bought(view)]
    for paper, rows in view.published:
        about = f"{paper.title} ({paper.venue}). {paper.source}."
        warning = "Same data set and degradation by name, other protocol: not comparable with the rows above."
        table = _published(paper, rows, view.board.protocol_id)
        tables.append({**table, "heading": f"As published: {paper.name}", "about": about, "warning": warning})
    tables.append(_facts(view))
    return _page(
        title=view.board.protocol,
        up="../index.html",
        introduction=[f"Protocol id {view.board.protocol_id}: {introduction(view)}"],
        tables=tables,
        legend=legend(view),
        facts=facts,
    )


def index_html(views: Sequence[View], papers: Sequence[PublishedPaper]) -> str:
    """Page of all boards."""
    columns = [
        _column("protocol"),
        _column("protocol id"),
        _column("images", "number"),
        _column("identities", "number"),
    ]
    columns.append(_column("methods"))
    rows = []
    for view in views:
        methods = ", ".join(dict.fromkeys(entry["method"] for entry in view.board.entries))
        first = {"text": view.board.protocol, "href": f"{view.board.protocol}/index.html"}
        cells = [_text(view.board.protocol_id), _number(view.images), _number(view.people), _text(methods, "text long")]
        rows.append({"cells": [first, *cells]})
    tables = [{"columns": columns, "rows": rows, "label": "boards"}]
    if papers:
        rows = [
            {
                "cells": [
                    {"text": paper.name, "href": "published/index.html"},
                    _text(f"{paper.title} ({paper.venue})", "text long"),
                    _number(len(paper.tables)),
                    _number(len(paper.rows)),
                ]
            }
            for paper in papers
        ]
        columns = [_column("paper"), _column("title"), _column("tables", "number"), _column("rows", "number")]
        about = "Measured on other pictures than ours: shown beside measured rows, never ranked against them."
        tables.append(
            {"columns": columns, "rows": rows, "label": "papers", "heading": "Published numbers", "about": about}
        )
    return _page(title="Leaderboards", introduction=[], tables=tables)


def published_html(papers: Sequence[PublishedPaper]) -> str:
    """Page of every row of every published table."""
    tables = []
    for paper in papers:
        for position, (number, subject) in enumerate(paper.tables.items()):
            rows = [row for row in paper.rows if row.table == number]
            about = f"{paper.title} ({paper.venue}). {paper.source}." if position == 0 else ""
            table = _published(paper, rows, None)
            tables.append({**table, "heading": f"{paper.name}, Table {number}: {subject}", "about": about})
    said = "Every value as printed in the papers. Measured on other pictures than ours, so none is ranked here."
    return _page(title="Published numbers", up="../index.html", introduction=[said], tables=tables)


def _measured(view: View) -> dict[str, Any]:
    columns = [_column("method")]
    for column in view.columns:
        notes = ",".join(map(str, view.notes.get(column.name, [])))
        columns.append(_column(column.heading, "number", FIRST[column.higher_is_better], notes))
    columns += [_column(text, "number") for text in COST_HEADINGS]
    rows = []
    for row in view.rows:
        first = {"text": row.entry["title"], "code": _code(row)}
        if row.claims:
            first |= {"warning": MARK, "notes": ",".join(map(str, row.claims))}
        rows.append({"cells": [first, *map(_cell, row.cells + row.costs)], "comparison": row.comparison})
    footnotes = [f"{number} {text}" for number, text in enumerate(view.footnotes, 1)]
    footnotes += [f"{name}: not measured yet." for name in view.absent_rows]
    return {
        "columns": columns,
        "rows": rows,
        "label": f"measured rows of {view.board.protocol}",
        "footnotes": footnotes,
        "intervals": any(cell.interval for row in view.rows for cell in row.cells),
    }


def _bought(view: View) -> list[dict[str, Any]]:
    columns, rows = what_references_bought(view.board)
    if not rows:
        return []
    content = []
    for one in rows:
        cells: list[dict[str, Any]] = [{"text": one.entry["title"], "code": [one.entry["method"]]}]
        cells.append(_text(one.without["method"]))
        for column in columns:
            test = one.tests.get(column.name)
            cells.append(
                {"text": "n/a", "classes": "none"}
                if test is None
                else {
                    "text": signed(test.mean_difference),
                    "sort": repr(test.mean_difference),
                    "interval": interval_of(test),
                    "coverage": p_of(test),
                }
            )
        content.append({"cells": cells})
    heads = [_column("method"), _column("without")]
    heads += [_column(column.heading, "number", FIRST[column.higher_is_better]) for column in columns]
    return [
        {
            "heading": HEADING,
            "about": bought.introduction(),
            "columns": heads,
            "rows": content,
            "label": "what the reference bought",
            "intervals": True,
        }
    ]


def _code(row: Row) -> list[str]:
    seed = f" seed {row.entry['seed']}" if row.entry["seed"] else ""
    return [row.entry["method"], f"{row.entry['revision'][:12]}{seed}"]


def _published(paper: PublishedPaper, rows: list[PublishedRow], protocol_id: str | None) -> dict[str, Any]:
    metrics = paper.metrics(rows)
    columns = [_column("method")]
    columns += [_column(paper.heading(name), "number", FIRST[paper.better[name] == "higher"]) for name in metrics]
    columns += [_column("references", "number"), _column("table"), _column("data")]
    columns += [_column("protocol")] * bool(protocol_id)
    content = []
    for row in rows:
        cells: list[dict[str, Any]] = [{"text": row.method}]
        for name in metrics:
            value = row.metrics.get(name)
            cells.append({"text": format_published(value), "sort": "" if value is None else repr(value), "classes": ""})
        cells.append(_text("not stated", "") if row.references is None else _number(row.references))
        cells += [_text(row.table), _text(row.where)]
        cells += [_text(row.mark(protocol_id))] if protocol_id else []
        content.append({"cells": cells})
    footnotes = [f"Units: {units(paper, metrics)}.", *notes(rows)]
    return {"columns": columns, "rows": content, "label": f"published rows of {paper.name}", "footnotes": footnotes}


def _facts(view: View) -> dict[str, Any]:
    names = ("row", "seed", "licence", "paper", "hardware", "code", "reported by", "created")
    rows = []
    for row in view.rows:
        entry = row.entry
        code = (entry["code_revision"] or "")[:12]
        cells = [{"text": row.name}, _number(entry["seed"])]
        for text in (entry["licence"], entry["paper"], hardware(entry)):
            cells.append(_text(text or "", "text long"))
        rows.append({"cells": [*cells, _text(code), _text(reported(entry)), _text(entry["created"])]})
    columns = [_column(name, "number" if name == "seed" else "text") for name in names]
    return {"heading": "What stands behind each row", "columns": columns, "rows": rows, "label": "facts of the rows"}


def _column(text: str, kind: str = "text", first: str = "ascending", notes: str = "") -> dict[str, Any]:
    # The arrow stays with the last word.
    text = "\u00a0".join(text.rsplit(" ", 1)) if text.endswith(("↑", "↓")) else text
    return {"text": text, "kind": kind, "first": first, "notes": notes, "shown": True}


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "text": cell.text,
        "sort": "" if cell.value is None else repr(cell.value),
        "classes": "none" if cell.value is None else "",
        "mark": cell.mark,
        "group": cell.group,
        "interval": cell.interval,
        "coverage": ", ".join(filter(None, [f"{cell.coverage} scored" if cell.coverage else "", cell.remark])),
    }


def _text(text: str, classes: str = "text") -> dict[str, Any]:
    return {"text": text, "sort": text, "classes": classes}


def _number(value: int) -> dict[str, Any]:
    return {"text": str(value), "sort": str(value), "classes": ""}


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["ticked"] = _ticked
    return environment.get_template("board.html")


def _ticked(text: str) -> Markup:
    """Escaped text with `code` as an element."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _page(**content: Any) -> str:
    from markupsafe import Markup

    defaults: dict[str, Any] = {"up": None, "legend": [], "facts": []}
    table = {"heading": "", "about": "", "warning": "", "footnotes": [], "intervals": False}
    row = {"comparison": False}
    cell = {"code": (), "href": "", "mark": "", "group": "", "interval": "", "coverage": "", "classes": "", "sort": ""}
    cell |= {"warning": "", "notes": ""}
    content["tables"] = [
        {
            **table,
            **one,
            "rows": [{**row, **own, "cells": [{**cell, **each} for each in own["cells"]]} for own in one["rows"]],
        }
        for one in content["tables"]
    ]
    # Our own files, which hold neither `</style>` nor `</script>`.
    style, script = (Markup((TEMPLATES / name).read_text("utf-8")) for name in ("board.css", "board.js"))
    text: str = _template().render(**{**defaults, **content}, css=style, js=script)
    return text.rstrip("\n") + "\n"
