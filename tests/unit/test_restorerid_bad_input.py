"""What RestorerID does with references without a face, with two faces, odd sizes and absent weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from bench.batch import FaceBatch
from bench.cli.main import main
from bench.config import compose, method_settings
from bench.errors import MissingError
from bench.image import read_image, write_png
from bench.runs.journal import read_journals
from bench.weights import catalogue
from bench.weights.method_weights import write_weights
from methods.autoencoder.module import Autoencoder
from methods.restorerid import face_encoders, reference_faces
from methods.restorerid.module import RestorerID
from methods.restorerid.requirements import absent_parts

SMALL = [
    "method=restorerid",
    "method.network.lq_encoder.channels=8",
    "method.network.lq_encoder.map_channels=8",
    "method.network.sft.hidden=8",
    "method.network.fir.hidden=8",
    "method.sampling.steps=2",
    "method.id_scale=0.75",
]
SIDE = 128


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that name weights of random numbers, which are tested and never scored on a board."""
    folder = tmp_path_factory.mktemp("weights")
    words = ["method=autoencoder", "method.network.block_out_channels=[8,8,8,8]"]
    autoencoder = Autoencoder(method_settings(compose("train", words)["method"], "demo"))
    write_weights(folder / "ae.safetensors", autoencoder, "float32", {"settings": autoencoder.settings})
    settings = method_settings(compose("train", SMALL)["method"], "demo")
    write_weights(folder / "net.safetensors", RestorerID(settings), "float32", {"size": "demo", "settings": settings})
    return [f"method.autoencoder={folder / 'ae.safetensors'}", f"method.weights={folder / 'net.safetensors'}"]


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_faces, "_said", set())


