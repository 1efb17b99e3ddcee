"""The HTML report: what it says, that it needs no network, and that its slider works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.errors import MissingError, UsageError
from bench.report.content import choose_images
from bench.report.plots import ticks
from bench.report.report import write_report
from bench.report.terminal import number, p_value
from tests.unit.run_folders import PROTOCOL_ID, OrlPictures, make_run, score_frame

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value for key, value in attrs if key in ("src", "href", "data", "action", "srcset")]

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
        "59 of 60 images",
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
    assert [attrs["class"] for tag, attrs in page.tags if tag == "article"] == ["case"] * 6
    dots = [tag for tag, _ in page.tags if tag == "circle"]
    assert len(dots) == 60 + 60 + 59


def test_nothing_is_loaded_from_elsewhere(run, tmp_path):
    write_report([run], tmp_path / "report.html", pictures=OrlPictures)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert all(tag not in ("link", "iframe", "object") for tag, _ in page.tags)
    assert len(text) < 2_000_000


def test_best_and_worst_images_by_the_metric(run, tmp_path):
    write_report([run], tmp_path / "report.html", pictures=OrlPictures)
    headings = re.findall(r'class="kind (\w+)">\w+</span> (s\d+/\d+)', (tmp_path / "report.html").read_text())
    frame = pd.read_parquet(run / "scores.parquet")
    values = frame[frame.metric == "id"].dropna(subset="value").set_index("image_id")["value"].sort_values()
    assert [image for kind, image in headings if kind == "best"] == list(values.index[::-1][:2])
    assert [image for kind, image in headings if kind == "worst"] == list(values.index[:2])
    assert sum(kind == "median" for kind, _ in headings) == 2
    write_report([run], tmp_path / "lmd.html", metric="lmd", pictures=OrlPictures)
    first = re.search(r'class="kind best">best</span> (s\d+/\d+)', (tmp_path / "lmd.html").read_text())
    lmd = frame[frame.metric == "lmd"].set_index("image_id")["value"]
    assert first.group(1) == lmd.idxmin(), "lower is better"
    with pytest.raises(UsageError, match="niqe"):
        write_report([run], tmp_path / "no.html", metric="niqe", pictures=OrlPictures)


def test_chosen_images_are_distinct_for_any_count():
    for count in range(1, 12):
        values = pd.Series(np.arange(count, dtype=float), index=[f"i{k}" for k in range(count)])
        chosen = choose_images(values, True, 2)
        assert len({image for _, image in chosen}) == len(chosen)
        assert ("best", f"i{count - 1}") in chosen
        if count >= 3:
            assert ("worst", "i0") in chosen
            assert any(kind == "median" for kind, _ in chosen)


def test_pictures_are_embedded_unchanged(run, tmp_path):
    class Colour(OrlPictures):
        def __init__(self, folder):
            super().__init__(folder, colour=True)

    write_report([run], tmp_path / "report.html", pictures=Colour)
    found = re.search(
        r'src="data:image/png;base64,([^"]+)" width="256" alt="ground truth of (s\d+/\d+)"',
        (tmp_path / "report.html").read_text(),
    )
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.group(1)))).convert("RGB"))
    np.testing.assert_array_equal(pixels, Colour(run).truth(found.group(2)))
    assert not (pixels[..., 0] == pixels[..., 2]).all(), "a colour picture keeps its colours"


def test_several_runs_are_tested_against_input(run, tmp_path):
    baseline = make_run(tmp_path / "input", score_frame("input", 0, 0), pictures=True)
    write_report([baseline, run], tmp_path / "report.html", pictures=OrlPictures)
    page = Page((tmp_path / "report.html").read_text())
    assert "input and refine@demo on orl_heavy" in page.text
    assert page.text.count("better (") == 3
    assert "better (-" in page.text, "the landmark distance is lower"
    twin = make_run(tmp_path / "twin", score_frame("refine@demo", 1.4, 3), pictures=True)
    write_report([run, twin], tmp_path / "two.html", pictures=OrlPictures)
    assert "refine@demo (twin)" in (tmp_path / "two.html").read_text()
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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser(run, tmp_path):
    import asyncio

    write_report([run], tmp_path / "report é#1.html", pictures=OrlPictures)
    with (tmp_path / "log").open("w") as stderr:
        browser = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={tmp_path / 'profile'}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"ws://(127\.0\.0\.1:\d+)/", (tmp_path / "log").read_text())):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        asyncio.run(drive(found.group(1), (tmp_path / "report é#1.html").as_uri()))
    finally:
        browser.terminate()
        browser.wait(timeout=20)


async def drive(address, page):
    """Opens the page, moves the first slider by pointer and by key, and watches what is loaded."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{address}/json") as answer:
            targets = await answer.json()
        target = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
        async with session.ws_connect(target, max_msg_size=0) as socket:
            events, counter = [], iter(range(1, 10_000))

            async def call(method, **parameters):
                number = next(counter)
                await socket.send_json({"id": number, "method": method, "params": parameters})
                while True:
                    message = await socket.receive_json(timeout=30)
                    if message.get("id") == number:
                        assert "error" not in message, message
                        return message["result"]
                    events.append(message)

            async def value(expression):
                result = await call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
                assert "exceptionDetails" not in result, result
                return result["result"].get("value")

            for domain in ("Page", "Network", "Runtime", "Log"):
                await call(f"{domain}.enable")
            for width in (1280, 390):
                await call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=900,
                    deviceScaleFactor=1,
                    mobile=width < 500,
                )
                await call("Page.navigate", url=page)
                while await value("document.readyState") != "complete":
                    pass
                assert await value("document.documentElement.scrollWidth") <= width, "no sideways scrolling of the page"
                loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
                assert await value(f"new Promise(done => setTimeout(() => done({loaded}), 300))")
                assert await value("document.querySelectorAll('.slider:not([hidden])').length") == 6
                at = "document.querySelector('.stage').style.getPropertyValue('--at')"
                assert await value(at) == "50%"
                await value("document.querySelector('.slider input').focus()")
                for kind in ("keyDown", "keyUp"):
                    await call(
                        "Input.dispatchKeyEvent",
                        type=kind,
                        key="ArrowRight",
                        code="ArrowRight",
                        windowsVirtualKeyCode=39,
                    )
                assert await value(at) == "51%"
                await value("document.querySelector('.stage').scrollIntoView({block: 'center'})")
                box = await value(
                    "(b => [b.x, b.y, b.width, b.height])(document.querySelector('.stage').getBoundingClientRect())"
                )
                x, y = box[0] + 0.25 * box[2], box[1] + 0.5 * box[3]
                for kind in ("mousePressed", "mouseReleased"):
                    await call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
                assert await value(at) in ("24%", "25%", "26%")
                assert await value("document.querySelector('.slider input').value") in ("24", "25", "26")
                names = await value("[...document.querySelector('.right').options].map(o => o.text)")
                assert names == ["LQ", "refine@demo", "ground truth"]
                change = "(s => { s.value = 'ground truth'; s.dispatchEvent(new Event('change')); })"
                change += "(document.querySelector('.right'))"
                await value(change)
                same = "document.querySelector('.under').src === document.querySelector('.truth img').src"
                assert await value(same)
            requests = [e["params"]["request"]["url"] for e in events if e.get("method") == "Network.requestWillBeSent"]
            assert requests
            assert all(url.startswith(("file:", "data:")) for url in requests), requests
            assert not [e for e in events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")], events


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
