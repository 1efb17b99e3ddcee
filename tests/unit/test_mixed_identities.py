"""New people out of two: what is whose in a picture, that points stay points, and that the stream repeats."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bench.data.training as training
from bench.config import compose
from bench.data.augmentation import AugmentationSettings, PairAugmentation
from bench.data.mixed_identities import Region, draw_region, mix, nearest_pose
from bench.data.training import TrainingPairs, TrainingSettings
from bench.protocol.protocol import DataSettings
from bench.seeds import derive_seed

SIDE = 96
# Upright: eyes 30 px apart and 30 px above the mouth, so that the face's frame is (y - 36) / 30 and (48 - x) / 30.
POINTS = torch.tensor([[33.0, 36.0], [63.0, 36.0], [48.0, 52.0], [37.0, 66.0], [59.0, 66.0]])
OWN, OTHER = torch.tensor([0.6, 0.3, 0.3]), torch.tensor([0.3, 0.3, 0.6])
# Pictures as they are: only the mixing is left.
STILL = dict.fromkeys(("flip", "deformation", "rotation", "zoom", "shift", "tone", "light"), 0.0)

seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=15)


def everywhere(along: Tensor, across: Tensor) -> Tensor:
    return torch.ones_like(along)


def weights(region: Region, *places: tuple[float, float]) -> list[float]:
    """Weights of the other person at places (along, across) of the face."""
    along, across = torch.tensor(places).T
    return region(along, across).tolist()


def noise(seed: int) -> Tensor:
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


# The region ----------------------------------------------------------------------------------------


@few
@given(seed=seeds, along=st.floats(-50, 50), across=st.floats(-50, 50))
def test_weights_lie_between_the_two_people(seed: int, along: float, across: float) -> None:
    region = draw_region(np.random.default_rng(seed))
    left, right = weights(region, (along, across), (along, -across))
    assert 0 <= left <= 1
    assert left == right, "a face has no better side"
    assert weights(draw_region(np.random.default_rng(seed)), (along, across)) == [left]


@few
@given(seed=seeds)
def test_every_region_leaves_the_face_its_surroundings(seed: int) -> None:
    around = [(-1.2, 0.0), (0.3, 1.6), (0.3, -1.6), (-1.0, 1.5)]
    assert max(weights(draw_region(np.random.default_rng(seed)), *around)) < 1e-3


def test_the_other_gives_the_mouth_or_the_eyes_or_both() -> None:
    seen = set()
    for seed in range(24):
        eyes, other_eye, mouth, corner = weights(
            draw_region(np.random.default_rng(seed)), (0.0, 0.5), (0.0, -0.5), (1.0, 0.0), (1.0, 0.4)
        )
        for weight in (eyes, other_eye, mouth, corner):
            assert weight < 0.01 or weight > 0.99, "the seam goes through the eyes or the mouth"
        assert (eyes > 0.5) == (other_eye > 0.5)
        assert (mouth > 0.5) == (corner > 0.5)
        seen.add((eyes > 0.5, mouth > 0.5))
    assert seen == {(True, False), (False, True), (True, True)}


# The picture ---------------------------------------------------------------------------------------


def plain(colour: Tensor) -> Tensor:
    return colour.view(3, 1, 1).expand(3, SIDE, SIDE).clone()


@few
@given(seed=seeds, angle=st.floats(-0.5, 0.5), size=st.floats(0.6, 1.3))
def test_both_people_are_seen_where_the_region_says(seed: int, angle: float, size: float) -> None:
    """Whatever way the face is turned: its frame turns with it."""
    region = draw_region(np.random.default_rng(seed))
    turn = size * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
    points = (POINTS - 48) @ turn.T + 48
    mixed = mix(plain(OWN), points, plain(OTHER), POINTS, region)
    for x, y in ((48.0, 66.0), (33.0, 36.0), (63.0, 36.0), (48.0, 6.0), (5.0, 50.0), (48.0, 46.0)):
        place = (torch.tensor([x, y]) - 48) @ turn.T + 48
        if place.min() < 0 or place.max() > SIDE - 1:
            continue
        column, row = place.round().long().tolist()
        # The frame of the pixel's own centre, turned back.
        upright = (torch.tensor([column, row]).float() - 48) @ torch.linalg.inv(turn).T + 48
        (weight,) = weights(region, ((float(upright[1]) - 36) / 30, (48 - float(upright[0])) / 30))
        torch.testing.assert_close(mixed[:, row, column], OWN + weight * (OTHER - OWN), atol=2e-3, rtol=0)


def test_a_lower_face_is_the_others_and_the_forehead_stays() -> None:
    drawn = [draw_region(np.random.default_rng(seed)) for seed in range(24)]
    lower = [region for region in drawn if weights(region, (0.0, 0.5), (1.0, 0.0)) == pytest.approx([0, 1], abs=0.01)]
    assert lower
    for region in lower:
        mixed = mix(plain(OWN), POINTS, plain(OTHER), POINTS, region)
        torch.testing.assert_close(mixed[:, 66, 48], OTHER, atol=5e-3, rtol=0)
        torch.testing.assert_close(mixed[:, 10, 48], OWN, atol=5e-3, rtol=0)


def dots(points: Tensor) -> Tensor:
    axis = torch.arange(SIDE, dtype=torch.float32)
    offset = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[:, :, None] - points
    return torch.exp(-offset.square().sum(-1) / (2 * 1.6**2)).amax(-1).expand(3, -1, -1).clone()


def brightest_near(image: Tensor, point: Tensor, reach: float = 5.0) -> Tensor:
    """Centre of mass within a few pixels of a point."""
    axis = torch.arange(SIDE, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    weight = image[0] * ((pixels - point).norm(dim=-1) < reach)
    return (pixels * weight[..., None]).sum((0, 1)) / weight.sum()


@few
@given(
    angle=st.floats(-0.4, 0.4),
    wide=st.floats(0.8, 1.2),
    high=st.floats(0.8, 1.2),
    shear=st.floats(-0.2, 0.2),
    shift=st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
)
def test_the_others_points_come_to_lie_on_the_own(
    angle: float, wide: float, high: float, shear: float, shift: tuple[float, float]
) -> None:
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
    other_points = (POINTS - 48) @ (turn @ torch.tensor([[wide, shear], [0.0, high]])).T + 48 + torch.tensor(shift)
    mixed = mix(torch.zeros(3, SIDE, SIDE), POINTS, dots(other_points), other_points, everywhere)
    for point in POINTS:
        assert (brightest_near(mixed, point) - point).norm() < 0.3


def test_without_an_exact_map_the_points_come_as_near_as_least_squares_lets_them() -> None:
    other_points = POINTS + torch.tensor([[3.0, -2.0], [-2.0, 1.0], [4.0, 2.0], [-3.0, -2.0], [1.0, 3.0]])
    homogeneous = np.column_stack([POINTS.double().numpy(), np.ones(5)])
    matrix = np.linalg.pinv(homogeneous) @ other_points.double().numpy()
    expected = torch.from_numpy((other_points.double().numpy() - matrix[2]) @ np.linalg.inv(matrix[:2])).float()
    mixed = mix(torch.zeros(3, SIDE, SIDE), POINTS, dots(other_points), other_points, everywhere)
    for place in expected:
        assert (brightest_near(mixed, place) - place).norm() < 0.3


@few
@given(seed=seeds)
def test_a_person_mixed_with_the_same_picture_stays(seed: int) -> None:
    image = noise(seed % 1000)
    mixed = mix(image, POINTS, image, POINTS, draw_region(np.random.default_rng(seed)))
    torch.testing.assert_close(mixed, image, atol=1e-3, rtol=0)


@few
@given(seed=seeds, brightness=st.floats(0.55, 1.9))
def test_the_other_is_made_as_bright_as_the_own_along_the_seam(seed: int, brightness: float) -> None:
    image = 0.1 + 0.4 * noise(seed % 1000)
    mixed = mix(image, POINTS, image * brightness, POINTS, draw_region(np.random.default_rng(seed)))
    torch.testing.assert_close(mixed, image, atol=1e-3, rtol=0)


@few
@given(seed=seeds, spread=st.sampled_from([0.0, 1e-3, 1.0, 40.0, 300.0]))
def test_whatever_the_points_a_picture_comes_out(seed: int, spread: float) -> None:
    """Points that coincide, lie on a line or outside of the picture."""
    rng = np.random.default_rng(seed)
    own, other = (torch.from_numpy(48 + spread * rng.standard_normal((5, 2))).float() for _ in "ab")
    if seed % 2:
        own[:, 0], other[:, 1] = 48, 48
    mixed = mix(noise(1), own, noise(2), other, draw_region(rng))
    assert mixed.shape == (3, SIDE, SIDE)
    assert torch.isfinite(mixed).all()
    assert mixed.min() >= 0
    assert mixed.max() <= 1


@few
@given(seed=seeds, count=st.integers(1, 6))
def test_the_nearest_pose_is_found_wherever_the_face_stands(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = POINTS + torch.from_numpy(5 * rng.standard_normal((count, 5, 2))).float()
    wanted = int(rng.integers(count))
    shifted = candidates[wanted] + torch.from_numpy(20 * rng.standard_normal(2)).float()
    assert nearest_pose(shifted, candidates) == wanted


# The stream ----------------------------------------------------------------------------------------


def stream(mixed: float | None, root: Path | None = None, references: int = 1, **augmentation: float) -> TrainingPairs:
    data = DataSettings(**compose("train", ["method=refine", "data=orl_heavy"])["data"])
    if mixed is not None:
        augmentation["mixed_identities"] = mixed
    wanted = TrainingSettings(batch_size=2, references=references, size=64, augmentation=augmentation)
    return TrainingPairs(data if root is None else replace(data, root=str(root)), wanted)


def assert_same_batches(one: TrainingPairs, other: TrainingPairs, steps: int = 3) -> None:
    for step in range(steps):
        mine, theirs = one.batch(step), other.batch(step)
        for name in ("lq", "gt", "references", "landmarks", "reference_landmarks"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), (step, name)
        assert (mine.image_ids, mine.identities, mine.seeds) == (theirs.image_ids, theirs.identities, theirs.seeds)


def test_off_by_default_and_then_no_bit_of_the_stream_changes(orl_root: Path) -> None:
    assert AugmentationSettings().mixed_identities == 0
    without = stream(None)
    assert_same_batches(without, stream(0.0))
    # Where something were drawn for mixing that is off, the augmentation would draw other numbers than these.
    for number in range(3):
        rng = np.random.default_rng(derive_seed(0, "training sample", number))
        target = int(rng.integers(len(without.photos)))
        own = [n for n, photo in enumerate(without.photos) if photo.identity == without.photos[target].identity]
        reference = int(rng.choice([n for n in own if n != target], size=1, replace=False)[0])
        (one, one_points), (two, two_points) = without._load(target), without._load(reference)
        expected = PairAugmentation(AugmentationSettings())(
            torch.stack([one, two]), torch.stack([one_points, two_points]), rng
        )
        images, points, identity, path = without.sample(number)
        assert torch.equal(images, expected[0])
        assert torch.equal(points, expected[1])
        assert (identity, path) == (without.photos[target].identity, without.photos[target].photo.path)


def test_the_same_number_is_the_same_sample(orl_root: Path) -> None:
    one, other = stream(0.5), stream(0.5)
    later = [one.sample(number) for number in (5, 3, 4)]
    for (images, points, *who), number in zip(later, (5, 3, 4), strict=True):
        again, again_points, *again_who = other.sample(number)
        assert torch.equal(images, again)
        assert torch.equal(points, again_points)
        assert who == again_who
    assert_same_batches(one, other)


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Region]:
    """The regions that are drawn."""
    drawn: list[Region] = []

    def note(rng: np.random.Generator) -> Region:
        drawn.append(draw_region(rng))
        return drawn[-1]

    monkeypatch.setattr(training, "draw_region", note)
    return drawn


@pytest.fixture
def mixes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The pictures of own and other person that are mixed."""
    made: list[tuple[Tensor, Tensor]] = []

    def note(image: Tensor, points: Tensor, other: Tensor, other_points: Tensor, region: Region) -> Tensor:
        made.append((image, other))
        return mix(image, points, other, other_points, region)

    monkeypatch.setattr(training, "mix", note)
    return made


