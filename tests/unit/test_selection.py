"""Which pictures a protocol takes: every layout, fixed references, chosen pairs, real degraded pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bench.config import read_preset
from bench.errors import MissingError, UsageError
from bench.protocol import card as cards
from bench.protocol.card import DatasetCard, natural_key
from bench.protocol.freeze import freeze
from bench.protocol.layout import Photo, list_photos, unique_names
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol, protocol_id
from bench.protocol.selection import plan_images

SIZE = 64
CARD = DatasetCard(
    name="fake", title="Fake", licence="none", terms="none", citation="none", layout="identity_folders", size=SIZE,
    splits={"rule": "all_test"}, obtain="Make it.", source="test",
)  # fmt: skip


@pytest.fixture
def settings() -> DataSettings:
    return DataSettings("fake", "Fake", "fake", read_preset("degradation", "heavy"), "test", SIZE, 0, 1, 1, None)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., DatasetCard]:
    """Puts a card in the place of every card, and the cache in a folder of this test."""
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))

    def put(**changes: Any) -> DatasetCard:
        card = replace(CARD, **changes)
        for module in ("selection", "freeze"):
            monkeypatch.setattr(f"bench.protocol.{module}.load_card", lambda _: card)
        return card

    assert cards is not None
    return put


@pytest.fixture
def picture(orl_root: Path) -> Callable[[Path, int, int], None]:
    """Writes photograph `photo` of person `person`, square and upright."""

    def write(path: Path, person: int, photo: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(orl_root / f"s{person}" / f"{photo}.pgm") as image:
            image.crop((0, 10, 92, 102)).resize((SIZE, SIZE)).convert("RGB").save(path)

    return write


def _ids(images: tuple[Any, ...]) -> list[str]:
    return [image.image_id for image in images]


def test_flat_photographs_of_nobody_in_particular(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings
) -> None:
    use(layout="flat")
    for photo in (1, 2, 10):
        picture(tmp_path / "set" / "00000" / f"{photo}.png", 1, photo)
    images = plan_images(replace(settings, references=0, targets=None), tmp_path / "set")
    assert _ids(images) == ["00000/1", "00000/2", "00000/10"]
    assert all(image.references == () and image.source is not None for image in images)


def test_file_names_and_lists_say_who_is_shown(tmp_path: Path, picture: Any, use: Any, settings: DataSettings) -> None:
    root = tmp_path / "set"
    for person, name in ((1, "Ann_Lee"), (2, "Bo")):
        for photo in (1, 2):
            picture(root / f"{name}_{photo:04d}.png", person, photo)
    use(layout="flat", identities_from={"pattern": r"(.+)_\d{4}"})
    images = plan_images(settings, root)
    assert [(image.identity, image.image_id) for image in images] == [("Ann_Lee", "Ann_Lee_0002"), ("Bo", "Bo_0002")]
    (root / "who.txt").write_text("Ann_Lee_0001.png 7\nAnn_Lee_0002.png 7\nBo_0001.png 9\nBo_0002.png 9\n")
    use(layout="flat", identities_from={"file": "who.txt"})
    assert [image.identity for image in plan_images(settings, root)] == ["7", "9"]
    (root / "who.txt").write_text("Bo_0001.png 9\n")
    with pytest.raises(UsageError, match="who is shown on 3 pictures"):
        plan_images(settings, root)


def test_pairs_bring_their_lq_and_references(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    use(layout="paired")
    root = tmp_path / "set"
    for person in (1, 2, 3):
        picture(root / "gt" / f"p{person}.png", person, 1)
        picture(root / "lq" / f"p{person}.png", person, 1)
        picture(root / "reference" / f"p{person}" / "a.png", person, 2)
        picture(root / "reference" / f"p{person}" / "b.png", person, 3)
    picture(root / "gt" / "alone.png", 4, 1)
    given = replace(settings, degradation=None, references=1)
    protocol = freeze(replace(given, root=str(root)))
    assert protocol.image_ids == ["p1", "p2", "p3"]
    assert "alone" in capsys.readouterr().err
    image = protocol.images[0]
    assert image.source is not None
    assert image.lq is not None
    assert [reference.path for reference in image.references] == ["reference/p1/a.png"]
    assert image.source.path == "gt/p1.png"
    pictures = ProtocolPictures(protocol, root)
    assert np.array_equal(pictures.lq(image), np.asarray(Image.open(root / "lq" / "p1.png")))
    assert Protocol.from_dict(protocol.as_dict()).as_dict() == protocol.as_dict()
    # The given LQ is part of the id.
    other = replace(image, lq=replace(image.lq, sha256="0" * 64))
    changed = protocol_id(SIZE, 0, None, (other, *protocol.images[1:]), protocol.name)
    assert changed != protocol.id
    # With a preset, the given LQ is not looked at.
    made = plan_images(settings, root)
    assert all(own.lq is None for own in made)


def test_real_degraded_pictures_have_no_ground_truth(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings
) -> None:
    root = tmp_path / "set"
    picture(root / "a.png", 1, 1)
    picture(root / "b.jpg", 2, 1)
    use(layout="flat", contents="lq")
    given = replace(settings, degradation=None, references=0)
    protocol = freeze(replace(given, root=str(root)))
    assert [(image.source, image.gt_sha256) for image in protocol.images] == [(None, None)] * 2
    assert all(image.lq_sha256 for image in protocol.images)
    # The face is found in the LQ picture, for every method alike.
    assert all(image.shown is image.lq and image.shown.points_from for image in protocol.images)
    pictures = ProtocolPictures(protocol, root)
    assert pictures.lq(protocol.images[0]).shape == (SIZE, SIZE, 3)
    with pytest.raises(MissingError, match="no ground truth"):
        pictures.truth(protocol.images[0])
    with pytest.raises(UsageError, match=r"data\.degradation=null"):
        plan_images(settings, root)


def test_a_folder_is_understood_by_its_looks(tmp_path: Path, picture: Any, use: Any, settings: DataSettings) -> None:
    card = use(layout="auto")
    people, flat = tmp_path / "people", tmp_path / "flat"
    for person in (1, 2):
        for photo in (1, 2):
            picture(people / f"s{person}" / f"{photo}.png", person, photo)
        picture(flat / f"s{person}.png", person, 1)
    assert [photo.identity for photo in list_photos(card, people)] == ["s1", "s1", "s2", "s2"]
    assert _ids(plan_images(settings, people)) == ["s1/2", "s2/2"]
    # Without a preset the pictures themselves are what is to be restored.
    real = plan_images(replace(settings, degradation=None, references=0), flat)
    assert [(image.image_id, image.source) for image in real] == [("s1", None), ("s2", None)]


def test_ground_truth_without_lq_needs_a_preset(tmp_path: Path, picture: Any, use: Any, settings: DataSettings) -> None:
    use()
    for photo in (1, 2):
        picture(tmp_path / "set" / "s1" / f"{photo}.png", 1, photo)
    with pytest.raises(UsageError, match=r"data\.degradation=heavy"):
        plan_images(replace(settings, degradation=None), tmp_path / "set")


@pytest.mark.parametrize("text", ["image,ref\na.png,b.png\na.png,c.png\n", "image,ref\na,\"['b.png', 'c.png']\"\n"])
def test_a_list_fixes_the_references(tmp_path: Path, picture: Any, use: Any, settings: DataSettings, text: str) -> None:
    root = tmp_path / "set"
    for photo, name in enumerate("abc", start=1):
        picture(root / f"{name}.png", 1, photo)
    (root / "refs.csv").write_text(text)
    use(layout="flat", references_from={"file": "refs.csv", "image": "image", "references": "ref"})
    images = plan_images(replace(settings, references=5), root)
    assert _ids(images) == ["a"]
    assert [reference.path for reference in images[0].references] == ["b.png", "c.png"]
    use(layout="flat", references_from={"file": "refs.csv", "image": "image", "references": "reference"})
    with pytest.raises(UsageError, match="has no column 'reference'"):
        plan_images(settings, root)


def test_a_broken_photograph_is_replaced_by_the_next(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    for photo in (1, 2, 3, 4):
        picture(tmp_path / "set" / "s1" / f"{photo}.png", 1, photo)
    (tmp_path / "set" / "s1" / "1.png").write_bytes(b"no picture")
    (tmp_path / "set" / "s1" / "3.png").write_bytes(b"no picture")
    images = plan_images(settings, tmp_path / "set")
    assert _ids(images) == ["s1/4"]
    assert [reference.path for reference in images[0].references] == ["s1/2.png"]
    assert capsys.readouterr().err.count("left out") == 2


def test_pairs_chosen_by_quality(tmp_path: Path, use: Any, settings: DataSettings, orl_root: Path) -> None:
    """NIQE judges here: the two sharp photographs are taken, the blurred one is not."""
    use(size=256)
    folder = tmp_path / "set" / "s1"
    folder.mkdir(parents=True)
    for photo, blur in ((1, 6), (2, 0), (3, 1)):
        with Image.open(orl_root / "s1" / f"{photo}.pgm") as image:
            square = image.crop((0, 10, 92, 102)).resize((256, 256)).convert("RGB")
        square.filter(ImageFilter.GaussianBlur(blur)).save(folder / f"{photo}.png")
    chosen = replace(settings, size=256, selection={"rule": "quality_pairs", "metric": "niqe"})
    images = plan_images(chosen, tmp_path / "set")
    chosen_names = {images[0].image_id, *(reference.path.removesuffix(".png") for reference in images[0].references)}
    assert chosen_names == {"s1/2", "s1/3"}
    with pytest.raises(UsageError, match="quality_pairs"):
        plan_images(replace(chosen, selection={"rule": "quality_pair", "metric": "niqe"}), tmp_path / "set")
    with pytest.raises(UsageError, match="needs truth"):
        plan_images(replace(chosen, selection={"rule": "quality_pairs", "metric": "psnr_y"}), tmp_path / "set")


def test_identities_with_enough_photographs(tmp_path: Path, picture: Any, use: Any, settings: DataSettings) -> None:
    use(splits={"rule": "all_test", "seed": 5})
    for person, photos in ((1, 2), (2, 4), (3, 4), (4, 5)):
        for photo in range(1, photos + 1):
            picture(tmp_path / "set" / f"s{person}" / f"{photo}.png", person, photo)
    some = replace(settings, identities=2, minimum_photos=4, targets=None)
    images = plan_images(some, tmp_path / "set")
    assert len({image.identity for image in images}) == 2
    assert "s1" not in {image.identity for image in images}
    assert _ids(images) == _ids(plan_images(some, tmp_path / "set"))
    with pytest.raises(MissingError, match="needs 4 identities with at least 4 photographs, but only 3"):
        plan_images(replace(some, identities=4), tmp_path / "set")


def test_the_same_name_in_two_folders_does_not_collide(tmp_path: Path, picture: Any, use: Any) -> None:
    card = use(layout="flat")
    for path in ("a/1.png", "b/1.png", "b/1.jpg"):
        picture(tmp_path / "set" / path, 1, 1)
    photos: list[Photo] = list_photos(card, tmp_path / "set")
    assert sorted(photo.name for photo in photos) == ["a/1", "b/1.jpg", "b/1.png"]


def test_names_of_equal_numbers_have_one_order() -> None:
    assert sorted(["1.png", "001.png", "01.png"], key=natural_key) == sorted(
        ["01.png", "1.png", "001.png"], key=natural_key
    )
    assert sorted(["s10", "s2", "²", "s²"], key=natural_key)[:2] == ["s2", "s10"]


def test_three_files_of_one_stem_get_three_names() -> None:
    names = unique_names(["a.png", "a.jpg", "a.png.png", "b.png"])
    assert len(set(names.values())) == 4
    assert names["b.png"] == "b"


def test_a_stray_picture_does_not_hide_the_people(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings
) -> None:
    use(layout="auto")
    for photo in (1, 2):
        picture(tmp_path / "set" / "ann" / f"{photo}.png", 1, photo)
    picture(tmp_path / "set" / "stray.png", 2, 1)
    assert _ids(plan_images(settings, tmp_path / "set")) == ["ann/2"]


def test_linked_folders_are_followed_once(tmp_path: Path, picture: Any, use: Any) -> None:
    card = use(layout="flat")
    picture(tmp_path / "elsewhere" / "1.png", 1, 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
    assert [photo.path for photo in list_photos(card, tmp_path / "set")] == ["link/1.png"]


def test_in_paired_folders_of_people_the_folder_is_the_person(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings
) -> None:
    use(layout="paired")
    root = tmp_path / "set"
    for photo in (1, 2):
        picture(root / "lq" / "ann" / f"{photo}.png", 1, photo)
    picture(root / "reference" / "ann" / "x.png", 1, 3)
    images = plan_images(replace(settings, degradation=None, references=None, targets=None), root)
    assert [(image.identity, image.image_id) for image in images] == [("ann", "ann/1"), ("ann", "ann/2")]
    assert all([reference.path for reference in image.references] == ["reference/ann/x.png"] for image in images)


def test_a_reference_that_is_the_ground_truth_is_refused(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings
) -> None:
    use()
    for name in ("1", "2"):
        picture(tmp_path / "set" / "ann" / f"{name}.png", 1, 1)
    with pytest.raises(UsageError, match="is that picture itself"):
        plan_images(settings, tmp_path / "set")


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/a.png"])
def test_a_list_cannot_name_files_outside(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings, name: str
) -> None:
    picture(tmp_path / "set" / "a.png", 1, 1)
    (tmp_path / "set" / "refs.csv").write_text(f"image,ref\na.png,{name}\n")
    use(layout="flat", references_from={"file": "refs.csv", "image": "image", "references": "ref"})
    with pytest.raises(UsageError, match="outside of the data set"):
        plan_images(settings, tmp_path / "set")


def test_where_the_points_come_from_is_part_of_the_id(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings
) -> None:
    use()
    root = tmp_path / "set"
    for photo in (1, 2):
        picture(root / "ann" / f"{photo}.png", 1, photo)
    detected = freeze(replace(settings, root=str(root)))
    lines = np.mgrid[0:68, 0:2][0] / 2.0
    np.savetxt(root / "ann" / "2.png.txt", lines)
    given = freeze(replace(settings, root=str(root)))
    assert given.id != detected.id
    assert given.images[0].source is not None
    assert given.images[0].source.points_from is not None
    assert given.images[0].source.points_from.startswith("landmarks ")
    lines[3] = np.nan
    np.savetxt(root / "ann" / "2.png.txt", lines)
    with pytest.raises(UsageError, match="68 lines"):
        freeze(replace(settings, root=str(root)))


def test_a_protocol_without_pictures_is_not_frozen(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    for photo in (1, 2):
        picture(tmp_path / "set" / "ann" / f"{photo}.png", 1, photo)
    chosen = replace(settings, root=str(tmp_path / "set"), selection={"rule": "quality_pairs", "metric": "niqe"})
    with pytest.raises(MissingError, match="holds no pictures"):
        freeze(chosen)
    assert "192 px" in capsys.readouterr().err
    with pytest.raises(UsageError, match="name of a metric"):
        freeze(replace(chosen, selection={"rule": "quality_pairs"}))


def test_part_of_a_set_with_a_ranked_split_is_said(
    tmp_path: Path, picture: Any, use: Any, settings: DataSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    use(splits={"rule": "hashed", "seed": 0, "test": 1, "validation": 0}, statistics={"identities": 9})
    for photo in (1, 2):
        picture(tmp_path / "set" / "ann" / f"{photo}.png", 1, photo)
    plan_images(settings, tmp_path / "set")
    assert "1 of the 9 people" in capsys.readouterr().err
