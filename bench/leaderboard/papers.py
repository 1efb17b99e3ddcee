"""The papers' tables as configurations: which of our runs each row and each data set stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError, unknown_name
from bench.leaderboard.published import PublishedPaper, PublishedRow, read_published
from bench.paths import resource_root

ROW_KEYS = {"words", "cannot", "train", "needs"}
DATA_KEYS = {"words", "same_protocol", "cannot"}


@dataclass(frozen=True)
class PaperRow:
    """What would give one method's row.

    Attributes:
        method: Name in the published table.
        words: `key=value` words of `bench run`, without those of the data.
        cannot: Why no run of ours can give it, or None.
        train: `key=value` words that train its own weights; empty where the method's own serve.
        needs: Where weights or outputs come from, or "".
    """

    method: str
    words: list[str] = field(default_factory=list)
    cannot: str | None = None
    train: list[str] = field(default_factory=list)
    needs: str = ""

    @property
    def name(self) -> str | None:
        """Our name of the method, or None."""
        return self.word("method")

    def word(self, key: str) -> str | None:
        """What the words give a key, or None."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{key}=")), None)


@dataclass(frozen=True)
class PaperData:
    """What stands for one data set of a table.

    Attributes:
        words: `key=value` words of `bench run`.
        same_protocol: "yes", or "no: " and why numbers on it are not those of the table.
        cannot: Why nothing of ours stands for it, or None.
        substitute: Whether it is other data than the table's, asked for in its place.
    """

    words: list[str] = field(default_factory=list)
    same_protocol: str = "no"
    cannot: str | None = None
    substitute: bool = False

    @property
    def name(self) -> str | None:
        """Our data set, or None."""
        return next((word.partition("=")[2] for word in self.words if word.startswith("data=")), None)

    @property
    def protocol(self) -> str:
        """Name of the protocol the words give."""
        choice = next((word.partition("=")[2] for word in self.words if word.startswith("protocol=")), "default")
        return str(self.name) if choice == "default" else f"{self.name}_{choice}"


@dataclass(frozen=True)
class PaperTable:
    """One table of one paper.

    Attributes:
        paper: Name of the paper.
        table: Number as in the published rows, such as "1"; for a figure its file name.
        title: What it shows.
        data: By `data set/degradation`.
        metrics: Printed metric to our metrics, the nearest first, and the factor that brings ours to the printed unit.
        rows: By method.
    """

    paper: str
    table: str
    title: str
    data: dict[str, PaperData]
    metrics: dict[str, tuple[list[str], float]]
    rows: dict[str, PaperRow]
    note: str

    @property
    def id(self) -> str:
        """Name on the command line, such as "refine/table1"."""
        return f"{self.paper}/{f'table{self.table}' if self.table.isdigit() else self.table}"


def paper_folder() -> Path:
    """Folder of the tables' configurations."""
    return resource_root() / "configs" / "paper"


def table_ids() -> list[str]:
    """Every table, such as "refine/table1"."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in paper_folder().glob("*/*.yaml"))


@cache
def load_table(name: str) -> PaperTable:
    """Reads a table's configuration.

    Raises:
        UsageError: There is no such table, or its file is not valid.
    """
    if name not in table_ids():
        raise unknown_name("table", name, table_ids())
    path = paper_folder() / f"{name}.yaml"
    content = _load_yaml(path)
    if unknown := sorted(set(content) - {"title", "data", "metrics", "rows", "note"}):
        raise UsageError(f"{path} has unknown {', '.join(unknown)}.")
    shared = _shared_rows()
    paper, stem = name.split("/")
    rows = {}
    for method, own in (content.get("rows") or {}).items():
        settings = {**shared.get(method, {}), **(own or {})}
        if unknown := sorted(set(settings) - ROW_KEYS):
            raise UsageError(f"{path}: the row {method} has unknown {', '.join(unknown)}.")
        if bool(settings.get("words")) == bool(settings.get("cannot")):
            raise UsageError(f"{path}: the row {method} must have either words or cannot.")
        rows[method] = PaperRow(method, **settings)
    data = {}
    for where, own in (content.get("data") or {}).items():
        if unknown := sorted(set(own) - DATA_KEYS):
            raise UsageError(f"{path}: data {where} has unknown {', '.join(unknown)}.")
        data[where] = PaperData(**own)
    return PaperTable(
        paper=paper,
        table=stem.removeprefix("table"),
        title=content["title"],
        data=data,
        metrics={name: _metric(own) for name, own in (content.get("metrics") or {}).items()},
        rows=rows,
        note=content.get("note", ""),
    )


def _metric(own: Any) -> tuple[list[str], float]:
    name, times = (own["name"], float(own.get("times", 1))) if isinstance(own, dict) else (own, 1.0)
    return [name] if isinstance(name, str) else list(name), times


@cache
def _shared_rows() -> dict[str, dict[str, Any]]:
    """What gives the rows of methods that several tables show."""
    return _load_yaml(paper_folder() / "methods.yaml")


def _load_yaml(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader=loader) or {}  # noqa: S506
    return content


@cache
def _board_data(protocol: str) -> tuple[str, str | list[str] | None] | None:
    """Data card and degradation preset, or several, of a board, by the data configuration its name begins with."""
    from bench.config import group_choices

    known = [name for name in group_choices("data") if protocol == name or protocol.startswith(f"{name}_")]
    if not known:
        return None
    content = _load_yaml(group_choices("data")[max(known, key=len)])
    return content["card"], content.get("degradation")


def published_on(protocol: str) -> list[tuple[PublishedPaper, list[PublishedRow]]]:
    """Published rows whose data set and degradation are those of a board, by paper."""
    wanted = _board_data(protocol)
    if wanted is None:
        return []
    found = []
    for name, paper in read_published().items():
        rows = []
        for row in paper.rows:
            table = f"{name}/table{row.table}"
            data = load_table(table).data.get(row.where) if table in table_ids() else None
            if data is not None and data.name and _board_data(data.name) == wanted:
                rows.append(row)
        if rows:
            found.append((paper, rows))
    return found
