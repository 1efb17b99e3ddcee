"""What the report's script draws where pictures, directions or names are short: in headless Chromium."""

from __future__ import annotations

import json

import pytest

from bench.report import pictures as chosen_pictures
from bench.report.report import write_report
from tests.unit.run_folders import OrlPictures, make_run, score_frame
from tests.unit.test_report_browser import CHROMIUM, drive

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
CUT = """[...document.querySelectorAll('select')].filter(node => {
  const pen = document.createElement('canvas').getContext('2d');
  pen.font = getComputedStyle(node).font;
  return node.offsetWidth && pen.measureText(node.selectedOptions[0].text).width + 24 > node.offsetWidth;
}).map(node => node.selectedOptions[0].text)"""


class Read(OrlPictures):
    """Restored pictures from their files, so that a broken one is one."""

    def restored(self, image_id):
        from bench.image import read_image

        return read_image(self.run_dir / "restored" / f"{image_id}.png")


def small(method="refine@demo", shift=0.0, seed=0, **more):
    return score_frame(method, shift, seed, identities=4, images=2, **more)


def test_broken_pictures_directions_and_axes(tmp_path):
    folders = [
        make_run(tmp_path / "input", small("input"), pictures=True),
        make_run(tmp_path / "refine", small("refine@demo", 1.5, 2), pictures=True),
    ]
    for one in ("s29/6", "s30/7"):
        (folders[1] / "restored" / f"{one}.png").write_bytes(b"no picture")
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        summary["metrics"]["psnr"]["higher_is_better"] = None
        (folder / "summary.json").write_text(json.dumps(summary))
    page_file = tmp_path / "report.html"
    write_report(folders, page_file, pictures=Read)

    async def steps(page):
        await page.open(page_file.as_uri())
        await page.value("openCase(data.images.indexOf('s29/6'))")
        right = "document.querySelector('.case .right').selectedOptions[0].text"
        assert await page.value(right) == "refine@demo", "never silently the ground truth"
        told = await page.value("document.querySelector('.case .under').alt")
        assert told == "refine@demo: restored picture unreadable: 6.png is not a picture in a known format."
        drawn = "(i => i.complete && i.naturalWidth > 0 && i.src.startsWith('data:image/svg'))"
        loaded = f"{drawn}(document.querySelector('.case .under'))"
        assert await page.value(f"new Promise(done => setTimeout(() => done({loaded}), 300))")
        assert told in (await page.texts(".case"))[0]
        axis = "[...document.querySelectorAll('#plot-view .axis')].map(n => n.textContent)"
        assert "ID (higher is better)" in await page.value(axis)
        assert await page.texts("#plot-view figure:first-child .legend > span") == ["refine@demo"], "Input is the axis"
        assert await page.texts("#plot-view figure:last-child .legend > span") == ["input", "refine@demo"]
        assert (await page.texts("#plot-view figcaption"))[0] == "Above the dashed line: better than its Input."
        await page.change("#metric", "lmd")
        position = await page.value("strengths.findIndex(one => one.metric === 'lmd')")
        await page.change("#strength", str(position))
        assert (await page.texts("#plot-view figcaption"))[0] == "Below the dashed line: better than its Input."
        assert "Landmark distance (px, lower is better)" in await page.value(axis)
        assert not any("\u2193" in text or "\u2191" in text for text in await page.value(axis))
        options = "[...document.querySelector('#case-order').options].map(o => o.text)"
        assert (await page.value(options))[:2] == ["worst first", "best first"]
        await page.change("#metric", "psnr")
        assert (await page.value(options))[:3] == ["lowest first", "highest first", "median first"]
        assert (await page.texts(".case .kind"))[0] == "lowest 1"
        assert "lowest mean first" in await page.texts("#people-view select option")

    drive(tmp_path / "browser", steps)


def test_of_a_large_set_every_order_opens_with_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(chosen_pictures, "MOST_PIXELS", 1)
    folders = [
        make_run(tmp_path / "input", score_frame("input"), pictures=True),
        make_run(tmp_path / "refine", score_frame("refine@demo", 1.5, 2), pictures=True),
    ]
    page_file = tmp_path / "report.html"
    write_report(folders, page_file, pictures=OrlPictures)

    async def steps(page):
        await page.open(page_file.as_uri())
        assert await page.value("Object.keys(data.cases).length") == 20
        pictured = "[...document.querySelectorAll('.case')].map(n => Boolean(n.querySelector('.stage')))"
        for order in ("worst", "best", "median", "gain", "loss"):
            await page.change("#case-order", order)
            assert await page.texts(".case .kind") == [f"{order} {rank}" for rank in (1, 2, 3, 4)]
            assert await page.value(pictured) == [True] * 4, order
        await page.change("#metric", "lmd")
        await page.change("#case-order", "median")
        ranks = [int(text.split()[-1]) for text in await page.texts(".case .kind")]
        assert await page.value(pictured) == [True] * 4, "those with pictures come first, under their own rank"
        assert ranks == sorted(ranks)
        await page.value("for (let i = 0; i < 14; i++) document.querySelector('#case-view button.more').click()")
        assert await page.value(pictured) == [True] * 20 + [False] * 40
        ranks = [int(text.split()[-1]) for text in await page.texts(".case .kind")]
        assert sorted(ranks) == list(range(1, 61)) and ranks[20:] == sorted(ranks[20:])

    drive(tmp_path / "browser", steps)


def test_eight_runs_of_one_method(tmp_path):
    folders = [
        make_run(tmp_path / f"refine@demo-61f7b53b-da13fff6-seed{seed}", small(seed=seed), pictures=True)
        for seed in range(8)
    ]
    page_file = tmp_path / "report.html"
    write_report(folders, page_file, pictures=OrlPictures)

    async def steps(page):
        for width in (1280, 390):
            await page.open(page_file.as_uri(), width)
            assert await page.value("document.title") == "8 runs on orl_heavy"
            assert await page.value("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
            assert await page.value(CUT) == [], "no choice is cut"
            shapes = (
                "new Set([...document.querySelectorAll('#plot-view .dot')].map(n => n.tagName + n.classList[1])).size"
            )
            assert await page.value(shapes) == 8, "colour and shape tell eight runs apart"

    drive(tmp_path / "browser", steps)
