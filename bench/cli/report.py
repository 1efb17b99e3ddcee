"""Write the HTML report of a run, of several runs side by side, an index page over all runs, or a figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """\
  bench report runs/refine-orl_heavy
  bench report runs/refine-orl_heavy runs/input-orl_heavy -o comparison.html
  bench report runs/input-orl_heavy runs/refine-orl_heavy --figure figure.png
  bench report --index                  runs/index.html: every run, by protocol, with links to the reports
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs, one protocol")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="HTML file (one run: its report.html)")
    parser.add_argument("--metric", help="metric that is chosen when the page opens (default: id, else haarpsi)")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="write a picture instead: LQ, reference, each run's, ground truth"
    )
    parser.add_argument("--images", nargs="+", default=[], metavar="ID", help="images of the figure (default: spread)")
    parser.add_argument("--rows", type=int, metavar="N", help="images of the figure, worst to best (default: 4)")
    parser.add_argument(
        "--index",
        nargs="?",
        const="",
        metavar="ROOT",
        help="write the index page over all runs under ROOT (default: $BENCH_RUNS, else runs)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    from bench.errors import UsageError

    if arguments.index is not None:
        from bench.paths import runs_root
        from bench.report.index import write_index

        if arguments.runs or arguments.metric or arguments.figure:
            raise UsageError(
                "--index is about all runs under one folder: leave out the run folders, --metric and --figure."
            )
        print(write_index(Path(arguments.index) if arguments.index else runs_root(), arguments.output))
        return 0
    from bench.report.report import write_report

    if not arguments.runs:
        raise UsageError("Name the folders of finished runs, or give --index for a page over all of them.")
    if arguments.figure is not None:
        return _figure(arguments)
    if arguments.images or arguments.rows is not None:
        raise UsageError("--images and --rows are of a figure: give --figure FILE too.")
    output = arguments.output
    if output is None:
        if len(arguments.runs) > 1:
            raise UsageError("A report about several runs needs a file to be written to: add -o FILE.html.")
        output = arguments.runs[0] / "report.html"
    for remark in write_report(arguments.runs, output, arguments.metric):
        print(f"bench: {remark}", file=sys.stderr)
    print(output)
    return 0


def _figure(arguments: argparse.Namespace) -> int:
    from bench.errors import UsageError
    from bench.report.figure import ROWS, write_figure

    if arguments.output is not None or arguments.metric:
        raise UsageError("--figure writes a picture and no page: leave out -o and --metric.")
    if arguments.images and arguments.rows is not None:
        raise UsageError("--images says which images, --rows how many: leave one out.")
    rows = ROWS if arguments.rows is None else arguments.rows
    shown = write_figure(arguments.runs, arguments.figure, arguments.images, rows)
    print(f"images: {', '.join(shown)}", file=sys.stderr)
    print(arguments.figure)
    return 0
