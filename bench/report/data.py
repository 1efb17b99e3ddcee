"""What the page's script draws from: every value of every image, and the pictures, as one JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from bench.report.content import Run, all_metrics, baseline, heading, leading, told
from bench.report.pictures import SMALL_SIDE, PictureBook, Pictures, images_to_show, make_case, most_cases
from bench.report.strength import degradation_parameters, lq_psnr

DIGITS = 6


def page_data(runs: Sequence[Run], metric: str | None, pictures: Sequence[Pictures] | None) -> dict[str, Any]:
    """Everything the script needs, as built-in types.

    Args:
        runs: The runs.
        metric: The metric that is chosen first.
        pictures: Their pictures, in the same order; None for a page without.

    Returns:
        `images`, `people` and `who` (number of each image's person); `runs`; `metrics`; `scores` and `why` (per
        metric and run: a value per image; the number of a reason in `reasons` for each missing one); `strengths`;
        `side` of the pictures in pixels; `cases` (per image number) with numbers of `pictures`, the reasons in
        `unreadable` as they were raised.
    """
    lead = leading(runs)
    images = list(dict.fromkeys(image for run in runs for image in run.scores["image_id"]))
    identity = {i: str(who) for run in runs for i, who in zip(run.scores["image_id"], run.scores["identity"])}  # noqa: B905
    people = sorted(set(identity.values()), key=lambda name: (len(name), name))
    position = {name: index for index, name in enumerate(people)}
    metrics = all_metrics(runs)
    reasons: dict[str, int] = {}
    scores: dict[str, list[list[float | None]]] = {name: [] for name in metrics}
    why: dict[str, list[dict[int, int]]] = {name: [] for name in metrics}
    for run in runs:
        tables = dict(list(run.scores.groupby("metric", sort=False)))
        for name in metrics:
            rows = tables.get(name)
            records = {} if rows is None else {
                row.image_id: (row.value, row.reason) for row in rows[["image_id", "value", "reason"]].itertuples()
            }  # fmt: skip
            values = [records.get(image, (None, "not scored")) for image in images]
            scores[name].append([_rounded(value) for value, _ in values])
            missing = {i: reason for i, (value, reason) in enumerate(values) if _rounded(value) is None}
            why[name].append({i: reasons.setdefault(told(reason), len(reasons)) for i, reason in missing.items()})
    book = PictureBook()
    cases: dict[int, dict[str, Any]] = {}
    side = 0
    if pictures is not None:
        side = int(pictures[lead.index].lq(images[0]).shape[0])
        number = {image: index for index, image in enumerate(images)}
        full, most = most_cases(side, len(runs))
        for rank, image in enumerate(images_to_show(runs, metric, most)):
            cases[number[image]] = make_case(image, runs, pictures, book, None if rank < full else SMALL_SIDE)
    first = baseline(runs)
    return {
        "images": images,
        "people": people,
        "who": [position[identity[image]] for image in images],
        "runs": [{"label": run.label, "method": run.summary["method"]} for run in runs],
        "lead": lead.index,
        "input": None if first is None else first.index,
        "metrics": [
            {
                "name": name,
                "title": one["title"],
                "unit": one["unit"] or "",
                "heading": heading(one),
                "better": one["higher_is_better"],
            }
            for name, one in metrics.items()
        ],
        "chosen": metric,
        "scores": scores,
        "why": why,
        "reasons": list(reasons),
        "strengths": _strengths(lead, images, None if first else pictures),
        "side": side,
        "cases": cases,
        "pictures": book.addresses,
    }


def _strengths(lead: Run, images: Sequence[str], pictures: Sequence[Pictures] | None) -> list[dict[str, Any]]:
    found = []
    if pictures is not None and (values := lq_psnr(pictures[lead.index], images)):
        found.append({"title": "PSNR of the LQ (dB, RGB)", "values": [_rounded(value) for value in values]})
    for name, drawn in degradation_parameters(lead.folder, images).items():
        found.append({"title": f"{name} of the degradation", "values": [_rounded(value) for value in drawn]})
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def embedded(data: dict[str, Any]) -> str:
    """JSON that may stand in a `<script>` element: nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
