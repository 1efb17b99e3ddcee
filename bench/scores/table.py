"""The score table: the primary result of a run, long form, one row per picture and metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import UsageError
from bench.files import atomic_path


@dataclass(frozen=True)
class ScoreRow:
    """One value.

    Attributes:
        protocol_id: Frozen protocol the picture belongs to; "" for pictures scored outside one.
        method: Label of the method's row, such as `refine@demo`.
        method_revision: Hash of the weights and settings that made the picture.
        seed: Seed of the run.
        image_id: Picture, unique within the protocol.
        identity: Who is shown.
        metric: Name of the metric.
        metric_id: Identity string of the metric; only rows with the same one are comparable.
        value: The score, or None.
        reason: Why there is no value; None where there is one.
    """

    protocol_id: str
    method: str
    method_revision: str
    seed: int
    image_id: str
    identity: str
    metric: str
    metric_id: str
    value: float | None
    reason: str | None


SCHEMA = pa.schema(
    [
        ("protocol_id", pa.string()),
        ("method", pa.string()),
        ("method_revision", pa.string()),
        ("seed", pa.int64()),
        ("image_id", pa.string()),
        ("identity", pa.string()),
        ("metric", pa.string()),
        ("metric_id", pa.string()),
        ("value", pa.float64()),
        ("reason", pa.string()),
    ]
)

SET_SCHEMA = pa.schema(
    [
        ("protocol_id", pa.string()),
        ("method", pa.string()),
        ("method_revision", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("metric_id", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("interval", pa.string()),
        ("n", pa.int64()),
        ("of", pa.int64()),
        ("reason", pa.string()),
    ]
)


def rows_to_frame(rows: Iterable[ScoreRow]) -> pd.DataFrame:
    """Table of rows, sorted by metric and picture so that the order of scoring leaves no trace."""
    records = [asdict(row) for row in rows]
    frame = pd.DataFrame.from_records(records, columns=[field.name for field in fields(ScoreRow)])
    frame["value"] = frame["value"].astype("float64")
    return frame.sort_values(["metric", "image_id"], kind="stable", ignore_index=True)


def write_table(frame: pd.DataFrame, path: Path, schema: pa.Schema = SCHEMA) -> None:
    """Writes a score table as Parquet, atomically.

    Raises:
        ValueError: A row has neither a value nor a reason, or both.
    """
    if schema is SCHEMA and (both := frame["value"].isna() == frame["reason"].isna()).any():
        raise ValueError(f"{int(both.sum())} rows must have either a value or a reason: {frame[both].head(3)}")
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def empty_set_scores() -> pd.DataFrame:
    """A table for the scores of whole sets (FID, KID) without rows."""
    return SET_SCHEMA.empty_table().to_pandas()


def read_table(path: Path) -> pd.DataFrame:
    """Reads a score table.

    Raises:
        UsageError: The file is missing, unreadable, or not a score table.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"Cannot read the score table {path}: {error}") from error
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    if missing:
        raise UsageError(f"{path} is not a score table: columns {', '.join(missing)} are missing.")
    frame: pd.DataFrame = table.to_pandas()
    frame["reason"] = frame["reason"].astype(object).where(frame["reason"].notna(), None)
    return frame


def metric_identities(frame: pd.DataFrame) -> dict[str, str]:
    """Identity string of each metric in the table.

    Raises:
        UsageError: One metric name carries two identities; such values are not comparable.
    """
    identities: dict[str, Any] = {}
    for name, group in frame.groupby("metric", sort=True):
        found = sorted(group["metric_id"].unique())
        if len(found) > 1:
            raise UsageError(f"Metric {name} has several identities in one table: {'; '.join(found)}.")
        identities[str(name)] = found[0]
    return identities