def square(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(picture, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (resized[0].permute(1, 2, 0) * 255).round().byte().numpy()


@pytest.fixture(scope="module")
def pictures(orl_root: Path) -> dict[str, np.ndarray]:
    """Squares of SIDE px: a grey and a coloured face, one of them beside a smaller one, and no face."""
    grey = square(read_image(orl_root / "s1" / "1.pgm"))
    colour = square(astronaut()[30:200, 140:310])
    pair = np.full((SIDE, SIDE, 3), 128, np.uint8)
    pair[40:88, :48] = square(grey, 48)
    pair[24:104, 48:] = square(colour, 80)
    return {"grey": grey, "colour": colour, "pair": pair, "nobody": np.full((SIDE, SIDE, 3), 90, np.uint8)}


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def data(root: Path, pictures: dict[str, np.ndarray], references: dict[str, list[str]]) -> list[str]:
    """A data folder: each picture degraded by hand, with the references named."""
    for name, shown in references.items():
        clean = square(np.roll(pictures["colour"], len(name), axis=1))
        write_png(root / "gt" / f"{name}.png", clean)
        write_png(root / "lq" / f"{name}.png", square(square(clean, 32)))
        for number, own in enumerate(shown, start=1):
            write_png(root / "reference" / name / f"{number}-{own}.png", pictures[own])
    return ["data=folder", f"data.root={root}", f"data.size={SIDE}", "metrics.names=[psnr_rgb]", "metrics.sets=[]"]


def run(words: list[str], run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = main(["run", *SMALL, "size=demo", *words, f"run_dir={run_dir}", "leaderboard=false", "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out.strip() else {}, said.err


def test_a_reference_without_a_face_is_a_row_with_its_reason(files, pictures, tmp_path, capsys) -> None:
    words = [*data(tmp_path / "data", pictures, {"good": ["grey"], "none": ["nobody", "colour"]}), *files]
    code, summary, _ = run(words, tmp_path / "error", capsys)
    assert code == 4
    assert summary["images"] == 1
    [(image_id, reason)] = summary["failed"].items()
    assert "none" in image_id
    for part in ("MissingFaceError", f"Reference 1 of {image_id}", "reference/none/1-nobody.png", "=skip", "=blind"):
        assert part in reason
    code, summary, said = run([*words, "method.on_missing_face=skip"], tmp_path / "skip", capsys)
    assert (code, summary["failed"]) == (0, {})
    assert (
        said.count(f"bench: Reference 1 of {image_id} shows no face that the detector finds: it is passed over.") == 1
    )


def test_no_reference_with_a_face(files, pictures, tmp_path, capsys) -> None:
    words = [*data(tmp_path / "data", pictures, {"none": ["nobody", "nobody"]}), *files]
    code, summary, _ = run([*words, "method.on_missing_face=skip"], tmp_path / "skip", capsys)
    assert code == 4
    [reason] = summary["failed"].values()
    assert "None of the 2 references" in reason
    assert "files: reference/none/1-nobody.png, reference/none/2-nobody.png" in reason
    code, summary, said = run([*words, "method.on_missing_face=blind"], tmp_path / "blind", capsys)
    assert (code, summary["images"]) == (0, 1)
    assert "it is restored without identity" in said


def test_of_two_faces_the_largest_is_taken_and_said_once(files, pictures, tmp_path, capsys) -> None:
    words = [*data(tmp_path / "data", pictures, {"two": ["pair"], "other": ["pair"]}), *files, "batch_size=2"]
    code, _, said = run([*words, "method.sampling.steps=4"], tmp_path / "run", capsys)
    assert code == 0
    assert said.count("shows 2 faces: the largest is taken") == 2, "once for each picture, not for each step"
    points = reference_faces.locate_face(as_tensor(pictures["pair"]), "pair")
    assert points is not None
    assert points[:, 0].min() > 48, "the coloured face on the right is the larger one"


def test_a_broken_picture_stops_no_other(files, pictures, tmp_path, capsys) -> None:
    words = [*data(tmp_path / "data", pictures, {"good": ["grey"], "broken": ["colour"]}), *files]
    method_restore = RestorerID.restore

    def restore(self: RestorerID, batch: FaceBatch) -> torch.Tensor:
        if any("broken" in name for name in batch.image_ids):
            raise RuntimeError("out of luck")
        return method_restore(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RestorerID, "restore", restore)
        code, summary, _ = run([*words, "batch_size=2"], tmp_path / "run", capsys)
    assert code == 4
    assert summary["images"] == 1
    assert [reason.split(": ", 1)[1] for reason in summary["failed"].values()] == ["RuntimeError: out of luck"]


def test_absent_weights_end_the_run_with_one_message(files, pictures, tmp_path, capsys, monkeypatch) -> None:
    """What every picture lacks is no picture's fault: no row blames it."""
    words = [*data(tmp_path / "data", pictures, {"one": ["grey"], "two": ["grey"]}), *files]

    def absent(self: RestorerID, batch: FaceBatch) -> torch.Tensor:
        raise MissingError("Weights 'clip_vit_h14' are not here.")

    monkeypatch.setattr(RestorerID, "restore", absent)
    code, summary, said = run(words, tmp_path / "run", capsys)
    assert (code, summary) == (3, {})
    assert said.count("Weights 'clip_vit_h14' are not here.") == 1
    assert read_journals(tmp_path / "run" / "journal" / "restore") == []


@pytest.mark.parametrize("absent", ["arcface_w600k_r50", "clip_vit_h14"])
def test_each_published_encoder_is_asked_for_by_name(absent: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    located = catalogue.locate
    there = {"arcface_w600k_r50", "clip_vit_h14"} - {absent}
    monkeypatch.setattr(catalogue, "places", lambda wanted: [])
    monkeypatch.setattr(catalogue, "locate", lambda name: tmp_path if name in there else located(name))
    with pytest.raises(MissingError) as error:
        face_encoders.build_face_encoder("arcface_clip")
    assert f"Weights '{absent}'" in str(error.value)
    assert "Licence:" in str(error.value)
    assert list(face_encoders.absent_encoder("arcface_clip")) == [absent]


@pytest.mark.parametrize(("height", "width"), [(31, 31), (100, 76), (257, 301)])
def test_lq_of_any_size(height: int, width: int, files, pictures) -> None:
    method = RestorerID(method_settings(compose("train", [*SMALL, *files])["method"], "demo")).eval()
    face = as_tensor(pictures["colour"])[None, None]
    lq = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    face = torch.nn.functional.interpolate(face[0], size=(height, width), mode="bicubic").clamp(0, 1)[None]
    if height < 64:
        method.settings["on_missing_face"] = "blind"
    batch = FaceBatch(lq, face, torch.ones(1, 1, dtype=torch.bool), ["a"], ["a"], [1])
    with torch.inference_mode():
        restored = method.restore_at_native_size(batch)
    assert restored.shape == lq.shape
    assert torch.isfinite(restored).all()


def test_weights_of_another_method_are_refused_by_name(files, tmp_path, capsys, orl_root) -> None:
    autoencoder = files[0].partition("=")[2]
    words = [*SMALL, "data=orl_heavy_ci", "size=demo", files[0], f"method.weights={autoencoder}", "--json"]
    assert main(["check", *words]) == 2
    [check] = [own for own in json.loads(capsys.readouterr().out)["checks"] if own["name"] == "method"]
    assert "no weights of RestorerID" in check["message"] or "trained with method" in check["message"]


def test_check_lists_all_that_the_paper_size_lacks(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(RestorerID, "absent", classmethod(lambda cls, settings: absent_parts(settings)))
    assert main(["check", "method=restorerid", "size=paper", "data=celebref_heavy", "--json"]) == 3
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    lacking = ("restorerid_paper", "sd15 vae", "sd15 text", "arcface_w600k_r50", "clip_vit_h14", "musiq")
    for name in lacking:
        assert (checks[name]["state"], checks[name]["exit_code"]) == ("error", 3), name
        assert "icence" in checks[name]["message"], name
    for name in ("restorerid_paper", "sd15 vae", "sd15 text", "clip_vit_h14"):
        assert "hf download YingJiacheng/RestorerID RestorerIDFull.ckpt && python -m" in checks[name]["message"]
    assert checks["data"]["exit_code"] == 3
