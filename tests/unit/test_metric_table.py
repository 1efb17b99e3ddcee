"""The table of what each metric was compared with names every metric once, and tests that exist."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from bench.registry import metric_classes, set_metric_classes

ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[list[str]]:
    text = (ROOT / "bench" / "metrics" / "README.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_metric_is_in_the_table_once() -> None:
    named = Counter(name for row in rows() for name in re.findall(r"`([^`]+)`", row[0]))
    classes = {**metric_classes(), **set_metric_classes()}
    own = {name for name, metric in classes.items() if metric.__module__.startswith("bench.metrics.")}
    assert set(named) == own
    assert set(named.values()) == {1}


def test_every_row_has_a_tolerance_and_a_test_that_exists() -> None:
    for names, compared, tolerance, test in rows():
        assert compared, names
        assert tolerance == "exact" or re.search(r"\d", tolerance), names
        path, _, function = test.strip("`").partition("::")
        assert f"def {function}(" in (ROOT / path).read_text("utf-8"), test
