"""`bench compare` from run folders and from score tables."""

from __future__ import annotations

import argparse
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from bench.cli import compare as verb
from bench.errors import UsageError
from bench.scores.power import comparison_power, smallest_effect
from bench.scores.statistics import compare_identity_means, holm, identity_means, mean_interval, sign_flip_test
from bench.scores.table import write_table
from tests.unit.run_folders import make_run, score_frame


def compare(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def runs(tmp_path):
    """A method that is better, the input, and their tables."""
    frames = [score_frame("refine@demo", 1.5, 2, missing={("s29/6", "id")}), score_frame("input", 0, 0)]
    folders = [
        make_run(tmp_path / name, frame) for name, frame in zip(("l'été, a=b [1]", "input"), frames, strict=True)
    ]
    return folders, frames


def test_json_holds_the_exact_test(runs, capsys):
    folders, frames = runs
    assert compare(*folders, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["a"]["method"], result["b"]["method"]) == ("refine@demo", "input")
    expected = {}
    for name in ("id", "lmd", "psnr"):
        a, b = (frame[(frame.metric == name) & ~((frame.image_id == "s29/6") & (name == "id"))] for frame in frames)
        expected[name] = sign_flip_test((identity_means(a) - identity_means(b)).to_numpy())
    assert {name: one["p"] for name, one in result["metrics"].items()} == expected
    adjusted = holm(list(expected.values()))
    assert [result["metrics"][name]["p_adjusted"] for name in expected] == adjusted
    assert [result["metrics"][name]["better"] for name in expected] == [True] * 3
    assert result["metrics"]["lmd"]["mean_difference"] < 0
    assert (result["metrics"]["id"]["n_images"], result["metrics"]["psnr"]["n_images"]) == (59, 60)
    differences = identity_means(frames[0][frames[0].metric == "psnr"]) - identity_means(
        frames[1][frames[1].metric == "psnr"]
    )
    psnr = result["metrics"]["psnr"]
    assert psnr["a_better"] == int((differences > 0).sum())
    assert psnr["smallest_p"] == 2 / 4096
    for level in ("0.05", "0.01"):
        expected = smallest_effect(12, float(level)) * differences.std(ddof=1)
        assert psnr["smallest_difference"][level] == pytest.approx(expected)
    assert "89 % for strongly skewed values" in psnr["interval_note"]
    assert result["not_compared"] == {"niqe": "no image has a value in both"}


def test_table_for_people(runs, capsys):
    folders, _ = runs
    assert compare(folders[1], folders[0], "--metrics", "psnr, niqe") == 0
    out = capsys.readouterr().out
    assert "worse" in out
    assert "lmd" not in out
    assert "niqe: not compared" in out
    assert "identities in common: 12 (60 images, smallest p 0.00049)" in out
    assert "shows .05" in out
    assert "simulated coverage" in out
    assert compare(folders[0], folders[0]) == 0
    assert "no difference shown" in capsys.readouterr().out


def test_plot_shows_every_identity_with_its_interval(runs, tmp_path, capsys):
    folders, frames = runs
    target = tmp_path / "plots" / "differences.svg"
    assert compare(*folders, "--plot", target, "--json") == 0
    json.loads(capsys.readouterr().out)
    text = target.read_text("utf-8")
    assert "l'été, a=b [1]" in text.replace("&#x27;", "'")
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    panels = root.findall(f"{name}g")
    assert [panel.find(f"{name}text").text for panel in panels] == ["ID", "lmd", "psnr"]
    for panel in panels:
        tips = [circle.find(f"{name}title").text for circle in panel.findall(f"{name}circle")]
        assert len(tips) == 12
        assert len(panel.findall(f"{name}line[@class='mean']")) == 1
    whiskers = [line for line in panels[2].findall(f"{name}line") if line.get("class").startswith("whisker")]
    assert len(whiskers) == 12
    # The identity with the largest difference comes first, and its interval is that of its five pictures.
    a, b = (frame[frame.metric == "psnr"].set_index("image_id") for frame in frames)
    differences = a["value"] - b["value"]
    by_identity = differences.groupby(a["identity"]).mean()
    first = panels[2].find(f"{name}circle/{name}title").text
    assert first.startswith(f"{by_identity.idxmax()}: ")
    interval = mean_interval(differences[a["identity"] == by_identity.idxmax()])
    circle = panels[2].find(f"{name}circle")
    left, centre, right = float(whiskers[0].get("x1")), float(circle.get("cx")), float(whiskers[0].get("x2"))
    assert (centre - left) / (right - left) == pytest.approx(0.5, abs=0.01)
    zero = float(panels[2].find(f"{name}line[@class='zero']").get("x1"))
    scale = (centre - zero) / interval.mean
    assert (right - left) / scale == pytest.approx(interval.high - interval.low, rel=0.05)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    with pytest.raises(UsageError, match=r"ends in \.svg"):
        compare(*folders, "--plot", tmp_path / "plot.jpg")


def test_what_the_test_assumes_is_printed(runs, capsys):
    folders, _ = runs
    assert compare(*folders, "--metrics", "psnr,lmd") == 0
    assert capsys.readouterr().out.count("The sign-flip test assumes symmetric differences") == 1
    assert compare(*folders, "--json") == 0
    assert "7 % of skewed" in json.loads(capsys.readouterr().out)["metrics"]["psnr"]["test_note"]


def test_score_tables_are_accepted(runs, tmp_path, capsys):
    folders, frames = runs
    table = tmp_path / "theirs.parquet"
    write_table(frames[1], table)
    assert compare(folders[0], table, "--json", "--metrics", "psnr") == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == ["psnr"]


def test_what_cannot_be_compared_is_said(runs, tmp_path):
    folders, _ = runs
    other = make_run(tmp_path / "other", score_frame(protocol_id="fedcba9876543210"))
    with pytest.raises(UsageError, match="different protocols"):
        compare(folders[0], other)
    with pytest.raises(UsageError, match="'psnr'"):
        compare(*folders, "--metrics", "pnsr")
    with pytest.raises(UsageError, match="names no metric"):
        compare(*folders, "--metrics", ",")
    with pytest.raises(UsageError, match="does not exist"):
        compare(folders[0], tmp_path / "nothing")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UsageError, match="Cannot read"):
        compare(folders[0], tmp_path / "text.parquet")


