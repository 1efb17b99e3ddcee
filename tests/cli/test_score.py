"""`bench score`: pairs by name, never resizes, and says what it could not score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from bench.cli.main import main
from bench.image import read_image, write_png
from bench.metrics.metric import Metric
from bench.registry import METRIC_ALIASES, metric_classes, resolve_metric, set_metric_classes
from bench.scores import feature_cache
from bench.scores.folders import identity_of, pair_folders, references_of
from bench.scores.summary import public_reason, summarise
from bench.scores.table import ScoreRow, read_table, rows_to_frame

METRICS = "psnr_y,haarpsi,id,ips"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test filled, beside the weights and protocols of the real home."""
    folder = tmp_path / "cache" / "scores"
    original = feature_cache.ScoreCache.__init__

    def start(self: feature_cache.ScoreCache, place: Path | None = None, active: bool = True) -> None:
        original(self, place or folder, active)

    monkeypatch.setattr(feature_cache.ScoreCache, "__init__", start)
    return folder


@pytest.fixture
def folders(tmp_path: Path, orl_root: Path) -> tuple[Path, Path]:
    """Ground truth of three people, and its noisy copies as PNGs."""
    restored, truth = tmp_path / "restored, [1]", tmp_path / "wahr é=x"
    rng = np.random.default_rng(0)
    for person in (1, 2, 3):
        for photo in (1, 2):
            path = truth / f"s{person}" / f"{photo}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(orl_root / f"s{person}" / f"{photo}.pgm", path)
            pixels = read_image(path).astype(int) + rng.integers(-9, 10, (112, 92, 1))
            write_png(restored / f"s{person}" / f"{photo}.png", pixels.clip(0, 255).astype(np.uint8))
    return restored, truth


