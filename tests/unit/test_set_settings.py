"""Which metrics of whole sets a run scores and where it keeps their features: visible keys that can be overridden."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.config import compose, group_choices, read_preset
from bench.paths import bench_home
from bench.registry import set_metric_classes
from bench.runs.sets import _cache, chosen_sets


def _plan(tmp_path: Path, *words: str) -> Any:
    return SimpleNamespace(config=compose("run", ["method=input", *words]), run_dir=tmp_path)


@pytest.mark.parametrize("preset", sorted(group_choices("metrics")))
def test_every_preset_says_which_set_metrics_it_has(preset: str) -> None:
    names = read_preset("metrics", preset)["sets"]
    assert set(names) <= set(set_metric_classes())
    wanted = {"standard": set(set_metric_classes()), "full": set(set_metric_classes()), "regions": set()}
    assert preset not in wanted or set(names) == wanted[preset]
    if preset == "no_reference":
        assert names
        assert not any("truth" in set_metric_classes()[name].needs for name in names)


def test_set_metrics_can_be_chosen(tmp_path: Path) -> None:
    assert {metric.name for metric in chosen_sets(_plan(tmp_path))} == set(set_metric_classes())
    assert [metric.name for metric in chosen_sets(_plan(tmp_path, "metrics.sets=[kid_gt]"))] == ["kid_gt"]
    assert chosen_sets(_plan(tmp_path, "metrics.sets=[]")) == []
    assert {metric.name for metric in chosen_sets(_plan(tmp_path, "metrics.sets=null"))} == set(set_metric_classes())


def test_features_go_to_the_users_cache_or_stay_with_the_run(tmp_path: Path) -> None:
    assert _cache(_plan(tmp_path)).folder == bench_home() / "scores"
    assert _cache(_plan(tmp_path, "cache=false")).folder == tmp_path / "journal" / "features"
