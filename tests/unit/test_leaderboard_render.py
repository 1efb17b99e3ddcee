"""Boards in every format: deterministic, complete, and what the browser makes of them."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from bench.errors import UsageError
from bench.leaderboard.board import FORMATS, board_texts, redraw
from bench.leaderboard.entry import add, read_entries
from bench.leaderboard.verify import verify
from bench.leaderboard.view import noise_note, power_note, shown_difference, view
from bench.metrics.noise_check import noise_effects
from bench.paths import resource_root
from bench.scores.power import Power, smallest_effect
from tests.unit.run_folders import make_run, score_frame

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SET = {"unit": "", "higher_is_better": False, "low": None, "high": None, "interval": None, "n": 60, "of": 60}
SETS = {
    "kid_gt": {**SET, "identity": "kid@1", "title": "KID", "value": 0.25, "reason": None, "shown": True},
    "fid_gt": {**SET, "identity": "fid@1", "title": "FID", "value": 31.5, "reason": None, "shown": False},
    "kid_x": {**SET, "identity": "kidx@1", "title": "KID-X", "value": None, "reason": "weights missing", "shown": True},
}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two boards: one with published rows beside it, set metrics and an incomplete row; one without."""
    tmp_path = tmp_path_factory.mktemp("built")
    boards = tmp_path / "boards"
    for method, shift, seed in (("input", 0, 0), ("copy_reference", 9, 1), ("refine@demo", 1.5, 2), ("a_b&c", 1.2, 3)):
        missing = {("s29/6", "id")} if seed == 3 else ()
        frame = score_frame(method.replace("&", "+"), shift, seed, missing=missing)
        for protocol in ("celebref_heavy", "orl_heavy"):
            run = make_run(
                tmp_path / protocol / method,
                frame,
                protocol=protocol,
                set_metrics=SETS,
                method_title={"a_b&c": "50% <b>A_B & C</b>"}.get(method, method),
                paper="Somebody, A & B, 2030" if seed == 3 else None,
            )
            add(run, boards)
    return boards


@pytest.fixture
def uncommitted(monkeypatch, tmp_path):
    """The boards built here bear names of committed protocols, but another id."""
    monkeypatch.setattr("bench.protocol.freeze.committed_path", lambda name: tmp_path / f"{name}.json")


@pytest.fixture
def root(built, tmp_path, uncommitted):
    """A copy of the boards that a test may change."""
    return shutil.copytree(built, tmp_path / "boards")


def test_rendering_twice_makes_no_difference(root, tmp_path):
    names = ["celebref_heavy", "orl_heavy"]
    first = {path: path.read_bytes() for path in redraw(root, names, FORMATS, tmp_path / "out")}
    second = {path: path.read_bytes() for path in redraw(root, names, FORMATS, tmp_path / "out")}
    assert first == second
    # In a process of its own, whose sets and hashes have another order.
    program = (
        "import sys; from pathlib import Path; from bench.leaderboard.board import *\n"
        "redraw(Path(sys.argv[1]), ['celebref_heavy', 'orl_heavy'], FORMATS, Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", program, str(root), str(tmp_path / "other")]
    subprocess.run(words, check=True, env={"PYTHONHASHSEED": "7", "PATH": "", "HOME": str(tmp_path)})
    for path, content in first.items():
        assert (tmp_path / "other" / path.relative_to(tmp_path / "out")).read_bytes() == content
    assert {path.name for path in first} == {"README.md", "index.html", "table.tex", "references.bib", "board.csv"}


def test_latex_bold_underlined_and_cited(root):
    texts = board_texts(root, ["celebref_heavy"], ("latex", "bibtex"), root)
    latex, bibtex = (texts[root / "celebref_heavy" / name] for name in ("table.tex", "references.bib"))
    board = view(read_entries(root / "celebref_heavy"))
    for index, column in enumerate(board.columns):
        if column.name not in ("psnr", "id", "lmd"):
            continue
        ranked = [row for row in board.rows if row.entry["method"] != "copy_reference"]
        ordered = sorted(ranked, key=lambda row: row.cells[index].value, reverse=bool(column.higher_is_better))
        assert f"\\textbf{{{ordered[0].cells[index].text}}}" in latex
        assert f"\\underline{{{ordered[1].cells[index].text}}}" in latex
    assert "PSNR (dB) $\\uparrow$" in latex
    assert "Landmark distance (px) $\\downarrow$" in latex
    assert r"50\% \textless{}b\textgreater{}A\_B \& C\textless{}/b\textgreater{}" in latex
    for part in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(part) >= 3, "one table of measured rows and two of published ones"
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert "_" not in re.sub(r"\\cite\{[^}]*\}|\\_", "", line), line
    cited = {key for keys in re.findall(r"\\cite\{([^}]*)\}", latex) for key in keys.split(",")}
    assert {"refine", "pfstorer", "restorerid", "codeformer", "vico", "a-b-c"} <= cited
    assert cited == set(re.findall(r"^@\w+\{([^,]+),", bibtex, flags=re.MULTILINE))
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", latex, flags=re.DOTALL)
    for columns, body in tables:
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}


