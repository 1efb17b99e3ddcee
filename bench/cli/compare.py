"""Compare two runs metric by metric with the exact paired test over identities."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from bench.scores.compare import AveragedRuns
    from bench.scores.statistics import Comparison

EXAMPLES = """\
  bench compare runs/refine-orl_heavy runs/input-orl_heavy
  bench compare runs/refine-orl_heavy runs/input-orl_heavy --plot differences.svg
  bench compare base-0 base-1 base-2 --against fir-0 fir-1 fir-2
  bench compare ours.scores.parquet theirs.scores.parquet --metrics psnr,id --json
"""


COLUMNS = ["metric", "A", "B", "A - B [95 %]", "p", "Holm p", "A is", "d_z", "better on", "shows .05", "shows .01"]
OVER_PEOPLE = (
    "Intervals and tests are over people, of values averaged over the runs of a side; they are not over seeds."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder or score table (.parquet)")
    second = parser.add_argument(
        "run_b", type=Path, metavar="RUN_B", help="run folder or score table to compare it with; with --against, of A"
    )
    # Still two positionals that options may stand between; with --against one run may stand alone.
    second.required = False
    parser.add_argument(
        "more_a", type=Path, nargs="*", default=[], metavar="RUN", help="further runs of A; needs --against"
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="runs of B: values are averaged over the runs of a side, which differ in seed or weights",
    )
    parser.add_argument("--metrics", help="names separated by commas (default: all that both have)")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the difference of every identity")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; the outcome does not change the exit code."""
    from bench.config import read_preset
    from bench.errors import UsageError
    from bench.scores.compare import average_runs, claim_lines, compare_tables

    if arguments.plot and arguments.plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot writes SVG: give a file name that ends in .svg, not {arguments.plot}.")
    paths = _sides(arguments)
    sides = [average_runs([_table(path) for path in own], name) for name, own in zip(("A", "B"), paths, strict=True)]
    tables = [side.table for side in sides]
    wanted = (
        None if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    )
    if wanted == []:
        raise UsageError(f"--metrics {arguments.metrics!r} names no metric. Leave it away for all.")
    ranked = _directions(*paths[0], *paths[1])
    unaveraged = sides[1].skipped | sides[0].skipped
    averaged = None if wanted is None else [name for name in wanted if name not in unaveraged]
    comparisons, skipped = compare_tables(tables[0], tables[1], averaged, ranked)
    skipped |= {name: reason for name, reason in unaveraged.items() if wanted is None or name in wanted}
    labels = [_label(side, own) for side, own in zip(sides, paths, strict=True)]
    if arguments.plot:
        _draw(arguments.plot, tables, comparisons, labels)
    several = any(len(own) > 1 for own in paths)
    if arguments.json:
        claims = claim_lines(comparisons, read_preset("metrics", "standard"))
        result = _as_json(paths, sides, comparisons, skipped) | {"claims": claims}
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    from bench.report.terminal import print_table

    print(f"A: {labels[0]}\nB: {labels[1]}")
    if comparisons:
        print_table(COLUMNS, [_row(one) for one in comparisons])
        for line in _legend(comparisons):
            print(line)
        for line in claim_lines(comparisons, read_preset("metrics", "standard")):
            print(line)
        if several:
            _print_runs(comparisons, sides, paths)
    for name, reason in skipped.items():
        print(f"{name}: not compared ({reason})")
    return 0


def _sides(arguments: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    from bench.errors import UsageError

    first = [arguments.run_a, *([arguments.run_b] if arguments.run_b else []), *arguments.more_a]
    if arguments.against:
        return first, arguments.against
    if len(first) != 2:
        raise UsageError(
            f"{len(first)} run{'s' * (len(first) > 1)} and no --against: give two runs to compare, or the runs of "
            "each side, which differ in seed or weights: bench compare A-0 A-1 --against B-0 B-1."
        )
    return first[:1], first[1:]


def _print_runs(comparisons: list[Comparison], sides: list[AveragedRuns], paths: tuple[list[Path], list[Path]]) -> None:
    """The mean of every run, so that the spread over seeds is seen."""
    from bench.report.terminal import number, print_table

    means = _run_means(comparisons, sides)
    rows = []
    for which, name in enumerate("AB"):
        for index, (table, path) in enumerate(zip(sides[which].runs, paths[which], strict=True)):
            first = table.iloc[0]
            made = f"{str(first['method_revision'])[:12]} seed {first['seed']}"
            rows.append([name, made, *(number(means[one.metric][which][index]) for one in comparisons), str(path)])
    print_table(["side", "revision", *(one.metric for one in comparisons), "run"], rows, "mean of each run:")
    print(f"{OVER_PEOPLE} Images without a value in one run of a side count in none.")
    for name, side in zip("AB", sides, strict=True):
        for metric, images in side.dropped.items():
            if any(one.metric == metric for one in comparisons):
                total = side.table["image_id"].nunique()
                print(f"{metric}: {images} of {total} images of {name} dropped, without a value in one of its runs")


def _run_means(comparisons: list[Comparison], sides: list[AveragedRuns]) -> dict[str, list[list[float]]]:
    """For each metric the mean of each run of A and of B, over the images that count in the comparison."""
    from bench.scores.compare import shared_images

    found = {}
    for one in comparisons:
        images = shared_images(sides[0].table, sides[1].table, one.metric)
        found[one.metric] = [side.by_run(one.metric, images) for side in sides]
    return found


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


def _label(side: AveragedRuns, paths: list[Path]) -> str:
    first = side.table.iloc[0]
    if len(paths) == 1:
        return f"{first['method']} (revision {first['method_revision']}, seed {first['seed']}) from {paths[0]}"
    return f"{first['method']}, mean of {len(paths)} runs, from {', '.join(map(str, paths))}"


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


def _draw(plot: Path, tables: list[pd.DataFrame], comparisons: list[Comparison], labels: list[str]) -> None:
    from bench.files import write_text
    from bench.report.paired import paired_plot
    from bench.scores.compare import identity_differences

    differences = {one.metric: identity_differences(tables[0], tables[1], one.metric) for one in comparisons}
    write_text(plot, paired_plot(comparisons, differences, *labels))


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
    paths: tuple[list[Path], list[Path]],
    sides: list[AveragedRuns],
    comparisons: list[Comparison],
    skipped: dict[str, str],
) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for name, side, own in zip("ab", sides, paths, strict=True):
        made = [_run_json(table, path) for table, path in zip(side.runs, own, strict=True)]
        if len(made) == 1:
            runs[name] = {key: value for key, value in made[0].items() if key != "seed"}
        else:
            runs[name] = {"mean_of": len(made), "runs": made, "dropped_images": side.dropped}
    from bench.scores.power import comparison_power

    several = max(map(len, paths)) > 1
    means = _run_means(comparisons, sides) if several else {}
    metrics = {
        one.metric: {
            **asdict(one),
            "better": one.better,
            **comparison_power(one).as_json(),
            "interval_note": _coverage(one),
            "test_note": _symmetry(one),
            **({"by_run": dict(zip("ab", means[one.metric], strict=True))} if several else {}),
        }
        for one in comparisons
    }
    protocol_id = sides[0].table["protocol_id"].iloc[0]
    said = {"intervals_over": OVER_PEOPLE} if several else {}
    return {"protocol_id": protocol_id, **runs, **said, "metrics": metrics, "not_compared": skipped}


def _run_json(table: pd.DataFrame, path: Path) -> dict[str, Any]:
    first = table.iloc[0]
    made = {"path": str(path), "method": first["method"], "method_revision": first["method_revision"]}
    return made | {"seed": int(first["seed"])}