def test_the_smallest_difference_has_the_metrics_unit():
    people = [f"s{i}" for i in range(12)]
    values = pd.Series(np.linspace(-1, 1, 12), index=people)
    for name, unit in (("psnr_y", " dB"), ("lmd_px", " px"), ("id", "")):
        one = compare_identity_means(values, values * 0, name, True, 60)
        wanted = comparison_power(one).smallest_difference
        assert verb._row(one)[-2:] == [f"{wanted[level]:.3g}{unit}" for level in (0.05, 0.01)]


def seeded(tmp_path, name, shift, seeds, **fields):
    """Run folders of one row that differ in their seed."""
    return [make_run(tmp_path / f"{name}-{seed}", score_frame(f"{name}@demo", shift, seed, **fields)) for seed in seeds]


def test_several_seeds_are_averaged_per_image_before_the_test_over_people(tmp_path, capsys):
    ours = seeded(tmp_path, "fir", 0.4, (0, 1, 2))
    ours[1] = make_run(tmp_path / "fir-1", score_frame("fir@demo", 0.4, 1, missing={("s29/6", "id"), ("s30/7", "id")}))
    base = seeded(tmp_path, "base", 0, (3, 4, 5))
    assert compare(*ours, "--against", *base, "--json", "--metrics", "id,psnr") == 0
    result = json.loads(capsys.readouterr().out)
    frames = [[pd.read_parquet(folder / "scores.parquet") for folder in side] for side in (ours, base)]
    for metric, images in (("id", 58), ("psnr", 60)):
        wide = [
            sum(frame[frame.metric == metric].set_index("image_id")["value"] for frame in side) / 3 for side in frames
        ]
        differences = (wide[0] - wide[1]).dropna()
        by_identity = differences.groupby(differences.index.str.split("/").str[0]).mean().to_numpy()
        # Every sign pattern by hand.
        signs = 1 - 2 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
        sums = np.abs(signs @ by_identity)
        one = result["metrics"][metric]
        assert one["p"] == pytest.approx(np.mean(sums >= abs(by_identity.sum()) - 1e-12))
        half = scipy.stats.sem(by_identity) * scipy.stats.t.ppf(0.975, 11)
        assert (one["low"], one["high"]) == pytest.approx((by_identity.mean() - half, by_identity.mean() + half))
        assert one["n_images"] == images
        for side, mean in (("a", one["mean_a"]), ("b", one["mean_b"])):
            assert len(one["by_run"][side]) == 3
            assert len(set(one["by_run"][side])) == 3
            assert np.mean(one["by_run"][side]) == pytest.approx(mean), "runs of equal images average to the side"
    assert result["a"]["dropped_images"] == {"id": 2}
    assert [run["seed"] for run in result["a"]["runs"]] == [0, 1, 2]
    assert "not over seeds" in result["intervals_over"]