def test_csv_holds_every_number_in_full(root):
    text = board_texts(root, ["celebref_heavy"], ("csv",), root)[root / "celebref_heavy" / "board.csv"]
    rows = list(csv.DictReader(io.StringIO(text)))
    measured = {(row["method"], row["metric"]): row for row in rows if row["source"] == "measured"}
    for entry in read_entries(root / "celebref_heavy"):
        for name, metric in entry["metrics"].items():
            row = measured[entry["method"], name]
            assert (float(row["mean"]) if row["mean"] else None) == metric["mean"]
            assert (row["n"], row["metric_identity"]) == (str(metric["n"]), metric["identity"])
    published = [row for row in rows if row["source"] != "measured"]
    assert published
    assert all("as published, other protocol" in row["source"] and not row["mark"] for row in published)
    assert any(row["method"] == "pfstorer" and row["metric"] == "id" and row["mean"] == "57.18" for row in published)


def test_kid_stands_for_fid_and_absent_sets_are_named(root):
    text = board_texts(root, ["orl_heavy"], ("md",), root)[root / "orl_heavy" / "README.md"]
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    assert "KID ↓" in header
    assert "FID" not in header
    assert "FID is not shown: under 2,048 images" in text
    assert "n/a (weights missing)" in text
    assert header.index("| ID ↑") < header.index("| KID")


def test_ips_stands_next_to_id_with_its_warning(root, tmp_path):
    frame = score_frame("refine@demo", 1)
    ips = frame[frame.metric == "psnr"].assign(metric="ips", metric_id="ips@test@1")
    add(make_run(tmp_path / "run", pd.concat([frame, ips])), tmp_path / "other")
    board = view(read_entries(tmp_path / "other" / "orl_heavy"))
    names = [column.name for column in board.columns]
    assert names.index("ips") == names.index("id") + 1
    assert "copy_reference" in board.footnotes[board.notes["ips"][0] - 1]
    assert board.absent_rows == ["copy_reference", "input"]


def test_metrics_that_noise_betters_say_so():
    for name, effect in noise_effects().items():
        note = noise_note(name, effect["identity"])
        assert (effect["text"] in note) if effect["bettered"] else note is None
        assert "was not measured for this version" in noise_note(name, "another version")
    assert noise_effects()["niqe"]["bettered"]
    assert "was not measured" in noise_note("musiq", "musiq@1") or "musiq" in noise_effects()
    for name in ("psnr", "psnr_y", "id", "ips", "detected", "lmd_px", "mark_recall"):
        assert noise_note(name, f"{name}@test@1") is None


def test_every_format_says_which_metrics_noise_betters(tmp_path):
    effect = noise_effects()["brisque"]
    frame = score_frame("refine@demo", 1)
    brisque = frame[frame.metric == "psnr"].assign(metric="brisque", metric_id=effect["identity"])
    musiq = frame[frame.metric == "psnr"].assign(metric="musiq", metric_id="musiq@another version")
    add(make_run(tmp_path / "run", pd.concat([frame, brisque, musiq])), tmp_path / "boards")
    texts = board_texts(tmp_path / "boards", ["orl_heavy"], ("md", "html", "latex", "csv"), tmp_path)
    for name in ("README.md", "index.html", "table.tex", "board.csv"):
        text = texts[tmp_path / "orl_heavy" / name]
        text = Page(text).text if name.endswith("html") else text
        assert f"Adding noise to the input betters this metric ({effect['text']})" in text, name
        assert "was not measured for this version" in text, name
    rows = list(csv.DictReader(io.StringIO(texts[tmp_path / "orl_heavy" / "board.csv"])))
    assert {row["metric"]: row["remark"][:12] for row in rows}["brisque"] == "Adding noise"
    assert not {row["metric"]: row["remark"] for row in rows}["psnr"]


