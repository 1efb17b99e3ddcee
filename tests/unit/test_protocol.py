"""Protocols: the same id for the same pictures anywhere, another one or a refusal for others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.config import compose
from bench.degradation.operators.blur import GaussianBlur
from bench.degradation.operators.jpeg import JPEG
from bench.errors import MissingError, UsageError
from bench.image import read_image, write_png
from bench.protocol import card as cards
from bench.protocol.alignment import ORL_TIGHT, alignment_matrix, transform_points, valid_region, warp
from bench.protocol.card import load_card, natural_key
from bench.protocol.freeze import committed_path, load_protocol
from bench.protocol.layout import list_photos
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol, ProtocolMismatchError
from bench.protocol.selection import plan_images
from bench.protocol.splits import split_identities

PEOPLE = ("00005", "00012", "00031")


@pytest.fixture(scope="module")
def celebref(tmp_path_factory: pytest.TempPathFactory, orl_root: Path) -> Path:
    """A folder in Celeb-Ref's layout, of ORL photographs at 512 px; landmark files spare the detection."""
    root = tmp_path_factory.mktemp("celebref")
    y, x = np.mgrid[0:68, 0:2]
    for number, person in enumerate(PEOPLE, start=1):
        (root / person).mkdir()
        for photo in (1, 2, 10):
            picture = Image.open(orl_root / f"s{number}" / f"{photo}.pgm").crop((0, 10, 92, 102)).resize((512, 512))
            picture.convert("RGB").save(root / person / f"{photo}.png")
            np.savetxt(root / person / f"{photo}.png.txt", 150.0 + 3 * y + x * number, fmt="%.3f")
    (root / "README").write_text("not a person")
    (root / "notes").mkdir()
    return root


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bench home without frozen protocols."""
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def copy_of(tmp_path: Path, celebref: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return Path(shutil.copytree(celebref, tmp_path / name))

    return make


def _settings(root: Path, **changes: object) -> DataSettings:
    config = compose("run", ["method=input", "data=celebref_heavy"])["data"]
    # 64 px keep the test quick; the layout and the code are those of 512.
    return replace(DataSettings(**config), root=str(root), size=64, **changes)  # type: ignore[arg-type]


def test_id_is_the_same_for_copies_in_any_folder(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    first = load_protocol(_settings(copy_of("a")))
    shutil.rmtree(own_home)
    second = load_protocol(_settings(copy_of("b, [2]=é")))
    assert first.id == second.id
    assert json.dumps(first.as_dict()) == json.dumps(second.as_dict())
    assert len(first.images) == len(PEOPLE)


def test_a_frozen_protocol_is_read_again_and_is_whole(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    root = copy_of("a")
    frozen = load_protocol(_settings(root))
    again = load_protocol(_settings(root))
    assert again.as_dict() == frozen.as_dict()
    assert Protocol.from_dict(json.loads(json.dumps(frozen.as_dict()))).as_dict() == frozen.as_dict()
    pictures = ProtocolPictures(again, root)
    for image in again.images:
        assert pictures.lq(image).shape == pictures.truth(image).shape == (64, 64, 3)
        assert image.source.path not in [reference.path for reference in image.references]


def test_references_come_first_in_natural_order(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    protocol = load_protocol(_settings(copy_of("a"), references=2))
    assert [image.image_id for image in protocol.images] == [f"{person}/10" for person in PEOPLE]
    assert [photo.path for photo in protocol.images[0].references] == ["00005/1.png", "00005/2.png"]


def test_one_byte_of_one_reference_changes_the_id(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    root = copy_of("a")
    before = load_protocol(_settings(root))
    reference = root / before.images[1].references[0].path
    reference.write_bytes(reference.read_bytes() + b"\0")
    assert load_protocol(_settings(root)).id != before.id


@pytest.mark.parametrize("changes", [{"seed": 1}, {"references": 2}, {"name": "another"}])
def test_declared_settings_change_the_id(
    own_home: Path, copy_of: Callable[[str], Path], changes: dict[str, object]
) -> None:
    root = copy_of("a")
    assert load_protocol(_settings(root)).id != load_protocol(_settings(root, **changes)).id


def test_what_is_not_in_the_protocol_changes_nothing(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    root = copy_of("a")
    before = load_protocol(_settings(root)).id
    (root / "notes" / "1.png").write_bytes(b"x")
    os.utime(root / "00005" / "1.png", (1, 1))
    assert load_protocol(replace(_settings(root), title="Another title")).id == before


def test_changed_pixels_are_refused_when_a_picture_is_loaded(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    root = copy_of("a")
    protocol = load_protocol(_settings(root))
    image = protocol.images[0]
    pixels = np.array(read_image(root / image.source.path))
    pixels[200:300, 200:300] ^= 64
    write_png(root / image.source.path, pixels)
    with pytest.raises(ProtocolMismatchError, match=f"ground truth of {image.image_id}"):
        ProtocolPictures(protocol, root).lq(image)


def test_a_changed_operator_is_refused_by_name(own_home: Path, monkeypatch: pytest.MonkeyPatch, orl_root: Path) -> None:
    settings = DataSettings(**compose("run", ["method=input", "data=orl_heavy_ci"])["data"])
    frozen = json.loads(committed_path("orl_heavy_ci").read_text("utf-8"))
    assert load_protocol(settings).id == frozen["id"]
    monkeypatch.setattr(JPEG, "version", JPEG.version + 1)
    with pytest.raises(ProtocolMismatchError, match=f"jpeg v{JPEG.version - 1} → v{JPEG.version}") as caught:
        load_protocol(settings)
    assert "gaussian_blur" not in str(caught.value)
    renamed = replace(settings, name="my_orl", references=9)
    assert load_protocol(renamed).id != frozen["id"]


def test_an_operator_that_gives_other_pixels_is_noticed(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, orl_root: Path
) -> None:
    settings = DataSettings(**compose("run", ["method=input", "data=orl_heavy_ci"])["data"])
    protocol = load_protocol(settings)
    original = GaussianBlur.apply
    monkeypatch.setattr(GaussianBlur, "apply", lambda self, *given: [one * 0.98 for one in original(self, *given)])
    with pytest.raises(ProtocolMismatchError, match="LQ picture"):
        ProtocolPictures(protocol, orl_root).lq(protocol.images[0])


@pytest.mark.parametrize("name", sorted(path.stem for path in committed_path("any").parent.glob("*.json")))
def test_committed_protocols_hold_on_this_machine(own_home: Path, orl_root: Path, name: str) -> None:
    data = name.removesuffix("_marks")
    words = ["method=input", f"data={data}", *(["probe=marks"] if name.endswith("_marks") else [])]
    protocol = load_protocol(DataSettings(**compose("run", words)["data"]))
    assert protocol.as_dict() == json.loads(committed_path(name).read_text("utf-8"))
    assert not (own_home / "protocols").exists()
    pictures = ProtocolPictures(protocol, orl_root)
    for image in protocol.images[:: max(1, len(protocol.images) // 4)]:
        pictures.lq(image)


def test_files_of_another_release_are_refused(own_home: Path, tmp_path: Path, orl_root: Path) -> None:
    root = tmp_path / "orl"
    shutil.copytree(orl_root, root)
    victim = root / "s29" / "1.pgm"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    settings = DataSettings(**compose("run", ["method=input", "data=orl_heavy_ci", f"data.root={root}"])["data"])
    with pytest.raises(ProtocolMismatchError, match=r"s29/1\.pgm"):
        load_protocol(settings)


def test_same_stems_get_distinct_ids(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    root = copy_of("a")
    for person in PEOPLE:
        picture = Image.open(root / person / "10.png")
        picture.save(root / person / "10.jpg")
        shutil.copy(root / person / "10.png.txt", root / person / "10.jpg.txt")
    images = plan_images(_settings(root, references=2, targets=2), root)
    assert [image.image_id for image in images[:2]] == ["00005/10.jpg", "00005/10.png"]
    assert len({image.image_id for image in images}) == len(images) == 6


def test_a_person_with_too_few_photographs_is_left_out(own_home: Path, copy_of: Callable[[str], Path]) -> None:
    root = copy_of("a")
    (root / "00012" / "1.png").unlink()
    (root / "00012" / "2.png").unlink()
    assert [image.identity for image in plan_images(_settings(root), root)] == ["00005", "00031"]
    with pytest.raises(MissingError, match="photographs"):
        plan_images(_settings(root, references=5), root)


def test_an_empty_folder_is_missing_data(tmp_path: Path) -> None:
    (tmp_path / "00001").mkdir()
    with pytest.raises(MissingError, match="holds no photographs"):
        list_photos(load_card("celebref"), tmp_path)


@pytest.mark.parametrize("shape", [(100, 80), (80, 100)])
def test_pictures_that_are_not_aligned_are_refused(
    own_home: Path, copy_of: Callable[[str], Path], shape: tuple[int, int]
) -> None:
    root = copy_of("a")
    write_png(root / "00005" / "1.png", np.zeros((*shape, 3), np.uint8))
    with pytest.raises(UsageError, match=rf"00005/1\.png is {shape[1]}x{shape[0]} px.*aligned"):
        plan_images(_settings(root), root)


def test_unreadable_photographs_are_named_and_left_out(
    own_home: Path, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of("a")
    (root / "00005" / "1.png").write_bytes(b"")
    images = plan_images(_settings(root), root)
    assert "00005/1.png is empty" in capsys.readouterr().err
    assert [photo.path for photo in images[0].references] == ["00005/2.png"]
    assert images[0].image_id == "00005/10"


def test_listed_splits_are_disjoint_and_cover_orl(orl_root: Path) -> None:
    card = load_card("orl")
    people = sorted({photo.identity for photo in list_photos(card, orl_root)}, key=natural_key)
    splits = split_identities(card, people)
    assert {name: len(own) for name, own in splits.items()} == {"train": 24, "validation": 4, "test": 12}
    assert sorted(chain(*splits.values()), key=natural_key) == people
    twice = replace(card, splits={"train": ["s1", "s2"], "test": ["s2"]})
    with pytest.raises(UsageError, match="two splits"):
        split_identities(twice, people)


def test_the_hashed_split_is_stable_and_disjoint() -> None:
    card = load_card("celebref")
    people = [f"{number:05}" for number in range(1, 400, 2)]
    splits = split_identities(card, people)
    assert splits == split_identities(card, people[::-1])
    assert [len(splits[name]) for name in ("test", "validation", "train")] == [50, 50, 100]
    assert len(set(chain(*splits.values()))) == 200
    # Written down once: a change of the rule would move people between splits of everyone who has the data.
    assert splits["test"][:5] == ["00009", "00017", "00021", "00023", "00037"]
    other = replace(card, splits={**card.splits, "seed": 1})
    assert split_identities(other, people)["test"] != splits["test"]
    with pytest.raises(UsageError, match="hashd"):
        split_identities(replace(card, splits={"rule": "hashd"}), people)


def test_unknown_cards_and_missing_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'celebref'"):
        load_card("celebreff")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        cards.data_root(load_card("celebref"))
    for part in (str(tmp_path / "celebref"), "data.root=", "Licence", "data=orl_heavy"):
        assert part in str(caught.value)
    (tmp_path / "celebref").mkdir()
    assert cards.data_root(load_card("celebref")) == tmp_path / "celebref"
    with pytest.raises(MissingError, match="is not a folder"):
        cards.data_root(load_card("celebref"), str(tmp_path / "none"))


def test_alignment_puts_points_where_they_belong() -> None:
    rng = np.random.default_rng(0)
    aim = np.asarray(ORL_TIGHT.points)
    angle, scale = 0.2, 0.6
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    photo_points = aim @ turn.T + (30, 40)
    free = replace(ORL_TIGHT, keep_inside=False)
    matrix = alignment_matrix(photo_points, free, (300, 300))
    np.testing.assert_allclose(transform_points(photo_points, matrix), aim, atol=1e-3)
    image = rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)
    assert warp(image, matrix, 128).shape == (128, 128, 3)
    assert valid_region(matrix, (300, 300), 128).all()
    assert not valid_region(matrix, (60, 60), 128).all()


def test_warp_reads_where_the_matrix_points() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[20, 30] = (255, 128, 0)
    shift = np.array([[1.0, 0.0, -10.0], [0.0, 1.0, -5.0]])
    crop = warp(image, shift, 40)
    np.testing.assert_array_equal(crop[15, 20], (255, 128, 0))
    assert int((crop > 0).any(axis=-1).sum()) == 1
    same = np.eye(2, 3)
    assert np.array_equal(warp(image, same, 64), image)
