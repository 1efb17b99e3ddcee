"""Paired differences per identity as one SVG file: what a comparison's test and interval are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.registry import metric_classes
from bench.report.plots import ticks
from bench.report.terminal import number, p_value
from bench.scores.compare import IdentityDifference
from bench.scores.statistics import Comparison

COLUMNS, WIDTH, LEFT, RIGHT, TOP, BOTTOM, LINE = 3, 360, 74, 14, 48, 50, 14
SMALLEST_WIDTH, HEAD = 720, 80
LEGEND = (
    "Dot: one identity (line: 95 % interval over its images); diamond: mean over identities with its 95 % interval.",
    "Green: A better, red: A worse, blue: not ranked.",
)
STYLE = """
svg{font:11px system-ui,sans-serif;background:#fff;fill:#222}
.title{font-weight:600;font-size:13px}.small,.tick{font-size:10px;fill:#666}
.grid{stroke:#e4e4e4}.zero{stroke:#555}.whisker{stroke-width:1.3}.better{fill:#1b7f4b;stroke:#1b7f4b}
.worse{fill:#c2412d;stroke:#c2412d}.plain{fill:#4a6fa5;stroke:#4a6fa5}.mean{fill:#222;stroke:#222;stroke-width:2}
@media (prefers-color-scheme:dark){svg{background:#16181c;fill:#ddd}.small,.tick{fill:#999}.grid{stroke:#2c3038}
.zero{stroke:#aaa}.better{fill:#4cc38a;stroke:#4cc38a}.worse{fill:#ff7a66;stroke:#ff7a66}
.plain{fill:#8ab0e6;stroke:#8ab0e6}.mean{fill:#eee;stroke:#eee}}
"""


def paired_plot(
    comparisons: Sequence[Comparison], differences: dict[str, list[IdentityDifference]], a: str, b: str
) -> str:
    """SVG with a panel for each comparison.

    A dot is the mean difference A - B of one identity, its line the 95 % interval over the pictures of
    that identity (none with one picture); the diamond is the mean over identities with the interval
    that the comparison states. Green: A is better there; red: worse; blue: the metric is not ranked.

    Args:
        comparisons: What is drawn, in this order.
        differences: For each metric the differences of the identities.
        a: What A is; of a folder that stands last, after " from ", its name alone is written.
        b: What B is.
    """
    a, b = _without_path(a), _without_path(b)
    columns = min(COLUMNS, max(1, len(comparisons)))
    panel = max(WIDTH, SMALLEST_WIDTH // columns)
    heights = [TOP + LINE * (len(differences[one.metric]) + 2) + BOTTOM for one in comparisons]
    rows = [heights[start : start + COLUMNS] for start in range(0, len(heights), COLUMNS)]
    width, height = panel * columns, HEAD + sum(max(row) for row in rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(f"Paired differences of {a} and {b}", quote=True)}"><style>{STYLE}</style>',
        f'<text x="14" y="18">A: {escape(a)}</text><text x="14" y="33">B: {escape(b)}</text>',
        *(f'<text class="small" x="14" y="{50 + 14 * line}">{escape(text)}</text>' for line, text in enumerate(LEGEND)),
    ]
    top = HEAD
    for index, one in enumerate(comparisons):
        row, column = divmod(index, COLUMNS)
        if column == 0 and row:
            top += max(rows[row - 1])
        drawn = _panel(one, differences[one.metric], panel)
        parts.append(f'<g transform="translate({column * panel} {top})">{drawn}</g>')
    return "".join([*parts, "</svg>\n"])


def _without_path(side: str) -> str:
    before, found, path = side.rpartition(" from ")
    return f"{before}{found}{Path(path).name or path}" if found else side


def _title(metric: str) -> tuple[str, str]:
    """Title and unit of a metric; its name where no metric here is called so."""
    known = metric_classes().get(metric)
    return (known.title, known.unit) if known else (metric, "")


def _panel(one: Comparison, people: Sequence[IdentityDifference], width: int) -> str:
    bounds = [bound for bound in (one.mean_difference, one.low, one.high) if bound is not None]
    for person in people:
        bounds += [bound for bound in (person.difference, person.low, person.high) if bound is not None]
    low, high = min([0.0, *bounds]), max([0.0, *bounds])
    margin = (high - low) * 0.05 or 1.0
    low, high = low - margin, high + margin
    bottom = TOP + LINE * (len(people) + 2)

    def x(value: float) -> str:
        return f"{LEFT + (value - low) / (high - low) * (width - LEFT - RIGHT):.1f}"

    arrow = {True: "higher is better", False: "lower is better", None: "not ranked"}[one.higher_is_better]
    mean = f"A - B = {number(one.mean_difference)}"
    if one.low is not None and one.high is not None:
        mean += f" [{number(one.low)}, {number(one.high)}]"
    mean += f", p {p_value(one.p)}, Holm {p_value(one.p_adjusted)}"
    title, unit = _title(one.metric)
    in_unit = f" ({unit})" if unit else ""
    middle = (LEFT + width - RIGHT) / 2
    axis = f"A \u2212 B{in_unit}"
    parts = [
        f'<text class="title" x="14" y="16">{escape(title + in_unit)}</text>',
        f'<text class="small" x="{middle:.1f}" y="{bottom + 30}" text-anchor="middle">{escape(axis)}</text>',
        f'<text class="small" x="{width - RIGHT}" y="16" text-anchor="end">{arrow}</text>',
        f'<text class="small" x="14" y="32">{escape(mean)}</text>',
    ]
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{bottom + 13}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{TOP}" y2="{bottom}"/>')
    for line, person in enumerate(sorted(people, key=lambda item: (-item.difference, item.identity))):
        y = TOP + LINE * (line + 0.5)
        colour = "plain"
        if one.higher_is_better is not None and person.difference != 0:
            colour = "better" if (person.difference > 0) == one.higher_is_better else "worse"
        name = person.identity if len(person.identity) <= 10 else person.identity[:9] + "…"
        parts.append(f'<text x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
        if person.low is not None and person.high is not None:
            parts.append(_line(f"whisker {colour}", x(person.low), x(person.high), y))
        tip = escape(f"{person.identity}: {number(person.difference)} ({person.images} pictures)")
        parts.append(
            f'<circle class="{colour}" cx="{x(person.difference)}" cy="{y:.1f}" r="3"><title>{tip}</title></circle>'
        )
    y = TOP + LINE * (len(people) + 1.2)
    parts.append(f'<text class="title" x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">mean</text>')
    if one.low is not None and one.high is not None:
        parts.append(_line("mean", x(one.low), x(one.high), y))
    centre = float(x(one.mean_difference))
    parts.append(f'<path class="mean" d="M{centre - 5:.1f} {y:.1f}l5 -5 5 5 -5 5z"/>')
    return "".join(parts)


def _line(kind: str, left: str, right: str, y: float) -> str:
    return f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
