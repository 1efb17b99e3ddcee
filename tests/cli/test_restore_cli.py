"""`bench restore --aligned`: aligned pictures, at their size, with whatever the method needs of the person."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.batch import FaceBatch
from bench.cli.main import main as bench
from bench.config import compose
from bench.image import read_image
from bench.personal_state import read_state
from bench.registry import method_targets
from bench.runs.plan import build_method
from bench.seeds import derive_seed
from tests.cli.personal_helpers import aligned, few, new_weights


def main(words: list[str]) -> int:
    return bench([*words, "--aligned"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def anna(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> list[str]:
    return aligned(tmp_path_factory.mktemp("anna"), orl_root, "s1/1", "s1/2", "s1/3")


@pytest.fixture(scope="module")
def personal(tmp_path_factory: pytest.TempPathFactory, weights: Path, anna: list[str]) -> str:
    out = tmp_path_factory.mktemp("personal") / "anna.safetensors"
    assert main(["personalise", *few(weights), "--reference", *anna, "-o", str(out)]) == 0
    return str(out)


@pytest.fixture
def photos(tmp_path: Path, orl_root: Path) -> Path:
    """Two aligned faces, a strip and a picture that is no square, in folders."""
    folder = tmp_path / "photos é, [1]=x"
    (face, _) = aligned(folder, orl_root, "s1/4", "s1/5")
    (folder / "deep er").mkdir()
    picture = Image.open(face)
    picture.resize((96, 640)).save(folder / "deep er" / "strip.png")
    picture.resize((300, 200)).save(folder / "wide.jpg")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_of_any_size_keep_theirs(
    tmp_path: Path, weights: Path, personal: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", tree(photos)
    words = ["restore", str(photos), *few(weights)[1:], "--method", "pfstorer", "--personal", personal, "-o", str(out)]
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert set(tree(out)) == {"s1_4.png", "s1_5.png", "deep er/strip.png", "wide.png"}
    assert read_image(out / "deep er" / "strip.png").shape == (640, 96, 3)
    assert read_image(out / "wide.png").shape == (200, 300, 3)
    assert read_image(out / "s1_4.png").shape == (128, 128, 3)
    assert result["method"] == "pfstorer@demo" and result["failed"] == {} and len(result["person"]) == 16
    assert result["peak_memory_mb"] > 100
    sizes = {Path(one["file"]).name: (one["width"], one["height"]) for one in result["pictures"]}
    assert sizes["strip.png"] == (96, 640) and sizes["wide.png"] == (300, 200)
    assert all(one["seconds"] > 0 and Path(one["picture"]).is_file() for one in result["pictures"])
    assert tree(photos) == before
    # A picture is restored alike alone and among others.
    alone = tmp_path / "alone.png"
    assert main(["restore", str(photos / "s1_4.png"), *few(weights), "--personal", personal, "-o", str(alone)]) == 0
    table = capsys.readouterr().out
    assert str(alone) in table and "128x128" in table and "peak memory" in table
    assert alone.read_bytes() == (out / "s1_4.png").read_bytes()


def test_a_large_picture_is_restored_as_the_method_does_it_itself(
    tmp_path: Path, weights: Path, personal: str, photos: Path
) -> None:
    method, _, _ = build_method(compose("run", [*few(weights), "seed=3"]))
    method.persons = {"wide.jpg": read_state(Path(personal))}
    lq = torch.from_numpy(read_image(photos / "wide.jpg")).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected = method.restore(
            FaceBatch(
                lq=lq,
                references=torch.zeros(1, 0, 3, 128, 128),
                reference_mask=torch.zeros(1, 0, dtype=torch.bool),
                image_ids=["wide.jpg"],
                identities=[""],
                seeds=[derive_seed(3, "wide.jpg", "restoration")],
            )
        )
    out, other = tmp_path / "out.png", tmp_path / "other.png"
    words = ["restore", str(photos / "wide.jpg"), *few(weights), "--personal", personal]
    assert main([*words, "-o", str(out), "--seed", "3"]) == 0
    pixels = expected[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(read_image(out), pixels)
    assert main([*words, "-o", str(other), "--seed", "4"]) == 0
    assert not np.array_equal(read_image(other), pixels)


def test_references_are_learnt_on_the_spot_or_found(
    tmp_path: Path, weights: Path, anna: list[str], personal: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`personal` was learnt in this home before, so that the same references give it back."""
    one, other = tmp_path / "a.png", tmp_path / "b.png"
    face = str(photos / "s1_4.png")
    assert main(["restore", face, *few(weights), "--personal", personal, "-o", str(one), "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["person"]
    # The words may stand anywhere.
    assert main(["restore", *few(weights), face, "-o", str(other), "--json", "--reference", *anna]) == 0
    assert json.loads(capsys.readouterr().out)["person"] == key
    assert one.read_bytes() == other.read_bytes()
    assert main(["restore", face, "-o", str(other), "--reference", *anna, *few(weights), "--seed", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["person"] != key
    for words, message in (
        ([], "restores no one it does not know.*bench personalise method=pfstorer"),
        (["--personal", personal, "--reference", *anna], "both given"),
        (["--personal", str(tmp_path / "absent.safetensors")], "absent.safetensors is not a file"),
        (["--personal", str(weights)], "no personal state"),
    ):
        assert main(["restore", face, *few(weights), "-o", str(tmp_path / "c.png"), *words]) == 2
        assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "c.png").exists()


def test_a_person_of_another_base_is_refused_with_both_ids(
    tmp_path: Path, weights: Path, personal: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = new_weights(tmp_path / "other.safetensors", seed=1)
    face, out = str(photos / "s1_4.png"), tmp_path / "out.png"
    for words in (few(others), [*few(weights), "method.personalisation.gamma=false"]):
        assert main(["restore", face, *words, "--personal", personal, "-o", str(out)]) == 2
        error = capsys.readouterr().err
        ids = set(re.findall(r"base ([0-9a-f]{12})", error))
        assert len(ids) == 2 and read_state(Path(personal)).base in ids, error
        assert personal in error
    assert not out.exists()
    # How long a person is learnt says nothing of what the state can be used with.
    assert main(["restore", face, *few(weights, 9), "--personal", personal, "-o", str(out)]) == 0


def test_methods_take_what_they_need_and_no_more(
    tmp_path: Path, weights: Path, anna: list[str], personal: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face, out = str(photos / "s1_4.png"), str(tmp_path / "out.png")
    nothing = [*few(weights), "method.personalisation.tunes=nothing"]
    for words in (["--method", "refine"], ["method=input"], nothing):
        assert main(["restore", face, *words, "--personal", personal, "-o", out]) == 2
        error = capsys.readouterr().err
        assert "learns nothing of a person" in error and "leave out --personal" in error
        assert "Methods that do: dual_pivot, pfstorer" in error
    assert not Path(out).exists()
    assert main(["restore", face, "--method", "input", "--reference", *anna, "-o", out]) == 0
    assert "reads no reference" in capsys.readouterr().err
    assert np.array_equal(read_image(Path(out)), read_image(Path(face)))
    assert main(["restore", face, *nothing, "-o", out]) == 0
    assert capsys.readouterr().err == ""
    assert main(["restore", face, "--method", "copy_reference", "--reference", *anna, "-o", out]) == 0
    assert np.array_equal(read_image(Path(out)), read_image(Path(anna[0])))
    assert main(["restore", face, "--method", "refine", "-o", out]) == 0
    assert "gets no reference" in capsys.readouterr().err
    blind = read_image(Path(out))
    assert main(["restore", face, "--method", "refine", "--reference", anna[1], "-o", out]) == 0
    assert not np.array_equal(read_image(Path(out)), blind)
    assert main(["restore", face, "--method", "input", "method=refine", "-o", out]) == 2
    assert main(["restore", face, "-o", out]) == 2
    assert "Which method?" in capsys.readouterr().err


@pytest.mark.parametrize("method", sorted(method_targets()))
def test_every_method_restores_a_picture(
    tmp_path: Path, weights: Path, anna: list[str], photos: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"pfstorer": few(weights)[1:], "restorerid": ["method.sampling.steps=2"]}.get(method, [])
    out = tmp_path / "out.png"
    code = main(["restore", str(photos / "s1_4.png"), f"method={method}", *words, "--reference", *anna, "-o", str(out)])
    if code == 3:
        pytest.skip(capsys.readouterr().err)
    assert code == 0
    assert read_image(out).shape == (128, 128, 3)
    assert read_image(out).std() > 5


def test_a_picture_that_fails_stops_no_other(
    tmp_path: Path, anna: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "empty.png").write_bytes(b"")
    out, absent = tmp_path / "out", str(tmp_path / "absent.png")
    words = ["restore", str(photos), absent, "--method", "refine", "--reference", anna[0], "-o", str(out)]
    assert main([*words, "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    reasons = {Path(path).name: reason for path, reason in result["failed"].items()}
    assert set(tree(out)) == {"s1_4.png", "s1_5.png"}
    assert set(reasons) == {"broken.png", "empty.png", "absent.png", "strip.png", "wide.jpg"}
    assert "not a picture" in reasons["broken.png"] and "empty" in reasons["empty.png"]
    assert "No such file" in reasons["absent.png"]
    assert "300x200" in reasons["wide.jpg"] and "square" in reasons["wide.jpg"]
    assert main(words) == 4
    shown = capsys.readouterr()
    assert shown.err.count("failed: ") == 5 and "2 pictures" in shown.out
    assert not [path for path in out.rglob("*") if ".partial" in path.name]


def test_what_a_method_raises_costs_its_picture_alone(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from methods.input.module import Input

    def restore(self: Input, batch: object) -> object:
        if batch.image_ids == ["s1_4.png"]:  # type: ignore[attr-defined]
            raise RuntimeError("out of luck")
        return batch.lq * float("nan")  # type: ignore[attr-defined]

    monkeypatch.setattr(Input, "restore", restore)
    faces = [str(photos / name) for name in ("s1_4.png", "s1_5.png")]
    assert main(["restore", *faces, "method=input", "-o", str(tmp_path / "out")]) == 4
    error = capsys.readouterr().err
    assert "RuntimeError: out of luck" in error and "NaN" in error
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_overwritten(
    tmp_path: Path, anna: list[str], photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    face = photos / "s1_4.png"
    (tmp_path / "linked").mkdir()
    os.link(face, tmp_path / "linked" / "s1_4.png")
    (tmp_path / "link.png").symlink_to(face)
    before = {**tree(photos), anna[0]: Path(anna[0]).read_bytes()}
    monkeypatch.chdir(photos)
    for pictures, out in (
        ([str(face)], str(face)),
        (["s1_4.png"], str(photos)),
        (["deep er/../s1_4.png"], "."),
        ([str(face)], str(tmp_path / "link.png")),
        ([str(face)], str(tmp_path / "linked")),
        ([str(photos)], str(photos)),
        ([str(photos)], str(photos / "restored")),
        ([str(face)], anna[0]),
    ):
        words = ["--reference", anna[0]] if out == anna[0] else []
        assert main(["restore", *pictures, "--method", "input", *words, "-o", out]) == 2, out
        error = capsys.readouterr().err
        assert "overwritten" in error or "overlaps" in error, error
    assert {**tree(photos), anna[0]: Path(anna[0]).read_bytes()} == before
    (photos / "other.png").write_bytes(b"mine")
    words = ["restore", str(face), "--method", "input", "--aligned", "-o", str(photos / "other.png")]
    assert main(words) == 2 and (photos / "other.png").read_bytes() == b"mine"
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and read_image(photos / "other.png").shape == (128, 128, 3)
    # Beside the input, and over an earlier result, it may be written.
    for _ in range(2):
        assert main(["restore", str(face), "--method", "input", "-o", str(photos / "new.png")]) == 0


def test_outputs_that_do_not_suit_the_pictures_are_refused(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "none").mkdir()
    face = str(photos / "s1_4.png")
    for pictures, out, message in (
        ([str(photos)], "all.png", "one file for 4 pictures"),
        ([face], "a.jpg", "written as PNG.*a.png"),
        ([face], "file", "is a file"),
        ([str(tmp_path / "none")], "out", "holds no pictures"),
    ):
        assert main(["restore", *pictures, "method=input", "-o", str(tmp_path / out)]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "mine"
    for scale in ("0", "-2", "nan", "inf"):
        assert main(["restore", face, "method=input", "--scale", scale, "-o", str(tmp_path / "b.png")]) == 2
        assert "above 0" in capsys.readouterr().err
    for words, message in ((["data=orl_heavy"], "takes no data="), (["trainer=ddp_cpu"], "One process")):
        assert main(["restore", face, "method=input", *words, "-o", str(tmp_path / "b.png")]) == 2
        assert message in capsys.readouterr().err
    assert main(["restore", "method=input", "-o", str(tmp_path / "b.png")]) == 2
    assert "Which pictures?" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_names_that_meet_are_kept_apart(tmp_path: Path, photos: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    shutil.copy(photos / "s1_5.png", second / "s1_4.png")
    Image.open(photos / "s1_4.png").save(photos / "s1_4.bmp")
    files = [str(photos / "s1_4.png"), str(photos / "s1_4.bmp"), str(second / "s1_4.png"), str(photos / "s1_4.png")]
    assert main(["restore", *files, "method=input", "-o", str(tmp_path / "out")]) == 0
    found = tree(tmp_path / "out")
    assert set(found) == {f"{photos.name}/s1_4.png.png", f"{photos.name}/s1_4.bmp.png", "second/s1_4.png"}
    assert read_image(tmp_path / "out" / "second" / "s1_4.png").tolist() == read_image(photos / "s1_5.png").tolist()


def test_scale_enlarges_bicubically_first(
    tmp_path: Path, weights: Path, personal: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, out = tmp_path / "small.png", tmp_path / "out.png"
    Image.open(photos / "s1_4.png").resize((11, 11)).save(small)
    words = ["restore", str(small), "--scale", "20", "-o", str(out)]
    assert main([*words, *few(weights), "--personal", personal]) == 0
    assert read_image(out).shape == (220, 220, 3)
    assert main([*words, "method=input"]) == 0
    expected = Image.open(small).resize((220, 220), Image.Resampling.BICUBIC)
    # Pillow's bicubic is the one with a = -0.5, as torch's with antialiasing.
    assert np.abs(read_image(out).astype(int) - np.asarray(expected, dtype=int)).max() <= 1
    words[3] = "1.5"
    assert main([*words, "method=input"]) == 0
    assert read_image(out).shape == (16, 16, 3)
    for scale in ("0.01", "4000"):
        words[3] = scale
        assert main([*words, "method=input"]) == 4
        assert "px of it" in capsys.readouterr().err


def test_a_face_smaller_than_the_network_is_brought_to_its_size(
    tmp_path: Path, weights: Path, personal: str, photos: Path
) -> None:
    small, large, out = tmp_path / "f" / "face.png", tmp_path / "large.png", tmp_path / "out.png"
    small.parent.mkdir()
    Image.open(photos / "s1_4.png").resize((64, 64)).save(small)
    words = ["restore", str(small), *few(weights), "--personal", personal]
    assert main([*words, "-o", str(out)]) == 0
    assert main([*words, "-o", str(large), "--scale", "2"]) == 0
    expected = np.asarray(Image.open(large).resize((64, 64), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(read_image(out).astype(int) - expected).max() <= 1


def test_every_kind_of_file_is_read(tmp_path: Path, weights: Path, personal: str, photos: Path, orl_root: Path) -> None:
    folder, out = tmp_path / "kinds", tmp_path / "out"
    folder.mkdir()
    picture = Image.open(photos / "s1_4.png")
    picture.convert("L").save(folder / "grey.png")
    transparent = picture.convert("RGBA")
    transparent.putalpha(128)
    transparent.save(folder / "rgba.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "deep.tif")
    picture.resize((5, 3)).save(folder / "tiny.webp")
    shutil.copy(orl_root / "s1" / "4.pgm", folder / "orl.pgm")
    assert main(["restore", str(folder), *few(weights), "--personal", personal, "-o", str(out)]) == 0
    assert read_image(out / "tiny.png").shape == (3, 5, 3)
    assert read_image(out / "orl.png").shape == (112, 92, 3)
    assert main(["restore", str(folder / "rgba.png"), "method=input", "-o", str(out)]) == 0
    assert np.array_equal(read_image(out / "rgba.png"), read_image(folder / "rgba.png"))
