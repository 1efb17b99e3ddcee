"""Whether boards are what their entries say: for CI, which must notice a number edited by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.leaderboard.board import FILES, board_texts
from bench.leaderboard.bounds import recomputed_bounds, same_bounds
from bench.leaderboard.claim_marks import FIELD, outdated_tests, with_todays_claims
from bench.leaderboard.entry import board_names, entry_path, read_entry
from bench.leaderboard.published import FOLDER, read_paper


def verify(root: Path, names: Sequence[str] | None = None, output: Path | None = None) -> list[str]:
    """Everything that is wrong with boards, a sentence each; empty where all is in order.

    An entry must fit its schema, its name and its board's protocol id, and where the protocol is committed, its id
    and its images; its means must be those of its identity means, its intervals those that the statistics give
    today; directions and units must be those of the metrics, and the same wherever the identity is the same; its
    claims not reproduced must be those of its method's `claims.json`, where there is one, and these must have been
    tested with its weights and on its pictures. A rendered file must hold what its entries give. The published
    numbers must fit their schema.

    Args:
        root: Folder of all boards.
        names: Boards; None for all.
        output: Folder with further rendered files to check; only formats found there are checked.
    """
    found: list[str] = []
    directions: dict[str, tuple[Any, ...]] = {}
    for name in names or board_names(root):
        found += _entries(root / name, directions)
    folder = root / FOLDER
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            read_paper(path)
        except BenchError as error:
            found.append(str(error))
    if found:
        # What cannot be read cannot be drawn.
        return found
    texts = board_texts(root, list(names or board_names(root)))
    if output:
        present = [form for form, file in FILES.items() if any(output.rglob(file))]
        texts |= board_texts(root, list(names or board_names(root)), present, output)
    for path, text in texts.items():
        if not path.is_file():
            found.append(f"{path} is missing: run `bench leaderboard render`.")
        elif path.read_text("utf-8") != text:
            found.append(
                f"{path} does not match its entries{_first_difference(path, text)}: run `bench leaderboard render`."
            )
    return found


def _first_difference(path: Path, text: str) -> str:
    lines = zip(path.read_text("utf-8").splitlines(), text.splitlines(), strict=False)
    line = next((number for number, (there, wanted) in enumerate(lines, 1) if there != wanted), None)
    return f" from line {line} on" if line else ""


def _entries(folder: Path, directions: dict[str, tuple[Any, ...]]) -> list[str]:
    found: list[str] = []
    ids: dict[str, str] = {}
    committed = _committed(folder.name)
    for path in sorted(folder.glob("*.json")):
        try:
            entry = read_entry(path)
        except BenchError as error:
            found.append(str(error))
            continue
        expected = entry_path(entry, folder.parent)
        if expected.name != path.name or entry["protocol"] != folder.name:
            found.append(f"{path} holds the entry that belongs into {expected}: rename or remove it.")
        ids[path.name] = entry["protocol_id"]
        found += _protocol(entry, committed, path) + _directions(entry, directions, path) + _intervals(entry, path)
        found += _claims(entry, path)
    if len(set(ids.values())) > 1:
        found.append(
            f"{folder} mixes protocol ids: {', '.join(f'{name} {own}' for name, own in ids.items())}. "
            "Such rows are never ranked together: remove the outdated ones."
        )
    return found


def _committed(protocol: str) -> Mapping[str, Any] | None:
    """What an entry must say of a committed protocol; None where it is not committed."""
    from bench.protocol.freeze import committed_path

    path = committed_path(protocol)
    if not path.is_file():
        return None
    content = json.loads(path.read_text("utf-8"))
    people = Counter(str(image["identity"]) for image in content["images"])
    return {"protocol_id": content["id"], "of": len(content["images"]), "identity_images": dict(people)}


def _protocol(entry: dict[str, Any], committed: Mapping[str, Any] | None, path: Path) -> list[str]:
    return [
        f"{path}: {key} is {entry[key]}, but the committed protocol {entry['protocol']} has {wanted}."
        for key, wanted in (committed or {}).items()
        if entry[key] != wanted
    ]


def _directions(entry: dict[str, Any], seen: dict[str, tuple[Any, ...]], path: Path) -> list[str]:
    """Directions and units that are not those of the metric, or differ between entries of one metric identity."""
    from bench.registry import metric_classes, set_metric_classes

    found = []
    classes: dict[str, Any] = {**metric_classes(), **set_metric_classes()}
    for name, metric in {**entry["metrics"], **entry.get("set_metrics", {})}.items():
        stated = (metric["higher_is_better"], metric["unit"])
        first = seen.setdefault(metric["identity"], stated)
        known = classes.get(name)
        wanted = (known.higher_is_better, known.unit) if known else first
        if stated != wanted:
            found.append(
                f"{path}: {name} states higher_is_better {stated[0]} and unit {stated[1]!r}, "
                f"{'the metric' if known else 'another entry of the same metric'} {wanted[0]} and {wanted[1]!r}."
            )
    return found


def _intervals(entry: dict[str, Any], path: Path) -> list[str]:
    """Intervals that the identity means do not give."""
    found = []
    for name, wanted in recomputed_bounds(entry).items():
        stated = entry["metrics"][name]
        if same_bounds(stated, wanted):
            continue
        if stated["interval"] != wanted["interval"]:
            found.append(
                f"{path}: metrics.{name} has the interval {stated['interval']!r}, its identity means give "
                f"{wanted['interval']!r}: run `python -m bench.leaderboard.bounds {path.parent}`."
            )
            continue
        for bound in ("low", "high"):
            if not _close(stated[bound], wanted[bound]):
                found.append(
                    f"{path}: metrics.{name}.{bound} is {stated[bound]}, but its identity means give {wanted[bound]}."
                )
    return found


def _claims(entry: dict[str, Any], path: Path) -> list[str]:
    """Marks of claims that are not those of the method's results, and results that say nothing of the entry."""
    outdated = outdated_tests(entry)
    found = [f"{path}: {outdated}"] if outdated else []
    wanted = with_todays_claims(entry)
    if wanted == entry:
        return found
    names = [", ".join(one["claim"] for one in own.get(FIELD, [])) or "none" for own in (entry, wanted)]
    return [
        *found,
        f"{path}: marks as not reproduced {names[0]}, the method's claims.json says {names[1]} (or other figures): run "
        f"`python -m bench.leaderboard.claim_marks {path.parent}`.",
    ]


def _close(one: float | None, other: float | None) -> bool:
    """Whether two bounds are equal, rounding aside; null only equals null, as with a single identity."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
