"""Set our numbers beside a paper's table, and run the rows of it that can run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.leaderboard.reproduce import ReproducedRow, ReproducedTable

EXAMPLES = """examples:
  bench reproduce --list
  bench reproduce refine/table1
  bench reproduce refine restorerid/table2 --json
  bench reproduce refine/table1 --run
  bench reproduce refine/figure7 --data orl_heavy --run

Nothing is restored without --run; finished runs and board entries are shown as they are. A row is run by the command
that stands beside it, so a run that was stopped goes on. Published numbers need no network."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("tables", nargs="*", metavar="PAPER/TABLE", help="tables, papers, or all")
    parser.add_argument("--list", action="store_true", help="list the tables")
    parser.add_argument("--run", action="store_true", help="run the rows that can run")
    parser.add_argument("--dry-run", action="store_true", help="print what --run would run, and run nothing")
    parser.add_argument("--data", metavar="NAME", help="run and look at this data in place of the paper's")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables; with `--run` the worst exit code of the runs."""
    from bench.errors import UsageError
    from bench.leaderboard.papers import load_table
    from bench.leaderboard.reproduce import reproduce

    if arguments.list:
        return _list(arguments.json)
    if not arguments.tables:
        raise UsageError("Which table? Give one such as refine/table1, a paper, or all; bench reproduce --list.")
    if arguments.data:
        _check_data(arguments.data)
    names = _names(arguments.tables)
    code = 0
    if arguments.run or arguments.dry_run:
        jobs = list(
            dict.fromkeys(
                tuple(row.words)
                for name in names
                for row in reproduce(load_table(name), arguments.data).rows
                if row.state == "can run"
            )
        )
        code = _run(jobs, arguments.dry_run)
    tables = [reproduce(load_table(name), arguments.data) for name in names]
    if arguments.json:
        print(json.dumps([_as_json(table) for table in tables], indent=2, ensure_ascii=False))
        return code
    for position, table in enumerate(tables):
        if position:
            print()
        _print(table)
    return code


def _names(given: list[str]) -> list[str]:
    from bench.errors import unknown_name
    from bench.leaderboard.papers import table_ids

    known = table_ids()
    names: list[str] = []
    for word in given:
        found = [name for name in known if word in ("all", name, name.split("/")[0])]
        if not found:
            raise unknown_name("table", word, [*known, *dict.fromkeys(name.split("/")[0] for name in known), "all"])
        names += found
    return list(dict.fromkeys(names))


def _check_data(name: str) -> None:
    from bench.config import group_choices
    from bench.errors import unknown_name

    if name not in group_choices("data"):
        raise unknown_name("data set", name, group_choices("data"))


def _list(as_json: bool) -> int:
    from bench.leaderboard.papers import load_table, table_ids
    from bench.leaderboard.published import read_published

    papers = read_published()
    rows: list[dict[str, Any]] = []
    for name in table_ids():
        table = load_table(name)
        printed = sum(row.table == table.table for row in papers[table.paper].rows)
        rows.append({"table": name, "title": table.title, "published_rows": printed})
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    from bench.report.terminal import print_table

    print_table(
        ["table", "what it shows", "published rows"],
        [[row["table"], row["title"], str(row["published_rows"])] for row in rows],
    )
    return 0


def _run(jobs: list[tuple[str, ...]], dry: bool) -> int:
    worst = 0
    for position, words in enumerate(jobs, start=1):
        print(f"[{position}/{len(jobs)}] bench run {' '.join(words)}", file=sys.stderr, flush=True)
        if dry:
            continue
        command = [sys.executable, "-m", "bench", "run", *words, "leaderboard=false"]
        code = subprocess.run(command, check=False, stdout=2).returncode
        worst = max(worst, code if code >= 0 else 1)
    if not jobs:
        print("nothing of this can run here; see what is missing below", file=sys.stderr)
    return worst


def _print(table: ReproducedTable) -> None:
    from bench.report.terminal import print_table

    metrics = table.metrics
    arrows = {"higher": "↑", "lower": "↓"}
    headings = [f"{name} {arrows[table.better[name]]}" for name in metrics]
    rows = []
    for row in table.rows:
        references = "-" if row.references is None else str(row.references)
        by_name = {value.metric: value for value in row.values}
        cells = [_cell(by_name.get(name)) for name in metrics]
        rows.append([row.method, row.where, references, *cells, row.same_protocol.split(":")[0], row.state])
    title = f"{table.table.id}: {table.table.title} ({table.paper.title}, {table.paper.venue})"
    print_table(["method", "data", "refs", *headings, "same protocol?", "state"], rows, title)
    print("cells: ours | published | difference; published alone where nothing of ours is measured")
    for line in _remarks(table):
        print(line)


def _cell(value: Any) -> str:
    from bench.leaderboard.published import format_published
    from bench.report.terminal import number

    if value is None:
        return ""
    published = format_published(value.published)
    if value.ours is None:
        return published
    difference = "-" if value.difference is None else f"{value.difference:+.4g}"
    return f"{number(value.ours)} | {published} | {difference}"


def _remarks(table: ReproducedTable) -> list[str]:
    """Why protocols differ, what is measured, what is missing with the command that gets it, and notes."""
    lines = []
    for where, why in dict.fromkeys((row.where, row.same_protocol) for row in table.rows):
        if ":" in why:
            lines.append(f"same protocol? {where}: {why}")
    if table.table.note:
        lines.append(f"note: {table.table.note}")
    lines += [f"note: {note}" for note in dict.fromkeys(row.note for row in table.rows if row.note)]
    used = {value.metric: value.name for row in table.rows for value in row.values if value.name}
    lines += [f"{printed}: ours is {name}" for printed, name in used.items() if printed != name]
    grouped: dict[tuple[str, str, str], list[ReproducedRow]] = {}
    for row in table.rows:
        grouped.setdefault((row.state, row.reason, row.get), []).append(row)
    for (state, reason, get), rows in grouped.items():
        names = ", ".join(dict.fromkeys(f"{row.method} ({row.where})" for row in rows))
        lines.append(f"{state}: {names}: {reason}")
        if get:
            lines.append(f"    to get it: {get}")
    return lines


def _as_json(table: ReproducedTable) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        metrics = {
            value.metric: {
                "ours": value.ours,
                "published": value.published,
                "difference": value.difference,
                "our_metric": value.name,
                "our_identity": value.identity,
            }
            for value in row.values
        }
        rows.append(
            {
                "method": row.method,
                "data": row.where,
                "references": row.references,
                "metrics": metrics,
                "same_protocol": row.same_protocol,
                "state": row.state,
                "reason": row.reason,
                "get": row.get,
                "run": row.words,
                "source": row.source,
                "note": row.note,
            }
        )
    return {
        "table": table.table.id,
        "title": table.table.title,
        "paper": table.paper.title,
        "better": {name: table.better[name] for name in table.metrics},
        "rows": rows,
    }
