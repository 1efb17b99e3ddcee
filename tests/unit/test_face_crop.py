"""Where a face's crop lies, how it is cut without aliasing, and how it comes back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bench.photographs.blend import LUMA, change, grey_of, put_back
from bench.photographs.face_crop import FaceCrop, face_crop, resized_matrix, warped
from bench.photographs.face_mask import FEATHER, face_mask
from bench.protocol.alignment import FFHQ_512, ORL_TIGHT

PHOTO = (300, 400)


def turned(angle: float, scale: float, side: int = 128, centre: tuple[float, float] = (200.0, 150.0)) -> FaceCrop:
    """A crop around `centre`, turned by degrees, `scale` pixels of the crop per pixel of the photograph."""
    matrix = cv2.getRotationMatrix2D(centre, angle, scale)
    matrix[:, 2] += (side - 1) / 2 - np.array(centre)
    return FaceCrop(matrix, side, PHOTO)


def points_of(crop: FaceCrop) -> np.ndarray:
    """Where ORL's template lies in the photograph."""
    return np.asarray(ORL_TIGHT.points) @ crop.inverse[:, :2].T + crop.inverse[:, 2]


def smooth_photo() -> np.ndarray:
    y, x = np.mgrid[0 : PHOTO[0], 0 : PHOTO[1]]
    waves = [np.sin(x / 23 + phase) * np.cos(y / 17 - phase) for phase in (0.0, 1.0, 2.0)]
    return np.clip(128 + 90 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (17, 0.8), (-35, 2.5), (90, 0.8), (170, 1.3)])
def test_points_of_a_face_give_the_crop_they_come_from(angle: float, scale: float) -> None:
    crop = turned(angle, scale)
    found = face_crop(points_of(crop), ORL_TIGHT, 128, PHOTO)
    assert np.abs(found.corners - crop.corners).max() < 0.01
    assert found.scale == pytest.approx(scale, rel=1e-5)
    assert found.side_in_photo == pytest.approx(128 / scale, rel=1e-5)


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (12, 0.7), (-30, 3.0)])
def test_what_is_cut_comes_back_where_it_was(angle: float, scale: float) -> None:
    photo, crop = smooth_photo(), turned(angle, scale)
    back = crop.back(crop.cut(photo).astype(np.float32))
    inside = face_mask(crop, points_of(crop)) > 0.5
    assert inside.sum() > 0.3 * (128 / scale) ** 2
    difference = np.abs(back - photo[crop.window])[inside]
    assert difference.max() < 4 and difference.mean() < 0.6


def test_a_fine_pattern_becomes_grey_and_no_other_pattern() -> None:
    y, x = np.mgrid[0:1024, 0:1024]
    board = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    for scale in (0.125, 0.11, 0.3):
        matrix = resized_matrix(np.eye(2, 3), scale)
        small = warped(board, matrix, (100, 100))
        assert small.std() < 12, scale
        assert abs(small.mean() - 127.5) < 2
    naive = cv2.warpAffine(board, resized_matrix(np.eye(2, 3), 0.11), (100, 100), flags=cv2.INTER_LINEAR)
    assert naive.std() > 30


def test_an_aligned_picture_is_taken_whole() -> None:
    points = (np.asarray(ORL_TIGHT.points) + 0.5) * 3 - 0.5
    noise = np.random.default_rng(0).normal(0, 4, points.shape)
    crop = face_crop(points + noise, ORL_TIGHT, 128, (384, 384))
    assert np.allclose(crop.matrix, resized_matrix(np.eye(2, 3), 1 / 3))
    assert face_mask(crop, points).min() == 1
    # A square photograph with a smaller face in it is cut.
    assert face_crop(points / 2, ORL_TIGHT, 128, (384, 384)).side_in_photo == pytest.approx(192, rel=0.01)


def test_the_templates_keep_their_place_at_any_size() -> None:
    points = (np.asarray(FFHQ_512.points) + 0.5) / 2 - 0.5 + (60, 20)
    crop = face_crop(points, FFHQ_512, 128, PHOTO)
    assert np.allclose(crop.corners, [[59.5, 19.5], [315.5, 19.5], [315.5, 275.5], [59.5, 275.5]], atol=1e-3)
    assert crop.at_side(512).side_in_photo == pytest.approx(crop.side_in_photo)
    assert np.allclose(crop.at_side(512).corners, crop.corners, atol=1e-3)
    larger = crop.of_enlarged((2.0, 2.0), (600, 800))
    assert np.allclose(larger.corners, (crop.corners + 0.5) * 2 - 0.5, atol=1e-3)


