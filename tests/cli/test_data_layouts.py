"""Fake copies of the papers' data sets, made of ORL photographs: prepared, verified and run as a user does it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from bench.cli.main import main
from tests.unit.data_helpers import write_records

SIDE = 128


@dataclass(frozen=True)
class Fake:
    """A fake copy and what is to come of it.

    Attributes:
        card: Whose layout.
        data: The protocol that is run.
        words: Further words of the run.
        image_ids: The pictures that are restored.
        truth: Whether there is a ground truth.
        references: References per picture.
        verified: Exit code of `verify`: 3 where the card counts more pictures than the fake copy has.
    """

    card: str
    data: str
    words: tuple[str, ...]
    image_ids: tuple[str, ...]
    truth: bool
    references: int
    verified: int = 3


def _face(orl_root: Path, person: int, photo: int, side: int = SIDE, blur: float = 0.0) -> Image.Image:
    with Image.open(orl_root / f"s{person}" / f"{photo}.pgm") as picture:
        square = picture.crop((0, 10, 92, 102)).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    return square.filter(ImageFilter.GaussianBlur(blur)) if blur else square


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _celebref(folder: Path, orl_root: Path) -> Path:
    archive = folder / "Celeb-Ref.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for person, name in ((29, "00005"), (30, "00012"), (31, "00031")):
            for photo in range(3):
                stream.writestr(f"CelebRef-HQ/{name}/{photo}.png", _png(_face(orl_root, person, photo + 1)))
        stream.writestr("CelebRef-HQ/README.txt", "not a picture")
    return archive


def _lfw(folder: Path, orl_root: Path) -> Path:
    root = folder / "lfw cropped"
    root.mkdir()
    for person in (29, 30):
        _face(orl_root, person, 1, blur=3).save(root / f"Person_{person}_0001_00.png")
    return root


def _celeba(folder: Path, orl_root: Path) -> Path:
    root = folder / "CelebA-Test"
    for person in (29, 30):
        for part, side in (("gt", SIDE), ("lq", SIDE // 4)):
            (root / part).mkdir(parents=True, exist_ok=True)
            _face(orl_root, person, 1, side).save(root / part / f"{person:08d}.png")
    return root


def _ffhq_ref(folder: Path, orl_root: Path) -> Path:
    root = folder / "FFHQ-Ref"
    (root / "images512x512").mkdir(parents=True)
    (root / "reference_mapping").mkdir()
    for photo in range(4):
        _face(orl_root, 29, photo + 1).save(root / "images512x512" / f"{photo:05d}.png")
    (root / "reference_mapping" / "test_references.csv").write_text(
        "gt_image,lq_image,ref_image\n00000.png,00000.png,\"['00001.png', '00002.png']\"\n"
        "00003.png,00003.png,\"['00001.png']\"\n"
    )
    return root


def _casia(folder: Path, orl_root: Path) -> Path:
    root = folder / "faces_webface_112x112"
    root.mkdir()
    faces = []
    for label, person in enumerate((29, 30)):
        for photo, blur in ((1, 2.0), (2, 0.0), (3, 0.0)):
            stream = io.BytesIO()
            _face(orl_root, person, photo, 112, blur).save(stream, "JPEG", quality=95)
            faces.append((label, stream.getvalue()))
    write_records(root / "train.rec", faces)
    (root / "property").write_text("2,112,112\n")
    return root


FAKES: list[tuple[Callable[[Path, Path], Path], Fake]] = [
    (_celebref, Fake("celebref", "celebref_heavy", (f"data.size={SIDE}",), ("00005/1", "00012/1", "00031/1"), True, 1)),
    (_lfw, Fake("lfw_test", "lfw_test", (f"data.size={SIDE}",), ("Person_29_0001_00", "Person_30_0001_00"), False, 0)),
    (_celeba, Fake("celeba_test", "celeba_test", (f"data.size={SIDE}",), ("00000029", "00000030"), True, 0)),
    (_ffhq_ref, Fake("ffhq_ref", "ffhq_ref_severe", (f"data.size={SIDE}",), ("00000", "00003"), True, 1)),
    (_casia, Fake("casia_webface", "casia_webface", (), (), True, 1, verified=0)),
]


@pytest.mark.parametrize(("make", "fake"), FAKES, ids=[fake.card for _, fake in FAKES])
def test_a_fake_copy_is_prepared_verified_and_run(
    make: Callable[[Path, Path], Path],
    fake: Fake,
    tmp_path: Path,
    orl_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    given = make(tmp_path, orl_root)
    assert main(["data", "prepare", fake.card, "--from", str(given), "--workers", "1", "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert Path(prepared["root"]) == tmp_path / "home" / "data" / fake.card
    assert main(["data", "verify", fake.card, "--workers", "1", "--json"]) == fake.verified
    assert json.loads(capsys.readouterr().out)["problems"] == []
    run_dir = tmp_path / "run"
    words = ["run", "method=input", f"data={fake.data}", f"run_dir={run_dir}", "metrics.names=[psnr_y,haarpsi,ips]"]
    assert main([*words, *fake.words, "leaderboard=false"]) == 0, capsys.readouterr().err
    images = json.loads((run_dir / "protocol.json").read_text("utf-8"))["images"]
    if fake.image_ids:
        assert tuple(image["image_id"] for image in images) == fake.image_ids
    assert {len(image["references"]) >= fake.references for image in images} == {True}
    metrics = json.loads((run_dir / "summary.json").read_text("utf-8"))["metrics"]
    if fake.truth:
        assert metrics["psnr_y"]["n"] == len(images) > 0
        assert 5 < metrics["psnr_y"]["mean"] < 60
    else:
        assert metrics["psnr_y"]["mean"] is None
        assert "ground truth" in metrics["psnr_y"]["reason"]
    assert len(list((run_dir / "restored").rglob("*.png"))) == len(images)


def test_of_each_person_the_two_best_photographs_are_a_pair(
    tmp_path: Path, orl_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photograph 1 of each person is blurred: BRISQUE leaves it out."""
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    assert main(["data", "prepare", "casia_webface", "--from", str(_casia(tmp_path, orl_root)), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["data", "freeze", "data=casia_webface", "-o", str(tmp_path / "frozen"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2
    images = json.loads((tmp_path / "frozen" / "protocol.json").read_text("utf-8"))["images"]
    by_person: dict[str, list[str]] = {}
    for path in sorted((tmp_path / "home" / "data" / "casia_webface").rglob("*.jpg")):
        by_person.setdefault(path.parent.name, []).append(f"{path.parent.name}/{path.name}")
    assert len(by_person) == 2
    for image in images:
        first, *sharp = by_person[image["identity"]]
        assert {image["source"]["path"], image["references"][0]["path"]} == set(sharp), first
