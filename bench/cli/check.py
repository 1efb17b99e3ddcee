"""Find everything that would stop a run, before it starts."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  bench check method=refine data=orl_heavy
  bench check method=refine data=celebref_heavy data.root=FOLDER --json

One line for each check. The exit code is that of the first error: 2 wrong configuration, 3 something missing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "bench check method=NAME [data=NAME] [key=value ...] [--json]"
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Checks; returns the exit code of the first error."""
    from dataclasses import asdict

    from bench.runs.check import check_run

    outcomes = []
    for outcome in check_run(arguments.overrides):
        outcomes.append(outcome)
        if not arguments.json:
            print(f"{outcome.state:<8} {outcome.name:<14} {outcome.message}", flush=True)
    code = next((outcome.exit_code for outcome in outcomes if outcome.state == "error"), 0)
    if arguments.json:
        import json

        print(
            json.dumps({"exit_code": code, "checks": [asdict(one) for one in outcomes]}, indent=2, ensure_ascii=False)
        )
    return code
