"""Leaderboard entries: one JSON file per method revision and protocol, made from a run folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bench.errors import UsageError
from bench.files import write_json
from bench.leaderboard.claim_marks import same_marks, with_todays_claims
from bench.leaderboard.schema import ENTRY_SCHEMA, SET_METRIC, validate
from bench.paths import leaderboard_root, resource_root
from bench.scores.statistics import identity_means
from bench.scores.summary import public_reason, read_summary
from bench.scores.table import read_table

if TYPE_CHECKING:
    import pandas as pd

COPIED = (
    "seconds_per_image",
    "peak_memory_mb",
    "parameters",
    "hardware",
    "versions",
    "code_revision",
    "licence",
    "paper",
)
SPEED_OF = "speed of"
# What rounding on another processor may change in a mean.
SAME = 1e-6
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+=-]*")


def entry_from_run(run_dir: Path, reported_by: str | None = None) -> dict[str, Any]:
    """Makes a leaderboard entry from a finished run folder.

    Beside the summary's means it holds the mean of each identity and metric with the number of
    images behind it, so that paired tests can be computed from entries alone.

    Args:
        run_dir: Folder of a finished run.
        reported_by: Who vouches for the entry; by default `$BENCH_REPORTED_BY`, else "maintainers".

    Raises:
        UsageError: The folder is no finished run, or its summary and score table disagree.
    """
    summary = read_summary(run_dir)
    scores = read_table(run_dir / "scores.parquet")
    if (found := set(scores["protocol_id"])) != {summary.get("protocol_id")}:
        raise UsageError(
            f"{run_dir}: the summary's protocol is {summary.get('protocol_id')}, the scores' {sorted(found)}."
        )
    entry: dict[str, Any] = {
        "schema": ENTRY_SCHEMA,
        **{name: summary.get(name) for name in ("protocol", "protocol_id", "method")},
        "title": summary.get("method_title"),
        "revision": summary.get("method_revision"),
        "seed": summary.get("seed"),
        "images": len(set(scores["image_id"]) - set(summary.get("failed") or {})),
        "of": summary.get("of"),
        "identity_images": _identity_images(run_dir, scores),
        "metrics": {},
        **{name: summary.get(name) for name in COPIED},
        "reported_by": reported_by or os.environ.get("BENCH_REPORTED_BY") or "maintainers",
        "created": summary.get("created"),
    }
    entry["metrics"] = scored_metrics(scores, summary.get("metrics") or {}, str(run_dir))
    if set_metrics := summary.get("set_metrics"):
        entry["set_metrics"] = {
            name: {key: metric[key] for key in SET_METRIC if key in metric}
            | {"reason": public_reason(metric.get("reason"))}
            for name, metric in set_metrics.items()
        }
    entry = with_todays_claims(entry)
    validate(entry, f"entry of {run_dir}")
    return entry


def scored_metrics(scores: pd.DataFrame, summary: dict[str, Any], where: str) -> dict[str, Any]:
    """The metrics of an entry: a summary's means, each with the identity means behind it.

    Args:
        scores: Score table.
        summary: The `metrics` part of its summary.
        where: What both were made from, for messages.

    Raises:
        UsageError: Summary and table disagree.
    """
    found = {}
    for name, metric in summary.items():
        rows = scores[scores["metric"] == name]
        means, counts = identity_means(rows), identity_counts(rows[rows["value"].notna()])
        stated, table = metric.get("mean"), float(means.mean()) if len(means) else None
        same = (
            stated == table
            if stated is None or table is None
            else math.isclose(stated, table, rel_tol=1e-9, abs_tol=1e-12)
        )
        if not same or metric.get("n") != sum(counts.values()):
            raise UsageError(
                f"{where}: summary.json and scores.parquet disagree on {name} ({stated} and {table}). "
                "Finish the run again with `bench run`; do not edit either file."
            )
        found[name] = {
            **{key: metric.get(key) for key in ("identity", "title", "unit", "higher_is_better")},
            **{key: metric.get(key) for key in ("mean", "low", "high", "interval", "n", "of", "identities")},
            "reason": public_reason(metric.get("reason")),
            "by_identity": {str(who): {"mean": float(mean), "n": counts[str(who)]} for who, mean in means.items()},
        }
    return found


def entry_path(entry: dict[str, Any], root: Path) -> Path:
    """File of an entry: `<root>/<protocol>/<method label>@<revision>.json`, with `-seedN` unless the seed is 0."""
    seed = f"-seed{entry['seed']}" if entry["seed"] else ""
    return root / str(entry["protocol"]) / f"{entry['method']}@{entry['revision']}{seed}.json"


def read_entries(*folders: Path) -> list[dict[str, Any]]:
    """Reads and validates all entries of one board, sorted by file name.

    Args:
        folders: Where the board's entries lie; of two files of one name the first folder's counts.

    Raises:
        UsageError: No folder exists, or an entry is unreadable, invalid, misnamed or of another
            protocol id than the others.
    """
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.json"):
            paths.setdefault(path.name, path)
    if not paths:
        raise UsageError(
            f"There is no leaderboard {folders[0].name!r} under {folders[0].parent}. Known: "
            f"{', '.join(board_names(*(folder.parent for folder in folders))) or '(none)'}."
        )
    entries: list[dict[str, Any]] = []
    for _, path in sorted(paths.items()):
        entry = read_entry(path)
        expected = entry_path(entry, path.parent.parent)
        if (expected.parent.name, expected.name) != (path.parent.name, path.name):
            raise UsageError(f"{path} holds the entry that belongs into {expected}: rename or remove it.")
        if entries and entry["protocol_id"] != entries[0]["protocol_id"]:
            raise UsageError(
                f"{path} has protocol id {entry['protocol_id']}, the board's other entries "
                f"{entries[0]['protocol_id']}: they are not comparable. Remove the outdated ones."
            )
        entries.append(entry)
    return entries


def read_entry(path: Path) -> dict[str, Any]:
    """Reads and validates one entry.

    Raises:
        UsageError: The file is unreadable or not a valid entry.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the leaderboard entry {path}: {error}") from error
    validate(entry, str(path))
    return dict(entry)


