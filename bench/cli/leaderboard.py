"""Show a leaderboard, add a run to one, or write them as Markdown."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.leaderboard.ranking import Board

EXAMPLES = """\
  bench leaderboard show orl_heavy
  bench leaderboard add runs/refine-orl_heavy
  bench leaderboard render all --check
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print a board")
    show.add_argument("name", help="protocol of the board, such as orl_heavy")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    add = actions.add_parser("add", help="add the entry of a finished run and draw its board again")
    add.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a finished run")
    add.add_argument("--allow-incomplete", action="store_true", help="also if images are missing")
    add.add_argument("--reported-by", help="who vouches for it (default: $BENCH_REPORTED_BY, else maintainers)")
    render = actions.add_parser("render", help="write README.md of boards and of their index")
    render.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="boards; all of them by default")
    render.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not as it would be")


def run(arguments: argparse.Namespace) -> int:
    """Does what `arguments.action` says; exit code 1 if `render --check` found a stale file."""
    if arguments.action == "show":
        return _show(arguments.name, arguments.json)
    if arguments.action == "add":
        return _add(arguments)
    return _render(arguments.names, arguments.check)


def _show(name: str, as_json: bool) -> int:
    from bench.leaderboard.entry import board_roots, read_entries
    from bench.leaderboard.ranking import build_board

    board = build_board(read_entries(*(root / name for root in board_roots())))
    if as_json:
        print(json.dumps(_as_json(board), indent=2, ensure_ascii=False))
        return 0
    from bench.leaderboard.board import COST_HEADINGS, cell, costs
    from bench.report.terminal import print_table

    rows = []
    for index, entry in enumerate(board.entries):
        cells = [cell(entry, column, board.marks.get((index, column.name)), bold="*") for column in board.columns]
        rows.append([f"{entry['method']}@{entry['revision'][:6]}", *cells, *costs(entry)])
    columns = ["method", *(column.heading for column in board.columns), *COST_HEADINGS]
    print_table(columns, rows, title=f"{board.protocol} (protocol id {board.protocol_id})")
    print(
        "*best mean*   ≈ not shown to differ from the best (exact paired test, Holm)   [95 % interval]   (n/N scored)"
    )
    for column in board.absent:
        print(f"{column.title}: n/a ({column.reason})")
    return 0


def _as_json(board: Board) -> dict[str, object]:
    entries = []
    for index, entry in enumerate(board.entries):
        marks = {c.name: board.marks[index, c.name] for c in board.columns if (index, c.name) in board.marks}
        tests = {
            c.name: {"p": test.p, "p_holm": test.p_adjusted, "best_minus_row": test.mean_difference}
            for c in board.columns
            if (test := board.comparisons.get((index, c.name)))
        }
        entries.append({**entry, "marks": marks, "against_best": tests})
    return {"protocol": board.protocol, "protocol_id": board.protocol_id, "entries": entries}


def _add(arguments: argparse.Namespace) -> int:
    from bench.leaderboard.board import redraw
    from bench.leaderboard.entry import add, board_roots

    root, *others = board_roots()
    path = add(arguments.run_dir, root, arguments.allow_incomplete, arguments.reported_by, others)
    redraw(root, [path.parent.name])
    print(f"{path}\n{path.parent / 'README.md'}")
    return 0


def _render(names: list[str], check: bool) -> int:
    from bench.errors import unknown_name
    from bench.leaderboard.board import board_texts, redraw
    from bench.leaderboard.entry import board_names
    from bench.paths import leaderboard_root

    root = leaderboard_root()
    known = board_names(root)
    for name in names:
        if name != "all" and name not in known:
            raise unknown_name("leaderboard", name, known)
    boards = known if "all" in names else names
    if not check:
        for path in redraw(root, boards):
            print(path)
        return 0
    stale = [
        path
        for path, text in board_texts(root, boards).items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    for path in stale:
        print(f"{path} does not match its entries: run `bench leaderboard render`.")
    return 1 if stale else 0
