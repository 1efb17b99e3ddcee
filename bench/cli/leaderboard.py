"""Show a leaderboard, add a run or results of others to one, render boards, verify them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.leaderboard.view import View

EXAMPLES = """examples:
  bench leaderboard show orl_heavy
  bench leaderboard add runs/refine-orl_heavy
  bench leaderboard add --from scores.parquet --protocol orl_heavy --restored PNGS --reported-by "a lab"
  bench leaderboard add --protocol orl_heavy --restored PNGS --method ours --reported-by "a lab"
  bench leaderboard render
  bench leaderboard render --format html,latex,bibtex,csv -o site
  bench leaderboard verify

README.md is drawn in place. Exit code of verify: 1 where a file was edited by hand or an entry is not in order.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|add|render|verify")
    show = actions.add_parser("show", help="print a board")
    show.add_argument("name", help="protocol of the board, such as orl_heavy")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    _add_arguments(actions.add_parser("add", help="add the entry of a finished run or of others, and draw its board"))
    render = actions.add_parser("render", help="write boards and their index")
    render.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="boards; all of them by default")
    render.add_argument("--format", default="md", metavar="md,html,latex,bibtex,csv", help="formats (default: md)")
    render.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write into (default: in place)")
    render.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not as it would be")
    verify = actions.add_parser("verify", help="exit 1 where a rendered file or an entry is not in order")
    verify.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="boards; all of them by default")
    verify.add_argument("-o", "--output", type=Path, metavar="DIR", help="also check the files rendered there")
    verify.add_argument("--json", action="store_true", help="print what is wrong as JSON")


def _add_arguments(add: argparse.ArgumentParser) -> None:
    add.add_argument("run_dir", type=Path, nargs="?", metavar="RUN", help="folder of a finished run")
    add.add_argument("--allow-incomplete", action="store_true", help="also if images are missing")
    add.add_argument(
        "--speed-of",
        type=Path,
        metavar="ENTRY",
        help="entry of the same method revision whose time and memory stand in for the run's (see ENTRY.md)",
    )
    add.add_argument("--reported-by", help="who vouches for it (default: $BENCH_REPORTED_BY, else maintainers)")
    others = add.add_argument_group("results of others")
    others.add_argument("--from", dest="scores", type=Path, metavar="PARQUET", help="their score table, checked here")
    others.add_argument("--protocol", metavar="NAME", help="protocol the pictures belong to, such as orl_heavy")
    others.add_argument("--restored", type=Path, metavar="DIR", help="their restored pictures, IMAGE_ID.png")
    others.add_argument("--hashes", type=Path, metavar="FILE", help="sha256sum lines of the pictures that were scored")
    others.add_argument("--sample", metavar="N|all", help="pictures to score again (default: 10)")
    others.add_argument("--method", metavar="LABEL", help="name of the row (default: that of the score table)")
    others.add_argument("--title", help="title of the row (default: the label)")
    others.add_argument("--licence", help="licence of the method's weights")
    others.add_argument("--paper", help="citation of the method")
    others.add_argument("--parameters", type=int, metavar="N", help="number of parameters")
    others.add_argument("--seconds", type=float, metavar="S", help="seconds per picture, on --hardware")
    others.add_argument("--peak-memory", type=float, metavar="MB", help="peak memory in MB, on --hardware")
    others.add_argument("--hardware", metavar="TEXT", help="what it ran on")
    others.add_argument("--code-revision", metavar="TEXT", help="commit of the code that restored")


