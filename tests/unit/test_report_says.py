"""What a report says beside its numbers: what is best, what is missing, how sure the intervals are, and who is who."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ElementTree

import pytest

from bench.report.content import metric_rows, missing_values, read_runs, title_of
from bench.report.index import write_index
from bench.report.paired import paired_plot
from bench.report.report import write_report
from bench.report.tables import missing_table, scores_table
from bench.scores.compare import compare_tables, identity_differences
from bench.tracking.sweep import finish_sweep, start_sweep
from tests.unit.run_folders import OrlPictures, make_run, score_frame
from tests.unit.test_report import Page, data_of


def small(method="refine@demo", shift=0.0, seed=0, **more):
    return score_frame(method, shift, seed, identities=4, images=2, **more)


def best(runs, metric):
    row = next(row for row in metric_rows(runs) if row["name"] == metric)
    return [run.label for run, cell in zip(runs, row["cells"], strict=True) if cell.get("best")]


def test_best_is_marked_among_rows_of_the_same_images(tmp_path):
    folders = [
        make_run(tmp_path / "input", small("input")),
        make_run(tmp_path / "copy", small("copy_reference", 9, 1)),
        make_run(tmp_path / "a", small("a", 1, 1)),
        make_run(tmp_path / "b", small("b", 5, 2, missing={("s29/6", "id")})),
        make_run(tmp_path / "same", small("copy_reference", 1, 1).assign(method="copy_reference")),
    ]
    runs = read_runs(folders)
    assert best(runs, "psnr") == ["b"] and best(runs, "lmd") == ["b"]
    assert best(runs, "id") == ["a"], "the mean over other images is no better mean"
    assert best(read_runs([folders[2], folders[4]]), "psnr") == [], "copying takes no part, not even when equal"
    assert best(read_runs([folders[0], folders[2], folders[4]]), "psnr") == ["a"]
    write_report(folders[:3], tmp_path / "report.html", pictures=OrlPictures)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Bold: best mean among the runs scored on the same images, not a test; copy_reference takes no part." in text


def test_labels_tell_what_differs(tmp_path):
    def labels(*runs):
        return [run.label for run in read_runs(runs)]

    def made(name, seed=0, revision="abc123def456"):
        return make_run(tmp_path / name, small(seed=seed), method_revision=revision)

    first = made("one")
    assert labels(first, make_run(tmp_path / "input", small("input"))) == ["refine@demo", "input"]
    assert labels(first, made("two", 7)) == ["refine@demo (seed 0)", "refine@demo (seed 7)"]
    other = made("three", 0, "fff123def456")
    assert labels(first, other) == ["refine@demo (revision abc123de)", "refine@demo (revision fff123de)"]
    mixed = labels(first, other, made("four", 7))
    assert mixed[2] == "refine@demo (revision abc123de, seed 7)" and len(set(mixed)) == 3
    assert labels(first, made("five"), made("l/one"))[1:] == ["refine@demo (five, 2)", "refine@demo (one, 3)"]
    eight = read_runs([made(f"seed{seed}", seed) for seed in range(8)])
    assert title_of(eight) == "8 runs on orl_heavy" and "and" in title_of(eight[:3])
    assert len({run.mark for run in eight}) == 8, "the seventh has another shape"
    assert {eight[0].mark, eight[6].mark} == {"run0 shape0", "run0 shape1"}


def test_a_broken_restored_picture_is_said(tmp_path, capsys):
    folder = make_run(tmp_path / "refine", small(), pictures=True, failed={"s30/6": "out of memory"})
    (folder / "restored" / "s29" / "6.png").write_bytes(b"no picture")
    (folder / "restored" / "s30" / "6.png").unlink()

    class Read(OrlPictures):
        def restored(self, image_id):
            from bench.image import read_image

            return read_image(self.run_dir / "restored" / f"{image_id}.png")

    remarks = write_report([folder], folder / "report.html", pictures=Read)
    assert any("s29/6 and 1 more unreadable" in line and str(folder) in line for line in remarks)
    text = (folder / "report.html").read_text()
    data = data_of(text)
    case = data["cases"][str(data["images"].index("s29/6"))]
    assert case["restored"] == [None] and "6.png" in case["unreadable"]["0"]
    assert data["cases"][str(data["images"].index("s30/6"))]["unreadable"] == {"0": "out of memory"}
    assert str(tmp_path) not in text, "no folders of this machine"


def test_reasons_stand_once_and_without_folders(tmp_path):
    why = "Weights 'musiq' (MUSIQ) are not here. Looked in: /home/me/weights. Get them with: bench ..."
    frames = [small(), small("input")]
    for frame in frames:
        frame.loc[frame.metric.isin(["niqe", "lmd"]), "value"] = float("nan")
        frame.loc[frame.metric.isin(["niqe", "lmd"]), "reason"] = why
    folders = [make_run(tmp_path / str(i), frame, pictures=True) for i, frame in enumerate(frames)]
    (one,) = missing_values(read_runs(folders))
    assert (list(one.metrics), one.values, len(one.images)) == (["lmd", "niqe"], 32, 8)
    (row,) = missing_table(read_runs(folders))["rows"]
    assert [cell["text"] for cell in row] == ["lmd, niqe", "weights missing: musiq", "all", "32"]
    assert row[0]["lines"] == [("coverage", "s29/6, s29/7, s30/6 and 5 more")]
    remarks = write_report(folders, tmp_path / "report.html", pictures=OrlPictures)
    assert remarks == [f"lmd, niqe: {why}"], "in full in the terminal"
    assert "/home/me" not in (tmp_path / "report.html").read_text()


def test_cells_and_facts_of_what_is_not_there(tmp_path):
    hardware = {"cpu": "a CPU", "gpus": [], "cores": 2}
    folder = make_run(
        tmp_path / "in", small("input"), pictures=True, parameters=0, seconds_per_image=0.0001, hardware=hardware
    )
    write_report([folder], folder / "report.html", pictures=OrlPictures)
    text = Page((folder / "report.html").read_text()).text
    assert "parameters none" in text and "seconds per image none" in text and "gpus" not in text
    assert "0.00 M" not in text and "0.000" not in text.partition("How this was made")[2]
    scores = scores_table(read_runs([folder]))
    niqe = scores["rows"][-1]
    assert niqe[3]["text"] == "0 of 8" and scores["columns"][2]["kind"] == "number"
    low = json.loads((folder / "summary.json").read_text())["metrics"]["psnr"]["low"]
    assert float(scores["rows"][0][2]["sort"]) == low, "intervals are sorted by their lower bound"
    assert "student-t over 4 identities; simulated coverage" in text, "printed beside the intervals"
    assert "strongly skewed values" in text


def test_index_lists_the_reports_of_sweeps(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    sweep = start_sweep(["method=input,refine"], [["method=input"], ["method=refine"]], root)
    for position, method in enumerate(("input", "refine@demo"), start=1):
        run = make_run(root / f"a {method}", small(method, position), pictures=True)
        (sweep / "jobs" / f"{position}.json").write_text(json.dumps({"run_dir": str(run)}))
    finish_sweep(sweep, [0, 0])
    monkeypatch.chdir(tmp_path)
    page = Page(write_index(root).read_text())
    assert f"sweeps/{sweep.name}/report-orl_heavy-01234567.html" in page.addresses
    assert f"orl_heavy, sweep {sweep.name}" in page.text and "bench run -m method=input,refine" in page.text
    assert f"bench report {shlex.quote('runs/a input')}" in page.text, "a command that works from here"


@pytest.mark.parametrize("metrics", [["psnr_y"], ["id", "psnr_y", "lmd"]])
def test_differences_are_drawn_with_units_and_a_legend(metrics):
    a, b = (frame.replace({"metric": {"psnr": "psnr_y"}}) for frame in (small("a", 1, 1), small("b")))
    comparisons, _ = compare_tables(a, b, metrics, {"psnr_y": True, "id": True, "lmd": False})
    differences = {one.metric: identity_differences(a, b, one.metric) for one in comparisons}
    text = paired_plot(comparisons, differences, "a (seed 0) from /home/me/runs/ours", "b (seed 0) from runs/theirs/")
    root = ElementTree.fromstring(text)
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[:2] == ["A: a (seed 0) from ours", "B: b (seed 0) from theirs"]
    assert int(root.get("width")) >= 720
    assert "A \u2212 B (dB)" in words and any(word.startswith("PSNR") and "(dB)" in word for word in words)
    assert "psnr_y" not in words
    legend = " ".join(words)
    assert all(word in legend for word in ("Dot: one identity", "diamond: mean", "Green: A better", "red: A worse"))
