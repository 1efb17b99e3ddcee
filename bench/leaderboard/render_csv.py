"""Boards as CSV in long form: one line for each row and metric, measured and published."""

from __future__ import annotations

import csv
import io

from bench.leaderboard.claim_marks import FIELD
from bench.leaderboard.view import View
from bench.scores.power import Power

COLUMNS = (
    "protocol", "protocol_id", "source", "method", "revision", "seed", "metric", "metric_identity", "unit", "better",
    "mean", "low", "high", "interval", "n", "of", "mark", "group", "shows_05", "shows_01", "remark", "reason",
    "seconds_per_image", "peak_memory_mb", "parameters", "code_revision", "licence", "reported_by", "created",
)  # fmt: skip
BETTER = {True: "higher", False: "lower", None: ""}


def _shows(power: Power) -> dict[str, float | None]:
    return {f"shows_{level:.2f}".replace("0.", ""): value for level, value in power.smallest_difference.items()}


def board_csv(view: View) -> str:
    """The board with full precision; `source` tells measured rows from published ones.

    `shows_05` and `shows_01` are the smallest true differences that one test of two rows shows with 80 % power at those
    levels (`bench.scores.power`), `remark` holds the column's footnotes and the row's claims on this metric that were
    not reproduced.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    board = view.board
    power = board.power
    remarks = {name: " ".join(view.footnotes[n - 1] for n in numbers) for name, numbers in view.notes.items()}
    common = {"protocol": board.protocol, "protocol_id": board.protocol_id}
    for row in view.rows:
        entry = row.entry
        own = {key: entry[key] for key in ("method", "revision", "seed", "code_revision", "licence", "reported_by")}
        own |= {key: entry[key] for key in ("created", "seconds_per_image", "peak_memory_mb", "parameters")}
        by_name = dict(zip((column.name for column in view.columns), row.cells, strict=True))
        marked = list(zip(entry.get(FIELD, []), row.claims, strict=True))
        for name, metric in {**entry["metrics"], **entry.get("set_metrics", {})}.items():
            cell = by_name.get(name)
            claims = [view.footnotes[n - 1] for claim, n in marked if claim["metric"] == name]
            writer.writerow(
                {
                    **common,
                    **own,
                    "source": "measured",
                    "metric": name,
                    "metric_identity": metric["identity"],
                    "unit": metric["unit"],
                    "better": BETTER[metric["higher_is_better"]],
                    "mean": metric.get("mean", metric.get("value")),
                    **{key: metric[key] for key in ("low", "high", "interval", "n", "of", "reason")},
                    "mark": cell.mark if cell else "",
                    "group": cell.group if cell else "",
                    **(_shows(power[name]) if name in power else {}),
                    "remark": " ".join(filter(None, [cell.remark if cell else "", remarks.get(name, ""), *claims])),
                }
            )
    for paper, rows in view.published:
        for published in rows:
            for name, value in published.metrics.items():
                writer.writerow(
                    {
                        "protocol": board.protocol,
                        "protocol_id": published.protocol_id or "",
                        "source": f"{paper.name} table {published.table}, {published.mark(board.protocol_id)}",
                        "method": published.method,
                        "metric": name,
                        "unit": paper.units[name],
                        "better": paper.better[name],
                        "mean": value,
                    }
                )
    return stream.getvalue()