def test_every_format_says_what_the_protocol_can_show(root):
    board = view(read_entries(root / "orl_heavy"))
    ranked = [i for i, row in enumerate(board.rows) if row.entry["method"] != "copy_reference"]
    people = {
        i: pd.Series({k: v["mean"] for k, v in board.rows[i].entry["metrics"]["psnr"]["by_identity"].items()})
        for i in ranked
    }
    spread = np.median([(people[i] - people[j]).std(ddof=1) for i, j in itertools.combinations(ranked, 2)])
    wanted = [smallest_effect(12, level) * spread for level in (0.05, 0.01)]
    texts = board_texts(root, ["orl_heavy"], ("md", "html", "latex", "csv"), root)
    said = f"{wanted[0]:.2g} and {wanted[1]:.2g} dB"
    for name in ("README.md", "index.html", "table.tex"):
        text = texts[root / "orl_heavy" / name]
        text = Page(text).text if name.endswith("html") else text.replace(r"\%", "%")
        assert "With 12 identities, the smallest true difference" in text, name
        assert "with 80 % probability" in text, name
        assert f"PSNR {said}" in text, name
        assert "ID " in text.partition("smallest true difference")[2], name
    rows = list(csv.DictReader(io.StringIO(texts[root / "orl_heavy" / "board.csv"])))
    shows = {(row["shows_05"], row["shows_01"]) for row in rows if row["metric"] == "psnr"}
    assert [float(value) for value in shows.pop()] == pytest.approx(wanted)
    assert not shows


@pytest.mark.parametrize(
    ("value", "text"), [(0.0234, "0.023"), (0.1, "0.10"), (1.09, "1.1"), (9.96, "10.0"), (26.4, "26"), (123.4, "123")]
)
def test_differences_have_two_digits_and_no_exponent(value, text):
    power = Power(12, 1.0, 0.001, {0.05: value, 0.01: None})
    assert shown_difference(power) == f"{text} and none"


def test_a_board_of_one_row_compares_nothing(tmp_path):
    add(make_run(tmp_path / "run", score_frame("refine@demo", 1)), tmp_path / "boards")
    shown = view(read_entries(tmp_path / "boards" / "orl_heavy"))
    assert power_note(shown) is None
    assert (
        "smallest true difference"
        not in board_texts(tmp_path / "boards", ["orl_heavy"], ("md",), tmp_path)[tmp_path / "orl_heavy" / "README.md"]
    )


def test_html_is_one_file_without_addresses(root):
    texts = board_texts(root, ["celebref_heavy"], ("html",), root)
    text = texts[root / "celebref_heavy" / "index.html"]
    page = Page(text)
    addresses = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset")]
    assert addresses == ["../index.html"]
    assert "url(" not in text
    assert "@import" not in text
    assert "50% <b>A_B & C</b>" in page.text, "escaped, so that it is read as text"
    assert ("b", {}) not in page.tags
    buttons = [attrs for tag, attrs in page.tags if tag == "button"]
    assert buttons
    assert all(attrs["type"] == "button" for attrs in buttons)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "not comparable with the rows above" in page.text
    assert page.text.count("as published, other protocol") == 25


