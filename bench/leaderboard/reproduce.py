"""A paper's table beside our numbers: what is measured, what could be, and what the rest needs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from bench.errors import BenchError, MissingError, UsageError
from bench.leaderboard.papers import PaperData, PaperRow, PaperTable
from bench.leaderboard.published import PublishedPaper, read_published
from bench.leaderboard.variants import variant_suffix
from bench.paths import bench_home, runs_root
from bench.registry import method_targets
from bench.scores.claims_file import read_results
from bench.systems.card import card
from bench.systems.name import system_name_of

State = Literal[
    "measured", "can run", "not in this version", "weights missing", "data missing", "outputs missing", "cannot run"
]
SIZES = ("paper", "demo")
#: Endings of another project's weights.
RELEASED = (".pth", ".safetensors")
WEIGHTS = "method.weights"
#: The word of rows whose pictures another program makes.
OUTPUTS = "method.root=FOLDER"


@dataclass(frozen=True)
class Value:
    """One metric of one row.

    Attributes:
        metric: Name as printed.
        published: Value as printed, or None.
        ours: Our value in the printed unit, or None.
        name: Our metric, or None where none of ours was measured.
        identity: Identity string of ours, or None.
    """

    metric: str
    published: float | None
    ours: float | None
    name: str | None
    identity: str | None

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        if self.ours is None or self.published is None:
            return None
        return self.ours - self.published


@dataclass(frozen=True)
class ReproducedRow:
    """One row of a table.

    Attributes:
        method: Name in the paper.
        where: Data set and degradation as published, or the data that was asked for.
        references: References the method was given, or None.
        values: One for each metric of the table.
        state: What can be done about it.
        reason: Why nothing is measured, or what was.
        get: Command or step that brings it, or "".
        words: Words of `bench run` that give it; empty where nothing does.
        same_protocol: "yes", or "no: why".
        source: Run folder or board entry of our numbers, or None.
        note: The paper's note on the row.
    """

    method: str
    where: str
    references: int | None
    values: list[Value]
    state: State
    reason: str
    get: str
    words: list[str]
    same_protocol: str
    source: str | None
    note: str = ""


@dataclass(frozen=True)
class ReproducedTable:
    """A paper's table with what we have of it.

    Attributes:
        table: Its configuration.
        paper: The paper.
        rows: All published rows, then those of the configuration that the print has no numbers of.
        better: For each metric "higher" or "lower".
    """

    table: PaperTable
    paper: PublishedPaper
    rows: list[ReproducedRow]
    better: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Metrics of the table in order."""
        return list(dict.fromkeys(value.metric for row in self.rows for value in row.values))


def reproduce(table: PaperTable, data: str | None = None) -> ReproducedTable:
    """Sets our numbers beside a paper's table; restores nothing.

    Args:
        table: The table's configuration.
        data: A data configuration of ours to look at in place of the table's own.
    """
    paper = read_published()[table.paper]
    chosen = (
        None
        if data is None
        else PaperData([f"data={data}"], f"no: {data} in place of the paper's data", substitute=True)
    )
    rows = []
    published = [row for row in paper.rows if row.table == table.table]
    for row in published:
        settings = table.rows.get(row.method)
        if settings is None or row.where not in table.data:
            raise UsageError(f"configs/paper/{table.id}.yaml says nothing of {row.method} on {row.where}.")
        rows.append(
            _row(table, settings, chosen or table.data[row.where], row.where, row.references, row.metrics, row.note)
        )
    listed = {row.method for row in published}
    for method, settings in table.rows.items():
        for where, own in table.data.items() if method not in listed else ():
            rows.append(_row(table, settings, chosen or own, where, None, {}, ""))
    better = dict(paper.better)
    for name in table.metrics:
        better.setdefault(name, _direction(table.metrics[name][0]))
    return ReproducedTable(table, paper, _unique(rows) if chosen else rows, better)


def _unique(rows: Sequence[ReproducedRow]) -> list[ReproducedRow]:
    """One row for each published one; those without print numbers once."""
    seen: set[tuple[str, bool]] = set()
    found = []
    for row in rows:
        printed = any(value.published is not None for value in row.values)
        if printed or (row.method, printed) not in seen:
            found.append(row)
        seen.add((row.method, printed))
    return found


def _row(
    table: PaperTable,
    settings: PaperRow,
    data: PaperData,
    where: str,
    references: int | None,
    printed: dict[str, float | None],
    note: str,
) -> ReproducedRow:
    state, reason, get, words = _state(settings, data)
    source, metrics = _ours(settings, data, words) if data.name and settings.name else (None, {})
    if source:
        state, reason = "measured", f"{metrics['label']} in {source}"
    values = []
    for name in dict.fromkeys([*printed, *table.metrics]):
        if printed and name not in printed and not data.substitute:
            continue
        own = _own(table, name, metrics.get("values", {}))
        values.append(Value(name, printed.get(name), *own))
    return ReproducedRow(
        method=settings.method,
        where=where,
        references=references,
        values=values,
        state=state,
        reason=reason,
        get="" if source else get,
        words=words,
        same_protocol=data.same_protocol,
        source=source,
        note=note,
    )


