"""Learn a person from reference pictures, once, for a method that is tuned for each person."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  bench personalise method=pfstorer --reference anna/*.jpg -o anna.safetensors
  bench restore old.jpg --method pfstorer --personal anna.safetensors -o new.jpg

References are photographs of the person, 3 to 5 of them. The face is found and cut out; of several it is the one most
like those of the other photographs, else the largest. With --aligned they are aligned square pictures of the face.
What was learnt is kept under $BENCH_HOME/personal too: the same call again learns nothing, and one that was stopped
goes on where it stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = (
        "bench personalise method=NAME --reference FILE [FILE ...] -o FILE [--aligned] [--class-word WORD]\n"
        "                         [--seed N] [key=value ...] [--json]"
    )
    parser.add_argument(
        "--reference", nargs="+", action="extend", required=True, metavar="FILE", help="photographs of the person"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="where to write it, FILE.safetensors"
    )
    parser.add_argument("--aligned", action="store_true", help="references are aligned square pictures of the face")
    parser.add_argument(
        "--class-word", default="person", metavar="WORD", help="man, woman, ...: read by methods that are told by text"
    )
    parser.add_argument("--seed", type=int, help="seed of the learning (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Learns; returns the exit code."""
    import json
    import os

    from bench.cli.own_words import own_config, separated

    references, words = separated(arguments.reference)
    config = own_config(arguments, words, "personalise")
    os.environ.setdefault("OMP_NUM_THREADS", str(config["trainer"]["threads"]))
    from bench.runs.own_person import personalise
    from bench.runs.quiet import quiet_lightning

    quiet_lightning()
    result = personalise(config, references, arguments.output.expanduser(), arguments.aligned, arguments.class_word)
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    if result["known"]:
        print(f"{result['method']} knows this person already; nothing was learnt ({result['seconds']:.1f} s)")
    else:
        print(f"{result['method']} learnt the person in {result['seconds']:.1f} s ({result['iterations']} iterations)")
    print(f"key   {result['key']}\nbase  {result['base']}\nfile  {result['file']} ({result['bytes'] / 1e6:.1f} MB)")
    return 0
