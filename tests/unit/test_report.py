"""The HTML report and the index of runs: what they say, and that they need no network."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.errors import MissingError, UsageError
from bench.report.content import brief, read_runs
from bench.report.data import embedded, page_data
from bench.report.index import write_index
from bench.report.pictures import EACH, PictureBook, images_to_show, most_cases, rankings
from bench.report.plots import ticks
from bench.report.report import write_report
from bench.report.strength import degradation_parameters, lq_psnr
from bench.report.terminal import number, p_value
from tests.unit.run_folders import PROTOCOL_ID, OrlPictures, make_run, score_frame


class Page(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def run(tmp_path):
    frame = score_frame("refine@demo", 1.5, 2, missing={("s29/6", "id")})
    return make_run(tmp_path / "a run", frame, pictures=True, failed={"s30/7": "<b>out of memory</b>"})


def test_one_run(run, tmp_path):
    output = tmp_path / "out" / "report.html"
    write_report([run], output, pictures=OrlPictures)
    text = output.read_text()
    page = Page(text)
    summary = json.loads((run / "summary.json").read_text())
    for needed in (
        PROTOCOL_ID,
        "ReFine (refine@demo)",
        "abc123def456",
        "student-t over 12 identities",
        "59 of 60",
    ):
        assert needed in page.text
    for metric in summary["metrics"].values():
        assert metric["identity"] in text
        if metric["mean"] is not None:
            assert number(metric["mean"]) in page.text
            assert f"[{number(metric['low'])}, {number(metric['high'])}]" in page.text
    assert "n/a covariance does not exist below 192 px" in page.text
    assert "<b>out of memory</b>" in page.text, "shown as text"
    assert "<b>out of memory</b>" not in text
    assert "no face found" in page.text
    data = data_of(text)
    assert len(data["images"]) == 60 and len(data["people"]) == 12 and len(data["cases"]) == 60
    assert data["chosen"] == "id" and data["input"] is None
    missing = data["images"].index("s29/6")
    assert data["scores"]["id"][0][missing] is None
    assert data["reasons"][data["why"]["id"][0][str(missing)]] == "no face found"


def data_of(text):
    """What the script of a page reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_nothing_is_loaded_from_elsewhere(run, tmp_path):
    write_report([run], tmp_path / "report.html", pictures=OrlPictures)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses if address)
    assert all(one.startswith("data:image/webp;base64,") for one in data_of(text)["pictures"])
    rest = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", rest)
    assert all(tag not in ("link", "iframe", "object") for tag, _ in page.tags)
    assert len(text) < 4_000_000


def test_the_metric_asked_for_is_chosen_first(run, tmp_path):
    write_report([run], tmp_path / "lmd.html", metric="lmd", pictures=OrlPictures)
    assert data_of((tmp_path / "lmd.html").read_text())["chosen"] == "lmd"
    with pytest.raises(UsageError, match="niqe"):
        write_report([run], tmp_path / "no.html", metric="niqe", pictures=OrlPictures)