def _own(
    table: PaperTable, printed: str, values: dict[str, tuple[float, str]]
) -> tuple[float | None, str | None, str | None]:
    names, times = table.metrics.get(printed, ([], 1.0))
    for name in names:
        if name in values:
            value, identity = values[name]
            return value * times, name, identity
    return None, None, None


def _state(settings: PaperRow, data: PaperData) -> tuple[State, str, str, list[str]]:
    """What can be done about a row, why, what brings it, and the words of `bench run` that give it."""
    if never := settings.cannot or data.cannot:
        return "cannot run", never, "", []
    name = str(settings.name)
    words = [*data.words, *settings.words]
    command = "bench run " + " ".join(words)
    if name not in method_targets():
        get = f"{settings.needs}; then: {command}" if settings.needs else command
        return "not in this version", f"this version has no method {name!r}", get, []
    weights, lacking = _weights(settings, data)
    if lacking:
        return "weights missing", lacking[0], lacking[1], []
    if weights:
        words = [*(word for word in words if not word.startswith(f"{WEIGHTS}=")), *weights]
    if OUTPUTS in words:
        return "outputs missing", "the pictures of another program are needed", _outputs(settings, data, command), []
    if absent := _missing_data(str(data.name)):
        return "data missing", absent[0], absent[1], words
    said = f"as {name}@demo: no paper-size weights of {name} here" if _size(name) == "demo" else "everything is here"
    return "can run", said, "bench run " + " ".join(words), words


def _outputs(settings: PaperRow, data: PaperData, command: str) -> str:
    """How the pictures of another program become a row; its card has the rest."""
    system = settings.word("method.system")
    export = f"bench data export {' '.join(data.words)} --for {system} -o FOLDER"
    results = " ".join(card(str(system)).results or ["method.root=OUT"])
    return f"{export}; {settings.needs}; {command.replace(OUTPUTS, results)}; {_card(system)}"


def _card(system: str | None) -> str:
    return f"card: configs/system/README.md#{system}"


def _weights(settings: PaperRow, data: PaperData) -> tuple[list[str], tuple[str, str] | None]:
    """The word that names a row's own weights; or what is missing and the command that makes it."""
    name = str(settings.name)
    train = " ".join([f"method={name}", f"data={data.name}", *settings.train])
    if settings.train:
        slug = "".join(c if c.isalnum() else "_" for c in f"{settings.method}").strip("_")
        path = bench_home() / "weights" / f"{slug}.safetensors"
        if path.is_file():
            return [f"method.weights={path}"], None
        why = f"this ablation needs weights of its own, looked for in {path}"
        return [], (why, f"bench train {train}, then copy its weights to {path}")
    if (released := settings.word(WEIGHTS)) is not None:
        file = bench_home() / "weights" / released
        for ending in RELEASED:
            if (path := file.with_suffix(ending)).is_file():
                return [f"{WEIGHTS}={path}"], None
        return [], (f"the released file is looked for as {file}", f"{settings.needs}; {_card(settings.method)}")
    if _size(name) == "none":
        return [], (
            f"no weights of {name} are here",
            f"{settings.needs or 'train them'}: bench train {train} size=paper",
        )
    return [], None


@cache
def _size(name: str) -> str:
    """Which size of a method would run: "paper", "demo", "default" without sizes, or "none"."""
    from bench.config import group_choices
    from bench.weights.method_weights import weights_path

    path = group_choices("method").get(name)
    sizes = (yaml.safe_load(path.read_text("utf-8")) or {}).get("sizes") if path else None
    if not sizes:
        return "default"
    return next((size for size in sizes if weights_path(name, size) is not None), "none")


@cache
def _missing_data(name: str) -> tuple[str, str] | None:
    """Why a data configuration cannot be used here and what brings it, or None."""
    from bench.config import group_choices
    from bench.protocol.card import data_root, load_card

    path = group_choices("data").get(name)
    if path is None:
        return f"there is no data configuration {name!r}", "bench ls data"
    content = yaml.safe_load(path.read_text("utf-8"))
    card = load_card(content["card"])
    try:
        data_root(card, content.get("root"))
    except MissingError:
        place = bench_home() / "data" / card.name
        get = f"{card.obtain.strip()} Put it into {place}, or add data.root=FOLDER. Licence: {card.licence}."
        return f"the data set {card.name!r} is not here", get
    return None


def _direction(names: Sequence[str]) -> str:
    from bench.registry import metric_classes

    known = metric_classes()
    found = next((known[name].higher_is_better for name in names if name in known), True)
    return "lower" if found is False else "higher"