def board_names(*roots: Path) -> list[str]:
    """Names of the boards under `roots`: folders with at least one entry."""
    folders = (path for root in roots if root.is_dir() for path in root.iterdir())
    return sorted({path.name for path in folders if path.name != "published" and any(path.glob("*.json"))})


def board_roots() -> list[Path]:
    """Folders of boards: the one new entries go to, then the one that came with an installation."""
    return list(dict.fromkeys([leaderboard_root(), resource_root() / "leaderboards"]))


@contextlib.contextmanager
def board_lock(root: Path) -> Iterator[None]:
    """Held while entries are compared and written, or read and drawn: two processes never interleave."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        yield


def add(
    run_dir: Path,
    root: Path,
    allow_incomplete: bool = False,
    reported_by: str | None = None,
    others: Sequence[Path] = (),
    speed_of: Path | None = None,
) -> Path:
    """Adds a run's entry to its board, replacing the one of the same method revision.

    Args:
        run_dir: Folder of a finished run.
        root: Folder of all boards.
        allow_incomplete: Whether a run without all of the protocol's images may enter.
        reported_by: As for `entry_from_run`.
        others: Further folders of boards whose entries the new one must be comparable with.
        speed_of: Entry whose time and memory are taken, as for `with_speed_of`; None for the run's own.

    Returns:
        The file written.

    Raises:
        UsageError: The board's entries have another protocol id, images are missing, the run's
            folder is not in order, or `speed_of` is of another method.
    """
    entry = entry_from_run(run_dir, reported_by)
    if speed_of:
        entry = with_speed_of(entry, read_entry(speed_of), str(speed_of))
    return add_entry(entry, root, str(run_dir), allow_incomplete, others)


def with_speed_of(entry: dict[str, Any], measured: dict[str, Any], where: str) -> dict[str, Any]:
    """An entry with the time, memory and hardware of another one, which `hardware` names under `speed of`.

    For a run on a busy machine whose method was measured on a quiet one before.

    Args:
        entry: Entry of the run.
        measured: Entry with the measurement.
        where: Its file, for messages.

    Raises:
        UsageError: It is of another method, revision or number of parameters.
    """
    for key in ("method", "revision", "parameters"):
        if entry[key] != measured[key]:
            raise UsageError(
                f"{where} has {key} {measured[key]!r}, the run {entry[key]!r}: the time of another method says nothing."
            )
    source = measured["hardware"].get(SPEED_OF) or f"{measured['protocol']}, {measured['created']}"
    hardware = {**measured["hardware"], SPEED_OF: source}
    return {**entry, **{key: measured[key] for key in ("seconds_per_image", "peak_memory_mb")}, "hardware": hardware}


def add_entry(
    entry: dict[str, Any], root: Path, where: str, allow_incomplete: bool = False, others: Sequence[Path] = ()
) -> Path:
    """Adds a valid entry to its board, replacing the one of the same method revision and seed.

    Args:
        entry: The entry.
        root: Folder of all boards.
        where: What the entry was made from, for messages.
        allow_incomplete: Whether an entry without all of the protocol's images may enter.
        others: Further folders of boards whose entries the new one must be comparable with.

    Raises:
        UsageError: As for `add`; or results of others (entries with `accepted`) bear the label and revision of
            results that are somebody else's.
    """
    path = entry_path(entry, root)
    for part in (entry["protocol"], f"{entry['method']}@{entry['revision']}"):
        if not SAFE_NAME.fullmatch(part):
            raise UsageError(
                f"{part!r} cannot name a leaderboard file: only letters, digits and . _ @ + = - are allowed."
            )
    if entry["images"] < entry["of"] and not allow_incomplete:
        raise UsageError(
            f"{where} has {entry['images']} of the protocol's {entry['of']} images. Finish it with the same "
            "`bench run` command, or give --allow-incomplete: the board then shows the coverage."
        )
    with board_lock(root):
        _check_comparable(entry, path, root, where, others)
        write_json(path, entry)
    return path


def _check_comparable(entry: dict[str, Any], path: Path, root: Path, where: str, others: Sequence[Path]) -> None:
    folders = [folder / entry["protocol"] for folder in dict.fromkeys([root, *others])]
    existing = read_entries(*folders) if any(any(folder.glob("*.json")) for folder in folders) else []
    if existing and existing[0]["protocol_id"] != entry["protocol_id"]:
        raise UsageError(
            f"{where} belongs to protocol id {entry['protocol_id']}, but the board {entry['protocol']!r} holds "
            f"{existing[0]['protocol_id']}. Such rows are never ranked together: run again on the board's protocol."
        )
    if "accepted" in entry:
        for other in existing:
            same = all(other[key] == entry[key] for key in ("method", "revision"))
            if same and ("accepted" not in other or other["reported_by"] != entry["reported_by"]):
                raise UsageError(
                    f"{where} bears the label and revision of the board's {entry['method']}@{entry['revision']}, "
                    f"reported by {other['reported_by']}. Results of others replace none but their own: give another "
                    "label with --method."
                )
    for name, metric in entry["metrics"].items():
        for other in existing:
            identity = other["metrics"].get(name, {}).get("identity", metric["identity"])
            if identity != metric["identity"] and entry_path(other, root) != path:
                raise UsageError(
                    f"{name} is {metric['identity']!r} in {where} but {identity!r} in the entry of "
                    f"{other['method']}. "
                    "Two numbers with different identities are never compared: score both with the same version."
                )


def same_scores_listed(summary: dict[str, Any], roots: Sequence[Path]) -> bool:
    """Whether a board lists this method revision and seed already: metrics, numbers, reasons, marks of claims.

    Running a shipped method again would otherwise rewrite its entry with nothing new but the clock.
    """
    path = listed_entry(summary, roots)
    if path is None:
        return False
    listed = read_entry(path)
    kinds = ("metrics", "set_metrics")
    same_names = all((listed.get(kind) or {}).keys() == (summary.get(kind) or {}).keys() for kind in kinds)
    return same_names and same_marks(summary, listed) and _shared_scores_agree(summary, listed)


def extended_entry(summary: dict[str, Any], roots: Sequence[Path]) -> Path | None:
    """The listed entry that a run of the same method revision and seed only adds metrics or reasons to, or None."""
    path = listed_entry(summary, roots)
    return path if path and _shared_scores_agree(summary, read_entry(path), reasons=False) else None


def listed_entry(summary: dict[str, Any], roots: Sequence[Path]) -> Path | None:
    """The entry of a run's method revision and seed on the first board that has one, or None."""
    own = {key: summary[key] for key in ("protocol", "method", "seed")} | {"revision": summary["method_revision"]}
    return next((path for root in roots if (path := entry_path(own, root)).is_file()), None)


