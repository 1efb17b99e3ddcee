"""The papers' tables beside ours: complete, offline, and honest about what is missing."""

from __future__ import annotations

import json

import pytest
import yaml

from bench.config import compose
from bench.errors import UsageError
from bench.leaderboard.papers import load_table, table_ids
from bench.leaderboard.published import read_published
from bench.leaderboard.reproduce import reproduce
from bench.paths import bench_home, runs_root
from bench.registry import method_targets
from tests.unit.run_folders import PROTOCOL_ID, make_run, score_frame


@pytest.mark.parametrize("name", table_ids())
def test_every_table_is_complete(name):
    table = reproduce(load_table(name))
    printed = [row for row in read_published()[table.table.paper].rows if row.table == table.table.table]
    assert len(table.rows) >= len(printed)
    for row, published in zip(table.rows, printed, strict=False):
        assert (row.method, row.where, row.references) == (published.method, published.where, published.references)
        assert {value.metric: value.published for value in row.values} == published.metrics
    for row in table.rows:
        assert row.reason
        assert row.same_protocol.split(":")[0] in ("yes", "no", "unverified")
        if row.state == "not in this version":
            assert "bench run" in row.get
        if row.state in ("data missing", "weights missing", "outputs missing"):
            assert row.get
        if row.state == "can run":
            assert row.get == f"bench run {' '.join(row.words)}"


def test_configurations_name_what_exists():
    """What a row of a present method asks for composes; a key that is misspelt would not."""
    composed = 0
    for name in table_ids():
        table = load_table(name)
        for row in table.rows.values():
            for data in table.data.values():
                if row.name in method_targets() and data.words:
                    compose("run", [*data.words, *row.words])
                    if row.train:
                        words = [word for word in data.words if word.startswith("data=")]
                        compose("train", [*words, f"method={row.name}", *row.train])
                    composed += 1
    assert composed >= 9


def test_ablations_are_configurations_of_the_methods():
    table = load_table("refine/figure7")
    assert table.rows["minimum loss alone"].train == ["method.losses.cycle=0"]
    assert table.rows["blind (no reference)"].words == ["method=refine", "method.reference=none"]
    states = {row.method: row.state for row in reproduce(table).rows}
    assert states["traditional loss (baseline)"] == "weights missing"
    assert states["refine"] == "data missing"


def test_weights_of_an_ablation_are_taken_where_they_are_looked_for():
    path = bench_home() / "weights" / "minimum_loss_alone.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(b"")
        rows = reproduce(load_table("refine/figure7"), "orl_heavy_ci").rows
        row = next(row for row in rows if row.method == "minimum loss alone")
        assert row.state == "can run"
        assert f"method.weights={path}" in row.words
    finally:
        path.unlink()


def run_of(tmp_name, words, label, shift, protocol, sets=None):
    """A finished run folder where `bench run` would leave it."""
    folder = make_run(runs_root() / protocol / tmp_name, score_frame(label, shift), protocol=protocol)
    (folder / "config.yaml").write_text(yaml.safe_dump(compose("run", words)))
    return folder


@pytest.fixture
def no_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))


@pytest.mark.usefixtures("no_runs")
def test_ours_stand_beside_the_published_in_their_unit():
    table = load_table("pfstorer/table1")
    words = ["data=celebref_heavy", "protocol=pfstorer20", "method=input"]
    folder = run_of("one", words, "input", 0, "celebref_heavy_pfstorer20")
    row = reproduce(table).rows[0]
    assert (row.method, row.state, row.source) == ("input", "measured", str(folder))
    values = {value.metric: value for value in row.values}
    ours = json.loads((folder / "summary.json").read_text())["metrics"]["id"]["mean"]
    assert values["id"].ours == pytest.approx(100 * ours)
    assert values["id"].difference == pytest.approx(100 * ours - 21.85)
    assert values["musiq"].ours is None
    assert values["musiq"].published == 58.83
    assert row.same_protocol.startswith("no: its 20 people")
    assert reproduce(load_table("restorerid/table2")).rows[0].source is None, "another protocol"


@pytest.mark.usefixtures("no_runs")
def test_a_run_of_other_settings_is_not_the_row():
    words = ["data=orl_heavy_ci", "method=refine"]
    run_of("blind", [*words, "method.reference=none"], "refine+blind@demo", 0, "orl_heavy_ci")
    rows = {row.method: row for row in reproduce(load_table("refine/figure7"), "orl_heavy_ci").rows}
    assert rows["blind (no reference)"].state == "measured"
    assert rows["refine"].state == "can run"
    run_of("other", [*words, "method.warp=similarity"], "refine@demo", 0, "orl_heavy_ci")
    assert reproduce(load_table("refine/figure7"), "orl_heavy_ci").rows[0].state == "can run"
    run_of("own", words, "refine@demo", 1, "orl_heavy_ci")
    assert reproduce(load_table("refine/figure7"), "orl_heavy_ci").rows[0].source.endswith("own")


@pytest.mark.usefixtures("no_runs")
def test_board_entries_count_where_there_is_no_run():
    rows = {row.method: row for row in reproduce(load_table("refine/figure7"), "orl_heavy").rows}
    assert rows["refine"].source.startswith("board orl_heavy, refine@demo@")
    assert rows["blind (no reference)"].source.startswith("board orl_heavy, refine+blind@demo@")
    values = {value.metric: value for value in rows["refine"].values}
    assert 0 < values["id"].ours < 1
    assert values["id"].published is None
    assert values["id"].difference is None
    assert rows["refine"].same_protocol.startswith("no: orl_heavy in place")


def test_unknown_tables_and_wrong_files_are_said(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="refine/table1"):
        load_table("refine/table11")
    monkeypatch.setattr("bench.leaderboard.papers.paper_folder", lambda: tmp_path)
    (tmp_path / "methods.yaml").write_text("input: {words: [method=input]}\n")
    (tmp_path / "paper").mkdir()
    for name, text, message in (
        ("table1", "title: T\nrows: {ghost: }\n", "either words or cannot"),
        ("table2", "title: T\nrows: {input: {speed: 1}}\n", "unknown speed"),
        ("table3", "title: T\ndata: {a/b: {speed: 1}}\n", "unknown speed"),
        ("table4", "title: T\nextra: 1\n", "unknown extra"),
    ):
        (tmp_path / "paper" / f"{name}.yaml").write_text(text)
        with pytest.raises(UsageError, match=message):
            load_table(f"paper/{name}")


def test_nothing_measured_is_taken_for_published():
    assert PROTOCOL_ID not in {row.protocol_id for paper in read_published().values() for row in paper.rows}
