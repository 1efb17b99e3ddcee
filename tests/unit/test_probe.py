"""Planted marks: the same for everyone, where they belong, written down, and no part of other protocols."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config import compose
from bench.data.augmentation import AugmentationSettings, PairAugmentation, plant_marks
from bench.errors import UsageError
from bench.protocol.card import data_root, load_card
from bench.protocol.freeze import freeze, load_protocol
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.probe import (
    SITES,
    TEMPLATE_POINTS,
    Mark,
    base_image_id,
    coverage,
    paint,
    place,
    plant,
    unmarked,
)
from bench.protocol.protocol import DataSettings, Protocol, ProtocolImage, ProtocolMismatchError, ProtocolPhoto
from bench.protocol.selection import plan_images
from bench.runs.plan import metric_names

POINTS = np.array(TEMPLATE_POINTS)


def _settings(*words: str) -> DataSettings:
    few = ["data=orl_heavy_ci", "data.identities=3", "data.references=2", "data.targets=2"]
    return DataSettings(**compose("run", ["method=input", *few, "probe=marks", *words])["data"])


@pytest.fixture(scope="module")
def settings(orl_root: Path) -> DataSettings:
    return _settings(f"data.root={orl_root}")


@pytest.fixture(scope="module")
def protocol(settings: DataSettings) -> Protocol:
    return freeze(settings)


@pytest.fixture(scope="module")
def pictures(protocol: Protocol, settings: DataSettings) -> ProtocolPictures:
    return ProtocolPictures(protocol, data_root(load_card(protocol.card), settings.root))


def _parameters(photo: ProtocolPhoto) -> list[tuple[str, float, float]]:
    return [(mark.site, mark.radius, mark.contrast) for mark in photo.marks]


def test_every_picture_comes_twice(protocol: Protocol, settings: DataSettings) -> None:
    plain = plan_images(replace(settings, probe=None), Path(str(settings.root)))
    assert protocol.image_ids == [f"{image.image_id}@{v}" for image in plain for v in ("both", "reference")]
    assert protocol.name == "orl_heavy_ci_marks"
    for image in protocol.images:
        assert image.source is not None
        assert bool(image.source.marks) == image.image_id.endswith("@both")
        assert all(len(reference.marks) == 3 for reference in image.references)


def test_a_person_has_the_same_marks_on_all_photographs_and_others_have_others(protocol: Protocol) -> None:
    people: dict[str, list[list[tuple[str, float, float]]]] = {}
    for image in protocol.images:
        photos = [photo for photo in (image.source, *image.references) if photo is not None and photo.marks]
        people.setdefault(image.identity, []).extend(_parameters(photo) for photo in photos)
        for photo in photos:
            assert photo.points is not None
            for mark in photo.marks:
                assert (mark.x, mark.y) == pytest.approx(place(mark.site, photo.points), abs=1e-3)
    assert len(people) == 3
    assert all(marks == own[0] for own in people.values() for marks in own)
    assert len({json.dumps(own[0]) for own in people.values()}) == 3


def test_only_the_pixels_of_the_marks_change(protocol: Protocol, pictures: ProtocolPictures) -> None:
    both, reference = protocol.images[:2]
    assert both.source is not None
    marked, plain = pictures.truth(both).astype(int), pictures.truth(reference).astype(int)
    assert np.array_equal(plain, pictures.crop(unmarked(both.source)))
    rows, columns = np.mgrid[0:128, 0:128]
    near = np.zeros((128, 128), dtype=bool)
    for mark in both.source.marks:
        distance = np.hypot(columns - mark.x, rows - mark.y)
        near |= distance < mark.radius + 0.5
        core = distance <= mark.radius - 0.5
        change = np.sign(mark.contrast) * (marked - plain)[core]
        assert change.min() > 0.2 * 255
    assert np.array_equal(marked[~near], plain[~near])


def test_variants_share_their_degradation(protocol: Protocol, pictures: ProtocolPictures) -> None:
    both, reference = protocol.images[:2]
    assert pictures.degradation_seed(both) == pictures.degradation_seed(reference)
    assert both.lq_sha256 != reference.lq_sha256
    pipeline = protocol.pipeline()
    assert pipeline is not None
    clean = torch.tensor(pictures.truth(reference)).permute(2, 0, 1).double().div(255)[None]
    again = pipeline.apply(clean, pipeline.sample([pictures.degradation_seed(both)], (128, 128)))
    assert np.array_equal(again[0].mul(255).round().permute(1, 2, 0).numpy(), pictures.lq(reference))
    assert [base_image_id(name) for name in ("s1/3@both", "s1/3@reference", "a@b/3", "s1/3")] == [
        "s1/3",
        "s1/3",
        "a@b/3",
        "s1/3",
    ]


def test_the_manifest_states_the_probe_and_reads_back(protocol: Protocol) -> None:
    record = json.loads(json.dumps(protocol.as_dict()))
    assert record["probe"] == {
        "name": "marks",
        "version": 1,
        "parameters": {"marks": 3, "radius": [2.0, 3.0], "contrast": 0.35},
    }
    assert set(record["images"][0]["references"][0]["marks"][0]) == {"site", "x", "y", "radius", "contrast"}
    assert Protocol.from_dict(record).as_dict() == protocol.as_dict()


def test_protocols_without_a_probe_say_nothing_of_it(settings: DataSettings) -> None:
    text = json.dumps(freeze(replace(settings, probe=None, identities=1, targets=1)).as_dict())
    assert "probe" not in text
    assert '"marks"' not in text


def test_the_id_depends_on_the_probe(
    settings: DataSettings, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    assert load_protocol(settings).id == protocol.id
    assert settings.probe is not None
    for changes in ({"marks": 2}, {"contrast": 0.3}, {"radius": [2.0, 2.5]}):
        assert load_protocol(replace(settings, probe={**settings.probe, **changes})).id != protocol.id
    assert load_protocol(replace(settings, probe=None)).id != protocol.id


def test_a_mark_moved_in_the_manifest_is_noticed(protocol: Protocol, pictures: ProtocolPictures) -> None:
    image = protocol.images[0]
    assert image.source is not None
    first, *others = image.source.marks
    moved = replace(image.source, marks=(first._replace(x=first.x + 1), *others))
    with pytest.raises(ProtocolMismatchError, match="ground truth"):
        pictures.truth(replace(image, source=moved))


def test_coverage_is_a_disc_with_a_soft_edge() -> None:
    share = coverage(64, 30.3, 31.8, 5.0)
    fine = (np.arange(64 * 16) + 0.5) / 16 - 0.5
    exact = np.hypot(fine[None] - 30.3, fine[:, None] - 31.8) <= 5
    sampled = exact.reshape(64, 16, 64, 16).mean((1, 3))
    assert share.sum() == pytest.approx(np.pi * 25, rel=0.02)
    assert np.abs(share - sampled).max() < 0.2
    assert coverage(512, 100, 100, 12.0).sum() == pytest.approx(np.pi * 144, rel=0.01)


def test_painting_rounds_once_and_stops_at_black_and_white() -> None:
    grey = np.full((32, 32, 3), 100, dtype=np.uint8)
    assert paint(grey, ()) is grey
    assert paint(grey, [Mark("", 16, 16, 3, 0.2)])[16, 16].tolist() == [151, 151, 151]
    assert paint(grey, [Mark("", 16, 16, 3, -0.6)])[16, 16].tolist() == [0, 0, 0]
    assert paint(grey, [Mark("", 16, 16, 3, 0.9)])[16, 16].tolist() == [255, 255, 255]


def test_sites_follow_the_face() -> None:
    assert place("chin", POINTS) == pytest.approx(SITES["chin"])
    turned = np.array([[0.8, -0.3], [0.2, 1.1]])
    shift = np.array([7.0, -4.0])
    expected = turned @ np.array(SITES["left cheek"]) + shift
    assert place("left cheek", POINTS @ turned.T + shift) == pytest.approx(expected)


def _image(identity: str, points: np.ndarray | None) -> ProtocolImage:
    photo = ProtocolPhoto(f"{identity}.png", "0", np.eye(2, 3), points)
    return ProtocolImage(identity, identity, photo, (photo,))


def test_bright_skin_gets_dark_marks_and_dark_skin_light_ones(settings: DataSettings) -> None:
    probe = settings.probe_settings()
    assert probe is not None
    for grey, sign in ((200, -1), (60, 1)):
        face = np.full((128, 128, 3), grey, dtype=np.uint8)
        planted = plant([_image("a", POINTS)], probe, "p", 128, lambda _, face=face: face)  # type: ignore[misc]
        assert {np.sign(mark.contrast) for mark in planted[0].references[0].marks} == {sign}


def test_marks_grow_with_the_picture(settings: DataSettings) -> None:
    probe = settings.probe_settings()
    assert probe is not None
    small, large = (
        plant([_image("a", POINTS * scale)], probe, "p", 128 * scale, lambda _: np.zeros((4, 4, 3), np.uint8))
        for scale in (1, 4)
    )
    for one, other in zip(small[0].references[0].marks, large[0].references[0].marks, strict=True):
        assert (other.site, other.x, other.y) == (one.site, pytest.approx(4 * one.x), pytest.approx(4 * one.y))
        assert other.radius == pytest.approx(4 * one.radius, abs=0.01)


def test_pictures_without_points_are_left_out(settings: DataSettings) -> None:
    probe = settings.probe_settings()
    assert probe is not None
    face = np.full((128, 128, 3), 200, dtype=np.uint8)
    planted = plant([_image("a", None), _image("b", POINTS)], probe, "p", 128, lambda _: face)
    assert [image.image_id for image in planted] == ["b@both", "b@reference"]
    with pytest.raises(UsageError, match="nothing to mark"):
        plant([_image("a", None)], probe, "p", 128, lambda _: face)


@pytest.mark.parametrize(
    "words",
    [["data.probe.marks=9"], ["data.probe.radius=[3,2]"], ["data.probe.contrast=0"], ["data.probe.name=dots"]],
)
def test_wrong_values_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        _settings(*words).probe_settings()


def test_unknown_probes_and_keys_are_named() -> None:
    with pytest.raises(UsageError, match="marks"):
        compose("run", ["method=input", "probe=mark"])
    with pytest.raises(UsageError, match=r"data\.probe\.radius"):
        compose("run", ["method=input", "probe=marks", "data.probe.radios=[1,2]"])
    with pytest.raises(UsageError, match="takes no probe"):
        compose("train", ["method=refine", "probe=marks"])


def test_training_marks_stand_on_the_references_and_on_every_second_truth() -> None:
    images = torch.full((2, 3, 128, 128), 0.7)
    points = torch.tensor(np.stack([POINTS, POINTS])).float()
    on_truth = 0
    for seed in range(60):
        painted = plant_marks(images, points, np.random.default_rng(seed))
        assert (painted[1] < 0.5).sum() > 3 * 2 * np.pi * 1.5**2
        changed = bool((painted[0] != images[0]).any())
        assert not changed or torch.equal(painted[0], painted[1])
        on_truth += changed
    assert 18 <= on_truth <= 42


def test_training_marks_are_off_by_default_and_then_draw_nothing() -> None:
    rng = np.random.default_rng(3)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    points = torch.tensor(np.stack([POINTS, POINTS]) / 2).float()
    assert AugmentationSettings().marks == 0
    PairAugmentation(AugmentationSettings(0.5, 0, 0, 0, 0, 0, 0))(images, points, rng)
    other = np.random.default_rng(3)
    other.random()
    other.normal(0, 0, (1, 2, 5, 5))
    for _ in range(2):
        other.uniform(0, 0)
        other.uniform(0, 0)
        other.uniform(0, 0, 2)
    for _ in range(6):
        other.uniform(0, 0)
    assert rng.random() == other.random()


def test_a_probe_scores_its_own_metrics_whatever_else_is_scored() -> None:
    words = ["method=input", "data=orl_heavy_ci", "metrics.names=[mark_false_copy,psnr_y]"]
    assert metric_names(compose("run", words)) == ["mark_false_copy", "psnr_y"]
    assert metric_names(compose("run", [*words, "probe=marks"])) == ["mark_false_copy", "psnr_y", "mark_recall"]
