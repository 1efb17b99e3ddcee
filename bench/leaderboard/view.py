"""A board as every output format draws it: cells, footnotes and the published rows beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from bench.leaderboard.claim_marks import FIELD, claim_text
from bench.leaderboard.papers import published_on
from bench.leaderboard.published import PublishedPaper, PublishedRow, citation_keys
from bench.leaderboard.ranking import COPY, INPUT, Board, Column, build_board, was_recomputed
from bench.metrics.consistency import METRICS as CONSISTENCY_METRICS
from bench.metrics.consistency import NOT_ALONE
from bench.metrics.noise_check import bettered_by_noise, noise_effects
from bench.metrics.set_metric import FID_SMALLEST
from bench.report.terminal import number
from bench.scores.power import LEVELS, POWER, Power


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    Attributes:
        value: Mean, or None.
        text: The mean as text, or why there is none.
        interval: Bounds such as "[23.4, 25.7]", or "".
        coverage: "54/60" where not every image is scored, else "".
        mark: "best", "second", or "".
        group: Letters of its tie groups, "?" after them where a pair could not be tested, or "".
        remark: "not recomputed" for a number of others that was never checked here, or "".
    """

    value: float | None
    text: str
    interval: str = ""
    coverage: str = ""
    mark: Literal["best", "second", ""] = ""
    group: str = ""
    remark: str = ""

    @property
    def beside(self) -> str:
        """Coverage and remark, such as "54/60, not recomputed"."""
        return ", ".join(filter(None, [self.coverage, self.remark]))


