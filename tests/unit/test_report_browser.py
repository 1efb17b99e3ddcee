"""The report's pages in headless Chromium: sort, filter, slider, plots, keyboard, both colour schemes, two widths."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bench.report.index import write_index
from bench.report.report import write_report
from tests.unit.run_folders import OrlPictures, make_run, score_frame

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Tab": 9, " ": 32}


class Page:
    """One tab of a browser, spoken to through the DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.events, self.number = socket, [], 0

    async def call(self, method, **parameters):
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def value(self, expression):
        """Value of a JavaScript expression; a promise is awaited."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def open(self, address, width=1280, height=900, dark=False):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await self.call("Page.navigate", url=address)
        while await self.value("document.readyState") != "complete":
            await asyncio.sleep(0.05)

    async def press(self, key):
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **more
            )

    async def click(self, selector, across=0.5):
        """Presses the mouse on an element, at a share of its width."""
        await self.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"(b => [b.x + {across} * b.width, b.y + b.height / 2])"
        x, y = await self.value(f"{box}(document.querySelector({selector!r}).getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def change(self, selector, value, event="change"):
        """Chooses or types a value, as a user's input would."""
        script = f"(n => {{ n.value = {value!r}; n.dispatchEvent(new Event({event!r})); }})"
        await self.value(f"{script}(document.querySelector({selector!r}))")

    async def texts(self, selector):
        return await self.value(f"[...document.querySelectorAll({selector!r})].map(n => n.textContent)")

    async def picture(self, path, full=True):
        """Writes a screenshot."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def problems(self):
        """Requests that leave the file, exceptions and logged errors."""
        found = [e for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
        for event in self.events:
            if event.get("method") == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(url)
        return found


@contextlib.asynccontextmanager
async def browser_page(folder: Path):
    """A fresh headless browser with one empty tab; its profile lies in `folder`."""
    import aiohttp

    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + 90
        while not (found := re.search(r"ws://(127\.0\.0\.1:\d+)/", log.read_text())):
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{found.group(1)}/json") as answer:
                targets = await answer.json()
            target = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
            async with session.ws_connect(target, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Network", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        process.wait(timeout=30)


def drive(folder, steps):
    """Runs an async function with a page and holds what it did against what must never happen."""

    async def session():
        async with browser_page(folder) as page:
            await steps(page)
            assert page.problems() == []

    asyncio.run(session())


@pytest.fixture
def runs(tmp_path):
    gone = {("s29/6", "id"), ("s29/7", "id")}
    first = make_run(tmp_path / "input", score_frame("input", 0, 0), pictures=True)
    second = make_run(tmp_path / "refine", score_frame("refine@demo", 1.5, 2, missing=gone), pictures=True)
    return [first, second]


def test_report_is_sorted_filtered_and_compared_by_hand(runs, tmp_path):
    page_file = tmp_path / "report é#1.html"
    write_report(runs, page_file, pictures=OrlPictures)

    async def steps(page):
        for width, dark in ((1280, False), (390, True)):
            await page.open(page_file.as_uri(), width, dark=dark)
            assert await page.value("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
            loaded = "[...document.images].filter(i => i.loading !== 'lazy').every(i => i.complete && i.naturalWidth)"
            assert await page.value(f"new Promise(done => setTimeout(() => done({loaded}), 300))")
            await sorts(page)
            await filters(page)
            await slides(page)
            await draws(page)
        background = await page.value("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(20, 23, 27)", "dark where dark is asked for"

    drive(tmp_path / "browser", steps)


async def sorts(page):
    """Sorts the scores by mouse and the images by keyboard."""
    first = "document.querySelector('section.sortable tbody tr th').dataset.value"
    header = "section.sortable thead th:nth-child(2)"
    await page.click(f"{header} button")
    assert await page.value(f"document.querySelector({header!r}).getAttribute('aria-sort')") == "descending"
    assert await page.value(first) == "refine@demo", "the higher PSNR first"
    await page.click(f"{header} button")
    assert await page.value(first) == "input"
    names = await page.texts("#image-view thead button")
    assert names[:3] == ["image", "person", "run"]
    column = next(index for index, name in enumerate(names, 1) if name.startswith("ID"))
    await page.value(f"document.querySelector('#image-view thead th:nth-child({column}) button').focus()")
    values = f"#image-view tbody tr :nth-child({column}):is(td)"
    await page.press("Enter")
    shown = [float(text) for text in await page.texts(values)]
    assert shown == sorted(shown, reverse=True) and len(shown) == 40
    await page.press("Enter")
    shown = [float(text) for text in await page.texts(values)]
    assert shown == sorted(shown)


async def filters(page):
    """Filters images and people, and finds missing values with their reasons at the end."""
    await page.change("#image-view input[type=search]", "s29 refine", "input")
    rows = await page.texts("#image-view tbody tr")
    assert len(rows) == 5 and all("refine@demo" in row and row.startswith("s29/") for row in rows)
    assert sum("n/ano face found" in row for row in rows) == 2
    assert "no face found" in rows[-1] and "no face found" in rows[-2], "missing values come last"
    await page.change("#people-view input[type=search]", "s30", "input")
    assert await page.value("document.querySelectorAll('.person').length") == 1
    assert "5 images" in (await page.texts(".person h3"))[0]
    await page.change("#people-view input[type=search]", "", "input")
    assert await page.value("document.querySelectorAll('.person').length") == 12


async def slides(page):
    """Moves the first slider by key and by pointer, changes a side, the order and the metric."""
    at = "document.querySelector('.stage').style.getPropertyValue('--at')"
    assert await page.value(at) == "50%"
    await page.value("document.querySelector('.slider input').focus()")
    await page.press("ArrowRight")
    assert await page.value(at) == "51%"
    await page.click(".stage", 0.25)
    assert await page.value(at) in ("24%", "25%", "26%")
    assert await page.value("document.querySelector('.slider input').value") in ("24", "25", "26")
    options = await page.value("[...document.querySelector('.right').options].map(o => o.text)")
    assert options == ["LQ", "input", "refine@demo", "ground truth"]
    assert await page.value("document.querySelector('.right').selectedOptions[0].text") == "refine@demo"
    await page.change(".right", "3")
    assert await page.value("document.querySelector('.under').src === document.querySelector('.truth img').src")
    for metric, order in (("psnr", "worst"), ("lmd", "worst"), ("lmd", "best"), ("id", "gain")):
        await page.change("#metric", metric)
        await page.change("#case-order", order)
        expected = await page.value(
            "(() => { const better = metricOf(metric).better ? 1 : -1; const known = scored(metric, 1);"
            f"const key = ([i, v]) => better * ({order!r} === 'gain' ? valueOf(metric, 0, i) - v : v);"
            f"const sign = {order!r} === 'best' ? -1 : 1;"
            "return data.images[known.sort((a, b) => sign * (key(a) - key(b)))[0][0]]; })()"
        )
        assert expected in (await page.texts(".case h3"))[0], (metric, order)
    await page.change("#metric", "id")
    await page.change("#case-order", "worst")


async def draws(page):
    """Walks through the scatter plot by keyboard and opens an image from it."""
    titles = await page.value("[...document.querySelector('#strength').options].map(o => o.text)")
    assert titles[:3] == ["PSNR (dB) of the Input", "ID of the Input", "Landmark distance (px) of the Input"]
    assert await page.value("document.querySelector('#strength').selectedOptions[0].text") == "ID of the Input"
    dots = "document.querySelectorAll('#plot-view .plot')[0].querySelectorAll('circle').length"
    assert await page.value(dots) == 58, "one per image with both values; the Input is the axis"
    await page.value("document.querySelector('#plot-view .plot').focus()")
    await page.press("ArrowRight")
    said = (await page.texts("#plot-view figcaption"))[0]
    assert re.match(r"s\d+/\d+ · refine@demo · ID of the Input [\d.]+ · ID [\d.]+", said)
    await page.press("Enter")
    assert said.split(" · ")[0] in (await page.texts(".case h3"))[0]
    assert await page.value("document.activeElement.className") == "case"
    assert await page.value("document.querySelectorAll('#plot-view .violin').length") == 2
    told = (await page.texts("#plot-view figcaption"))[1]
    assert "refine@demo: 2 of 60 without a value (no face found)" in told


def test_no_ground_truth_and_nothing_to_sort_by(tmp_path):
    class Real(OrlPictures):
        def has_truth(self, image_id):
            return False

        def truth(self, image_id):
            raise AssertionError("there is none")

        def lq(self, image_id):
            return self.restored(image_id) // 2

        def references(self, image_id):
            return []

    frame = score_frame(identities=3, images=2)
    frame.loc[:, "value"] = float("nan")
    frame.loc[:, "reason"] = "no ground truth"
    run = make_run(tmp_path / "real", frame, pictures=True)
    some = score_frame(identities=3, images=2)
    some.loc[some.metric != "id", "value"] = float("nan")
    some.loc[some.metric != "id", "reason"] = "no ground truth"
    other = make_run(tmp_path / "some", some, pictures=True)
    for folder in (run, other):
        write_report([folder], folder / "report.html", pictures=Real)

    async def steps(page):
        await page.open((run / "report.html").as_uri())
        assert "No metric has a value" in await page.value("document.getElementById('case-view').textContent")
        assert await page.value("document.querySelectorAll('#image-view tbody tr').length") == 6
        await page.open((other / "report.html").as_uri())
        assert await page.value("[...document.querySelector('.right').options].map(o => o.text)") == [
            "LQ", "refine@demo",
        ]  # fmt: skip
        assert await page.value("document.querySelectorAll('.truth').length") == 0

    drive(tmp_path / "browser", steps)


def test_index_is_sorted_and_filtered(tmp_path):
    root = tmp_path / "runs [1]"
    for method, shift in (("input", 0), ("refine@demo", 1), ("copy_reference", -1), ("other", 2)):
        make_run(root / f"{method} é#?", score_frame(method, shift, identities=4))
        (root / f"{method} é#?" / "report.html").write_text(f"<title>{method}</title>")
    page_file = write_index(root)

    async def steps(page):
        for width in (1280, 390):
            await page.open(page_file.as_uri(), width, dark=width < 500)
            assert await page.value("document.documentElement.scrollWidth") <= width
            names = await page.texts("thead button")
            column = next(index for index, name in enumerate(names, 1) if name.startswith("PSNR"))
            await page.click(f"thead th:nth-child({column}) button")
            first = [await page.value(f"document.querySelectorAll('tbody th')[{i}].dataset.value") for i in range(4)]
            assert first == ["other", "refine@demo", "input", "copy_reference"]
            await page.change("input[type=search]", "refine", "input")
            assert await page.value("[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).length") == 1
        await page.click("tbody tr:not([hidden]) a", 0.3)
        for _ in range(100):
            if await page.value("document.title") == "refine@demo":
                break
            await asyncio.sleep(0.05)
        assert await page.value("document.title") == "refine@demo", "the link leads to the run's report"

    drive(tmp_path / "browser", steps)