def photo_of(pairs: TrainingPairs, picture: Tensor) -> tuple[str, str]:
    """Who is shown by a picture of the data set, and its path."""
    (found,) = (own for number, own in enumerate(pairs.photos) if torch.equal(pairs._load(number)[0], picture))
    return found.identity, found.photo.path


def test_ground_truth_and_references_get_the_same_part_of_one_other_person(
    orl_root: Path, regions: list[Region], mixes: list[tuple[Tensor, Tensor]]
) -> None:
    pairs, unmixed = stream(1.0, references=2, **STILL), stream(None, references=2, **STILL)
    for number in range(6):
        regions.clear()
        mixes.clear()
        images, points, identity, path = pairs.sample(number)
        plain_images, plain_points, plain_identity, plain_path = unmixed.sample(number)
        # Ground truth, references and points are those of the person whose face is changed.
        assert (identity, path) == (plain_identity, plain_path)
        assert torch.equal(points, plain_points)
        assert [photo_of(pairs, own)[0] for own, _ in mixes] == [identity] * 3
        others = [photo_of(pairs, other) for _, other in mixes]
        assert len({who for who, _ in others}) == 1
        assert others[0][0] != identity
        assert len({photo for _, photo in others}) == 3, "a reference shows the photograph of its ground truth"

        (region,) = regions
        for image, before, own in zip(images, plain_images, points, strict=True):
            eyes, mouth = own[:2].mean(0), own[3:].mean(0)
            down = (mouth - eyes) / (mouth - eyes).norm()
            axis = torch.arange(64.0)
            offset = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1) - eyes
            length = (mouth - eyes).norm()
            weight = region(offset @ down / length, (offset[..., 0] * down[1] - offset[..., 1] * down[0]) / length)
            changed = (image - before).abs().mean(0)
            assert changed[weight < 1e-4].max() < 1e-3
            assert changed[weight > 0.9].mean() > 0.01


