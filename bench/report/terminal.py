"""Tables in the terminal: drawn by rich on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints a table to standard output; plain lines, never wrapped or cut, where it is not a terminal.

    Args:
        columns: Headings.
        rows: Cells as text, one per column.
        title: Line above the table.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left")
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(_width(line[index]) for line in lines) for index in range(len(columns))]
    if title:
        sys.stdout.write(title + "\n")
    for line in lines:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _width(text: str) -> int:
    """Terminal columns: combining accents take none."""
    return sum(not unicodedata.combining(character) for character in text)


def number(value: float | None, digits: int = 4) -> str:
    """`value` with so many significant digits and no exponent, "n/a" for none."""
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - size)}f}"


def p_value(p: float | None) -> str:
    """A p-value with two significant digits; "<.0001" below that, "" for none."""
    if p is None:
        return ""
    return "<.0001" if p < 1e-4 else f"{p:.2g}"