def _score(capsys: pytest.CaptureFixture[str], restored: Path, truth: Path, *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["score", "--restored", str(restored), "--truth", str(truth), *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_scores_table_and_summary(
    folders: tuple[Path, Path], tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restored, truth = folders
    references = tmp_path / "people"
    for person in (1, 2, 3):
        (references / f"s{person}").mkdir(parents=True)
        for photo in (1, 8):
            shutil.copy(orl_root / f"s{person}" / f"{photo}.pgm", references / f"s{person}" / f"r{photo}.pgm")
    output = tmp_path / "out" / "scores.parquet"
    code, summary = _score(
        capsys, restored, truth, "--references", str(references), "--metrics", METRICS, "-o", str(output)
    )
    assert code == 0
    assert (summary["pairs"], summary["not_restored"], summary["without_truth"], summary["failed"]) == (6, [], [], {})
    table = read_table(output)
    assert set(table["protocol_id"]) == {""}
    assert set(table["identity"]) == {"s1", "s2", "s3"}
    assert len(table) == 6 * 4
    psnr = table[table["metric"] == "psnr_y"].set_index("image_id")["value"]
    for name in ("s1/1", "s3/2"):
        expected = peak_signal_noise_ratio(read_image(truth / f"{name}.pgm"), read_image(restored / f"{name}.png"))
        assert psnr[name] == pytest.approx(expected, abs=1e-3)
    assert summary["metrics"]["id"]["identities"] == 3
    assert table[table["metric"] == "ips"]["value"].notna().all()


def test_the_truth_itself_scores_best(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, truth = folders
    code, summary = _score(capsys, truth, truth, "--metrics", "haarpsi,id,lmd_px")
    assert code == 0
    metrics = summary["metrics"]
    assert metrics["haarpsi"]["mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["id"]["mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["lmd_px"]["mean"] == pytest.approx(0, abs=1e-9)


def test_names_on_one_side_only(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restored, truth = folders
    (restored / "s2" / "1.png").rename(restored / "s2" / "extra.png")
    words = [
        "--restored",
        str(restored),
        "--truth",
        str(truth),
        "--metrics",
        "psnr_y",
        "-o",
        str(tmp_path / "s.parquet"),
    ]
    assert main(["score", *words]) == 4
    printed = capsys.readouterr()
    assert "1 not restored: s2/1" in printed.err
    assert "1 without ground truth, not scored: s2/extra" in printed.err
    assert "5/6" in printed.out
    table = read_table(tmp_path / "s.parquet").set_index("image_id")
    assert np.isnan(table.loc["s2/1", "value"])
    assert "no restored picture" in table.loc["s2/1", "reason"]
    assert "s2/extra" not in table.index


def test_sizes_must_agree_and_files_must_be_readable(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    restored, truth = folders
    write_png(restored / "s1" / "1.png", np.zeros((224, 184, 3), np.uint8))
    (restored / "s1" / "2.png").write_bytes(b"")
    shutil.copy(restored / "s2" / "1.png", restored / "s2" / "1.webp")
    code, summary = _score(capsys, restored, truth, "--metrics", "psnr_y")
    assert code == 4
    assert "184x224" in summary["failed"]["s1/1"]
    assert "92x112" in summary["failed"]["s1/1"]
    assert "empty" in summary["failed"]["s1/2"]
    assert "several files" in summary["failed"]["s2/1"]
    assert (summary["metrics"]["psnr_y"]["n"], summary["metrics"]["psnr_y"]["of"]) == (3, 6)


def test_pictures_without_a_face_are_null_where_a_face_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        write_png(tmp_path / folder / "wall.png", np.full((96, 96, 3), 120, np.uint8))
    code, summary = _score(capsys, tmp_path / "a", tmp_path / "b", "--metrics", "haarpsi,id")
    assert code == 0
    assert summary["metrics"]["haarpsi"]["n"] == 1
    assert summary["metrics"]["id"]["mean"] is None
    assert summary["metrics"]["id"]["reason"] == "no face detected in the ground truth"


def test_ips_says_which_face_it_lacks(
    folders: tuple[Path, Path], tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restored, truth = folders
    people = tmp_path / "people"
    (people / "s1").mkdir(parents=True)
    shutil.copy(orl_root / "s1" / "8.pgm", people / "s1" / "8.pgm")
    write_png(people / "s2" / "wall.png", np.full((96, 96, 3), 120, np.uint8))
    words = ["--references", str(people), "--metrics", "ips", "-o", str(tmp_path / "s.parquet")]
    assert main(["score", "--restored", str(restored), *words]) == 0
    reasons = read_table(tmp_path / "s.parquet").set_index("image_id")["reason"]
    assert "give --truth" in reasons["s1/1"]
    assert reasons["s3/1"] == "needs references and landmarks"
    write_png(truth / "s1" / "2.png", np.full((112, 92, 3), 120, np.uint8))
    (truth / "s1" / "2.pgm").unlink()
    assert _score(capsys, restored, truth, *words)[0] == 0
    table = read_table(tmp_path / "s.parquet").set_index("image_id")
    assert table.loc["s1/1", "value"] == pytest.approx(table.loc["s1/1", "value"])
    assert table.loc["s1/2", "reason"] == "no face detected in the ground truth"
    assert table.loc["s2/1", "reason"] == "no face detected in reference wall.png"
    assert table.loc["s3/1", "reason"] == "needs references"


def test_the_commonest_reason_stands_beside_a_mean_of_fewer_pictures(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    restored, truth = folders
    write_png(restored / "s1" / "1.png", np.full((112, 92, 3), 120, np.uint8))
    assert main(["score", "--restored", str(restored), "--truth", str(truth), "--metrics", "lmd_px,psnr_y"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "/6" in line}
    assert "5/6" in lines["LMD"] and "no face detected" in lines["LMD"]
    assert lines["PSNR-Y"].rstrip().endswith("6/6")


def test_a_black_picture_ends_nothing(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    restored, truth = folders
    write_png(restored / "s1" / "1.png", np.zeros((112, 92, 3), np.uint8))
    code, summary = _score(capsys, restored, truth, "--metrics", "brisque,psnr_y")
    assert code == 0
    assert summary["metrics"]["psnr_y"]["n"] == 6
    brisque = summary["metrics"]["brisque"]
    if "package" not in str(brisque["reason"]):
        assert (brisque["n"], brisque["reason"]) == (5, "the picture is flat")


def test_reasons_are_published_without_folders() -> None:
    assert public_reason("Cannot read /home/anna/out/1.png: empty") == "Cannot read 1.png: empty"
    assert public_reason("see https://example.org/a/b and/or c") == "see https://example.org/a/b and/or c"
    assert public_reason(None) is None


@pytest.mark.parametrize("name", ["scores.json", "scores.csv", "face.png", "scores", ""])
def test_the_table_never_takes_the_place_of_another_file(
    name: str, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name:
        path.write_bytes(b"of the user")
    words = ["--restored", str(folders[0]), "--truth", str(folders[1]), "--metrics", "psnr_y", "-o", str(path)]
    assert main(["score", *words]) == 2
    message = capsys.readouterr().err
    assert str(path) in message and ".parquet" in message and ".partial" not in message
    assert not name or path.read_bytes() == b"of the user"


def test_where_nothing_can_be_written_nothing_is_scored(
    folders: tuple[Path, Path], tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.parquet").mkdir()
    places = [tmp_path / "file" / "x.parquet", tmp_path / "folder.parquet"]
    if Path("/proc").is_dir():
        places.append(Path("/proc/nope/x.parquet"))
    for place in places:
        words = ["--restored", str(folders[0]), "--truth", str(folders[1]), "--metrics", "psnr_y", "-o", str(place)]
        assert main(["score", *words]) == 2
        message = capsys.readouterr().err
        assert str(place) in message
        assert ".partial" not in message and "Traceback" not in message
    assert not own_cache.exists()


def test_references_are_never_the_truth(tmp_path: Path, folders: tuple[Path, Path], orl_root: Path) -> None:
    _, truth = folders
    own = truth / "s1" / "1.pgm"
    found = references_of("s1/1", orl_root, own)
    assert own.read_bytes() not in [path.read_bytes() for path in found]
    assert [path.name for path in found][:3] == ["2.pgm", "3.pgm", "4.pgm"]
    special = tmp_path / "refs" / "s1"
    special.mkdir(parents=True)
    shutil.copy(orl_root / "s1" / "9.pgm", special / "1.pgm")
    shutil.copy(orl_root / "s1" / "8.pgm", special / "other.pgm")
    assert [path.name for path in references_of("s1/1", tmp_path / "refs", own)] == ["1.pgm"]
    assert [path.name for path in references_of("s1/2", tmp_path / "refs", own)] == ["other.pgm", "1.pgm"]
    assert references_of("s7/2", tmp_path / "refs", own) == []
    Image.open(own).save(tmp_path / "refs" / "flat.png")
    assert [path.name for path in references_of("flat", tmp_path / "refs", own)] == ["flat.png"]


def test_identities_and_pairs(folders: tuple[Path, Path]) -> None:
    assert [identity_of(name) for name in ("s1/3", "s1/deep/3", "3")] == ["s1", "s1", "3"]
    pairing = pair_folders(*folders)
    assert set(pairing.pairs) == {f"s{person}/{photo}" for person in (1, 2, 3) for photo in (1, 2)}


def test_revisions_tell_two_outputs_apart(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    restored, truth = folders
    first = _score(capsys, restored, truth, "--metrics", "psnr_y", "--label", "ours")[1]
    again = _score(capsys, restored, truth, "--metrics", "psnr_y", "--label", "ours")[1]
    assert (again.pop("computed"), again.pop("reused")) == (0, 6)
    assert (first.pop("computed"), first.pop("reused")) == (6, 0)
    assert first == again
    assert first["method"] == "ours"
    shutil.copy(restored / "s1" / "1.png", restored / "s1" / "2.png")
    changed = _score(capsys, restored, truth, "--metrics", "psnr_y", "--label", "ours")[1]
    assert changed["method_revision"] != first["method_revision"]


def test_mistakes_are_explained(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restored, truth = folders
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    write_png(other / "nobody.png", np.zeros((8, 8, 3), np.uint8))
    cases = [
        ([str(tmp_path / "none"), str(truth)], "--restored", "is not a folder"),
        ([str(restored), str(empty)], "--truth", "holds no pictures"),
        ([str(other), str(truth)], "nobody", "No picture of"),
        ([str(restored), str(truth), "--metrics", "psmr_y"], "Did you mean", "psnr_y"),
        ([str(restored), str(truth), "--references", str(tmp_path / "none")], "--references", "is not a folder"),
    ]
    for (first, second, *rest), *parts in cases:
        assert main(["score", "--restored", first, "--truth", second, *rest]) == 2
        message = capsys.readouterr().err
        assert all(part in message for part in parts)


def test_without_a_ground_truth(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    restored, _ = folders
    capsys.readouterr()
    assert main(["score", "--restored", str(restored), "--metrics", "detected,psnr,kid_gt", "--json"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert "psnr means psnr_rgb here" in printed.err
    assert (summary["pairs"], summary["failed"]) == (6, {})
    assert summary["metrics"]["detected"]["n"] == 6
    assert summary["metrics"]["psnr_rgb"]["mean"] is None
    assert "ground truth" in summary["metrics"]["psnr_rgb"]["reason"]
    assert summary["set_metrics"]["kid_gt"]["value"] is None
    assert summary["set_metrics"]["kid_gt"]["reason"]


def test_set_metrics_have_their_own_table(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restored, truth = folders
    output = tmp_path / "table.parquet"
    words = ["--restored", str(restored), "--truth", str(truth), "--metrics", "fid,kid,psnr_y", "-o", str(output)]
    assert main(["score", *words]) == 0
    sets = pd.read_parquet(tmp_path / "set_table.parquet")
    assert list(sets["metric"]) == ["fid_gt", "kid_gt"]
    assert list(sets["of"]) == [6, 6]
    for value, reason in zip(sets["value"], sets["reason"], strict=True):
        assert np.isnan(value) == (reason is not None)
    assert set(read_table(output)["metric"]) == {"psnr_y"}
    assert "fid means fid_gt here" in capsys.readouterr().err


def test_the_cache_can_be_left_out(
    folders: tuple[Path, Path], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restored, truth = folders
    assert _score(capsys, restored, truth, "--metrics", "psnr_y", "--no-cache")[1]["computed"] == 6
    assert not own_cache.exists()
    assert _score(capsys, restored, truth, "--metrics", "psnr_y")[1]["computed"] == 6
    assert _score(capsys, restored, truth, "--metrics", "psnr_y")[1]["computed"] == 0
    assert _score(capsys, restored, truth, "--metrics", "psnr_y", "--no-cache")[1]["computed"] == 6


def test_intervals_stay_within_what_a_metric_can_reach() -> None:
    metric = type("Rate", (Metric,), {"name": "rate", "title": "Rate", "higher_is_better": True, "limits": (0, 1)})
    rows = [
        ScoreRow("", "m", "r", 0, f"i{number}", f"p{number}", "rate", "rate@1", float(number > 0), None)
        for number in range(8)
    ]
    entry = summarise(rows_to_frame(rows), {"rate": metric})["rate"]
    assert entry["mean"] == pytest.approx(7 / 8)
    assert entry["high"] == 1
    assert entry["interval"].endswith("upper bound cut off at 1")
    free = summarise(rows_to_frame(rows), {})["rate"]
    assert free["high"] > 1
    assert free["low"] == entry["low"]


def test_names_of_papers_are_ours() -> None:
    known = {*metric_classes(), *set_metric_classes()}
    assert set(METRIC_ALIASES.values()) <= known
    assert not set(METRIC_ALIASES) & known
    assert (resolve_metric("LPIPS"), resolve_metric("id")) == ("lpips_alex", "id")


def test_the_panel_benchmark_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "metrics=offline", "imges=3"]) == 2
    assert "'images'" in capsys.readouterr().err
    assert main(["perf", "metrics=lpips_alex"]) == 2
    assert "counterpart in pyiqa" in capsys.readouterr().err


@pytest.mark.slow
def test_the_panel_benchmark_compares_values(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyiqa")
    words = ["metrics=psnr_rgb,ssim_rgb", "images=3", "loop=2", "distinct=2", "size=192"]
    assert main(["perf", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["ours"]["images"], result["pyiqa"]["images"]) == (3, 2)
    assert result["ratio"] > 0
    assert [metric["compared"] for metric in result["metrics"]] == [2, 2]
    assert all(0 < metric["largest_difference"] <= metric["tolerance"] for metric in result["metrics"])
