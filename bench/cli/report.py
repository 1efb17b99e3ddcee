"""Write the HTML report of a run, or of several runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  bench report runs/refine-orl_heavy
  bench report runs/refine-orl_heavy runs/input-orl_heavy -o comparison.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, one protocol")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="HTML file (one run: its report.html)")
    parser.add_argument("--metric", help="metric that picks the images shown (default: id, else haarpsi)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    from bench.errors import UsageError
    from bench.report.report import write_report

    output = arguments.output
    if output is None:
        if len(arguments.runs) > 1:
            raise UsageError("A report about several runs needs a file to be written to: add -o FILE.html.")
        output = arguments.runs[0] / "report.html"
    write_report(arguments.runs, output, arguments.metric)
    print(output)
    return 0
