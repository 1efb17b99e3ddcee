"""Compare two runs metric by metric with the exact paired test over identities."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from bench.scores.statistics import Comparison

EXAMPLES = """\
  bench compare runs/refine-orl_heavy runs/input-orl_heavy
  bench compare ours.scores.parquet theirs.scores.parquet --metrics psnr,id --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder or score table (.parquet)")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="run folder or score table to compare it with")
    parser.add_argument("--metrics", help="names separated by commas (default: all that both have)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; the outcome does not change the exit code."""
    from bench.config import read_preset
    from bench.scores.compare import claim_lines, compare_tables

    tables = [_table(arguments.run_a), _table(arguments.run_b)]
    wanted = [name.strip() for name in arguments.metrics.split(",") if name.strip()] if arguments.metrics else None
    ranked = _directions(arguments.run_a, arguments.run_b)
    comparisons, skipped = compare_tables(tables[0], tables[1], wanted, ranked)
    if arguments.json:
        claims = claim_lines(comparisons, read_preset("metrics", "standard"))
        result = _as_json(arguments, tables, comparisons, skipped) | {"claims": claims}
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    from bench.report.terminal import print_table

    a, b = _label(tables[0], arguments.run_a), _label(tables[1], arguments.run_b)
    print(f"A: {a}\nB: {b}")
    if comparisons:
        columns = ["metric", "A", "B", "A - B [95 %]", "p", "Holm p", "A is", "d_z", "images", "identities"]
        print_table(columns, [_row(one) for one in comparisons])
        print("p: two-sided sign-flip test on identity means, exact up to 20. A is better or worse where Holm p < .05.")
        for line in claim_lines(comparisons, read_preset("metrics", "standard")):
            print(line)
    for name, reason in skipped.items():
        print(f"{name}: not compared ({reason})")
    return 0


def _table(path: Path) -> pd.DataFrame:
    from bench.errors import UsageError
    from bench.scores.table import read_table

    if not path.exists():
        raise UsageError(f"{path} does not exist. Give a run folder or a score table (.parquet).")
    table = read_table(path / "scores.parquet" if path.is_dir() else path)
    if table.empty:
        raise UsageError(f"The score table of {path} has no rows.")
    return table


def _directions(*paths: Path) -> dict[str, bool | None]:
    """What the metric classes state; where the runs' summaries state it, theirs."""
    from bench.registry import metric_classes
    from bench.scores.summary import read_summary

    found = {name: metric.higher_is_better for name, metric in metric_classes().items()}
    for path in paths:
        if (path / "summary.json").is_file():
            found |= {name: metric["higher_is_better"] for name, metric in read_summary(path)["metrics"].items()}
    return found


def _label(table: pd.DataFrame, path: Path) -> str:
    first = table.iloc[0]
    return f"{first['method']} (revision {first['method_revision']}, seed {first['seed']}) from {path}"


def _verdict(comparison: Comparison) -> str:
    return {True: "better", False: "worse", None: "no difference shown"}[comparison.better]


def _row(one: Comparison) -> list[str]:
    from bench.report.terminal import number, p_value

    difference = f"{one.mean_difference:+.4g}"
    if one.low is not None:
        difference += f" [{one.low:+.4g}, {one.high:+.4g}]"
    verdict = _verdict(one) if one.higher_is_better is not None else "not ranked"
    size = "n/a" if one.effect_size is None else f"{one.effect_size:+.2f}"
    p_values = [p_value(one.p), p_value(one.p_adjusted)]
    counts = [str(one.n_images), str(one.n_identities)]
    return [one.metric, number(one.mean_a), number(one.mean_b), difference, *p_values, verdict, size, *counts]


def _as_json(
    arguments: argparse.Namespace, tables: list[pd.DataFrame], comparisons: list[Comparison], skipped: dict[str, str]
) -> dict[str, Any]:
    runs = {}
    for side, table, path in zip("ab", tables, (arguments.run_a, arguments.run_b), strict=True):
        first = table.iloc[0]
        runs[side] = {"path": str(path), "method": first["method"], "method_revision": first["method_revision"]}
    metrics = {one.metric: {**asdict(one), "better": one.better} for one in comparisons}
    return {"protocol_id": tables[0]["protocol_id"].iloc[0], **runs, "metrics": metrics, "not_compared": skipped}
