"""What a run folder says in MLflow's terms: parameters, metrics, and the table of every image's values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

LONGEST_PARAMETER = 500


def parameters(run_dir: Path) -> dict[str, str]:
    """`config.yaml`, flattened ("method.loss.cycle"); empty where there is none."""
    import yaml

    path = run_dir / "config.yaml"
    return dict(_flatten(yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}))


def metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Means with `.low`, `.high` and `.n`, cost and failures of a run's summary; nothing that is missing."""
    values: dict[str, float | None] = {
        name: summary.get(name) for name in ("seconds_per_image", "peak_memory_mb", "parameters", "images")
    }
    values["failed"] = len(summary.get("failed") or {})
    for name, metric in summary["metrics"].items():
        values |= {name: metric["mean"], f"{name}.low": metric["low"], f"{name}.high": metric["high"]}
        values[f"{name}.n"] = metric["n"]
    for name, metric in (summary.get("set_metrics") or {}).items():
        values |= {name: metric["value"], f"{name}.low": metric["low"], f"{name}.high": metric["high"]}
        values[f"{name}.n"] = metric["n"]
    return {name: float(value) for name, value in values.items() if value is not None}


def image_table(run_dir: Path) -> pd.DataFrame:
    """One row per image, one column per metric."""
    from bench.scores.table import read_table

    scores = read_table(run_dir / "scores.parquet")
    table = scores.pivot(index=["image_id", "identity"], columns="metric", values="value").reset_index()
    table.columns.name = None
    return table.astype(object).where(table.notna(), None)


def allowed_key(name: str) -> str:
    """`name` with what MLflow's keys may not hold replaced."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and (value or not prefix):
        for key, child in value.items():
            yield from _flatten(child, f"{prefix}.{key}" if prefix else str(key))
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    yield allowed_key(prefix), text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 1] + "…"
