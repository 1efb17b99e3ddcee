"""Landmark and region metrics computed a second time: dlib's predictor, OpenCV's Sobel filter and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from metric_pictures import astronaut, batch_of, blurred, cv2, points_of, turned, value

from bench.weights import catalogue

transform = pytest.importorskip("skimage.transform")
CROP_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
REGIONS = ("eyes", "mouth", "skin")


def dlib_points(picture: np.ndarray, five: np.ndarray) -> np.ndarray:
    """dlib's 68 points from the box that the five points place, in a face of at least 180 px."""
    dlib = pytest.importorskip("dlib")
    if reason := catalogue.missing("dlib_68_points"):
        pytest.skip(reason)
    predictor = dlib.shape_predictor(str(catalogue.locate("dlib_68_points")))
    place = transform.SimilarityTransform.from_estimate(CROP_112, five)
    centre, side = place([[54.7, 70.9]])[0], 84.0 * place.scale
    larger = max(1.0, 180.0 / side)
    shape = np.array(picture.shape[:2])
    if larger > 1:
        rows, columns = (round(float(length * larger)) for length in shape)
        picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_CUBIC)
    ratio = np.array(picture.shape[:2])[::-1] / shape[::-1]
    corners = np.array([centre, centre]) * ratio + (ratio - 1) / 2 + np.array([[-0.5], [0.5]]) * side * ratio
    shape68 = predictor(picture, dlib.rectangle(*np.rint(corners).astype(int).ravel().tolist()))
    found = np.array([(part.x, part.y) for part in shape68.parts()], dtype=float)
    return found / ratio - (ratio - 1) / 2 / ratio


@pytest.mark.parametrize("size", [128, 400])
def test_68_point_distances_are_dlibs(size: int) -> None:
    """The smaller picture is enlarged before dlib reads it, the larger is not."""
    truth = astronaut(size)
    restored = turned(blurred(truth, 2.0), 3.0)
    points = points_of(truth)
    offsets = dlib_points(restored, points_of(restored)) - dlib_points(truth, points)
    distances = np.hypot(*offsets.T)
    batch = batch_of(restored, truth, points)
    assert distances.mean() > 0.5
    assert value("lmd_dlib68", batch) == pytest.approx(distances.mean(), abs=1e-9)
    assert value("lmse_dlib68", batch) == pytest.approx((distances**2).mean(), abs=1e-9)


def test_five_point_distances_are_numpys() -> None:
    truth = astronaut(160)
    restored, points = turned(truth, 5.0), points_of(truth)
    batch = batch_of(restored, truth, points)
    expected = np.sqrt(((points_of(restored) - points) ** 2).sum(1)).mean()
    assert expected > 1
    assert value("lmd_px", batch) == pytest.approx(expected, abs=1e-9)
    assert value("lmd_capped", batch) == pytest.approx(expected, abs=1e-9)
    far = points + np.array([40.0, 0.0])
    eyes = np.sqrt(((points[0] - points[1]) ** 2).sum())
    assert value("lmd_capped", batch_of(restored, truth, far)) == pytest.approx(eyes / 4, abs=1e-9)


def regions_of(picture: np.ndarray) -> dict[str, np.ndarray]:
    from bench.faces.regions import region_masks

    return region_masks(points_of(picture), *picture.shape[:2])


def luma(picture: np.ndarray) -> np.ndarray:
    return picture / 255 @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("region", REGIONS)
def test_sharpness_is_the_ratio_of_opencvs_sobel_gradients(region: str) -> None:
    truth = astronaut(160)
    restored, mask = blurred(truth, 2.0), regions_of(truth)[region]
    energies = []
    for picture in (restored, truth):
        slopes = [
            cv2.Sobel(luma(picture), cv2.CV_64F, *axis, borderType=cv2.BORDER_REPLICATE) for axis in ((1, 0), (0, 1))
        ]
        energies.append(sum((slope[mask] ** 2).sum() for slope in slopes))
    found = value(f"sharpness_{region}", batch_of(restored, truth, points_of(truth)))
    assert found == pytest.approx(np.sqrt(energies[0] / energies[1]), rel=1e-6)


@pytest.mark.parametrize("region", REGIONS)
def test_psnr_of_a_region_counts_the_photographs_pixels_alone(region: str) -> None:
    truth = astronaut(160)
    restored, mask = blurred(truth, 2.0), regions_of(truth)[region]
    rows, columns = np.nonzero(mask)
    valid = np.ones(mask.shape, dtype=bool)
    valid[:, : int(np.median(columns))] = False
    valid[int(np.quantile(rows, 0.8)) :] = False
    spoilt = np.where(valid[..., None], restored, 255 - truth).astype(np.uint8)
    counted = mask & valid
    assert 0 < counted.sum() < mask.sum()
    expected = -10 * np.log10(((luma(spoilt) - luma(truth))[counted] ** 2).mean())
    found = value(f"psnr_{region}", batch_of(spoilt, truth, points_of(truth), valid=valid))
    assert found == pytest.approx(expected, abs=1e-6)
