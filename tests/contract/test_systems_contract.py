"""Every system of the papers' tables has a card, and every card says where its facts come from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench.cli.ls import _methods
from bench.config import compose
from bench.errors import UsageError
from bench.leaderboard.papers import PaperRow, PaperTable, load_table, paper_folder, table_ids
from bench.leaderboard.published import read_published, references
from bench.leaderboard.reproduce import ReproducedRow, _label, reproduce
from bench.registry import load_method, method_targets
from bench.systems.card import SOURCED, card, cards, cards_folder, read_card, systems_of
from bench.systems.page import page
from bench.weights.catalogue import entries
from tests.unit.run_folders import make_run, score_frame

NAMES = sorted(path.stem for path in cards_folder().glob("*.yaml"))
OTHERS = ("method=spandrel", "method=precomputed")
# Rows of the tables that are no system: what is restored, and what it is compared with.
NO_SYSTEM = {"input", "ground_truth"}


def test_every_system_of_the_tables_has_a_card() -> None:
    tables = {name: load_table(name) for name in table_ids()}
    for paper in read_published().values():
        for row in paper.rows:
            settings = tables[f"{paper.name}/table{row.table}"].rows[row.method]
            if row.method not in NO_SYSTEM and not settings.cannot:
                assert systems_of(row.method), f"{paper.name}, Table {row.table}: {row.method}"


def test_a_row_may_stand_for_two_systems() -> None:
    assert systems_of("pfstorer_base+vico") == ["pfstorer", "vico"]
    assert systems_of("dr2_spar") == ["dr2_spar"]
    assert systems_of("authface m=-0.5 s=1.0") == ["authface"]
    assert systems_of("ground_truth") == []


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_whole(name: str) -> None:
    own = card(name)
    assert all(line == line.strip() != "" for line in (own.title, own.paper, *own.traps))
    assert len(own.traps) == len(set(own.traps))
    assert all(source.strip() for source in (*own.sources.values(), *own.unverified.values()))
    assert set(own.sources) | set(own.unverified) == set(SOURCED)
    assert own.repository is None or re.fullmatch(r"[\w.-]+/[\w.-]+", own.repository)
    method = own.words[0].removeprefix("method=")
    assert method in method_targets()
    assert (method in ("spandrel", "precomputed")) == (own.runs != "native")
    if own.runs == "precomputed":
        assert own.words == ["method=precomputed", f"method.system={name}", "method.root=FOLDER"]
    if own.results is not None:
        assert own.gives, "words that find what nobody said is written"
        assert all(word.partition("=")[0] in ("method.root", "method.suffix") for word in own.results)
        settings = compose("run", [*own.reading, "data=orl_heavy_ci"])["method"]
        folder, suffix = str(settings["root"]), settings["suffix"]
        assert "NAME" + suffix in own.gives or "suffix " + suffix in own.gives or not suffix
        assert folder == "OUT" or folder in own.gives
    if own.catalogue:
        assert set(own.catalogue) <= set(entries())
        assert load_method(method).spec.weights in own.catalogue
    if name in references():
        title = re.search(r"^  title = \{(.*)\},$", references()[name], re.MULTILINE)
        assert title and re.sub(r"[{}]", "", title[1]) in own.paper


def test_what_a_picture_without_a_face_does_is_told_of_each_program() -> None:
    """main_test.py of DMDNet goes on with the next line; that of ASFFNet512 counts the faces of None and ends."""

    def told(name: str) -> str:
        return next(trap for trap in card(name).traps if "no face is found" in trap)

    assert "is left out" in told("dmdnet")
    assert "ends the whole program" in told("asffnet") and "left out" not in told("asffnet")


def test_rows_of_others_have_the_words_of_their_card() -> None:
    shared = yaml.safe_load((paper_folder() / "methods.yaml").read_text("utf-8"))
    others = {name for name, row in shared.items() if row.get("words", [""])[0] in OTHERS}
    assert {"gfpgan", "codeformer", "dmdnet"} <= others
    for name in others:
        assert shared[name]["words"] == card(name).words


@pytest.mark.parametrize("name", [name for name in NAMES if card(name).runs == "spandrel"])
def test_a_run_by_the_words_of_a_card_is_found_as_the_row_and_has_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    monkeypatch.setenv("BENCH_RUNS", str(tmp_path / "runs"))
    words, data = card(name).words, ["data=orl_heavy_ci"]
    file = next(word.partition("=")[2] for word in words if word.startswith("method.weights="))
    table = replace(load_table("refine/figure7"), rows={name: PaperRow(name, words)})
    assert _row(table).state == "weights missing"
    assert str(tmp_path / "weights" / file) in _row(table).reason
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / file).write_bytes(b"")
    given = f"method.weights={tmp_path / 'weights' / file}"
    assert _row(table).words == [*data, *(word for word in words if "weights" not in word), given]
    label = load_method("spandrel")(compose("run", [*words, *data])["method"]).label
    other = [*words, *data, "method.weights=another.pth"]
    for folder, composed in (("theirs", other), ("own", [*words, *data])):
        run = make_run(tmp_path / "runs/orl_heavy_ci" / folder, score_frame(label), protocol="orl_heavy_ci")
        (run / "config.yaml").write_text(yaml.safe_dump(compose("run", composed)))
    assert Path(str(_row(table).source)).name == "own"
    assert _label(table.rows[name]) == label


def _row(table: PaperTable) -> ReproducedRow:
    return reproduce(table, "orl_heavy_ci").rows[0]


def test_the_page_is_up_to_date() -> None:
    written = (cards_folder() / "README.md").read_text("utf-8")
    assert written == page(), "run python -m bench.systems.page"
    assert all(f'<a id="{name}"></a>' in written for name in NAMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": "somehow"}, "runs is 'somehow'"),
        ({"layout": "heap"}, "layout is 'heap'"),
        ({"licence": None}, "sources must name what is known"),
        ({"stars": 5}, "missing or unknown stars"),
    ],
)
def test_a_card_that_says_too_little_or_too_much_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    content = yaml.safe_load((cards_folder() / "dmdnet.yaml").read_text("utf-8"))
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(content | change))
    with pytest.raises(UsageError, match=said):
        read_card(tmp_path / "made.yaml")


def test_an_unknown_system_is_explained() -> None:
    with pytest.raises(UsageError, match="Did you mean 'dmdnet'"):
        card("dmdnett")


def test_cards_are_those_of_their_files_and_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dmdnet", "made_up"):
        (tmp_path / f"{name}.yaml").write_text((cards_folder() / "dmdnet.yaml").read_text("utf-8"))
    (tmp_path / "README.md").write_text("no card")
    monkeypatch.setattr("bench.systems.card.cards_folder", lambda: tmp_path)
    cards.cache_clear()
    try:
        found = cards()
        listed = {row["name"]: row for row in _methods()}
    finally:
        cards.cache_clear()
    assert list(found) == ["dmdnet", "made_up"]
    assert found["made_up"].name == "made_up" and found["made_up"].reading[1] == "method.system=made_up"
    assert listed["made_up"]["title"] == "DMDNet" and "asffnet" not in listed