def test_the_mask_ends_within_the_crop_and_has_no_steps() -> None:
    crop = turned(20, 0.6)
    mask = face_mask(crop, points_of(crop))
    rows, columns = crop.window
    assert mask.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert mask.min() == 0 and mask.max() == 1
    y, x = np.mgrid[rows, columns]
    mapped = np.stack([x, y], axis=-1) @ crop.matrix[:, :2].T + crop.matrix[:, 2]
    outside = ((mapped < -0.5) | (mapped > crop.side - 0.5)).any(-1)
    assert outside.any() and not mask[outside].any()
    steepest = 1.5 / (FEATHER * crop.side) * crop.scale
    assert np.abs(np.diff(mask, axis=0)).max() < 1.5 * steepest
    assert np.abs(np.diff(mask, axis=1)).max() < 1.5 * steepest


def test_a_side_beyond_the_photograph_is_not_feathered() -> None:
    crop = turned(0, 1.0, centre=(40.0, 150.0))  # its left side lies at -24
    mask = face_mask(crop, points_of(crop))
    middle = mask[mask.shape[0] // 2]
    assert middle[0] == 1 and middle[-1] < 0.05
    assert mask[0].max() < 0.05 and mask[-1].max() < 0.05


def test_neighbours_keep_their_own_side() -> None:
    crop = turned(0, 1.0)
    own = points_of(crop)
    other = own + np.array([60, 0])
    mask = face_mask(crop, own, [other])
    alone = face_mask(crop, own)
    columns = np.arange(crop.window[1].start, crop.window[1].stop)
    beyond = columns > own[:, 0].mean() + 60 * 0.65
    assert not mask[:, beyond].any() and alone[:, beyond].max() == 1
    before = columns < own[:, 0].mean() + 60 * 0.35
    assert np.array_equal(mask[:, before], alone[:, before])


@pytest.mark.parametrize("grey", [False, True])
def test_nothing_outside_the_mask_changes_and_a_drift_of_tone_leaves_no_patch(grey: bool) -> None:
    photo, crop = smooth_photo(), turned(15, 0.9)
    cut = crop.cut(photo)
    mask = face_mask(crop, points_of(crop))
    drifted = cut.astype(np.float32) + 25
    if grey:
        drifted = np.repeat((drifted @ LUMA)[..., None], 3, axis=2)
    canvas = photo.copy()
    put_back(canvas, photo, crop, change(cut, drifted, grey), mask)
    touched = np.zeros(PHOTO, bool)
    touched[crop.window] = mask > 0
    assert np.array_equal(canvas[~touched], photo[~touched])
    light = np.abs(canvas.astype(float) @ LUMA - photo.astype(float) @ LUMA)
    assert light.max() < 3
    detail = np.zeros((128, 128, 3), np.float32)
    detail[60:64, 60:64] = 60
    put_back(canvas, photo, crop, change(cut, cut + detail, False), mask)
    assert np.abs(canvas.astype(int) - photo).max() > 30


def test_grey_networks_keep_the_photographs_colour() -> None:
    photo, crop = smooth_photo(), turned(0, 1.0)
    cut = crop.cut(photo)
    restored = np.repeat((cut.astype(np.float32) @ LUMA)[..., None], 3, axis=2)
    restored[40:80:2] += 30
    canvas = photo.copy()
    put_back(canvas, photo, crop, change(cut, restored, True), face_mask(crop, points_of(crop)))

    def colour(pixels: np.ndarray) -> np.ndarray:
        return pixels.astype(float) - (pixels.astype(float) @ LUMA)[..., None]

    unclipped = ((canvas > 0) & (canvas < 255) & (photo > 0) & (photo < 255)).all(-1)
    assert np.abs(colour(canvas) - colour(photo))[unclipped].max() < 12
    assert np.abs(canvas.astype(float) @ LUMA - photo.astype(float) @ LUMA).max() > 10
    assert np.ptp(grey_of(photo), axis=2).max() == 0
