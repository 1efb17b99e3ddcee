"""`bench leaderboard` from the command line: every format, verify, and the refusals of add."""

from __future__ import annotations

import json

import pytest

from bench.cli.main import main
from bench.leaderboard.entry import add
from bench.paths import leaderboard_root
from tests.unit.run_folders import make_run, score_frame


@pytest.fixture
def boards(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_LEADERBOARDS", str(tmp_path / "boards"))
    for method, shift in (("input", 0), ("refine@demo", 1.5)):
        add(make_run(tmp_path / method, score_frame(method, shift), protocol="celebref_heavy"), leaderboard_root())
    return tmp_path / "boards"


def leaderboard(*words):
    return main(["leaderboard", *map(str, words)])


def test_render_every_format_into_a_folder(boards, tmp_path, capsys):
    out = tmp_path / "the site"
    assert leaderboard("render", "--format", "md,html,latex,bibtex,csv", "-o", out) == 0
    printed = set(capsys.readouterr().out.splitlines())
    files = {str(path) for path in out.rglob("*") if path.is_file()}
    assert printed == files
    assert {path.name for path in (out / "celebref_heavy").iterdir()} == {
        "README.md",
        "index.html",
        "table.tex",
        "references.bib",
        "board.csv",
    }
    assert leaderboard("render", "--format", "pdf") == 2
    assert "Known: bibtex, csv, html, latex, md" in capsys.readouterr().err


def test_verify(boards, capsys):
    assert leaderboard("verify") == 1, "not rendered yet"
    assert leaderboard("render") == 0
    assert leaderboard("verify") == 0
    capsys.readouterr()
    readme = boards / "celebref_heavy" / "README.md"
    readme.write_text(readme.read_text().replace("57.18", "58.18", 1))
    assert leaderboard("verify", "--json") == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert f"{readme} does not match its entries" in problem
    assert leaderboard("verify", "celebref_hevy") == 2
    assert "'celebref_heavy'" in capsys.readouterr().err


def test_show_has_the_published_rows(boards, capsys):
    assert leaderboard("show", "celebref_heavy") == 0
    out = capsys.readouterr().out
    assert "as published, other protocol" in out
    assert "57.18" in out
    assert leaderboard("show", "celebref_heavy", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["entries"]) == 2
    assert shown["entries"][0]["groups"]["psnr"] == "a"
    assert {row["mark"] for row in shown["published"]} == {"as published, other protocol"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add"], "Give either the folder of a run"),
        (["add", "RUN", "--protocol", "orl_heavy_ci"], "Give either the folder of a run"),
        (["add", "--protocol", "orl_heavy_ci"], "need --protocol NAME and --restored DIR"),
        (["add", "--protocol", "orl_heavy_ci", "--restored", ".", "--sample", "few"], "--sample must be"),
        (["add", "--protocol", "orl_heavy_ci", "--restored", "nothing", "--reported-by", "x"], "not a folder"),
        (["add", "--protocol", "orl", "--restored", ".", "--reported-by", "x"], "Unknown frozen protocol"),
        (["add", "--protocol", "orl_heavy_ci", "--restored", ".", "--reported-by", "x"], "lacks 12 of the 12"),
    ],
)
def test_add_refuses_with_what_to_do(boards, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert leaderboard(*words) == 2
    assert message in capsys.readouterr().err


def test_add_pictures_of_others(boards, tmp_path, orl_root, capsys):
    from bench.image import write_png
    from bench.leaderboard.submission import find_protocol
    from bench.protocol.card import data_root, load_card
    from bench.protocol.pictures import ProtocolPictures

    protocol = find_protocol("orl_heavy_ci")
    pictures = ProtocolPictures(protocol, data_root(load_card(protocol.card)))
    for image in protocol.images:
        write_png(tmp_path / "pngs" / f"{image.image_id}.png", pictures.lq(image))
    words = ["--protocol", "orl_heavy_ci", "--restored", tmp_path / "pngs", "--method", "theirs", "--title", "Theirs"]
    assert leaderboard("add", *words, "--reported-by", "a lab", "--hardware", "one GPU", "--seconds", "0.5") == 0
    said = capsys.readouterr()
    assert "scored again: 12 of 12 pictures" in said.err
    text = (boards / "orl_heavy_ci" / "README.md").read_text()
    assert "Theirs (`theirs`)" in text
    assert "a lab (12 images scored again on acceptance)" in text
    assert leaderboard("verify", "orl_heavy_ci") == 0
