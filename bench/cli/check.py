"""Find everything that would stop a run, before it starts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.runs.check import Check

EXAMPLES = """examples:
  bench check method=refine data=orl_heavy
  bench check method=refine data=celebref_heavy data.root=FOLDER --json

One line for each check, and for each thing that the method needs and lacks. The exit code is that of the first
error: 2 wrong configuration, 3 something missing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "bench check method=NAME [data=NAME] [key=value ...] [--json]"
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Checks; returns the exit code of the first error."""
    from dataclasses import asdict

    outcomes = []
    for outcome in _checks(arguments.overrides):
        outcomes.append(outcome)
        if not arguments.json:
            lines = outcome.message.replace("\n", "\n" + " " * 24)
            print(f"{outcome.state:<8} {outcome.name:<14} {lines}", flush=True)
    code = next((outcome.exit_code for outcome in outcomes if outcome.state == "error"), 0)
    if arguments.json:
        import json

        print(
            json.dumps({"exit_code": code, "checks": [asdict(one) for one in outcomes]}, indent=2, ensure_ascii=False)
        )
    return code


def _checks(words: list[str]) -> Iterator[Check]:
    """The checks of a run, that of the metrics of whole sets after that of the metrics of pictures."""
    from bench.runs.check import check_run

    for outcome in check_run(words):
        yield outcome
        if outcome.name == "metrics":
            yield _set_metrics(words)


def _set_metrics(words: list[str]) -> Check:
    """Which of FID and KID the run would have, and what brings the others."""
    from bench.config import compose
    from bench.errors import BenchError, UsageError
    from bench.registry import load_set_metric, set_metric_classes
    from bench.runs.check import Check

    try:
        names = compose("run", words)["metrics"].get("sets")
        if not isinstance(names, list | None):
            raise UsageError(f"metrics.sets must be a list in brackets, such as [kid_gt], got {names!r}.")
        metrics = [load_set_metric(name)() for name in (set_metric_classes() if names is None else names)]
    except BenchError as error:
        return Check("set metrics", "error", str(error), error.exit_code)
    if not metrics:
        return Check("set metrics", "ok", "none wanted (metrics.sets=[])")
    reasons: dict[str, list[str]] = {}
    for metric in metrics:
        if reason := metric.unavailable():
            reasons.setdefault(" ".join(reason.split()), []).append(metric.name)
    if not reasons:
        return Check("set metrics", "ok", f"all {len(metrics)} available: {', '.join(own.name for own in metrics)}")
    lacking = sum(len(own) for own in reasons.values())
    listed = "; ".join(f"{', '.join(own)}: {reason}" for reason, own in reasons.items())
    return Check("set metrics", "warning", f"{lacking} of {len(metrics)} will be null ({listed})")