OF_RUNS = {"--speed-of": "speed_of"}
OF_OTHERS = {
    "--hashes": "hashes", "--sample": "sample", "--method": "method", "--title": "title", "--licence": "licence",
    "--paper": "paper", "--parameters": "parameters", "--seconds": "seconds", "--peak-memory": "peak_memory",
    "--hardware": "hardware", "--code-revision": "code_revision",
}  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Does what `arguments.action` says; exit code 1 if a file or an entry is not in order."""
    if arguments.action == "show":
        return _show(arguments.name, arguments.json)
    if arguments.action == "add":
        return _add(arguments)
    if arguments.action == "verify":
        return _verify(arguments)
    return _render(arguments)


def _show(name: str, as_json: bool) -> int:
    from bench.leaderboard.entry import board_roots, read_entries
    from bench.leaderboard.view import view

    board = view(read_entries(*(root / name for root in board_roots())))
    if as_json:
        print(json.dumps(_as_json(board), indent=2, ensure_ascii=False))
        return 0
    _print(board)
    return 0


def _print(board: View) -> None:
    from bench.leaderboard.published import format_published
    from bench.leaderboard.render_markdown import cell_text
    from bench.leaderboard.view import COST_HEADINGS, power_note
    from bench.report.terminal import print_table

    rows = [
        [
            f"{row.entry['method']}@{row.entry['revision'][:6]}",
            *(cell_text(cell, bold="*", raised=(" ", "")) for cell in row.cells),
            *(cell.text for cell in row.costs),
        ]
        for row in board.rows
    ]
    headings = []
    for column in board.columns:
        notes = ",".join(map(str, board.notes.get(column.name, [])))
        headings.append(column.heading + (f" ({notes})" if notes else ""))
    title = f"{board.board.protocol} (protocol id {board.board.protocol_id})"
    print_table(["method", *headings, *COST_HEADINGS], rows, title=title)
    print(
        "*best mean*   rows sharing a letter: not shown to differ (exact paired test, Holm)   [95 % interval]   (n/N)"
    )
    for number, text in enumerate(board.footnotes, 1):
        print(f"({number}) {text}")
    if power := power_note(board):
        print(power)
    for name in board.absent_rows:
        print(f"{name}: not measured yet")
    for column in board.absent:
        print(f"{column.title}: n/a ({column.reason})")
    for paper, published in board.published:
        metrics = paper.metrics(published)
        lines = []
        for row in published:
            values = [format_published(row.metrics.get(name)) for name in metrics]
            lines.append([row.method, row.table, row.where, *values, row.mark(board.board.protocol_id)])
        print()
        print_table(
            ["method", "table", "data", *map(paper.heading, metrics), "protocol"], lines, f"{paper.name}, as published"
        )


def _as_json(view: View) -> dict[str, Any]:
    from dataclasses import asdict

    board = view.board
    entries = []
    for index, entry in enumerate(board.entries):
        marks = {c.name: board.marks[index, c.name] for c in board.columns if (index, c.name) in board.marks}
        groups = {
            c.name: cell.group for c, cell in zip(view.columns, view.rows[index].cells, strict=True) if cell.group
        }
        tests = {
            c.name: {"p": test.p, "p_holm": test.p_adjusted, "best_minus_row": test.mean_difference}
            for c in board.columns
            if (test := board.comparisons.get((index, c.name)))
        }
        entries.append({**entry, "marks": marks, "groups": groups, "against_best": tests})
    published = [{**asdict(row), "mark": row.mark(board.protocol_id)} for _, rows in view.published for row in rows]
    return {
        "protocol": board.protocol,
        "protocol_id": board.protocol_id,
        "entries": entries,
        "published": published,
        "footnotes": {name: [view.footnotes[n - 1] for n in numbers] for name, numbers in view.notes.items()},
    }


def _add(arguments: argparse.Namespace) -> int:
    from bench.errors import UsageError
    from bench.leaderboard.board import redraw
    from bench.leaderboard.entry import add, add_entry, board_roots

    root, *others = board_roots()
    foreign = arguments.scores or arguments.restored or arguments.protocol
    if bool(arguments.run_dir) == bool(foreign):
        raise UsageError("Give either the folder of a run, or --protocol NAME --restored DIR [--from scores.parquet].")
    ignored = OF_RUNS if foreign else OF_OTHERS
    if misplaced := [word for word, name in ignored.items() if getattr(arguments, name) is not None]:
        raise UsageError(
            f"{', '.join(misplaced)} {'belongs' if len(misplaced) == 1 else 'belong'} to "
            + ("runs (RUN), not to results of others." if foreign else "results of others; a run says it of itself.")
        )
    if not foreign:
        run_dir, by = arguments.run_dir, arguments.reported_by
        path = add(run_dir, root, arguments.allow_incomplete, by, others, arguments.speed_of)
    else:
        from bench.leaderboard.accept import Submission, accept

        if not (arguments.protocol and arguments.restored):
            raise UsageError("Results of others need --protocol NAME and --restored DIR: their pictures are looked at.")
        names = ["scores", "protocol", "restored", "hashes", "method", "title", "reported_by", "licence", "paper"]
        names += ["parameters", "seconds", "peak_memory", "hardware", "code_revision", "allow_incomplete"]
        given = {name: getattr(arguments, name) for name in names}
        entry = accept(Submission(**given, sample=_sample(arguments.sample)))
        path = add_entry(entry, root, str(arguments.scores or arguments.restored), arguments.allow_incomplete, others)
        accepted = entry["accepted"]
        print(f"scored again: {accepted['recomputed']} of {entry['of']} pictures", file=sys.stderr)
        for name, reason in accepted["not_recomputed"].items():
            print(f"{name} could not be scored again here: {reason}", file=sys.stderr)
    redraw(root, [path.parent.name])
    print(f"{path}\n{path.parent / 'README.md'}")
    return 0


def _sample(word: str | None) -> int | None:
    """Number of pictures; None for all."""
    from bench.errors import UsageError

    if word is None:
        return 10
    if word == "all":
        return None
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"--sample must be a whole number of at least 1, or all; got {word!r}.")
    return int(word)


def _boards(names: list[str]) -> tuple[Path, list[str]]:
    from bench.errors import unknown_name
    from bench.leaderboard.entry import board_names
    from bench.paths import leaderboard_root

    root = leaderboard_root()
    known = board_names(root)
    for name in names:
        if name != "all" and name not in known:
            raise unknown_name("leaderboard", name, known)
    return root, known if "all" in names else names


def _render(arguments: argparse.Namespace) -> int:
    from bench.leaderboard.board import board_texts, redraw

    root, boards = _boards(arguments.names)
    formats = [name.strip() for name in arguments.format.split(",") if name.strip()]
    if not arguments.check:
        for path in redraw(root, boards, formats, arguments.output):
            print(path)
        return 0
    stale = [
        path
        for path, text in board_texts(root, boards, formats, arguments.output).items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    for path in stale:
        print(f"{path} does not match its entries: run `bench leaderboard render`.")
    return 1 if stale else 0


def _verify(arguments: argparse.Namespace) -> int:
    from bench.leaderboard.verify import verify

    root, boards = _boards(arguments.names)
    problems = verify(root, boards, arguments.output)
    if arguments.json:
        print(json.dumps({"boards": boards, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{len(boards)} boards are in order: {', '.join(boards)}")
    return 1 if problems else 0