@dataclass(frozen=True)
class Row:
    """One measured row.

    Attributes:
        entry: The entry behind it.
        name: `method@revision`, with the seed unless it is 0.
        comparison: Whether it is there for comparison only (`input`, `copy_reference`).
        cells: One for each column.
        costs: Seconds per image, peak memory in MB, parameters in millions.
        keys: Citation keys.
        claims: Numbers of the footnotes that name claims of its paper which were not reproduced.
    """

    entry: dict[str, Any]
    name: str
    comparison: bool
    cells: list[Cell]
    costs: list[Cell]
    keys: list[str]
    claims: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """A board, ready to be drawn.

    Attributes:
        board: What is drawn.
        columns: Its columns, IPS next to ID, then those of whole sets (KID).
        rows: Its rows in order.
        notes: For each column the numbers of its footnotes.
        footnotes: Their texts, numbered from 1.
        published: For each paper the published rows of the same data and degradation.
    """

    board: Board
    columns: list[Column]
    rows: list[Row]
    notes: dict[str, list[int]] = field(default_factory=dict)
    footnotes: list[str] = field(default_factory=list)
    published: list[tuple[PublishedPaper, list[PublishedRow]]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Images of the protocol."""
        return int(self.board.entries[0]["of"])

    @property
    def people(self) -> int:
        """Identities of the protocol."""
        return len(self.board.entries[0]["identity_images"])

    @property
    def absent(self) -> list[Column]:
        """Metrics without any value, those of whole sets included."""
        names = {column.name for column in self.columns}
        found = {
            name: _set_column(name, metric)
            for entry in self.board.entries
            for name, metric in entry.get("set_metrics", {}).items()
            if metric["shown"] and name not in names
        }
        return [*self.board.absent, *found.values()]

    @property
    def absent_rows(self) -> list[str]:
        """Comparison rows nobody has measured yet."""
        return [name for name in (COPY, INPUT) if all(entry["method"] != name for entry in self.board.entries)]


NOT_RECOMPUTED = "not recomputed"
COST_HEADINGS = ["s / image ↓", "peak MB ↓", "parameters (M)"]


def view(entries: list[dict[str, Any]]) -> View:
    """Everything that is drawn of a board.

    Args:
        entries: Entries of one protocol id, as `read_entries` gives them.
    """
    board = build_board(entries)
    columns = _beside_id(board.columns)
    second = {column.name: _second(board, column) for column in columns}
    set_columns, withheld = _set_columns(board)
    notes, footnotes = _footnotes(columns, set_columns, withheld, board)
    rows = []
    for index, entry in enumerate(board.entries):
        cells = [_cell(board, index, column, second[column.name]) for column in columns]
        cells += [_set_cell(entry, column) for column in set_columns]
        seed = f", seed {entry['seed']}" if entry["seed"] else ""
        said = [claim_text(claim) for claim in entry.get(FIELD, [])]
        footnotes += [text for text in said if text not in footnotes]
        rows.append(
            Row(
                entry,
                f"{entry['method']}@{entry['revision'][:12]}{seed}",
                entry["method"] in (COPY, INPUT),
                cells,
                _costs(entry),
                citation_keys(entry["method"]),
                [footnotes.index(text) + 1 for text in said],
            )
        )
    return View(board, columns + set_columns, rows, notes, footnotes, published_on(board.protocol))


def _beside_id(columns: list[Column]) -> list[Column]:
    """Each IPS directly after the ID of the same recogniser: alone it rewards copying."""
    names = {column.name for column in columns}
    beside: dict[str, list[Column]] = {}
    for column in columns:
        partner = next((name for name in (column.name.replace("ips", "id", 1), "id") if name in names), None)
        if column.name.startswith("ips") and partner:
            beside.setdefault(partner, []).append(column)
    moved = {column.name for own in beside.values() for column in own}
    return [each for column in columns if column.name not in moved for each in (column, *beside.get(column.name, ()))]


def _second(board: Board, column: Column) -> set[int]:
    """Rows with the second-best mean; `copy_reference` and what was not recomputed are never ranked."""
    if column.higher_is_better is None:
        return set()
    sign = 1 if column.higher_is_better else -1
    means = {
        index: sign * metric["mean"]
        for index, entry in enumerate(board.entries)
        if entry["method"] != COPY
        and was_recomputed(entry, column.name)
        and (metric := entry["metrics"].get(column.name))
        and metric["mean"] is not None
        and metric["identity"] == column.identity
    }
    levels = sorted(set(means.values()), reverse=True)
    return {index for index, mean in means.items() if len(levels) > 1 and mean == levels[1]}


def _cell(board: Board, index: int, column: Column, second: set[int]) -> Cell:
    metric = board.entries[index]["metrics"].get(column.name)
    if metric is None:
        return Cell(None, "not scored")
    if metric["mean"] is None:
        return Cell(None, f"n/a ({metric['reason']})")
    if metric["identity"] != column.identity:
        return Cell(None, "n/a (other metric identity)")
    return Cell(
        value=metric["mean"],
        text=number(metric["mean"]),
        interval="" if metric["low"] is None else f"[{number(metric['low'])}, {number(metric['high'])}]",
        coverage="" if metric["n"] == metric["of"] else f"{metric['n']}/{metric['of']}",
        mark="best" if (index, column.name) in board.marks else "second" if index in second else "",
        group=_group(board, index, column.name),
        remark=_remark(board.entries[index], column.name),
    )


def _remark(entry: dict[str, Any], metric: str) -> str:
    return "" if was_recomputed(entry, metric) else NOT_RECOMPUTED


def _group(board: Board, index: int, metric: str) -> str:
    """Letters of the row's tie groups, with "?" where it could not be tested against every other row."""
    groups = board.groups.get(metric)
    if groups is None or index not in groups.letters:
        return ""
    return groups.letters[index] + ("?" if any(index in pair for pair in groups.untested) else "")


def _set_columns(board: Board) -> tuple[list[Column], list[Column]]:
    """Columns of set metrics, and those withheld because the set is too small for them."""
    shown: dict[str, Column] = {}
    withheld: dict[str, Column] = {}
    for entry in board.entries:
        for name, metric in entry.get("set_metrics", {}).items():
            column = _set_column(name, metric)
            if not metric["shown"]:
                withheld.setdefault(name, column)
            elif metric["value"] is not None:
                shown.setdefault(name, column)
    return list(shown.values()), list(withheld.values())


def _set_column(name: str, metric: dict[str, Any]) -> Column:
    return Column(
        name, metric["title"], metric["unit"], metric["higher_is_better"], metric["identity"], metric["reason"]
    )


def _set_cell(entry: dict[str, Any], column: Column) -> Cell:
    metric = entry.get("set_metrics", {}).get(column.name)
    if metric is None:
        return Cell(None, "not scored")
    if metric["value"] is None:
        return Cell(None, f"n/a ({metric['reason']})")
    if metric["identity"] != column.identity:
        return Cell(None, "n/a (other metric identity)")
    return Cell(
        value=metric["value"],
        text=number(metric["value"]),
        interval="" if metric["low"] is None else f"[{number(metric['low'])}, {number(metric['high'])}]",
        coverage="" if metric["n"] == metric["of"] else f"{metric['n']}/{metric['of']}",
        remark=_remark(entry, column.name),
    )


def _costs(entry: dict[str, Any]) -> list[Cell]:
    seconds, memory, parameters = entry["seconds_per_image"], entry["peak_memory_mb"], entry["parameters"]
    millions = None if parameters is None else parameters / 1e6
    return [
        Cell(seconds, number(seconds, 3)),
        Cell(memory, "n/a" if memory is None else f"{memory:.0f}"),
        Cell(millions, number(millions, 3)),
    ]


def _footnotes(
    columns: list[Column], set_columns: list[Column], withheld: list[Column], board: Board
) -> tuple[dict[str, list[int]], list[str]]:
    notes: dict[str, list[int]] = {}
    texts: list[str] = []

    def add(name: str, text: str) -> None:
        if text not in texts:
            texts.append(text)
        notes.setdefault(name, []).append(texts.index(text) + 1)

    for column in columns:
        if column.name.startswith("ips"):
            beside = (
                "" if any(other.name.startswith("id") for other in columns) else " ID was not scored on this board."
            )
            add(
                column.name,
                f"IPS says how near a row is to the reference, not to the person's photograph: read it beside ID and "
                f"the row `{COPY}`, which shows what copying scores.{beside}",
            )
        if column.name in CONSISTENCY_METRICS:
            add(column.name, NOT_ALONE)
        groups = board.groups.get(column.name)
        if groups and groups.comparisons and not groups.can_separate:
            add(
                column.name,
                f"{len(groups.letters)} rows over {len(board.entries[0]['identity_images'])} identities are too many "
                "pairs for too few people: no difference, however clear, could come out as one here.",
            )
        if said := noise_note(column.name, column.identity):
            add(column.name, said)
    for column in withheld:
        add(
            column.name,
            f"{column.title} is not shown: under {FID_SMALLEST:,} images its bias outweighs the differences between "
            f"methods, this board has {board.entries[0]['of']:,}. KID stands in its place.",
        )
    for column in set_columns:
        add(column.name, f"{column.title} is one number for the whole set; no paired test exists, so it is not ranked.")
    return notes, texts


def interval_notes(board: Board) -> list[str]:
    """How the intervals were made, each with its simulated coverage where that is not 95 %."""
    from bench.scores import simulation

    found: dict[str, None] = {}
    for entry in board.entries:
        people, images = len(entry["identity_images"]), entry["of"] / len(entry["identity_images"])
        for metric in entry["metrics"].values():
            method = (metric["interval"] or "").split(" over ")[0]
            if method:
                known = simulation.COVERAGE_FILE.is_file()
                note = simulation.coverage_note(people, method, images) if known else None
                found[f"{method}; {note}" if note else method] = None
    return sorted(found)


def symmetry_notes(board: Board) -> list[str]:
    """What the tests behind the letters do where differences are skewed, a sentence each."""
    from bench.scores import simulation

    if not simulation.COVERAGE_FILE.is_file():
        return []
    found = {
        simulation.symmetry_note(len(entry["identity_images"]), entry["of"] / len(entry["identity_images"]))
        for entry in board.entries
    }
    return sorted(note for note in found if note)


def noise_note(metric: str, identity: str) -> str | None:
    """What a board says of a no-reference metric that noise betters, or that was never asked whether it does.

    None for metrics that noise does not better, and for those that see a ground truth or references.
    """
    bettered = bettered_by_noise(metric, identity)
    if bettered:
        text = noise_effects()[metric]["text"]
        return f"Adding noise to the input betters this metric ({text}): it is no evidence alone."
    if bettered is None and metric in no_reference_metrics():
        return (
            "Whether adding noise to the input betters this metric was not measured for this version of it "
            "(`python -m bench.metrics.noise_check`, where its weights are): it is no evidence alone."
        )
    return None


def power_note(view: View) -> str | None:
    """The smallest differences that a board's protocol can show, in one sentence; None without two rows to compare."""
    power = view.board.power
    if not power:
        return None
    said = []
    for column in view.columns:
        if (own := power.get(column.name)) is None:
            continue
        unit = f" {column.unit}" if column.unit else ""
        fewer = f" ({own.identities} identities)" if own.identities != view.people else ""
        said.append(f"{column.title} {shown_difference(own)}{unit}{fewer}")
    levels = " and ".join(f"{level:g}".lstrip("0") for level in LEVELS)
    return (
        f"With {view.people} identities, the smallest true difference of two rows that one paired test shows with "
        f"{100 * POWER:g} % probability at α = {levels}: {'; '.join(said)}. "
        "Computed from the spread between identities seen here (median over pairs of rows); the letters, corrected "
        "for all pairs, need more."
    )


def shown_difference(power: Power) -> str:
    """Smallest differences at the levels of `LEVELS`, such as "0.45 and 0.62"; "none" where none can be shown."""
    differences = (power.smallest_difference[level] for level in LEVELS)
    return " and ".join("none" if value is None else _two_digits(value) for value in differences)


def _two_digits(value: float) -> str:
    """A positive number with two significant digits and no exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


@cache
def no_reference_metrics() -> frozenset[str]:
    """Metrics of picture quality that see neither ground truth nor references; whether a face is found is none."""
    from bench.registry import metric_classes

    return frozenset(name for name, metric in metric_classes().items() if not metric.needs and name != "detected")
