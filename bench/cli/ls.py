"""List methods, data sets, metrics, degradations, papers and weights, and whether they are here."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.protocol.card import DatasetCard
    from bench.weights.catalogue import WeightsEntry

EXAMPLES = """examples:
  bench ls
  bench ls methods
  bench ls data --json
  bench ls papers"""

SECTIONS = ("methods", "data", "metrics", "degradations", "papers", "weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("section", nargs="?", metavar="|".join(SECTIONS), help="what to list (default: everything)")
    parser.add_argument("--json", action="store_true", help="print the lists as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the lists."""
    from bench.errors import unknown_name

    if arguments.section is not None and arguments.section not in SECTIONS:
        raise unknown_name("list", arguments.section, SECTIONS)
    sections = [arguments.section] if arguments.section else list(SECTIONS)
    listed = {section: _LISTERS[section]() for section in sections}
    if arguments.json:
        import json

        print(json.dumps(listed, indent=2, ensure_ascii=False))
        return 0
    from bench.report.terminal import print_table

    for position, (section, rows) in enumerate(listed.items()):
        if position:
            print()
        columns = list(rows[0]) if rows else ["name"]
        print_table(columns, [[_cell(row[column]) for column in columns] for row in rows], f"{section}:")
    return 0


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {'present' if own else 'absent'}" for name, own in value.items()) or "none needed"
    return str(value)


def _load_yaml(text: str) -> Any:
    """Parses YAML with libyaml where PyYAML was built with it: ten times quicker, equally safe."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


def _methods() -> list[dict[str, Any]]:
    """Methods with the first comment of their configuration and which sizes have their weights here; then systems.

    `runs` says how: native, spandrel (a released file) or precomputed (pictures of another program).
    """
    from bench.paths import resource_root
    from bench.registry import method_targets
    from bench.systems.card import RUNS, cards

    rows: list[dict[str, Any]] = []
    systems = cards()
    for name in method_targets():
        path = resource_root() / "configs" / "method" / f"{name}.yaml"
        text = path.read_text("utf-8") if path.is_file() else ""
        sizes = (_load_yaml(text) or {}).get("sizes") or {}
        title = text.partition("\n")[0].lstrip("# ") if text.startswith("#") else "from another package"
        weights: dict[str, bool] | None = {size: _has_weights(name, size) for size in sizes}
        if name in RUNS:
            weights = None
        elif not sizes and name in systems:
            weights = {own: _entry_is_here(own) for own in systems[name].catalogue}
        runs = name if name in RUNS else "native"
        rows.append({"name": name, "title": title, "runs": runs, "words": f"method={name}", "weights": weights})
    for name in sorted(set(systems) - {row["name"] for row in rows}):
        own, words = systems[name], " ".join(systems[name].words)
        rows.append({"name": name, "title": own.title, "runs": own.runs, "words": words, "weights": None})
    return rows


def _entry_is_here(name: str) -> bool:
    from bench.weights.catalogue import entries

    return _weights_file(entries()[name]) is not None


def _has_weights(method: str, size: str) -> bool:
    from bench.weights.method_weights import weights_path

    return weights_path(method, size) is not None


def _data() -> list[dict[str, Any]]:
    from bench.errors import BenchError
    from bench.protocol.card import data_root
    from bench.registry import data_folders

    cards: dict[str, DatasetCard | None] = {}
    rows: dict[str, dict[str, Any]] = {}
    for folder in data_folders():
        for path in sorted(folder.glob("*.yaml")):
            content = _load_yaml(path.read_text("utf-8"))
            name = content.get("card", "")
            if name not in cards:
                cards[name] = _card(name)
            card = cards[name]
            try:
                present = card is not None and data_root(card, content.get("root")).is_dir()
            except BenchError:
                present = False
            licence = card.licence if card else None
            row = {"name": path.stem, "title": content.get("title", ""), "present": present, "licence": licence}
            rows.setdefault(path.stem, row)
    return list(rows.values())


def _card(name: str) -> DatasetCard | None:
    """A data card as it is written, unchecked; None where it is absent or not valid."""
    from bench.paths import resource_root
    from bench.protocol.card import DatasetCard

    path = resource_root() / "datasets" / f"{name}.yaml"
    try:
        return DatasetCard(**_load_yaml(path.read_text("utf-8")))
    except (OSError, TypeError):
        return None


def _metrics() -> list[dict[str, Any]]:
    """Metrics of single pictures, then those of whole sets; `weights` by name where a metric names its own."""
    from bench.registry import metric_classes, set_metric_classes

    better = {True: "higher", False: "lower", None: None}
    classes: list[tuple[str, Any, str]] = [(name, metric, "picture") for name, metric in metric_classes().items()]
    classes += [(name, metric, "set") for name, metric in set_metric_classes().items()]
    return [
        {
            "name": name,
            "title": metric.title,
            "better": better[metric.higher_is_better],
            "unit": metric.unit or None,
            "cost": getattr(metric, "cost", None),
            "of": of,
            "weights": _own_weights(metric),
            "licence": metric.licence,
        }
        for name, metric, of in classes
    ]


def _own_weights(metric: type[Any]) -> dict[str, bool] | None:
    """Which of a metric's weights are here; None where it does not say which it needs."""
    from bench.weights.catalogue import entries

    names = getattr(metric, "weights", None)
    known = entries()
    return None if names is None else {name: name in known and _weights_file(known[name]) is not None for name in names}


