"""Boards as LaTeX (booktabs) and their citations as BibTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.leaderboard.claim_marks import MARK
from bench.leaderboard.published import (
    PublishedPaper,
    PublishedRow,
    citation_keys,
    format_published,
    references,
)
from bench.leaderboard.view import Cell, Row, View, power_note, symmetry_notes

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    # Not `\{`: BibTeX counts every brace, and an escaped one would have to be balanced, too.
    "{": r"\textbraceleft{}", "}": r"\textbraceright{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "α": r"$\alpha$", "−": "$-$",
}  # fmt: skip
ARROWS = (r"$\uparrow$", r"$\downarrow$")
GENERATED = "% Written by `bench leaderboard render`; edits are overwritten. Needs \\usepackage{booktabs}."


def board_latex(view: View) -> str:
    """A table environment of the measured rows, and one for each paper's published rows."""
    names = ", ".join(f"{number}: {text}" for number, text in enumerate(view.footnotes, 1))
    caption = (
        f"{escape(view.board.protocol)} (protocol id \\texttt{{{view.board.protocol_id}}}): {view.images} images of "
        f"{view.people} identities. Mean over identity means; best in bold, second underlined; "
        r"rows of a metric that share a letter are not shown to differ (sign-flip test, Holm, $\alpha=.05$)."
    )
    caption += "".join(f" {escape(note)}" for note in symmetry_notes(view.board))
    said = power_note(view)
    caption += f" {escape(said)}" if said else ""
    caption += f" {escape(names)}" if names else ""
    headings = ["Method"]
    for column in view.columns:
        notes = view.notes.get(column.name)
        headings.append(escape(column.heading) + (f"$^{{{','.join(map(str, notes))}}}$" if notes else ""))
    methods = [row for row in view.rows if not row.comparison]
    others = [row for row in view.rows if row.comparison]
    lines = [GENERATED, *_begin(caption, f"tab:{view.board.protocol}", headings)]
    lines += [_line([_name(row), *map(_cell, row.cells)]) for row in methods]
    if methods and others:
        lines.append(r"\midrule")
    lines += [_line([_name(row), *map(_cell, row.cells)]) for row in others]
    lines += _end()
    for paper, rows in view.published:
        lines += ["", *_published(paper, rows, view)]
    return "\n".join(lines) + "\n"


def board_bibtex(view: View) -> str:
    """Entries of every key the LaTeX tables cite; a method without one is named by its own citation text."""
    known = references()
    keys = [key for row in view.rows for key in row.keys]
    keys += [paper.name for paper, _ in view.published]
    keys += [key for _, rows in view.published for row in rows for key in citation_keys(row.method)]
    blocks = [known[key] for key in dict.fromkeys(keys) if key in known]
    for row in view.rows:
        if not row.keys and row.entry["paper"]:
            block = f"@misc{{{own_key(row)},\n  note = {{{escape(row.entry['paper'])}}}\n}}"
            blocks += [block] if block not in blocks else []
    return "\n\n".join(["% Written by `bench leaderboard render`; edits are overwritten.", *blocks]) + "\n"


def own_key(row: Row) -> str:
    """Citation key of a method that no published table knows."""
    return re.sub(r"[^A-Za-z0-9]+", "-", row.entry["method"].partition("@")[0]).strip("-").lower()


def escape(text: str) -> str:
    """Text with LaTeX's special characters escaped and `code` in typewriter."""
    escaped = "".join(SPECIAL.get(character, character) for character in text)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)


def _cite(keys: Sequence[str]) -> str:
    return f"~\\cite{{{','.join(keys)}}}" if keys else ""


def _name(row: Row) -> str:
    title, method = row.entry["title"], row.entry["method"]
    plain = method.casefold() == title.casefold()
    name = escape(title) if plain else f"{escape(title)} (\\texttt{{{escape(method)}}})"
    keys = row.keys or ([own_key(row)] if row.entry["paper"] else [])
    mark = f" \\emph{{{MARK}}}$^{{{','.join(map(str, row.claims))}}}$" if row.claims else ""
    return name + _cite(keys) + mark


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return "--"
    shown = escape(cell.text)
    text = {"best": f"\\textbf{{{shown}}}", "second": f"\\underline{{{shown}}}"}.get(cell.mark, shown)
    text += f"\\textsuperscript{{{cell.group}}}" if cell.group else ""
    return text + (f" ({cell.beside})" if cell.beside else "")


def _published(paper: PublishedPaper, rows: list[PublishedRow], view: View) -> list[str]:
    metrics = paper.metrics(rows)
    caption = (
        f"As published by {escape(paper.name)}~\\cite{{{paper.name}}} on the same data set and degradation by name; "
        "other protocol, not comparable with measured rows."
    )
    headings = ["Method", "Table", *(escape(paper.heading(name)) for name in metrics)]
    lines = _begin(caption, f"tab:{view.board.protocol}-{paper.name}", headings, left=2)
    for row in rows:
        cells = [("--" if value is None else format_published(value)) for value in map(row.metrics.get, metrics)]
        name = escape(row.method) + _cite(citation_keys(row.method))
        lines.append(_line([name, escape(row.table), *map(escape, cells)]))
    return [*lines, *_end()]


def _begin(caption: str, label: str, headings: Sequence[str], left: int = 1) -> list[str]:
    alignment = "l" * left + "r" * (len(headings) - left)
    return [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{caption}}}",
        f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _line(headings),
        r"\midrule",
    ]


def _end() -> list[str]:
    return [r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
