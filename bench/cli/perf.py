"""Measure latency, throughput, peak memory, parameters and FLOPs of a method."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  bench perf method=refine
  bench perf method=refine size=paper
  bench perf method=refine trainer.threads=2 --json

Pictures are random and nothing is scored; absent weights are replaced by random ones, and the output
says so. Without size=... it measures demo, and paper where there is a GPU."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "bench perf method=NAME [size=NAME] [key=value ...] [--seconds S] [--json]"
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each of the two timings (default: 20)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Measures."""
    import json
    import os

    from bench.config import compose

    config = compose("run", arguments.overrides)
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.report.terminal import number, print_table
    from bench.runs.performance import measure
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    result = measure(config, arguments.seconds)
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    columns = [
        "method", "px", "latency p50", "p95", "images/s", "at batch", "peak memory", "growth", "parameters", "GFLOPs",
        "dtype",
    ]  # fmt: skip
    rows = []
    for one in result["sizes"]:
        rows.append(
            [
                f"{result['method']}@{one['size']}" if one["size"] else result["method"],
                str(one["side"]),
                f"{number(one['latency_ms']['p50'])} ms",
                f"{number(one['latency_ms']['p95'])} ms",
                number(one["throughput"]["images_per_second"]),
                str(one["throughput"]["batch_size"]),
                f"{one['peak_memory_mb']:.0f} MB",
                f"{one['memory_growth_mb']:.0f} MB",
                f"{one['parameters']:,}",
                number(one["gflops"]),
                one["dtype"],
            ]
        )
    hardware = result["hardware"]
    place = result["device"] if result["device"] != "cpu" else hardware["processor"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''} of {hardware['cores']} cores"
    print_table(
        columns, rows, f"{place}, {threads}, precision {result['precision']}, torch {result['versions']['torch']}"
    )
    for one in result["sizes"]:
        for note in one["notes"]:
            print(f"{one['size'] or result['method']}: {note}")
    return 0