def _degradations() -> list[dict[str, Any]]:
    from bench.paths import resource_root

    rows = []
    for path in sorted((resource_root() / "configs" / "degradation").glob("*.yaml")):
        content = _load_yaml(path.read_text("utf-8"))
        rows.append(
            {
                "name": path.stem,
                "steps": ", ".join(_step(step) for step in content["steps"]),
                "source": content.get("source"),
            }
        )
    return rows


def _step(step: dict[str, Any]) -> str:
    """An operator with its ranges; one that holds others with their names in parentheses."""
    held = [_step(own) for key in ("steps", "otherwise", "choices") for own in step.get(key, ())]
    if held:
        return f"{step['operator']}({', '.join(held)})" if "operator" in step else " ".join(held)
    ranges = [
        f"{value[0]:g}-{value[1]:g}"
        for value in step.values()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    ]
    return " ".join([str(step.get("operator", "nothing")), *ranges])


def _papers() -> list[dict[str, Any]]:
    """The papers' tables: how many rows `bench reproduce` knows, and the methods whose rows can run here now."""
    from bench.leaderboard.papers import load_table, table_ids
    from bench.leaderboard.reproduce import _state

    rows = []
    for name in table_ids():
        table = load_table(name)
        states = [(method, _state(row, data)[0]) for method, row in table.rows.items() for data in table.data.values()]
        lacking = Counter(state for _, state in states if state != "can run")
        rows.append(
            {
                "name": name,
                "title": table.title,
                "rows": len(states),
                "can run": ", ".join(dict.fromkeys(method for method, state in states if state == "can run")) or None,
                "otherwise": ", ".join(f"{count} {state}" for state, count in lacking.items()) or None,
            }
        )
    return rows


def _weights() -> list[dict[str, Any]]:
    from bench.weights.catalogue import entries

    return [
        {
            "name": name,
            "title": entry.title,
            "present": _weights_file(entry) is not None,
            "licence": entry.licence,
            "verified": entry.verified,
        }
        for name, entry in entries().items()
    ]


def _weights_file(entry: WeightsEntry) -> Path | None:
    """Where the file lies, found without hashing it."""
    from bench.weights.catalogue import places

    return next((place for place in places(entry) if place.is_file()), None)


_LISTERS = {
    "methods": _methods,
    "data": _data,
    "metrics": _metrics,
    "degradations": _degradations,
    "papers": _papers,
    "weights": _weights,
}
