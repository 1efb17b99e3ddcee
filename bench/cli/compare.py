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
  bench compare runs/refine-orl_heavy runs/input-orl_heavy --plot differences.svg
  bench compare ours.scores.parquet theirs.scores.parquet --metrics psnr,id --json
"""


COLUMNS = ["metric", "A", "B", "A - B [95 %]", "p", "Holm p", "A is", "d_z", "better on", "shows .05", "shows .01"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder or score table (.parquet)")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="run folder or score table to compare it with")
    parser.add_argument("--metrics", help="names separated by commas (default: all that both have)")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the difference of every identity")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; the outcome does not change the exit code."""
    from bench.config import read_preset
    from bench.errors import UsageError
    from bench.scores.compare import claim_lines, compare_tables

    if arguments.plot and arguments.plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot writes SVG: give a file name that ends in .svg, not {arguments.plot}.")
    tables = [_table(arguments.run_a), _table(arguments.run_b)]
    wanted = (
        None if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    )
    if wanted == []:
        raise UsageError(f"--metrics {arguments.metrics!r} names no metric. Leave it away for all.")
    ranked = _directions(arguments.run_a, arguments.run_b)
    comparisons, skipped = compare_tables(tables[0], tables[1], wanted, ranked)
    if arguments.plot:
        _draw(arguments, tables, comparisons)
    if arguments.json:
        claims = claim_lines(comparisons, read_preset("metrics", "standard"))
        result = _as_json(arguments, tables, comparisons, skipped) | {"claims": claims}
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    from bench.report.terminal import print_table

    a, b = _label(tables[0], arguments.run_a), _label(tables[1], arguments.run_b)
    print(f"A: {a}\nB: {b}")
    if comparisons:
        print_table(COLUMNS, [_row(one) for one in comparisons])
        for line in _legend(comparisons):
            print(line)
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


def _legend(comparisons: list[Comparison]) -> list[str]:
    """What the columns mean, and what holds for all of them."""
    from bench.report.terminal import p_value
    from bench.scores.power import smallest_p

    counts = sorted({(one.n_identities, one.n_images) for one in comparisons}, reverse=True)
    pairs = ", ".join(
        f"{people} ({images} images, smallest p {p_value(smallest_p(people))})" for people, images in counts
    )
    return [
        f"identities in common: {pairs}",
        "p: two-sided sign-flip test on identity means, exact to 20, Monte Carlo above. Better or worse: Holm p < .05.",
        "d_z: mean difference over its standard deviation between identities. better on: identities with A ahead.",
        "shows .05 / .01: smallest true difference that one such test shows at that level with 80 % power, with the "
        "identities in common and the spread between them seen here.",
        *dict.fromkeys(
            f"95 % intervals of skewed differences may be too narrow: {note}"
            for one in comparisons
            if (note := _coverage(one))
        ),
        *dict.fromkeys(note for one in comparisons if (note := _symmetry(one))),
    ]


def _coverage(one: Comparison) -> str | None:
    from bench.scores.simulation import coverage_note

    return coverage_note(one.n_identities, one.interval.split(" over ")[0], one.n_images / one.n_identities)


def _symmetry(one: Comparison) -> str | None:
    from bench.scores.simulation import symmetry_note

    return symmetry_note(one.n_identities, one.n_images / one.n_identities)


def _draw(arguments: argparse.Namespace, tables: list[pd.DataFrame], comparisons: list[Comparison]) -> None:
    from bench.files import write_text
    from bench.report.paired import paired_plot
    from bench.scores.compare import identity_differences

    a, b = _label(tables[0], arguments.run_a), _label(tables[1], arguments.run_b)
    differences = {one.metric: identity_differences(tables[0], tables[1], one.metric) for one in comparisons}
    write_text(arguments.plot, paired_plot(comparisons, differences, a, b))


def _row(one: Comparison) -> list[str]:
    from bench.registry import metric_classes
    from bench.report.terminal import number, p_value
    from bench.scores.power import comparison_power

    difference = f"{one.mean_difference:+.4g}"
    if one.low is not None:
        difference += f" [{one.low:+.4g}, {one.high:+.4g}]"
    verdict = _verdict(one) if one.higher_is_better is not None else "not ranked"
    size = "n/a" if one.effect_size is None else f"{one.effect_size:+.2f}"
    p_values = [p_value(one.p), p_value(one.p_adjusted)]
    ahead = "n/a" if one.a_better is None else f"{one.a_better}/{one.n_identities}"
    smallest = comparison_power(one).smallest_difference.values()
    known = metric_classes().get(one.metric)
    unit = f" {known.unit}" if known and known.unit else ""
    shows = ["nothing" if value is None else f"{value:.3g}{unit}" for value in smallest]
    means = [number(one.mean_a), number(one.mean_b)]
    return [one.metric, *means, difference, *p_values, verdict, size, ahead, *shows]


def _as_json(
    arguments: argparse.Namespace, tables: list[pd.DataFrame], comparisons: list[Comparison], skipped: dict[str, str]
) -> dict[str, Any]:
    runs = {}
    for side, table, path in zip("ab", tables, (arguments.run_a, arguments.run_b), strict=True):
        first = table.iloc[0]
        runs[side] = {"path": str(path), "method": first["method"], "method_revision": first["method_revision"]}
    from bench.scores.power import comparison_power

    metrics = {
        one.metric: {
            **asdict(one),
            "better": one.better,
            **comparison_power(one).as_json(),
            "interval_note": _coverage(one),
            "test_note": _symmetry(one),
        }
        for one in comparisons
    }
    return {"protocol_id": tables[0]["protocol_id"].iloc[0], **runs, "metrics": metrics, "not_compared": skipped}
