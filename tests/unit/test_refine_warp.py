from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import transform

from methods.refine.warp import border_anchors, fit_similarity, warp_reference

KINDS = ["tps", "piecewise_affine", "similarity"]
FACE = np.array([[40.0, 50], [85, 48], [64, 75], [45, 95], [82, 96]])
MOVED = FACE + np.array([[3.0, -2], [-1, 4], [2, 2], [-3, 1], [2, -3]])


def smooth_picture(height: int = 112, width: int = 128) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(x / 9).sin(), (y / 7).cos(), ((x + y) / 11).sin()])[None].float()


def points(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[None]


@pytest.mark.parametrize("kind", KINDS)
def test_same_points_give_the_same_picture(kind):
    picture = torch.rand(2, 3, 112, 128)
    same = points(FACE).expand(2, -1, -1)
    warped, validity = warp_reference(picture, same, same, kind)
    torch.testing.assert_close(warped, picture, atol=2e-4, rtol=0)
    assert validity.shape == (2, 1, 112, 128) and validity.min() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_moves_pixels_exactly_and_marks_what_left_the_picture(kind):
    picture = torch.rand(1, 3, 112, 128)
    warped, validity = warp_reference(picture, points(FACE), points(FACE + np.array([5, -3])), kind)
    torch.testing.assert_close(warped[..., :-3, 5:], picture[..., 3:, :-5], atol=2e-4, rtol=0)
    expected = torch.zeros(112, 128)
    expected[:-3, 5:] = 1
    assert torch.equal(validity[0, 0], expected)
    assert (warped * (1 - validity)).abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_of_a_batch_has_its_own_warp(kind):
    picture = torch.rand(2, 3, 64, 64)
    source = points(FACE / 2).expand(2, -1, -1)
    target = torch.stack([torch.from_numpy(FACE / 2), torch.from_numpy(MOVED / 2)])
    together, _ = warp_reference(picture, source, target, kind)
    for index in range(2):
        alone, _ = warp_reference(
            picture[index : index + 1], source[index : index + 1], target[index : index + 1], kind
        )
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)


def test_similarity_against_skimage():
    estimated = fit_similarity(points(FACE), points(MOVED * 1.1 + 4))[0].numpy()
    reference = transform.SimilarityTransform.from_estimate(FACE, MOVED * 1.1 + 4)
    np.testing.assert_allclose(estimated, reference.params[:2], atol=1e-9)


def with_anchors(target: np.ndarray, source: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    anchors = border_anchors(height, width)[0].numpy()
    moved = transform.SimilarityTransform.from_estimate(target, source)(anchors)
    return np.concatenate([target, anchors]), np.concatenate([source, moved])


@pytest.mark.parametrize("kind", ["tps", "piecewise_affine"])
def test_warp_against_skimage(kind):
    picture = smooth_picture()
    height, width = picture.shape[-2:]
    warped, validity = warp_reference(picture, points(FACE), points(MOVED), kind)
    target, source = with_anchors(MOVED, FACE, height, width)
    mapping = transform.ThinPlateSplineTransform if kind == "tps" else transform.PiecewiseAffineTransform
    estimated = mapping.from_estimate(target, source)
    expected = transform.warp(picture[0].permute(1, 2, 0).numpy(), estimated, order=1, preserve_range=True)
    inside = validity[0, 0].numpy() > 0
    assert inside.mean() > 0.9
    difference = np.abs(warped[0].permute(1, 2, 0).numpy() - expected)[inside]
    assert difference.max() < 2e-3


@pytest.mark.parametrize("kind", ["tps", "piecewise_affine"])
def test_reference_points_land_on_target_points(kind):
    y, x = torch.meshgrid(torch.arange(112.0), torch.arange(128.0), indexing="ij")
    coordinates = torch.stack([x, y, x])[None]
    target = MOVED.round()
    warped, _ = warp_reference(coordinates, points(FACE), points(target), kind)
    landed = np.array([[warped[0, 0, int(v), int(u)], warped[0, 1, int(v), int(u)]] for u, v in target])
    np.testing.assert_allclose(landed, FACE, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_points_that_coincide_give_finite_pictures(kind):
    target = MOVED.copy()
    target[1] = target[0]
    warped, _ = warp_reference(smooth_picture(), points(FACE), points(target), kind)
    assert torch.isfinite(warped).all()


@pytest.mark.parametrize(
    ("source", "target", "kind", "message"),
    [
        (FACE[:4], FACE, "tps", "points must be"),
        (FACE, FACE * np.nan, "tps", "finite"),
        (FACE, FACE, "spline", "unknown warp 'spline'"),
        (FACE[:1], FACE[:1], "tps", "do not fit"),
    ],
)
def test_bad_points_are_refused(source, target, kind, message):
    with pytest.raises(ValueError, match=message):
        warp_reference(smooth_picture(), points(source), points(target), kind)
