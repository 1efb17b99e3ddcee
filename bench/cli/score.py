"""Score restored pictures, of whatever program, against their ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.scores.folders import Pairing

EXAMPLES = """examples:
  bench score --restored OUT --truth ORIGINALS
  bench score --restored OUT --truth ORIGINALS --references PEOPLE --metrics psnr_y,id -o scores.parquet

Pictures pair by their path in the folder, without suffix: OUT/anna/3.png and ORIGINALS/anna/3.jpg. The
first folder names the person. References: PEOPLE/anna/*.jpg, or a file or folder PEOPLE/anna/3."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--restored", type=Path, required=True, metavar="DIR", help="restored pictures")
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR", help="their ground truth, equally large")
    parser.add_argument("--references", type=Path, metavar="DIR", help="references, a folder for each person")
    parser.add_argument("--metrics", metavar="A,B", help="metrics (default: the standard set; see bench ls metrics)")
    parser.add_argument("--label", metavar="NAME", help="name of the method in the table (default: the folder's name)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the score table (Parquet)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Scores; returns 4 where a picture of the ground truth has no restored picture that can be scored."""
    import json

    from bench.config import read_preset
    from bench.registry import load_metric
    from bench.scores.folders import score_folders
    from bench.scores.summary import summarise
    from bench.scores.table import write_table

    if arguments.metrics is None:
        names = list(read_preset("metrics", "standard")["names"])
    else:
        names = list(dict.fromkeys(name.strip() for name in arguments.metrics.split(",") if name.strip()))
    classes = {name: load_metric(name) for name in names}
    _pin_threads()
    table, pairing = score_folders(arguments.restored, arguments.truth, arguments.references, names, arguments.label)
    if arguments.output:
        write_table(table, arguments.output)
    summary = summarise(table, classes)
    if arguments.json:
        content = {
            "method": table["method"].iloc[0],
            "method_revision": table["method_revision"].iloc[0],
            "pairs": len(pairing.pairs),
            "not_restored": pairing.not_restored,
            "without_truth": pairing.without_truth,
            "failed": pairing.failed,
            "metrics": summary,
            "scores": str(arguments.output) if arguments.output else None,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print(arguments, summary, pairing)
    return 4 if pairing.failed else 0


def _pin_threads() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _print(arguments: argparse.Namespace, summary: dict[str, Any], pairing: Pairing) -> None:
    import sys

    from bench.report.terminal import number, print_table
    from bench.scores.folders import shorten

    rows = []
    for metric in summary.values():
        arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        absent = metric["mean"] is None
        interval = "" if absent else f"[{number(metric['low'])}, {number(metric['high'])}]"
        heading = f"{metric['title']}{unit}{arrow}"
        rows.append(
            [heading, number(metric["mean"]), interval, f"{metric['n']}/{metric['of']}", metric["reason"] or ""]
        )
    print_table(["metric", "mean", "95 % interval", "scored", "why not"], rows, f"{arguments.restored}, no protocol")
    if arguments.output:
        print(f"scores: {arguments.output}")
    if pairing.not_restored:
        names = shorten(pairing.not_restored)
        print(f"bench: warning: {len(pairing.not_restored)} not restored: {names}", file=sys.stderr)
    if pairing.without_truth:
        names = shorten(pairing.without_truth)
        print(
            f"bench: warning: {len(pairing.without_truth)} without ground truth, not scored: {names}", file=sys.stderr
        )
    for name, reason in pairing.failed.items():
        if name not in pairing.not_restored:
            print(f"failed: {name}: {reason}", file=sys.stderr)
