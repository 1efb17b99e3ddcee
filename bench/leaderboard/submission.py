"""What must hold of results handed in by others before any score is computed again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UsageError, unknown_name
from bench.files import sha256_file
from bench.paths import bench_home, resource_root

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from bench.metrics.metric import Metric
    from bench.protocol.protocol import Protocol

SHOWN = 3


@dataclass(frozen=True)
class Submission:
    """What somebody hands in.

    Attributes:
        protocol: Name of a frozen protocol, or a protocol file.
        restored: Folder of their pictures, `<image id>.png`.
        scores: Their score table, with scores of whole sets in `set_<its name>` beside it where there are any; None
            to score every picture here.
        hashes: File of `sha256sum` lines, or None.
        sample: Pictures to score again; None for all.
        method: Label of the row; None for the score table's.
        title: Title of the row; None for the label.
        reported_by: Who vouches for it.
        licence: Licence of the method's weights.
        paper: Citation.
        parameters: Number of parameters.
        seconds: Seconds per picture.
        peak_memory: Peak memory in MB.
        hardware: What it ran on.
        code_revision: Commit of the code that restored.
        allow_incomplete: Whether pictures may be missing.
    """

    protocol: str
    restored: Path
    scores: Path | None = None
    hashes: Path | None = None
    sample: int | None = 10
    method: str | None = None
    title: str | None = None
    reported_by: str | None = None
    licence: str | None = None
    paper: str | None = None
    parameters: int | None = None
    seconds: float | None = None
    peak_memory: float | None = None
    hardware: str | None = None
    code_revision: str | None = None
    allow_incomplete: bool = False


def find_protocol(name: str, wanted_id: str | None = None) -> Protocol:
    """A frozen protocol by name or file.

    Args:
        name: Name of a committed protocol, of one frozen on this machine, or a JSON file.
        wanted_id: Of several frozen ones of this name, the one to take.

    Raises:
        UsageError: There is none.
    """
    from bench.protocol.protocol import Protocol

    committed = resource_root() / "datasets" / "protocols"
    local = bench_home() / "protocols"
    places = [Path(name)] if name.endswith(".json") else [committed / f"{name}.json"]
    places += sorted(local.glob(f"{name}-*.json")) if local.is_dir() and not name.endswith(".json") else []
    found = [json.loads(path.read_text("utf-8")) for path in places if path.is_file()]
    # `a-b` is no protocol `a`: the name inside counts.
    found = [record for record in found if name.endswith(".json") or record["name"] == name]
    if not found:
        known = {path.stem for path in committed.glob("*.json")}
        known |= {path.stem.rpartition("-")[0] for path in local.glob("*.json")} if local.is_dir() else set()
        raise unknown_name("frozen protocol", name, known)
    return Protocol.from_dict(next((record for record in found if record["id"] == wanted_id), found[0]))


def read_submitted(path: Path) -> pd.DataFrame:
    """A submitted score table: one run, no row twice, every column of the type it should have.

    Raises:
        UsageError: It is not that.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bench.scores.table import SCHEMA, read_table

    if read_table(path).empty:
        raise UsageError(f"The score table {path} has no rows.")
    columns: dict[str, pa.ChunkedArray] = {}
    stored = pq.read_table(path, columns=SCHEMA.names)
    for field in SCHEMA:
        try:
            column = stored.column(field.name)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if pa.types.is_floating(field.type) and not _is_number(column.type):
                raise pa.ArrowInvalid(f"found {column.type}")
            columns[field.name] = column.cast(field.type, safe=True)
        except (pa.ArrowException, ValueError) as error:
            raise UsageError(f"{path}: the column {field.name} must hold {field.type} only: {error}") from error
        if columns[field.name].null_count and field.name not in ("value", "reason"):
            raise UsageError(f"{path}: {columns[field.name].null_count} rows have no {field.name}.")
    table: pd.DataFrame = pa.table(columns).to_pandas()
    table["reason"] = table["reason"].astype(object).where(table["reason"].notna(), None)
    for column in ("protocol_id", "method", "method_revision", "seed"):
        if len(found := sorted(map(str, table[column].unique()))) > 1:
            raise UsageError(
                f"{path} holds several values of {column} ({_some(found)}): one row of a board is one run."
            )
    doubled = table[table.duplicated(["image_id", "metric"])]
    if len(doubled):
        first = doubled.iloc[0]
        raise UsageError(f"{path} scores {first['image_id']} twice by {first['metric']}.")
    return table


def check_table(table: pd.DataFrame, protocol: Protocol, where: str) -> tuple[list[Metric], dict[str, str]]:
    """Protocol id, coverage, identities and metric identities; the metrics to compute again, and why not the others."""
    stated = str(table["protocol_id"].iloc[0])
    if not stated:
        raise UsageError(
            f"{where} was scored outside a protocol, where other pixels count. Leave --from away to have the pictures "
            f"scored here on {protocol.name}."
        )
    if stated != protocol.id:
        raise UsageError(
            f"{where} belongs to protocol id {stated}, {protocol.name} is {protocol.id}. Such numbers are not "
            "comparable: restore and score the pictures of this protocol."
        )
    identities = {image.image_id: image.identity for image in protocol.images}
    names = set(identities)
    for metric, rows in table.groupby("metric", sort=True):
        scored = set(rows["image_id"])
        if scored != names:
            missing, foreign = sorted(names - scored), sorted(scored - names)
            raise UsageError(
                f"{where}: {metric} has {len(scored & names)} of the {len(names)} pictures of {protocol.name}"
                f"{_listed(', missing', missing)}{_listed(', not of the protocol', foreign)}. "
                "A picture without a score needs a row with its reason."
            )
    wrong = [name for name, who in zip(table["image_id"], table["identity"], strict=True) if identities[name] != who]
    if wrong:
        raise UsageError(f"{where} gives {wrong[0]} another identity than the protocol ({identities[wrong[0]]}).")
    _check_values(table, where)
    return _known_metrics(table, where)


