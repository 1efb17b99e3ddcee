"""Restore pictures of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  bench restore old.png --method pfstorer --personal anna.safetensors -o new.png
  bench restore photos --method pfstorer --reference anna/1.png anna/2.png anna/3.png -o restored
  bench restore tiny.png --method pfstorer --personal anna.safetensors --scale 20 -o large.png
  bench restore old.png --method refine --reference anna/1.png -o new.png

Pictures are aligned faces; methods that work in tiles take pictures of any size. A restored picture is as large as
the one that was given, times --scale. A picture that fails stops no other: the exit code is then 4."""

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = (
        "bench restore PICTURE|FOLDER [...] --method NAME [--personal FILE] [--reference FILE [FILE ...]] -o OUT\n"
        "                     [--scale N] [--seed N] [key=value ...] [--json]"
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="pictures, or folders of pictures")
    parser.add_argument("--method", metavar="NAME", help="the method; method=NAME is the same")
    parser.add_argument("--personal", type=Path, metavar="FILE", help="a person, from bench personalise")
    parser.add_argument(
        "--reference",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="pictures of the person; a method that learns persons learns this one first",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="FILE.png for one picture, else a folder"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="N", help="enlarge the pictures N times first, bicubically"
    )
    parser.add_argument("--seed", type=int, help="seed of the restoration (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Restores; returns 4 where a picture failed."""
    import json
    import math
    import os

    from bench.cli.own_words import own_config, separated
    from bench.errors import UsageError

    if not (math.isfinite(arguments.scale) and arguments.scale > 0):
        raise UsageError(f"--scale must be a number above 0, got {arguments.scale:g}.")
    pictures, words = separated(arguments.pictures)
    references, more = separated(arguments.reference)
    if not pictures:
        raise UsageError("Which pictures? Give files or a folder before the options. Try: bench restore --help")
    config = own_config(arguments, [*words, *more], "restore")
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.runs.own_person import restore_own
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    personal = arguments.personal.expanduser() if arguments.personal is not None else None
    result = restore_own(config, pictures, arguments.output.expanduser(), personal, references, arguments.scale)
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print(result)
    return 4 if result["failed"] else 0


def _print(result: dict[str, Any]) -> None:
    import statistics
    import sys

    from bench.report.terminal import print_table

    written = result["pictures"]
    if written:
        rows = [[one["file"], f"{one['width']}x{one['height']}", f"{one['seconds']:.2f} s"] for one in written[:SHOWN]]
        if len(written) > SHOWN:
            rows.append([f"and {len(written) - SHOWN} more", "", ""])
        median = statistics.median(one["seconds"] for one in written)
        count = f"{len(written)} picture{'s' if len(written) > 1 else ''}"
        title = f"{result['method']}: {count}, {median:.2f} s each, peak memory {result['peak_memory_mb']:.0f} MB"
        print_table(["restored", "px", "time"], rows, title)
    for path, reason in result["failed"].items():
        print(f"failed: {path}: {reason}", file=sys.stderr)
