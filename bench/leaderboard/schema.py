"""What a leaderboard entry must hold; checked when one is written and when one is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bench.errors import UsageError

ENTRY_SCHEMA = 1

Check = tuple[str, Callable[[Any], bool]]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def or_none(check: Check) -> Check:
    """The same check with null allowed."""
    return f"{check[0]} or null", lambda value: value is None or check[1](value)


TEXT: Check = ("text", lambda value: isinstance(value, str))
NAME: Check = ("text, not empty", lambda value: isinstance(value, str) and bool(value))
COUNT: Check = ("a whole number of at least 0", _is_count)
NUMBER: Check = ("a finite number", _is_number)
DIRECTION: Check = ("true, false or null", lambda value: value is None or isinstance(value, bool))
MAPPING: Check = ("an object", lambda value: isinstance(value, dict))

ENTRY: dict[str, Check] = {
    "schema": (str(ENTRY_SCHEMA), lambda value: value == ENTRY_SCHEMA),
    "protocol": NAME,
    "protocol_id": NAME,
    "method": NAME,
    "title": NAME,
    "revision": NAME,
    "seed": COUNT,
    "images": COUNT,
    "of": COUNT,
    "identity_images": MAPPING,
    "metrics": MAPPING,
    "seconds_per_image": or_none(NUMBER),
    "peak_memory_mb": or_none(NUMBER),
    "parameters": or_none(COUNT),
    "hardware": MAPPING,
    "versions": MAPPING,
    "code_revision": or_none(NAME),
    "licence": or_none(NAME),
    "paper": or_none(NAME),
    "reported_by": NAME,
    "created": NAME,
}
METRIC: dict[str, Check] = {
    "identity": NAME,
    "title": NAME,
    "unit": TEXT,
    "higher_is_better": DIRECTION,
    "mean": or_none(NUMBER),
    "low": or_none(NUMBER),
    "high": or_none(NUMBER),
    "interval": or_none(NAME),
    "n": COUNT,
    "of": COUNT,
    "identities": COUNT,
    "reason": or_none(NAME),
    "by_identity": MAPPING,
}
SET_METRIC: dict[str, Check] = {
    "identity": NAME,
    "title": NAME,
    "unit": TEXT,
    "higher_is_better": DIRECTION,
    "value": or_none(NUMBER),
    "low": or_none(NUMBER),
    "high": or_none(NUMBER),
    "interval": or_none(NAME),
    "n": COUNT,
    "of": COUNT,
    "reason": or_none(NAME),
    "shown": ("true or false", lambda value: isinstance(value, bool)),
}
ACCEPTED: dict[str, Check] = {
    "pictures_sha256": NAME,
    "recomputed": COUNT,
    "largest_differences": MAPPING,
    "not_recomputed": MAPPING,
}
LIST: Check = ("a list, not empty", lambda value: isinstance(value, list) and bool(value))
# Fields that came later: an entry without them is as valid as it was.
OPTIONAL: dict[str, Check] = {"set_metrics": MAPPING, "accepted": MAPPING, "claims_not_reproduced": LIST}
CLAIM: dict[str, Check] = {
    "claim": NAME,
    "text": NAME,
    "source": NAME,
    "rule": NAME,
    "metric": NAME,
    "metric_identity": NAME,
    "title": NAME,
    "unit": TEXT,
    "seeds": ("a list of seeds", lambda value: isinstance(value, list) and bool(value) and all(map(_is_count, value))),
    "pairs": LIST,
}
CLAIM_OPTIONAL: dict[str, Check] = {
    "row_trained_apart": ("true", lambda value: value is True),
    "seeds_of": ("run", lambda value: value == "run"),
}
CLAIM_PAIR: dict[str, Check] = {
    "variant": NAME,
    "against": NAME,
    "mean": NUMBER,
    "against_mean": NUMBER,
    "difference": NUMBER,
    "low": or_none(NUMBER),
    "high": or_none(NUMBER),
    "p": NUMBER,
    "by_seed": ("a list of numbers, not empty", lambda value: value != [] and _are_numbers(value)),
    "verdict": NAME,
}
ACCEPTED_OPTIONAL: dict[str, Check] = {"sample": ("a list of image ids", _is_texts)}
PERSON: dict[str, Check] = {"mean": NUMBER, "n": COUNT}


def validate(entry: Any, where: str) -> None:
    """Checks an entry strictly: every field, no other, and sums that agree.

    Raises:
        UsageError: The first thing that is wrong, with the file and the field.
    """
    check_fields(entry, ENTRY, where, "", OPTIONAL)
    for person, count in entry["identity_images"].items():
        if not _is_count(count) or count == 0:
            raise UsageError(f"{where}: identity_images.{person} must be a whole number above 0, got {count!r}.")
    _check_counts(entry, where)
    for name, metric in entry["metrics"].items():
        field = f"metrics.{name}"
        check_fields(metric, METRIC, where, f"{field}.")
        for person, cell in metric["by_identity"].items():
            check_fields(cell, PERSON, where, f"{field}.by_identity.{person}.")
            if not 0 < cell["n"] <= entry["identity_images"].get(person, 0):
                raise UsageError(f"{where}: {field}.by_identity.{person}.n must lie between 1 and its images.")
        _check_sums(metric, where, field)
    for name, metric in entry.get("set_metrics", {}).items():
        check_fields(metric, SET_METRIC, where, f"set_metrics.{name}.")
        if (metric["value"] is None) != bool(metric["reason"]):
            raise UsageError(f"{where}: set_metrics.{name} must have either a value or a reason.")
        _check_no_bounds(metric, "value", where, f"set_metrics.{name}")
    if "accepted" in entry:
        check_fields(entry["accepted"], ACCEPTED, where, "accepted.", ACCEPTED_OPTIONAL)
    for number, claim in enumerate(entry.get("claims_not_reproduced", [])):
        field = f"claims_not_reproduced.{number}"
        check_fields(claim, CLAIM, where, f"{field}.", CLAIM_OPTIONAL)
        for index, pair in enumerate(claim["pairs"]):
            check_fields(pair, CLAIM_PAIR, where, f"{field}.pairs.{index}.")


def check_fields(
    value: Any, checks: dict[str, Check], where: str, prefix: str, optional: dict[str, Check] | None = None
) -> None:
    """Checks that an object has exactly the fields of `checks`, and of `optional` any.

    Raises:
        UsageError: A field lacks, is unknown, or has a wrong value.
    """
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {prefix.rstrip('.') or 'the entry'} must be an object, got {value!r:.80}.")
    missing, unknown = (
        [k for k in checks if k not in value],
        [k for k in value if k not in checks and k not in (optional or {})],
    )
    if missing or unknown:
        found = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise UsageError(f"{where}: {prefix.rstrip('.') or 'the entry'} {' and '.join(found)}.")
    for key, (expected, check) in {**checks, **(optional or {})}.items():
        if key in value and not check(value[key]):
            raise UsageError(f"{where}: {prefix}{key} must be {expected}, got {value[key]!r:.80}.")


def _check_counts(entry: dict[str, Any], where: str) -> None:
    """The images of the protocol are one number, and nothing is scored that was not restored."""
    of, images = entry["of"], entry["images"]
    if (total := sum(entry["identity_images"].values())) != of:
        raise UsageError(f"{where}: of is {of}, but identity_images has {total} images.")
    if images > of:
        raise UsageError(f"{where}: images is {images}, more than the {of} of the protocol.")
    for kind in ("metrics", "set_metrics"):
        for name, metric in entry.get(kind, {}).items():
            stated = metric if isinstance(metric, dict) else {}
            if _is_count(stated.get("of")) and stated["of"] != of:
                raise UsageError(f"{where}: {kind}.{name}.of is {stated['of']}, but the protocol has {of} images.")
            if _is_count(stated.get("n")) and stated["n"] > images:
                raise UsageError(f"{where}: {kind}.{name}.n is {stated['n']}, but only {images} images were restored.")


def _check_no_bounds(metric: dict[str, Any], value: str, where: str, field: str) -> None:
    if metric[value] is None and (metric["low"] is not None or metric["high"] is not None):
        raise UsageError(f"{where}: {field} has bounds but no value.")


def _check_sums(metric: dict[str, Any], where: str, field: str) -> None:
    people = metric["by_identity"].values()
    if (
        metric["n"] != sum(cell["n"] for cell in people)
        or metric["identities"] != len(people)
        or metric["n"] > metric["of"]
    ):
        raise UsageError(f"{where}: n, of and identities of {field} do not match its identities.")
    if (metric["mean"] is None) != (not people):
        raise UsageError(f"{where}: {field}.mean must be null exactly where there is no value.")
    _check_no_bounds(metric, "mean", where, field)
    if metric["mean"] is None and not metric["reason"]:
        raise UsageError(f"{where}: {field} has no value and no reason.")
    if people:
        mean = math.fsum(cell["mean"] for cell in people) / len(people)
        if not math.isclose(mean, metric["mean"], rel_tol=1e-9, abs_tol=1e-12):
            raise UsageError(f"{where}: {field}.mean is {metric['mean']}, but its identity means give {mean}.")