def _check_values(table: pd.DataFrame, where: str) -> None:
    if not (table["value"].isna() | table["value"].abs().lt(math.inf)).all():
        raise UsageError(f"{where} holds values that are not finite.")
    if (table["value"].isna() == table["reason"].isna()).any():
        raise UsageError(f"{where}: every row needs either a value or a reason.")


def _known_metrics(table: pd.DataFrame, where: str) -> tuple[list[Metric], dict[str, str]]:
    from bench.registry import metric_classes
    from bench.scores.table import metric_identities

    classes = metric_classes()
    metrics: list[Metric] = []
    not_recomputed: dict[str, str] = {}
    for name, identity in metric_identities(table).items():
        if name not in classes:
            raise unknown_name("metric", name, classes)
        metric = classes[name]()
        reason = metric.unavailable()
        if not same_identity(identity, metric.identity, bool(reason)):
            raise UsageError(
                f"{where} scores {name} as {identity!r}, this version as {metric.identity!r}. Two numbers with "
                "different identities are never compared: score the pictures with this version."
            )
        if reason:
            not_recomputed[name] = reason
        else:
            metrics.append(metric)
    if not metrics:
        raise UsageError(f"None of the metrics of {where} can be computed here: {not_recomputed}. Nothing was checked.")
    return metrics, not_recomputed


def same_identity(stated: str, own: str, absent: bool) -> bool:
    """Whether a stated metric identity is ours.

    Args:
        stated: Theirs.
        own: That of this installation.
        absent: Whether something of the metric is absent here. Ours then says "absent" or "unverified" in place of a
            hash or version that nobody here can know; there any word will do.
    """
    if not absent:
        return stated == own
    words = re.split(r"\b(?:absent|unverified)\b", own)
    return re.fullmatch(r"[^@,()\s]+".join(map(re.escape, words)), stated) is not None


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind))


def hash_pictures(submission: Submission, protocol: Protocol) -> dict[str, str]:
    """SHA-256 of each restored picture; every one must be there, decode, and have the protocol's size."""
    from bench.image import read_image

    hashes, missing = {}, []
    for name in protocol.image_ids:
        path = submission.restored / f"{name}.png"
        if not path.is_file():
            missing.append(name)
            continue
        height, width = read_image(path).shape[:2]
        if (height, width) != (protocol.size, protocol.size):
            raise UsageError(
                f"{path} has {width}x{height} px, {protocol.name} {protocol.size}x{protocol.size}; pictures are not "
                "resized."
            )
        hashes[name] = sha256_file(path)
    if missing and not (submission.allow_incomplete and hashes):
        raise UsageError(
            f"{submission.restored} lacks {len(missing)} of the {len(protocol.image_ids)} pictures of {protocol.name}: "
            f"{_some(missing)}. They are named IMAGE_ID.png."
        )
    return hashes


def check_no_ghosts(table: pd.DataFrame, hashes: dict[str, str], where: str) -> None:
    """Refuses scores of pictures that are not there.

    Raises:
        UsageError: There are some.
    """
    scored = set(table.loc[table["value"].notna(), "image_id"])
    if ghosts := sorted(scored - set(hashes)):
        raise UsageError(f"{where} scores {len(ghosts)} pictures that are not there: {_some(ghosts)}.")


def check_hashes(submission: Submission, hashes: dict[str, str]) -> None:
    """Refuses pictures that are not those that were scored.

    Raises:
        UsageError: They are not, or nothing says so.
    """
    stated = _stated_hashes(submission)
    if stated is None:
        if submission.sample is None:
            return
        raise UsageError(
            "Nothing says that these pictures are those that were scored. Give --hashes FILE (made with `sha256sum` in "
            "the folder of the pictures), the run folder's own scores.parquet, or score all again with --sample all."
        )
    unknown = sorted(set(hashes) - set(stated))
    changed = sorted(name for name, digest in hashes.items() if name in stated and digest not in stated[name])
    if unknown or changed:
        raise UsageError(
            "The pictures are not those that were scored: "
            f"{len(changed)} changed{_listed('', changed)}, {len(unknown)} without a hash{_listed('', unknown)}."
        )


def _stated_hashes(submission: Submission) -> dict[str, set[str]] | None:
    """Hashes of the pictures that were scored: those handed in, else the journal beside the score table."""
    if submission.hashes is not None:
        try:
            lines = submission.hashes.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"Cannot read --hashes {submission.hashes}: {error}") from error
        stated: dict[str, set[str]] = {}
        for line in lines:
            digest, _, name = line.strip().partition(" ")
            name = name.strip().lstrip("*").removeprefix("./").removesuffix(".png")
            stated.setdefault(name, set()).add(digest.lower())
        return stated
    journal = None if submission.scores is None else submission.scores.parent / "journal" / "score"
    if journal is None or not journal.is_dir():
        return None
    from bench.runs.journal import read_journals

    # The last line of a picture counts: it may have been restored again.
    return {record["image_id"]: {record["sha256"]} for record in read_journals(journal) if record["sha256"]}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what} ({_some(names)})" if names else ""
