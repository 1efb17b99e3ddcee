"""Degrade a folder of pictures and record the sampled parameters."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  bench degrade photos -o degraded --preset heavy --seed 0
  bench degrade photos -o again --replay degraded/theta.jsonl
  bench degrade photos -o degraded --preset gfpgan --workers 8

The same call on the same pictures gives the same bytes, with any number of workers; a stopped call goes on where it
stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, possibly in subfolders")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for PNGs and theta.jsonl"
    )
    parser.add_argument("--preset", help="degradation preset (default: heavy; see bench ls degradations)")
    parser.add_argument("--seed", type=int, help="declared seed (default: 0)")
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        help="side that the preset's ranges, written for 512 px, are scaled to (default: native, each picture's "
        "shorter side); pictures keep their size",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="theta.jsonl whose parameters are applied again, instead of a preset",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that degrade (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Degrades; returns 4 where a picture failed."""
    import sys

    from bench.errors import UsageError

    if arguments.replay:
        given = [name for name in ("preset", "seed", "size") if getattr(arguments, name) is not None]
        if given:
            raise UsageError(
                f"--replay applies what the records say: leave out {' and '.join('--' + n for n in given)}."
            )
    arguments.size = arguments.size or "native"
    if arguments.size != "native" and not (arguments.size.isdecimal() and int(arguments.size) > 0):
        raise UsageError(f"--size {arguments.size!r} is neither 'native' nor a number of pixels, such as 512.")
    import cv2
    import torch

    from bench.degradation.contact_sheet import CONTACT_SHEET
    from bench.degradation.folder import degrade_folder
    from bench.degradation.records import RECORDS, read_records

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size = None if arguments.size == "native" else int(arguments.size)
    records = read_records(arguments.replay) if arguments.replay else None
    result = degrade_folder(
        arguments.folder,
        arguments.output,
        arguments.preset or "heavy",
        arguments.seed or 0,
        size,
        records,
        arguments.workers,
    )
    if arguments.json:
        import json
        from dataclasses import asdict

        counts = {**asdict(result), "output": str(result.output)}
        print(json.dumps(counts, indent=2, ensure_ascii=False))
    else:
        removed = f", {result.removed} of pictures that are gone were removed" if result.removed else ""
        kept = f", {result.kept} were there already" if result.kept else ""
        print(f"{result.written} pictures written to {result.output}{kept}{removed}")
        if result.written or result.kept:
            print(f"parameters: {result.output / RECORDS}\ncontact sheet: {result.output / CONTACT_SHEET}")
        for path, reason in result.failed.items():
            print(f"failed: {path}: {reason}", file=sys.stderr)
    return 4 if result.failed else 0