DRIVE = """
<script>
const said = {};
const table = document.querySelector("table"), heads = [...table.tHead.rows[0].cells];
const at = (name) => heads.findIndex((head) => head.textContent.startsWith(name));
const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].dataset.value);
const column = (name) => [...table.tBodies[0].rows].map((row) => row.cells[at(name)].dataset.value);
heads[at("PSNR")].querySelector("button").click();
said.psnr = column("PSNR"); said.sort = heads[at("PSNR")].getAttribute("aria-sort");
heads[at("PSNR")].querySelector("button").click();
said.psnr_again = column("PSNR");
heads[at("Landmark")].querySelector("button").click();
said.lmd = column("Landmark"); said.psnr_sort = heads[at("PSNR")].getAttribute("aria-sort");
const search = document.querySelector("input[type=search]");
search.value = "COPY"; search.dispatchEvent(new Event("input"));
said.filtered = names(); said.status = document.querySelector("[role=status]").textContent;
search.value = ""; search.dispatchEvent(new Event("input"));
const box = document.querySelectorAll(".choices input")[0];
box.click();
said.hidden = [...table.rows].every((row) => row.cells[1].hidden);
document.querySelector("[data-hides]").click();
said.intervals = [...document.querySelectorAll(".interval")].every((one) => one.hidden);
heads[0].querySelector("button").focus();
said.focus = document.activeElement.tagName;
said.wide = document.documentElement.scrollWidth <= window.innerWidth;
document.body.insertAdjacentHTML("beforeend", `<pre id="said">${JSON.stringify(said)}</pre>`);
</script>
</body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(root, tmp_path, width):
    text = board_texts(root, ["orl_heavy"], ("html",), root)[root / "orl_heavy" / "index.html"]
    page = tmp_path / "board é#1.html"
    page.write_text(text.replace("</body>", DRIVE), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=2000 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    said = json.loads(html.unescape(re.search(r'<pre id="said">(\{.*?)</pre>', done.stdout)[1]))
    numbers = [float(value) for value in said["psnr"]]
    assert said["sort"] == "descending", "the better direction comes first"
    assert numbers == sorted(numbers, reverse=True)
    assert [float(value) for value in said["psnr_again"]] == sorted(numbers)
    assert [float(value) for value in said["lmd"]] == sorted(float(value) for value in said["lmd"])
    assert said["psnr_sort"] is None
    assert said["filtered"] == ["copy_reference"]
    assert said["status"] == "1 of 4 rows"
    assert said["hidden"]
    assert said["intervals"]
    assert said["focus"] == "BUTTON"
    assert said["wide"], "only the table scrolls sideways"


def test_verify_finds_what_was_edited(root, tmp_path):
    redraw(root, ["celebref_heavy", "orl_heavy"])
    redraw(root, ["celebref_heavy", "orl_heavy"], ("html", "csv"), tmp_path / "out")
    assert verify(root) == []
    assert verify(root, output=tmp_path / "out") == []

    page = tmp_path / "out" / "orl_heavy" / "index.html"
    kept = page.read_text()
    page.write_text(kept.replace("0.3", "0.4", 1))
    assert [problem for problem in verify(root, output=tmp_path / "out") if str(page) in problem]
    page.write_text(kept)

    readme = root / "orl_heavy" / "README.md"
    kept = readme.read_text()
    readme.write_text(re.sub(r"\*\*(\d+)\.", lambda found: f"**{int(found[1]) + 1}.", kept, count=1))
    (problem,) = verify(root)
    assert f"{readme} does not match its entries from line" in problem
    assert verify(root, ["celebref_heavy"]) == []
    readme.unlink()
    assert "missing" in verify(root)[0]
    readme.write_text(kept)
    assert verify(root) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("metrics", "psnr", "mean"), 30.0, "identity means give"),
        (("metrics", "psnr", "low"), 30.0, "metrics.psnr.low is 30.0, but its identity means give"),
        (("metrics", "psnr", "by_identity", "s29", "mean"), 30.0, "identity means give"),
        (("protocol_id",), "fedcba9876543210", "mixes protocol ids"),
        (("revision",), "ffff", "rename or remove"),
        (("extra",), 1, "unknown extra"),
    ],
)
def test_verify_finds_edited_entries(root, path, value, message):
    redraw(root, ["celebref_heavy", "orl_heavy"])
    file = root / "orl_heavy" / "refine@demo@abc123def456-seed2.json"
    entry = json.loads(file.read_text())
    target = entry
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    file.write_text(json.dumps(entry))
    assert any(message in problem for problem in verify(root)), verify(root)


def _edited(tmp_path, change, name="refine@demo@61f7b53bd96b.json", others=True):
    """What is found on a copy of a committed board after `change`, and after everything was drawn again."""
    source, copied = resource_root() / "leaderboards" / "orl_heavy", tmp_path / "edited" / "orl_heavy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(source, copied)
    for path in sorted(copied.glob("*.json")):
        if path.name != name and not others:
            path.unlink()
    entry = json.loads((copied / name).read_text())
    change(entry)
    (copied / name).write_text(json.dumps(entry))
    try:
        redraw(copied.parent, ["orl_heavy"])
    except UsageError as error:
        return [str(error)]
    return verify(copied.parent)


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        ("id", {"low": None, "high": None}, "metrics.id.low is None, but its identity means give"),
        ("id", {"low": None, "high": None, "interval": None}, "has the interval None, its identity means give"),
        ("psnr_y", {"low": 24.5, "interval": "student-t over 12 identities, lower bound cut off at 24.5"}, "cut off"),
        ("id", {"interval": "bca over 12 identities", "low": 0.79, "high": 0.82}, "has the interval 'bca"),
        ("id", {"higher_is_better": False}, "states higher_is_better False"),
        ("psnr_y", {"unit": "px"}, "unit 'px', the metric True and 'dB'"),
        ("niqe", {"of": 61}, "niqe.of is 61"),
        (None, {"protocol_id": "fedcba9876543210"}, "the committed protocol orl_heavy has 52ddbecf91a046d3"),
        (None, {"of": 59}, "identity_images has 60"),
        (None, {"images": 70}, "more than the 60"),
    ],
)
def test_edits_that_drawing_again_would_hide(tmp_path, metric, change, message):
    def edit(entry):
        (entry["metrics"][metric] if metric else entry).update(change)

    alone = _edited(tmp_path, edit, others=False)
    assert any(message in problem for problem in alone), alone
    assert _edited(tmp_path, lambda entry: None) == []


def test_people_must_be_those_of_the_committed_protocol(tmp_path):
    def move(entry):
        entry["identity_images"]["s29"], entry["identity_images"]["s30"] = 6, 4
        for metric in entry["metrics"].values():
            if "s30" in metric["by_identity"]:
                metric["by_identity"]["s30"]["n"] = 4
                metric["by_identity"]["s29"]["n"] = 6

    (problem,) = _edited(tmp_path, move)
    assert "identity_images is" in problem


def test_one_metric_has_one_direction_on_all_boards(root):
    redraw(root, ["celebref_heavy", "orl_heavy"])
    path = next((root / "orl_heavy").glob("refine*.json"))
    entry = json.loads(path.read_text())
    entry["metrics"]["lmd"]["higher_is_better"] = True
    path.write_text(json.dumps(entry))
    assert any("another entry of the same metric" in problem for problem in verify(root))


def test_text_of_entries_is_shown_as_text(tmp_path):
    nasty = {
        "method_title": "<script>alert(1)</script> A&amp;B {x | y} [z](http://nowhere) −1",
        "paper": "Somebody {et al., \\cite{a} <i>2030</i> | 50 %",
        "licence": "<b>MIT</b>",
    }
    boards = tmp_path / "boards"
    add(make_run(tmp_path / "run", score_frame("mine", 1), **nasty), boards)
    texts = board_texts(boards, ["orl_heavy"], ("md", "html", "latex", "bibtex"), boards)
    markdown, page, latex, bibtex = (
        texts.values()
        if len(texts) == 4
        else [texts[boards / "orl_heavy" / name] for name in ("README.md", "index.html", "table.tex", "references.bib")]
    )
    for tag in ("<script>alert", "<b>MIT", "<i>2030"):
        assert tag not in markdown
        assert tag not in page
    assert "&lt;script>alert(1)&lt;/script> A&amp;amp;B {x \\| y} \\[z]" in markdown
    assert r"\textless{}script\textgreater{}" in latex
    assert r"\textbraceleft{}x \textbar{} y\textbraceright{}" in latex
    assert "$-$1" in latex
    note = re.search(r"note = \{(.*)\}\n", bibtex)[1]
    depth = list(itertools.accumulate({"{": 1, "}": -1}.get(character, 0) for character in note))
    assert min(depth) >= 0
    assert depth[-1] == 0


def test_the_legend_says_who_is_not_shown_to_differ_from_the_best_and_what_the_test_assumes(root):
    texts = board_texts(root, ["orl_heavy"], ("md", "html", "latex"), root)
    markdown = texts[root / "orl_heavy" / "README.md"]
    assert "rows sharing any letter with the best mean (bold)" in markdown
    assert '"a" are those' not in markdown
    wanted = (
        "The sign-flip test assumes symmetric differences: simulated, a single test at α = .05 finds a difference in "
        "7 % of skewed and 11 % of strongly skewed differences whose true mean is zero (12 identities)."
    )
    assert wanted in markdown
    assert wanted in Page(texts[root / "orl_heavy" / "index.html"]).text
    assert "assumes symmetric differences" in texts[root / "orl_heavy" / "table.tex"]


def test_the_committed_boards_are_in_order():
    assert verify(resource_root() / "leaderboards") == []


ADD = """
import sys
from pathlib import Path
from bench.leaderboard.board import redraw
from bench.leaderboard.entry import add
root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for run in sys.argv[2:]:
    redraw(root, [add(Path(run), root).parent.name])
"""


def test_two_processes_that_add_at_once_lose_nothing(tmp_path, uncommitted):
    root, shares = tmp_path / "boards", [[], []]
    for index in range(6):
        run = make_run(tmp_path / f"run{index}", score_frame(f"method{index}", index / 10, index + 1))
        shares[index % 2].append(str(run))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(root), *share], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for share in shares
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    text = (root / "orl_heavy" / "README.md").read_text()
    assert all(f"`method{index}`" in text for index in range(6))
    assert len(read_entries(root / "orl_heavy")) == 6
    assert verify(root) == []
