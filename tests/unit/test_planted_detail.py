"""Mark recall and false copy: what must score 1, what must score 0, and what does not count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.config import compose
from bench.image import read_image
from bench.metrics.metric import ScoringBatch
from bench.metrics.planted_detail import (
    NO_PROBE,
    NOT_MEASURABLE,
    MarkFalseCopy,
    MarkRecall,
    contrast_shares,
    largest_contrast,
    marks_found,
)
from bench.protocol.card import data_root, load_card
from bench.protocol.freeze import load_protocol
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.probe import TEMPLATE_POINTS, Mark, PictureMarks, paint, unmarked
from bench.protocol.protocol import DataSettings
from bench.runs.score import scoring_batch

POINTS = np.array(TEMPLATE_POINTS)
MARK = Mark("left cheek", 40.0, 60.0, 3.0, -0.35)


@pytest.fixture(scope="module")
def pictures(orl_root: Path) -> ProtocolPictures:
    words = ["method=input", "data=orl_heavy_validation", "data.targets=2", "probe=marks", f"data.root={orl_root}"]
    protocol = load_protocol(DataSettings(**compose("run", words)["data"]))
    return ProtocolPictures(protocol, data_root(load_card(protocol.card), str(orl_root)))


def _means(pictures: ProtocolPictures, restored: list[np.ndarray]) -> tuple[float, float]:
    """Mean recall and mean false copy; every picture has a value in the one or the other."""
    batch = scoring_batch(pictures, pictures.protocol.images, restored)
    recall, false_copy = (
        [score.value for score in metric.score_batch(batch)] for metric in (MarkRecall(), MarkFalseCopy())
    )
    assert all((one is None) != (other is None) for one, other in zip(recall, false_copy, strict=True))
    one, other = ([value for value in values if value is not None] for values in (recall, false_copy))
    assert len(one) == len(other) == len(pictures.protocol.images) / 2
    return float(np.mean(one)), float(np.mean(other))


def test_the_ground_truth_has_full_recall_and_copies_nothing(pictures: ProtocolPictures) -> None:
    assert _means(pictures, [pictures.truth(image) for image in pictures.protocol.images]) == (1.0, 0.0)


def test_the_blurred_input_shows_no_mark(pictures: ProtocolPictures) -> None:
    recall, false_copy = _means(pictures, [pictures.lq(image) for image in pictures.protocol.images])
    assert recall <= 0.05
    assert false_copy <= 0.05


@pytest.mark.parametrize("which", [0, 4])
def test_a_copied_reference_has_all_marks(pictures: ProtocolPictures, which: int) -> None:
    copies = [pictures.crop(image.references[which]) for image in pictures.protocol.images]
    recall, false_copy = _means(pictures, copies)
    assert recall >= 0.95
    assert false_copy >= 0.95


def test_natural_texture_is_not_taken_for_marks(pictures: ProtocolPictures) -> None:
    images = pictures.protocol.images
    plain = [pictures.crop(unmarked(image.references[0])) for image in images]
    assert _means(pictures, plain) == (0.0, 0.0)
    # Photographs that the metric has not seen: of the same person but not among the references, and of other people.
    unseen = []
    for image in images:
        own = {photo.path for photo in (image.source, *image.references) if photo is not None}
        mates = [one.source for one in images if one.identity == image.identity and one.source is not None]
        unseen.append(pictures.crop(unmarked(next(photo for photo in mates if photo.path not in own))))
    shown = [image.source for image in images if image.source is not None]
    others = [pictures.crop(unmarked(photo)) for photo in (*shown[len(shown) // 4 :], *shown[: len(shown) // 4])]
    assert max(_means(pictures, unseen)) <= 0.05
    assert max(_means(pictures, others)) <= 0.1


def test_noise_does_not_make_marks(pictures: ProtocolPictures) -> None:
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(pictures.lq(image) + rng.normal(0, 15, (128, 128, 1)), 0, 255).astype(np.uint8)
        for image in pictures.protocol.images
    ]
    assert max(_means(pictures, noisy)) <= 0.05


def _flat(grey: int = 180, side: int = 128) -> np.ndarray:
    return np.full((side, side, 3), grey, dtype=np.uint8)


def _marks(variant: str, mark: Mark = MARK, plain: np.ndarray | None = None) -> PictureMarks:
    plain = _flat() if plain is None else plain
    return PictureMarks(variant, (mark,), ((mark._replace(x=mark.x + 9),),), plain, (_flat(),))


def _found(restored: np.ndarray, variant: str = "both", mark: Mark = MARK) -> list[bool]:
    side = len(restored)
    plain = _flat(side=side)
    marks = PictureMarks(variant, (mark,), ((mark._replace(x=mark.x + 9),),), plain, (plain,))
    truth = paint(plain, [mark]) if variant == "both" else plain
    return marks_found(restored, marks, truth, [paint(plain, [mark._replace(x=mark.x + 9)])])


@pytest.mark.parametrize("variant", ["both", "reference"])
@pytest.mark.parametrize(("share", "appears"), [(1.0, True), (0.55, True), (0.45, False), (0.0, False), (-1.0, False)])
def test_half_of_the_contrast_decides(variant: str, share: float, appears: bool) -> None:
    restored = paint(_flat(), [MARK._replace(contrast=share * MARK.contrast)])
    assert _found(restored, variant) == [appears]


@pytest.mark.parametrize(("shift", "appears"), [(2.5, True), (9.0, True), (18.0, False), (-7.0, False)])
def test_marks_are_searched_near_the_places_on_truth_and_references(shift: float, appears: bool) -> None:
    assert _found(paint(_flat(), [MARK._replace(x=MARK.x + shift)])) == [appears]


def test_large_pictures_are_searched_at_their_own_scale() -> None:
    mark = Mark("chin", 250.0, 400.0, 10.0, 0.35)
    for shift, appears in ((0, True), (10, True), (40, False)):
        assert _found(paint(_flat(side=512), [mark._replace(y=mark.y + shift)]), "both", mark) == [appears]


def test_marks_that_natural_texture_hides_do_not_count() -> None:
    spotted = paint(_flat(), [MARK._replace(x=MARK.x + 1)])
    batch = ScoringBatch(
        ["a@both"],
        spotted[None],
        paint(spotted, [MARK])[None],
        [[_flat()]],
        POINTS[None],
        [POINTS[None]],
        np.ones((1, 128, 128), dtype=bool),
        marks=[_marks("both", plain=spotted)],
    )
    assert MarkRecall().score_batch(batch)[0] == (None, NOT_MEASURABLE)
    assert MarkFalseCopy().score_batch(batch)[0].value is None
    assert "@reference" in (MarkFalseCopy().score_batch(batch)[0].reason or "")
    assert MarkRecall().score_batch(replace(batch, marks=None))[0] == (None, NO_PROBE)
    assert MarkRecall().score_batch(replace(batch, marks=[None]))[0] == (None, NO_PROBE)
    bare = replace(batch, marks=None, truth=None, landmarks=None, references=[[]])
    for metric in (MarkRecall(), MarkFalseCopy()):
        assert metric.score_batch(bare)[0] == (None, NO_PROBE), "the probe is named, not what a probe would need"


def test_a_mark_that_black_swallows_does_not_count() -> None:
    """Where the crop leaves the photograph a dark mark has no contrast at all, on the ground truth or naturally."""
    rows, columns = np.mgrid[:128, :128]
    hill = np.clip(200 - 0.15 * ((columns - 63.5) ** 2 + (rows - 110) ** 2), 20, 255).astype(np.uint8)
    reference = np.repeat(hill[..., None], 3, axis=2)
    truth = reference.copy()
    truth[92:] = 0
    mark = Mark("chin", 63.5, 110.0, 2.5, -0.35)
    marks = PictureMarks("both", (mark,), ((mark,),), truth, (reference,))
    assert contrast_shares(truth, marks, paint(truth, [mark]), [paint(reference, [mark])]) == []


def test_contrast_is_disc_mean_minus_the_rings_quartile(orl_root: Path) -> None:
    picture = read_image(orl_root / "s1" / "1.pgm")[:90, :90, 0] / 255
    mark = Mark("", 41.2, 44.7, 2.4, -0.35)
    scale = 90 / 128
    best = -np.inf
    for row in range(90):
        for column in range(90):
            if (row - 45) ** 2 + (column - 41) ** 2 > (3 * scale) ** 2:
                continue
            distance = np.array([[np.hypot(i - row, j - column) for j in range(90)] for i in range(90)])
            disc = picture[distance <= 2.4].mean()
            ring = np.quantile(picture[(distance > 2.4 + scale) & (distance <= 4.8 + scale)], 0.25)
            best = max(best, ring - disc)
    assert largest_contrast(picture, [(mark.x, mark.y)], mark) == pytest.approx(best, abs=1e-12)
    assert np.isnan(largest_contrast(picture, [(500.0, 10.0)], mark))