def _ours(settings: PaperRow, data: PaperData, words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Where our numbers of a row lie, and they; a finished run first, then the boards, then the tests of claims."""
    for folder, summary in _runs(data.protocol):
        if _is_row(folder, settings, data, words):
            return str(folder), _summary_values(summary)
    if settings.train:
        return None, {}
    for path, entry in _board(data.protocol):
        label = str(entry["method"]).partition("@")[0]
        if label == _label(settings):
            return f"board {data.protocol}, {path.name}", _summary_values(entry)
    return _ablation(settings, data.protocol)


def _ablation(settings: PaperRow, protocol: str) -> tuple[str | None, dict[str, Any]]:
    """Means over the trainings of the one variant in the method's `claims.json` that has a row's words.

    Results on other pictures than those of the committed protocol are none of the row.
    """
    results = read_results(str(settings.name)) if settings.name in method_targets() else None
    wanted = {word for word in settings.words if not word.startswith("method=")}
    committed = _committed_id(protocol)
    own = {
        name: one["protocols"][protocol]
        for name, one in (results or {}).get("variants", {}).items()
        if set(one["words"]) == wanted
        and protocol in one["protocols"]
        and one["protocols"][protocol]["protocol_id"] == (committed or one["protocols"][protocol]["protocol_id"])
    }
    # Variants that differ in their training alone have the same words.
    if len(own) != 1:
        return None, {}
    ((name, one),) = own.items()
    kind = (results or {}).get("seeds_of", "training")
    source = f"claims.json of {settings.name}, mean of {len(one['seeds'])} {kind}s of {name}"
    return source, _summary_values({"method": one["label"], "metrics": one["metrics"]})


def _committed_id(protocol: str) -> str | None:
    from bench.protocol.freeze import committed_path

    path = committed_path(protocol)
    return str(json.loads(path.read_text("utf-8"))["id"]) if path.is_file() else None


def _label(settings: PaperRow) -> str | None:
    """Label that a board's row of these settings has, without size; None where settings alone do not tell."""
    # Another program's pictures bear its name, a released network that of its file.
    stem = Path(settings.word(WEIGHTS) or "").stem
    if settings.name and (system := settings.word("method.system") or system_name_of(stem)):
        return f"{settings.name}+{system}"
    suffix = variant_suffix([word for word in settings.words if not word.startswith("method=")], settings.name or "")
    return None if suffix is None else f"{settings.name}{suffix}"


def _summary_values(summary: dict[str, Any]) -> dict[str, Any]:
    values = {
        name: (float(metric["mean"]), metric["identity"])
        for name, metric in summary["metrics"].items()
        if metric["mean"] is not None and math.isfinite(metric["mean"])
    }
    values |= {
        name: (float(metric["value"]), metric["identity"])
        for name, metric in (summary.get("set_metrics") or {}).items()
        if metric["value"] is not None
    }
    return {"label": summary["method"], "values": values}


def _runs(protocol: str) -> list[tuple[Path, dict[str, Any]]]:
    """Finished runs on a protocol, those of the paper's size first, then by name."""
    found = []
    for path in sorted((runs_root() / protocol).glob("*/summary.json")):
        try:
            summary = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if summary.get("protocol") == protocol and not summary.get("failed"):
            found.append((path.parent, summary))
    return sorted(found, key=lambda one: (not str(one[1]["method"]).endswith("@paper"), str(one[0])))


def _board(protocol: str) -> list[tuple[Path, dict[str, Any]]]:
    from bench.leaderboard.entry import board_roots, read_entry

    paths = {path.name: path for root in reversed(board_roots()) for path in (root / protocol).glob("*.json")}
    entries = [(path, read_entry(path)) for _, path in sorted(paths.items())]
    entries = [(path, entry) for path, entry in entries if "accepted" not in entry]
    return sorted(entries, key=lambda one: (not str(one[1]["method"]).endswith("@paper"), one[0].name))


def _is_row(folder: Path, settings: PaperRow, data: PaperData, words: Sequence[str]) -> bool:
    """Whether a run folder's configuration is what the row's words compose to; run settings aside."""
    from bench.config import compose

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if config["method"].get("name") != settings.name or (settings.train and not words):
        return False
    try:
        wanted = _composed(tuple(words) or (*data.words, *settings.words), compose)
    except BenchError:
        return False
    same = wanted["method"] == config["method"]
    if settings.word(WEIGHTS) is not None:
        # A released file is known by its name, wherever it lay when it was run.
        same = _named(wanted["method"]) == _named(config["method"])
    if OUTPUTS in settings.words:
        same = wanted["method"]["system"] == config["method"].get("system")
    return bool(same and _choice(wanted["data"]) == _choice(config["data"]))


def _named(method: dict[str, Any]) -> dict[str, Any]:
    return {**method, "weights": Path(method.get("weights") or "").stem}


@cache
def _composed(words: tuple[str, ...], compose: Any) -> dict[str, Any]:
    composed: dict[str, Any] = compose("run", list(words))
    return composed


def _choice(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in ("root", "title")}
