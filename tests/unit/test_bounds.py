"""Bounds of entries: what a metric can reach, and computing them again from identity means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from bench.leaderboard.bounds import recomputed_bounds, same_bounds, with_todays_bounds
from bench.leaderboard.entry import read_entry
from bench.paths import resource_root
from bench.registry import metric_classes

COSINES = ("id", "ips", "id_detected", "id_sface", "ips_sface", "id_buffalo_l", "ips_buffalo_l")
RATES = ("detected", "mark_recall", "mark_false_copy", "clipiqa")
BOARDS = resource_root() / "leaderboards"
ENTRIES = sorted(
    path for name in ("orl_heavy", "orl_heavy_marks", "orl_light") for path in (BOARDS / name).glob("*.json")
)
ENTRIES += sorted((Path(__file__).parents[1] / "regression" / "baselines").glob("*/*.json"))


def test_cosines_rates_and_distances_state_what_they_can_reach() -> None:
    limits = {name: getattr(own, "limits", (None, None)) for name, own in metric_classes().items()}
    assert {limits[name] for name in COSINES} == {(-1.0, 1.0)}
    assert {limits[name] for name in RATES} == {(0.0, 1.0)}
    assert {limits[name] for name, own in metric_classes().items() if own.unit in ("px", "px²")} == {(0.0, None)}
    assert limits["degradation_angle"] == (0.0, 180.0)


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_entries_hold_todays_bounds(path: Path) -> None:
    entry = read_entry(path)
    wanted = recomputed_bounds(entry)
    assert set(wanted) == {name for name, metric in entry["metrics"].items() if metric["mean"] is not None}
    assert all(same_bounds(entry["metrics"][name], own) for name, own in wanted.items())
    for name, metric in entry["metrics"].items():
        low, high = getattr(metric_classes()[name], "limits", (None, None))
        assert low is None or metric["low"] is None or metric["low"] >= low
        assert high is None or metric["high"] is None or metric["high"] <= high


def _older(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """An entry whose rate has the bounds of Student's t alone, as entries before limits have."""
    path = next(path for path in ENTRIES if path.name.startswith("refine+blind") and path.parent.name == "orl_heavy")
    entry = read_entry(path)
    means = [own["mean"] for own in entry["metrics"]["detected"]["by_identity"].values()]
    half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
    mean = sum(means) / len(means)
    entry["metrics"]["detected"] |= {
        "low": mean - half,
        "high": mean + half,
        "interval": "student-t over 12 identities",
    }
    assert mean + half > 1
    copied = tmp_path / path.parent.name / path.name
    copied.parent.mkdir()
    copied.write_text(json.dumps(entry), "utf-8")
    return copied, read_entry(path)


def test_older_entries_change_in_their_bounds_alone(tmp_path: Path) -> None:
    path, wanted = _older(tmp_path)
    command = [sys.executable, "-m", "bench.leaderboard.bounds", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "detected" in done.stdout
    assert "upper bound cut off at 1" in done.stdout
    assert read_entry(path) == wanted
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == ""


def test_intervals_of_another_making_are_made_anew(tmp_path: Path) -> None:
    path, wanted = _older(tmp_path)
    entry = read_entry(path)
    entry["metrics"]["detected"] |= {"interval": "bca over 12 identities", "low": None, "high": None}
    changed, changes = with_todays_bounds(entry)
    assert len(changes) == 1
    assert recomputed_bounds(changed) == recomputed_bounds(wanted)
    assert changed["metrics"]["detected"]["interval"].startswith("student-t over 12 identities")
