"""Dot plots as inline SVG: one dot per image, one line per identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.report.content import Run
from bench.report.terminal import number

WIDTH, LEFT, RIGHT, TOP, BOTTOM, LINE = 420, 64, 12, 10, 26, 15


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], about so many."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def dot_plot(metric: str, runs: Sequence[Run]) -> str:
    """SVG of one metric: a dot per image (with a tooltip), the mean of each identity as a bar.

    The band behind the dots is the 95 % interval of each run's mean. Returns "" without values.
    """
    rows = {run.index: run.scores[(run.scores["metric"] == metric) & run.scores["value"].notna()] for run in runs}
    values = [float(value) for frame in rows.values() for value in frame["value"]]
    if not values:
        return ""
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or abs(high) * 0.01 or 1.0
    low, high = low - margin, high + margin
    people = sorted({str(who) for frame in rows.values() for who in frame["identity"]}, key=_natural)
    height = TOP + LINE * len(people) + BOTTOM

    def x(value: float) -> str:
        return f"{LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT):.1f}"

    bottom = height - BOTTOM
    title = next(run.summary["metrics"][metric]["title"] for run in runs if metric in run.summary["metrics"])
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)} of every image, by identity">'
    ]
    for run in runs:
        one = run.summary["metrics"].get(metric, {})
        if one.get("low") is not None and one["high"] > low and one["low"] < high:
            left, right = float(x(max(low, one["low"]))), float(x(min(high, one["high"])))
            parts.append(
                f'<rect class="band run{run.index % 6}" x="{left}" y="{TOP}" width="{max(0.5, right - left):.1f}" '
                f'height="{bottom - TOP}"/>'
            )
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{bottom + 14}" text-anchor="middle">{tick:.4g}</text>')
    for line, who in enumerate(people):
        y = TOP + LINE * (line + 0.5)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{escape(_short(who))}</text>')
        for run in runs:
            frame = rows[run.index][rows[run.index]["identity"] == who]
            shift = (run.index - (len(runs) - 1) / 2) * min(4.0, 9.0 / len(runs))
            colour = f"run{run.index % 6}"
            for image_id, value in zip(frame["image_id"], frame["value"], strict=True):
                tip = escape(f"{image_id} · {run.label} · {title} {number(float(value))}")
                centre = f'cx="{x(value)}" cy="{y + shift:.1f}"'
                parts.append(f'<circle class="{colour}" {centre} r="2.6"><title>{tip}</title></circle>')
            if len(frame):
                mean = x(float(frame["value"].mean()))
                ends = f'x1="{mean}" x2="{mean}" y1="{y + shift - 5:.1f}" y2="{y + shift + 5:.1f}"'
                parts.append(f'<line class="mean {colour}" {ends}/>')
    return "".join([*parts, "</svg>"])


def _natural(name: str) -> tuple[int, str]:
    """Sorts s2 before s10."""
    return len(name), name


def _short(name: str) -> str:
    return name if len(name) <= 9 else name[:8] + "…"