@pytest.mark.parametrize("most", [59, 40, 24, 20, 8, 3])
def test_of_many_images_those_the_page_opens_with_are_pictured(run, tmp_path, most):
    first = make_run(tmp_path / "input", score_frame("input", 0.5, 7))
    runs = read_runs([first, run])
    chosen = images_to_show(runs, "id", most)
    assert len(chosen) == most == len(set(chosen))
    values, before = runs[1].values("id"), runs[0].values("id")
    ordered = list(values.sort_values().index)
    gains = list((values - before).dropna().sort_values().index)
    middle = ordered[len(ordered) // 2 - EACH // 2 : len(ordered) // 2 + EACH // 2]
    if most >= 20:
        assert {*ordered[:4], *ordered[-4:], *middle, *gains[:4], *gains[-4:]} <= set(chosen)
    assert {values.idxmin(), values.idxmax()} <= set(chosen), "best and worst by the metric chosen first"
    if most >= 24:
        for metric in ("psnr", "lmd"):
            assert {runs[1].values(metric).idxmin(), runs[1].values(metric).idxmax()} <= set(chosen)
    lower = rankings(runs, runs[1], "lmd")
    assert lower[0][0] == lower[1][-1] == runs[1].values("lmd").idxmax(), "the largest distance is the worst"
    assert len(lower) == 5 and len(rankings(runs, runs[0], "lmd")) == 3, "the Input has no gain over itself"


def test_how_many_images_are_pictured(run):
    assert len(images_to_show(read_runs([run]), "id", 60)) == 60
    assert most_cases(128, 1)[0] >= 60
    full, most = most_cases(512, 3)
    assert 10 <= full < most and 50 <= most <= 120, "further ones scaled down"
    assert most_cases(512, 30)[1] == 20


def test_pictures_are_embedded_unchanged_and_once(run, tmp_path):
    class Colour(OrlPictures):
        def __init__(self, folder):
            super().__init__(folder, colour=True)

    write_report([run], tmp_path / "report.html", pictures=Colour)
    data = data_of((tmp_path / "report.html").read_text())
    assert len(data["pictures"]) == 60 + 60 + 60 + 12 * 5, "LQ, restored, truth, and each reference once"
    for position in ("0", "31"):
        case, image_id = data["cases"][position], data["images"][int(position)]
        expected = {"lq": Colour(run).lq, "truth": Colour(run).truth}
        for name, source in expected.items():
            np.testing.assert_array_equal(decoded(data["pictures"][case[name]]), source(image_id))
        pixels = decoded(data["pictures"][case["restored"][0]])
        np.testing.assert_array_equal(pixels, Colour(run).restored(image_id))
    truth = decoded(data["pictures"][case["truth"]])
    assert not (truth[..., 0] == truth[..., 2]).all(), "a colour picture keeps its colours"


def decoded(address):
    """Pixels of a data address."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def test_large_pictures_are_compressed():
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(pixels).resize((8, 8)).resize((512, 512)))
    book = PictureBook()
    assert [book.add(smooth), book.add(smooth), book.add(smooth, 128)] == [0, 0, 1]
    assert decoded(book.addresses[0]).shape == (512, 512, 3)
    assert decoded(book.addresses[1]).shape == (128, 128, 3)
    assert np.abs(decoded(book.addresses[0]).astype(int) - smooth).mean() < 2


def test_text_of_the_data_cannot_end_its_element():
    nasty = {"images": ["</script><script>alert(1)</script>", "<!--", "\u2028"]}
    text = embedded(nasty)
    assert "<" not in text and json.loads(text) == nasty


def test_degradation_strength_is_drawn_again_from_the_protocol(run):
    from bench.paths import resource_root

    committed = json.loads((resource_root() / "datasets/protocols/orl_heavy_ci.json").read_text())
    (run / "protocol.json").write_text(json.dumps(committed))
    images = [image["image_id"] for image in committed["images"]]
    found = degradation_parameters(run, [*images, "not of the protocol"])
    assert {"downscale height", "jpeg quality", "gaussian noise sigma"} <= set(found)
    assert all(len(values) == 13 and values[12] is None for values in found.values())
    assert all(30 <= quality <= 100 for quality in found["jpeg quality"][:12])
    assert all(4 <= size <= 64 for size in found["downscale height"][:12]), "8 to 32 times smaller at 512 px"
    assert "resize back height" not in found, "the same for all"
    (run / "protocol.json").write_text("{}")
    assert degradation_parameters(run, images) == {}


def test_psnr_of_the_lq_where_no_input_run_says_it(run):
    images = ["s29/6", "s30/7"]
    values = lq_psnr(OrlPictures(run), images)
    from skimage.metrics import peak_signal_noise_ratio

    pictures = OrlPictures(run)
    expected = [peak_signal_noise_ratio(pictures.truth(i), pictures.lq(i)) for i in images]
    assert values == pytest.approx(expected)
    assert lq_psnr(OrlPictures(run), images * 5000) is None, "too many pictures to degrade again"
    data = page_data(read_runs([run]), "id", [OrlPictures(run)])
    assert data["strengths"][0]["title"].startswith("PSNR of the LQ")


def test_scores_of_the_whole_set_and_planted_marks(tmp_path):
    common = {"identity": "kid@x", "title": "KID", "unit": "", "higher_is_better": False, "of": 60, "shown": True}
    gone = {"value": None, "low": None, "high": None, "interval": None, "n": 0}
    why = "Weights 'fid_inception' (Inception) are not here. Looked in: /x"
    sets = {
        "kid_gt": common
        | {"value": 0.0123, "low": 0.01, "high": 0.02, "interval": "over people", "n": 58, "reason": None},
        "fid_gt": common | gone | {"identity": "fid@x", "title": "FID", "reason": why},
    }  # fmt: skip
    frame = score_frame()
    marks = frame[frame.metric == "id"].assign(metric="mark_recall", metric_id="mark_recall@1")
    run = make_run(tmp_path / "run", pd.concat([frame, marks]), pictures=True, set_metrics=sets)
    write_report([run], tmp_path / "report.html", pictures=OrlPictures)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "KID ↓ 0.0123 [0.0100, 0.0200] over people n = 58 of 60" in text
    assert "FID ↓ n/a weights missing: fid_inception" in text
    assert "Looked in" not in text and "weights missing: fid_inception" in text, "no folders of this machine"
    assert "Planted marks" in text and "mark_recall" in text
    plain = make_run(tmp_path / "plain", pictures=True)
    write_report([plain], tmp_path / "plain.html", pictures=OrlPictures)
    assert "Planted marks" not in (tmp_path / "plain.html").read_text()


def test_reasons_in_cells_are_short():
    assert brief("Weights 'musiq' (MUSIQ) are not here. Looked in: /w") == "weights missing: musiq"
    assert brief("weights missing: musiq") == "weights missing: musiq"
    assert brief("Cannot read /home/me/data/x.png: gone") == "Cannot read x.png"
    assert (
        brief("NIQE needs at least 192 px, these have 128: its covariance")
        == "NIQE needs at least 192 px, these have 128"
    )
    assert len(brief("word " * 60)) <= 70
    assert brief(None) == "not scored"


def test_index_of_all_runs(tmp_path):
    root = tmp_path / "runs"
    first = make_run(root / "a" / "refine é", score_frame("refine@demo", 1), images=59)
    (first / "report.html").write_text("x")
    make_run(root / "input", score_frame("input"))
    make_run(root / "other", score_frame("input", protocol_id="fedcba9876543210"), protocol="orl_light")
    (root / "broken").mkdir()
    (root / "broken" / "summary.json").write_text("{")
    (root / "unfinished").mkdir()
    assert write_index(root) == root / "index.html"
    text = (root / "index.html").read_text()
    page = Page(text)
    assert "3 finished runs on 2 protocols" in page.text
    assert text.count("<table") == 3, "one table per protocol id, one for what is unreadable"
    assert "a/refine%20%C3%A9/report.html" in page.addresses
    assert f"no report yet: bench report {shlex.quote(str(root / 'input'))}" in page.text and "59 of 60" in page.text
    assert "broken" in page.text and "Cannot read" in page.text
    write_index(root, tmp_path / "elsewhere.html")
    assert "runs/a/refine%20%C3%A9/report.html" in Page((tmp_path / "elsewhere.html").read_text()).addresses
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No finished run" in write_index(empty).read_text()
    with pytest.raises(UsageError, match="no folder"):
        write_index(tmp_path / "nothing")


def test_several_runs_are_tested_against_input(run, tmp_path):
    baseline = make_run(tmp_path / "input", score_frame("input", 0, 0), pictures=True)
    write_report([baseline, run], tmp_path / "report.html", pictures=OrlPictures)
    page = Page((tmp_path / "report.html").read_text())
    assert "input and refine@demo on orl_heavy" in page.text
    assert page.text.count("better (") == 3 and page.text.count(", over 59 images)") == 1
    assert "over the images both have" in page.text
    assert "better (-" in page.text, "the landmark distance is lower"
    twin = make_run(tmp_path / "twin", score_frame("refine@demo", 1.4, 3), pictures=True)
    write_report([run, twin], tmp_path / "two.html", pictures=OrlPictures)
    assert "refine@demo (seed 2) and refine@demo (seed 3) on orl_heavy" in (tmp_path / "two.html").read_text()
    other = make_run(tmp_path / "other", score_frame(protocol_id="fedcba9876543210"))
    with pytest.raises(UsageError, match="different protocols"):
        write_report([run, other], tmp_path / "no.html", pictures=OrlPictures)


def test_a_report_without_pictures_is_still_a_report(run, tmp_path):
    def missing(folder):
        raise MissingError(f"the data of {folder.name} is gone")

    write_report([run], tmp_path / "report.html", pictures=missing)
    assert "The pictures could not be read: the data of a run is gone" in (tmp_path / "report.html").read_text()


def test_numbers_for_people():
    assert [number(v) for v in (None, 0.0, 23.10499, 0.29924, -0.04369, 1234.5, 99999.0)] == [
        "n/a", "0", "23.10", "0.2992", "-0.0437", "1234", "99999",
    ]  # fmt: skip
    assert [p_value(p) for p in (None, 1.0, 0.00048828125, 1e-6)] == ["", "1", "0.00049", "<.0001"]
    assert ticks(0.13, 0.87) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(5.0, 5.0) == [5.0]


def test_from_the_command_line(run, tmp_path, capsys):
    import argparse

    from bench.cli import report as verb

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(UsageError, match="-o"):
        verb.run(parser.parse_args([str(run), str(run)]))
    with pytest.raises(UsageError, match="not a finished run"):
        verb.run(parser.parse_args([str(tmp_path)]))
    with pytest.raises(UsageError, match="does not exist"):
        verb.run(parser.parse_args([str(tmp_path / "nothing")]))
