"""Whether boards are what their entries say: for CI, which must notice a number edited by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.leaderboard.board import FILES, board_texts
from bench.leaderboard.bounds import made_alike, recomputed_bounds, same_bounds
from bench.leaderboard.entry import board_names, entry_path, read_entry
from bench.leaderboard.published import FOLDER, read_paper


def verify(root: Path, names: Sequence[str] | None = None, output: Path | None = None) -> list[str]:
    """Everything that is wrong with boards, a sentence each; empty where all is in order.

    An entry must fit its schema, its name and its board's protocol id; its means must be those of its
    identity means, its intervals those that the statistics give today. A rendered file must hold what
    its entries give. The published numbers must fit their schema.

    Args:
        root: Folder of all boards.
        names: Boards; None for all.
        output: Folder with further rendered files to check; only formats found there are checked.
    """
    found = [problem for name in names or board_names(root) for problem in _entries(root / name)]
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


def _entries(folder: Path) -> list[str]:
    found: list[str] = []
    ids: dict[str, str] = {}
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
        found += _intervals(entry, path)
    if len(set(ids.values())) > 1:
        found.append(
            f"{folder} mixes protocol ids: {', '.join(f'{name} {own}' for name, own in ids.items())}. "
            "Such rows are never ranked together: remove the outdated ones."
        )
    return found


def _intervals(entry: dict[str, Any], path: Path) -> list[str]:
    """Bounds that the identity means do not give; an interval made in another way is left alone."""
    found = []
    for name, wanted in recomputed_bounds(entry).items():
        stated = entry["metrics"][name]
        if not made_alike(stated, wanted) or same_bounds(stated, wanted):
            continue
        if stated["interval"] != wanted["interval"]:
            found.append(
                f"{path}: metrics.{name} has the interval {stated['interval']!r}, its identity means give "
                f"{wanted['interval']!r}: run `python -m bench.leaderboard.bounds {path.parent}`."
            )
            continue
        for bound in ("low", "high"):
            if stated[bound] is None or not math.isclose(stated[bound], wanted[bound], rel_tol=1e-6, abs_tol=1e-9):
                found.append(
                    f"{path}: metrics.{name}.{bound} is {stated[bound]}, but its identity means give {wanted[bound]}."
                )
    return found