def test_the_seeds_are_shown_and_one_run_may_stand_against_several(tmp_path, capsys):
    ours = seeded(tmp_path, "fir", 0.4, (0, 1, 2))
    ours[1] = make_run(tmp_path / "fir-1", score_frame("fir@demo", 0.4, 1, missing={("s29/6", "id")}))
    base = seeded(tmp_path, "base", 0, (3,))
    assert compare(*base, "--metrics", "id", "--against", *ours) == 0
    out = capsys.readouterr().out
    assert "A: base@demo (revision abc123def456, seed 3)" in out
    assert "B: fir@demo, mean of 3 runs, from" in out
    assert "they are not over seeds" in out
    assert "id: 1 of 60 images of B dropped" in out
    listed = out.split("mean of each run:")[1]
    assert [line.split()[0] for line in listed.splitlines()[2:6]] == ["A", "B", "B", "B"]
    target = tmp_path / "differences.svg"
    assert compare(*base, "--against", *ours, "--plot", target, "--json") == 0
    assert "mean of 3 runs" in target.read_text("utf-8")


def test_two_runs_are_compared_as_ever(runs, capsys):
    folders, _ = runs
    assert compare(folders[0], "--metrics", "psnr", folders[1]) == 0
    out = capsys.readouterr().out
    assert "run" not in out.split("shows .05 / .01")[1], "nothing of several runs"
    assert compare(*folders, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["a"]) == {"path", "method", "method_revision"}
    assert "by_run" not in result["metrics"]["psnr"]


def test_what_cannot_be_averaged_is_refused(tmp_path):
    fir, base = seeded(tmp_path, "fir", 0.4, (0, 1)), seeded(tmp_path, "base", 0, (3,))
    short = make_run(tmp_path / "short", score_frame("fir@demo", 0.4, 7, images=4))
    other = make_run(tmp_path / "other", score_frame("fir@demo", 0.4, 8, protocol_id="f" * 16))
    for words, message in (
        ([fir[0], fir[0], "--against", *base], "one run counted twice"),
        ([*fir, short, "--against", *base], "not over the same images"),
        ([*fir, other, "--against", *base], "one protocol"),
        ([*fir, *base, "--against", *base], "one row"),
        ([*fir, *base], "no --against"),
        ([fir[0]], "no --against"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(*words)


def test_a_metric_that_one_run_lacks_is_named(tmp_path, capsys):
    fir, base = seeded(tmp_path, "fir", 0.4, (0, 1)), seeded(tmp_path, "base", 0, (3,))
    frame = score_frame("fir@demo", 0.4, 9)
    fewer = make_run(tmp_path / "fewer", frame[frame.metric != "id"])
    assert compare(*fir, fewer, "--against", *base) == 0
    out = capsys.readouterr().out
    assert "id: not compared (only 2 of the 3 runs of A have it)" in out
    assert "psnr" in out
