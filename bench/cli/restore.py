"""Restore photographs of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  bench restore old.jpg --method pfstorer --reference me1.jpg me2.jpg me3.jpg -o out
  bench restore album "scans/*.tif" --method refine --reference anna.jpg -o restored
  bench restore group.jpg --method authface --faces all -o group_restored.jpg
  bench restore old.jpg --method refine --reference me.jpg --background realesrgan --scale 2 -o large.png
  bench restore old.jpg --method pfstorer --personal anna.safetensors -o out     # see bench personalise
  bench restore crops --aligned --method pfstorer --personal anna.safetensors -o restored

Photographs are taken as they come: they are turned as their EXIF says, faces are found, cut out the way the method's
weights want them, restored, and put back with a soft edge. All else stays as it is, unless --background restores it.
Size, format, EXIF, colour profile and transparency are kept; XMP and a thumbnail in the EXIF, which tell of the old
picture, are not. Results have 8 bits per channel. Files of several pages fail: split them first. References are
photographs too. before_after.html in the output (beside a single file) shows what was done.

Whom --faces restores by default: with --reference the face that is most like the references (matching); with
--personal, which holds no picture to know anybody by, the largest; without either all. References are used for faces
that look like them: with all, others are restored without any, and so is with matching the only face of a photograph; a
method that learns persons restores nobody else, and the photograph fails. largest takes the largest face for the person
of the references whatever it looks like, such as one that is too degraded to be known.

Weights of size demo have seen grey faces only: they restore the lightness, and the photograph keeps its own colours.

--aligned takes pictures that are aligned faces already, as they are, references too; methods that work in tiles then
take any size and restore all of it, and results are PNGs.

No input is ever overwritten. A file that is there already is replaced if it is an earlier result as it was written, so
that the same call can be made again; any other is not, unless --overwrite is given, and nothing is restored then.
before_after.html stays while it shows other photographs; the new page is before_after_2.html.

--class-word tells a method that is told by text, such as dual_pivot, what to call a person whom it learns.

A photograph that fails, such as one without a face, stops no other: the exit code is then 4, and it is not written."""

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = (
        "bench restore PICTURE|FOLDER|PATTERN [...] --method NAME [--reference FILE [FILE ...] | --personal FILE]\n"
        "                     -o OUT [--faces all|largest|matching] [--background NAME] [--scale N] [--aligned]\n"
        "                     [--class-word WORD] [--overwrite] [--seed N] [key=value ...] [--json]"
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="photographs, folders of them, or patterns")
    parser.add_argument("--method", metavar="NAME", help="the method; method=NAME is the same")
    parser.add_argument("--personal", type=Path, metavar="FILE", help="a person, from bench personalise")
    parser.add_argument(
        "--reference",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="photographs of the person; a method that learns persons learns this one first",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="a file for one photograph, else a folder"
    )
    parser.add_argument(
        "--faces",
        choices=("all", "largest", "matching"),
        help="whom to restore (default: matching with --reference, largest with --personal, else all)",
    )
    parser.add_argument(
        "--background",
        metavar="NAME",
        help="a method that restores all else too, such as realesrgan; background.KEY=VALUE are its settings",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="N", help="enlarge the photographs N times, bicubically at first"
    )
    parser.add_argument("--aligned", action="store_true", help="pictures and references are aligned faces already")
    parser.add_argument(
        "--class-word",
        default="person",
        metavar="WORD",
        help="man, woman, ...: of a person who is learnt by a method that is told by text",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are there already and are no earlier results"
    )
    parser.add_argument("--seed", type=int, help="seed of the restoration (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Restores; returns 4 where a picture failed."""
    import json
    import math
    import os

    from bench.cli.own_words import BACKGROUND, background_config, own_config, separated
    from bench.errors import UsageError

    if not (math.isfinite(arguments.scale) and arguments.scale > 0):
        raise UsageError(f"--scale must be a number above 0, got {arguments.scale:g}.")
    pictures, words = separated(arguments.pictures)
    references, more = separated(arguments.reference)
    if not pictures:
        raise UsageError("Which pictures? Give files or a folder before the options. Try: bench restore --help")
    if arguments.aligned and (arguments.faces or arguments.background):
        raise UsageError(
            f"--aligned pictures are a face each: leave out --{'faces' if arguments.faces else BACKGROUND}."
        )
    background = background_config(arguments, [*words, *more])
    config = own_config(arguments, [*words, *more], "restore")
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    personal = arguments.personal.expanduser() if arguments.personal is not None else None
    output = arguments.output.expanduser()
    if arguments.aligned:
        from bench.runs.own_person import restore_own

        result = restore_own(
            config,
            pictures,
            output,
            personal,
            references,
            arguments.scale,
            arguments.class_word,
            arguments.overwrite,
        )
    else:
        from bench.runs.own_photographs import Wish, restore_photographs

        wish = Wish(arguments.faces, arguments.scale, background, arguments.class_word, arguments.overwrite)
        result = restore_photographs(config, pictures, output, personal, references, wish)
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
        with_faces = "faces" in written[0]
        rows = [
            [one["file"], f"{one['width']}x{one['height']}", *([_faces(one)] if with_faces else []), _seconds(one)]
            for one in written[:SHOWN]
        ]
        if len(written) > SHOWN:
            rows.append([f"and {len(written) - SHOWN} more", *[""] * (len(rows[0]) - 1)])
        median = statistics.median(one["seconds"] for one in written)
        count = f"{len(written)} picture{'s' if len(written) > 1 else ''}"
        title = f"{result['method']}: {count}, {median:.2f} s each, peak memory {result['peak_memory_mb']:.0f} MB"
        print_table(["restored", "px", *(["faces"] if with_faces else []), "time"], rows, title)
    if result.get("page"):
        print(f"before and after: {result['page']}")
    for path, reason in result["failed"].items():
        print(f"failed: {path}: {reason}", file=sys.stderr)


def _faces(one: dict[str, Any]) -> str:
    """`1` or `1 of 4`: faces restored of those found."""
    restored, found = sum(face["restored"] for face in one["faces"]), len(one["faces"])
    return f"{restored}" if restored == found else f"{restored} of {found}"


def _seconds(one: dict[str, Any]) -> str:
    return f"{one['seconds']:.2f} s"
