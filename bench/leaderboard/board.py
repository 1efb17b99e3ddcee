"""Draws boards as Markdown; the same entries always give the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.files import write_text
from bench.leaderboard.entry import board_names, read_entries
from bench.leaderboard.ranking import COPY, INPUT, Board, Column, build_board
from bench.report.terminal import number

GENERATED = "<!-- Written by `bench leaderboard render` from the entries beside this file; edits are overwritten. -->"


def render_board(folder: Path) -> str:
    """Markdown of the board whose entries lie in `folder`.

    Raises:
        UsageError: The folder holds no valid board.
    """
    board = build_board(read_entries(folder))
    lines = [GENERATED, f"# {board.protocol}", "", *_table(board), "", *_legend(board)]
    return "\n".join(lines) + "\n"


def render_index(root: Path) -> str:
    """Markdown list of all boards under `root`."""
    lines = [
        GENERATED,
        "# Leaderboards",
        "",
        "One board per frozen protocol; numbers of different protocol ids are never ranked together.",
        "",
        "| protocol | protocol id | images | identities | methods |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for name in board_names(root):
        board = build_board(read_entries(root / name))
        first = board.entries[0]
        methods = ", ".join(dict.fromkeys(entry["method"] for entry in board.entries))
        lines.append(
            f"| [{name}]({name}/README.md) | `{board.protocol_id}` | {first['of']} | {len(first['identity_images'])} "
            f"| {_escape(methods)} |"
        )
    return "\n".join(lines) + "\n"


def board_texts(root: Path, names: list[str]) -> dict[Path, str]:
    """Every Markdown file of some boards and of their index, with the text it should hold."""
    texts = {root / name / "README.md": render_board(root / name) for name in names}
    return {**texts, root / "README.md": render_index(root)}


def redraw(root: Path, names: list[str]) -> list[Path]:
    """Writes the Markdown of some boards and of their index; returns the files."""
    texts = board_texts(root, names)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def cell(entry: dict[str, Any], column: Column, mark: str | None, bold: str = "**") -> str:
    """Mean, interval and coverage of one metric in one row; "n/a (reason)" where there is no value."""
    metric = entry["metrics"].get(column.name)
    if metric is None:
        return "not scored"
    if metric["mean"] is None:
        return f"n/a ({metric['reason']})"
    if metric["identity"] != column.identity:
        return "n/a (other metric identity)"
    mean = number(metric["mean"])
    text = f"{bold}{mean}{bold}" if mark == "best" else mean
    if metric["low"] is not None:
        text += f" [{number(metric['low'])}, {number(metric['high'])}]"
    text += {"tied": " ≈", "untested": " ?"}.get(mark or "", "")
    return text if metric["n"] == metric["of"] else f"{text} ({metric['n']}/{metric['of']})"


def costs(entry: dict[str, Any]) -> list[str]:
    """Seconds per image, peak memory in MB and parameters in millions, as text."""
    parameters, memory = entry["parameters"], entry["peak_memory_mb"]
    return [
        number(entry["seconds_per_image"], 3),
        "n/a" if memory is None else f"{memory:.0f}",
        "n/a" if parameters is None else number(parameters / 1e6, 3),
    ]


COST_HEADINGS = ["s / image ↓", "peak MB ↓", "parameters (M)"]


def _table(board: Board) -> list[str]:
    headings = ["method", "revision", *(column.heading for column in board.columns), *COST_HEADINGS]
    lines = [_row(headings), _row(["---", "---", *["---:"] * (len(headings) - 2)])]
    for index, entry in enumerate(board.entries):
        cells = [cell(entry, column, board.marks.get((index, column.name))) for column in board.columns]
        name = f"{entry['title']} (`{entry['method']}`)"
        lines.append(_row([name, f"`{entry['revision'][:12]}`", *cells, *costs(entry)]))
    for name in (COPY, INPUT):
        if all(entry["method"] != name for entry in board.entries):
            lines.append(_row([f"`{name}`", "not measured yet", *[""] * (len(headings) - 2)]))
    return lines


def _legend(board: Board) -> list[str]:
    first = board.entries[0]
    people = len(first["identity_images"])
    intervals = sorted(
        {m["interval"].split(" over ")[0] for e in board.entries for m in e["metrics"].values() if m["interval"]}
    )
    lines = [
        f"Protocol id `{board.protocol_id}`: {first['of']} images of {people} identities. Each number is the mean over "
        f"identity means with its 95 % interval over identities ({', '.join(intervals) or 'none'}).",
        "",
        "- **Bold**: the best mean. **≈**: not shown to differ from the best (two-sided sign-flip test on identity "
        f"means, Holm over the {len(board.comparisons)} comparisons of this board, α = .05). **?**: not tested, "
        "nothing complete in common with the best. All others differ from the best.",
        "- (n/N): scored images, where not all are; the tests then use the identities both rows have scored in full.",
        f"- `{INPUT}` is the degraded picture. IPS of `{COPY}` shows what copying scores: a method near it on IPS "
        f"may be copying, which ID tells apart. `{COPY}` takes no part in the ranking.",
        "- Time and memory are of the hardware below and no part of the ranking.",
        "",
        "| metric | identity | direction |",
        "| --- | --- | --- |",
    ]
    direction = {True: "higher is better", False: "lower is better", None: "not ranked"}
    for column in board.columns:
        lines.append(_row([column.title, f"`{column.identity}`", direction[column.higher_is_better]]))
    for column in board.absent:
        lines.append(_row([column.title, f"`{column.identity}`", f"n/a ({column.reason})"]))
    lines += ["", "| row | seed | licence | paper | hardware | code | reported by | created |", _row(["---"] * 8)]
    for entry in board.entries:
        facts = [entry["licence"], entry["paper"], _hardware(entry["hardware"]), (entry["code_revision"] or "")[:12]]
        name = f"`{entry['method']}@{entry['revision'][:12]}`"
        lines.append(
            _row([name, str(entry["seed"]), *(f or "" for f in facts), entry["reported_by"], entry["created"]])
        )
    return lines


def _hardware(hardware: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in hardware.items() if value not in (None, "", [], {}))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_escape(one) for one in cells) + " |"


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
