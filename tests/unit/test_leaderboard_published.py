"""Published numbers: every row is there as printed, and none is ever ranked."""

from __future__ import annotations

import copy
import hashlib
import json
import re

import pytest

from bench.errors import UsageError
from bench.leaderboard.entry import add, read_entries
from bench.leaderboard.papers import load_table, published_on, table_ids
from bench.leaderboard.published import (
    OTHER_PROTOCOL,
    SAME_PROTOCOL,
    citation_keys,
    published_folder,
    read_paper,
    read_published,
    references,
    validate_paper,
)
from bench.leaderboard.ranking import build_board
from bench.leaderboard.render_markdown import published_markdown
from bench.leaderboard.view import view
from tests.unit.run_folders import make_run, score_frame

# Of the transcription of the four papers' tables, made row by row from their print.
ROWS_SHA256 = "a2b388ff8176c8cd62381dda2506959378ac24d5f0f637d96a71e10483032f3d"
ORDER = ("pfstorer", "restorerid", "authface", "refine")
ROWS = {"pfstorer": {"1": 6, "2": 7}, "restorerid": {"2": 12, "3": 8, "4": 4}}
ROWS |= {"authface": {"1": 28, "2": 8, "3": 3, "4": 8}, "refine": {"1": 5, "2": 7}}


def raw(paper):
    return json.loads((published_folder() / f"{paper}.json").read_text("utf-8"))


def test_all_rows_are_there_as_transcribed():
    rows = [row for paper in ORDER for row in raw(paper)["rows"]]
    assert hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest() == ROWS_SHA256
    assert len(rows) == 96
    assert {path.stem for path in published_folder().glob("*.json")} == set(ORDER)
    for name, paper in read_published().items():
        assert {table: sum(row.table == table for row in paper.rows) for table in paper.tables} == ROWS[name]


def test_some_rows_against_the_print():
    papers = read_published()
    refine = next(row for row in papers["refine"].rows if (row.table, row.method) == ("1", "refine"))
    expected = {"psnr": 23.77, "ssim": 0.803, "lpips": 0.158, "niqe": 4.011, "fid": 49.46, "ips": 0.4649}
    assert refine.metrics == expected
    truth = next(row for row in papers["pfstorer"].rows if row.method == "ground_truth")
    assert truth.metrics["psnr"] is None
    assert "infinity" in truth.note
    assert papers["pfstorer"].units["id"] == "cosine x 100"
    assert papers["restorerid"].better["lmse"] == "lower"


def test_every_row_has_a_configuration():
    for name, paper in read_published().items():
        for row in paper.rows:
            table = load_table(f"{name}/table{row.table}")
            assert row.method in table.rows
            assert row.where in table.data
            if table.rows[row.method].words and table.data[row.where].words:
                assert set(row.metrics) <= set(table.metrics), (table.id, row.metrics)
    assert len([name for name in table_ids() if "/table" in name]) == sum(len(tables) for tables in ROWS.values())


def test_the_page_of_published_numbers_holds_every_value():
    text = published_markdown(list(read_published().values()))
    for paper in read_published().values():
        for row in paper.rows:
            start = f"| {row.method} | {row.table} | {row.where} |"
            lines = [line for line in text.splitlines() if line.startswith(start)]
            cells = [set(line.split(" | ")) | {line.split(" | ")[-1].rstrip(" |")} for line in lines]
            wanted = {"-" if value is None else str(value) for value in row.metrics.values()}
            assert any(wanted <= one for one in cells), row


def test_published_rows_stand_beside_boards_of_the_same_data_only():
    assert published_on("orl_heavy") == []
    assert published_on("no_such_data") == []
    heavy = published_on("celebref_heavy_restorerid50")
    assert {(paper.name, len(rows)) for paper, rows in heavy} == {("pfstorer", 13), ("restorerid", 12)}
    assert all(row.degradation == "heavy" for _, rows in heavy for row in rows)
    light = published_on("celebref_light")
    assert {row.degradation for _, rows in light for row in rows} == {"light"}
    assert {row.dataset for _, rows in published_on("casia_webface_refine_pairs") for row in rows} == {"casia_webface"}


def test_published_rows_are_never_ranked(tmp_path):
    for method, shift in (("input", 0), ("refine@demo", 1.5)):
        run = make_run(tmp_path / method, score_frame(method, shift), protocol="celebref_heavy")
        add(run, tmp_path / "boards")
    entries = read_entries(tmp_path / "boards" / "celebref_heavy")
    shown, plain = view(entries), build_board(entries)
    assert shown.published
    assert shown.board.groups == plain.groups
    assert [row.entry["method"] for row in shown.rows] == ["refine@demo", "input"]
    marks = {row.mark(plain.protocol_id) for _, rows in shown.published for row in rows}
    assert marks == {OTHER_PROTOCOL}


def test_a_protocol_of_its_own_is_recognised(tmp_path):
    content = raw("refine") | {"protocol_id": "0123456789abcdef"}
    (tmp_path / "refine.json").write_text(json.dumps(content))
    row = read_paper(tmp_path / "refine.json").rows[0]
    assert (row.mark("0123456789abcdef"), row.mark("other")) == (SAME_PROTOCOL, OTHER_PROTOCOL)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema must be 1"),
        (("rows",), [], "rows must be a list"),
        (("metrics", "psnr", "better"), "more", "higher or lower"),
        (("rows", 0, "metrics", "psnr"), "22.91", "finite number or null"),
        (("rows", 0, "metrics", "psnr"), float("nan"), "finite number or null"),
        (("rows", 0, "metrics"), {"sharpness": 1}, "unknown sharpness"),
        (("rows", 0, "table"), "9", "table 9"),
        (("rows", 0, "extra"), 1, "unknown extra"),
        (("rows", 0, "references"), -1, "references must be"),
    ],
)
def test_schema_is_strict(path, value, message):
    broken = copy.deepcopy(raw("refine"))
    validate_paper(broken, "refine")
    target = broken
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(UsageError, match=message):
        validate_paper(broken, "refine")


def test_misnamed_and_unreadable_files_are_said(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(raw("refine")))
    with pytest.raises(UsageError, match="rename"):
        read_paper(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(UsageError, match="Cannot read"):
        read_paper(tmp_path / "other.json")


def test_every_method_has_its_citation():
    without = {"input", "ground_truth"}
    for paper in read_published().values():
        assert paper.name in references()
        for row in paper.rows:
            assert bool(citation_keys(row.method)) == (row.method not in without), row.method
    assert citation_keys("pfstorer_base+vico") == ["pfstorer", "vico"]
    assert citation_keys("dr2_spar") == ["dr2"]
    assert citation_keys("refine+blind@demo") == ["refine"]
    for block in references().values():
        assert block.count("{") == block.count("}")
        assert re.search(r"^  title = ", block, flags=re.MULTILINE)
        assert re.search(r"^  year = \{\d{4}\}$", block, flags=re.MULTILINE)
