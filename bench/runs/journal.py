"""Append-only journals: one JSON line per finished picture, so that a killed run loses nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Journal:
    """The journal of one process; all journals of a folder are read together.

    Args:
        folder: Folder of the journals.
        rank: This process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{rank}.jsonl"

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line. A line cut off by a kill is closed first, so that it spoils no other."""
        content = json.dumps({"at": time.time(), **record}, ensure_ascii=False) + "\n"
        with self.path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    content = "\n" + content
            stream.write(content.encode("utf-8"))


def read_journals(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of every journal in a folder, oldest first."""
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return sorted(records, key=lambda record: record["at"])