def _shared_scores_agree(summary: dict[str, Any], listed: dict[str, Any], reasons: bool = True) -> bool:
    """Whether all that both have scored is the same; without `reasons` also where only one has a value."""
    if listed["protocol_id"] != summary["protocol_id"]:
        return False
    for kind, value in (("metrics", "mean"), ("set_metrics", "value")):
        own, other = summary.get(kind) or {}, listed.get(kind) or {}
        for name in own.keys() & other.keys():
            one, two = own[name], other[name]
            if one[value] is None or two[value] is None:
                if reasons and (one[value] != two[value] or public_reason(one["reason"]) != two["reason"]):
                    return False
            elif one["identity"] != two["identity"] or abs(one[value] - two[value]) > SAME:
                return False
    return True


def _identity_images(run_dir: Path, scores: pd.DataFrame) -> dict[str, int]:
    """Images of each identity in the protocol, so that gaps of a run cannot pass for a smaller protocol."""
    path = run_dir / "protocol.json"
    images = json.loads(path.read_text(encoding="utf-8")).get("images") if path.is_file() else None
    if images:
        return dict(sorted(Counter(str(image["identity"]) for image in images).items()))
    return identity_counts(scores.drop_duplicates("image_id"))


def identity_counts(rows: pd.DataFrame) -> dict[str, int]:
    """Rows of each identity, sorted by name."""
    return {str(who): int(count) for who, count in rows.groupby("identity", sort=True).size().items()}
