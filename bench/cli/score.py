"""Score restored pictures, of whatever program, against their ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.scores.folders import FolderScores

EXAMPLES = """examples:
  bench score --restored OUT --truth ORIGINALS
  bench score --restored OUT --truth ORIGINALS --references PEOPLE --metrics psnr,lpips,id -o scores.parquet
  bench score --restored OUT --metrics niqe,brisque

Pictures pair by their path in the folder, without suffix: OUT/anna/3.png and ORIGINALS/anna/3.jpg. The
first folder names the person. References: PEOPLE/anna/*.jpg, or a file or folder PEOPLE/anna/3. Sizes must
be equal: nothing is resized. Metrics that need no ground truth work without --truth.

Values are kept by the content of the pictures under $BENCH_HOME/scores (at most 2 GB, or $BENCH_CACHE_MB): a
second call computes only what changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--restored", type=Path, required=True, metavar="DIR", help="restored pictures")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="their ground truth, equally large")
    parser.add_argument("--references", type=Path, metavar="DIR", help="references, a folder for each person")
    parser.add_argument("--metrics", metavar="A,B", help="metrics (default: the standard set; see bench ls metrics)")
    parser.add_argument("--label", metavar="NAME", help="name of the method in the table (default: the folder's name)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write the score table, FILE.parquet; FID and KID go to set_FILE",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per processor)")
    parser.add_argument("--no-cache", action="store_true", help="compute everything anew and keep nothing")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Scores; returns 4 where a picture of the ground truth has no restored picture that can be scored."""
    import json

    from bench.errors import UsageError
    from bench.registry import metric_classes, set_metric_classes
    from bench.scores.feature_cache import ScoreCache
    from bench.scores.folders import score_folders
    from bench.scores.summary import summarise, summarise_sets
    from bench.scores.table import SET_SCHEMA, write_table

    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {arguments.workers}.")
    names = _metric_names(arguments.metrics)
    if arguments.output is not None:
        _check_output(arguments.output)
    _pin_threads()
    found = score_folders(
        arguments.restored,
        arguments.truth,
        arguments.references,
        names,
        arguments.label,
        ScoreCache(active=not arguments.no_cache),
        arguments.workers,
    )
    outputs = _outputs(arguments.output, found)
    if "scores" in outputs:
        write_table(found.table, outputs["scores"])
    if "set_scores" in outputs:
        write_table(found.sets, outputs["set_scores"], SET_SCHEMA)
    classes = metric_classes()
    summary = summarise(found.table, {name: classes[name] for name in names if name in classes})
    set_summary = summarise_sets(found.sets, set_metric_classes())
    if arguments.json:
        print(json.dumps(_content(found, summary, set_summary, outputs), indent=2, ensure_ascii=False))
    else:
        _print(arguments, summary, set_summary, found, outputs)
    return 4 if found.pairing.failed else 0


def _metric_names(given: str | None) -> list[str]:
    """Names of our metrics, each once; what papers call them is translated and the translation said.

    Raises:
        UsageError: A name is unknown, or none is given.
    """
    import sys

    from bench.config import read_preset
    from bench.errors import UsageError
    from bench.registry import resolve_metric, set_metric_classes

    if given is None:
        preset = read_preset("metrics", "standard")
        sets = preset.get("sets")
        return [*preset["names"], *(set_metric_classes() if sets is None else sets)]
    names = []
    for word in (word.strip() for word in given.split(",")):
        if not word:
            continue
        name = resolve_metric(word)
        if name != word:
            print(f"bench: {word} means {name} here", file=sys.stderr)
        names.append(name)
    if not names:
        raise UsageError("--metrics names no metric. See: bench ls metrics")
    return list(dict.fromkeys(names))


def _pin_threads() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _outputs(output: Path | None, found: FolderScores) -> dict[str, Path]:
    if output is None:
        return {}
    return {"scores": output} | ({"set_scores": _set_output(output)} if len(found.sets) else {})


def _set_output(output: Path) -> Path:
    return output.with_name(f"set_{output.name}")


def _check_output(output: Path) -> None:
    """Asks before the work whether the tables can be written after it; makes the folder.

    Raises:
        UsageError: The name is not that of a Parquet file, or nothing can be written there.
    """
    import tempfile

    from bench.errors import UsageError

    for path in (output, _set_output(output)) if output.name else (output,):
        if path.is_dir():
            raise UsageError(f"--output {path} is a folder. Give a file: {output / 'scores.parquet'}")
    if output.suffix.lower() != ".parquet":
        raise UsageError(
            f"--output {output} would be a Parquet table and must be named so: {output.with_suffix('.parquet')}"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"Cannot write {output}: {error.strerror or error}. Give a path in a folder that can be written to."
        ) from error


def _content(
    found: FolderScores, summary: dict[str, Any], set_summary: dict[str, Any], outputs: dict[str, Path]
) -> dict[str, Any]:
    pairing = found.pairing
    return {
        "method": found.method,
        "method_revision": found.revision,
        "pairs": len(pairing.pairs),
        "not_restored": pairing.not_restored,
        "without_truth": pairing.without_truth,
        "failed": pairing.failed,
        "metrics": summary,
        "set_metrics": set_summary,
        "computed": found.computed,
        "reused": found.reused,
        "scores": str(outputs["scores"]) if outputs else None,
    }


def _print(
    arguments: argparse.Namespace,
    summary: dict[str, Any],
    set_summary: dict[str, Any],
    found: FolderScores,
    outputs: dict[str, Path],
) -> None:
    import sys

    from bench.report.terminal import number, print_table
    from bench.scores.folders import shorten

    rows = []
    for metric in (*summary.values(), *set_summary.values()):
        arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        value = metric["mean"] if "mean" in metric else metric["value"]
        interval = "" if metric["low"] is None else f"[{number(metric['low'])}, {number(metric['high'])}]"
        remark = metric["reason"] or (metric["interval"] if "value" in metric and metric["interval"] else "")
        heading = f"{metric['title']}{unit}{arrow}"
        rows.append([heading, number(value), interval, f"{metric['n']}/{metric['of']}", remark.partition("\n")[0]])
    print_table(["metric", "mean", "95 % interval", "scored", "remark"], rows, f"{arguments.restored}, no protocol")
    for path in outputs.values():
        print(f"scores: {path}")
    if found.reused:
        print(f"{found.computed} values computed, {found.reused} known from before (--no-cache computes all anew)")
    pairing = found.pairing
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