def test_as_many_samples_are_mixed_as_was_asked_for(orl_root: Path, regions: list[Region]) -> None:
    pairs = stream(0.4, **STILL)
    for number in range(50):
        pairs.sample(number)
    # Three and a half deviations of the binomial distribution to either side.
    assert 8 <= len(regions) <= 32


def test_the_others_photograph_has_the_nearest_pose(orl_root: Path, mixes: list[tuple[Tensor, Tensor]]) -> None:
    pairs = stream(1.0)
    pairs.sample(0)
    (truth, other), *_ = mixes
    points = {own.photo.path: torch.from_numpy(np.asarray(own.photo.points)) for own in pairs.photos}
    own = points[photo_of(pairs, truth)[1]]
    who, chosen = photo_of(pairs, other)

    def distance(path: str) -> float:
        return float(((points[path] - points[path].mean(0)) - (own - own.mean(0))).norm())

    assert min((photo.photo.path for photo in pairs.people[who]), key=distance) == chosen


def some_people(orl_root: Path, folder: Path, **photographs: int) -> Path:
    """The first photographs of a few people."""
    for person, count in photographs.items():
        (folder / person).mkdir(parents=True)
        for number in range(1, count + 1):
            shutil.copy(orl_root / person / f"{number}.pgm", folder / person)
    return folder


def test_nobody_is_asked_for_more_photographs_than_there_are(
    orl_root: Path, tmp_path: Path, mixes: list[tuple[Tensor, Tensor]]
) -> None:
    pairs = stream(1.0, root=some_people(orl_root, tmp_path / "orl", s1=5, s2=3, s3=2), references=2)
    assert set(pairs.people) == {"s1", "s2"}, "two references need three photographs"
    for number in range(8):
        mixes.clear()
        _, _, identity, _ = pairs.sample(number)
        others = [photo_of(pairs, other) for _, other in mixes]
        assert {who for who, _ in others} == {"s1", "s2"} - {identity}
        assert len({photo for _, photo in others}) == 3


def test_alone_nobody_is_mixed(orl_root: Path, tmp_path: Path, regions: list[Region]) -> None:
    root = some_people(orl_root, tmp_path / "orl", s1=4)
    pairs = stream(1.0, root=root)
    assert_same_batches(pairs, stream(None, root=root), 1)
    assert regions == []
