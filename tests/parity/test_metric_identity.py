"""Identity computed a second time: dlib and onnxruntime called directly on crops cut by scikit-image's similarity."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_pictures import astronaut, batch_of, blurred, cv2, points_of, turned, value

import bench.faces
from bench.weights import catalogue

transform = pytest.importorskip("skimage.transform")
#: Where dlib's own chips of 150 px have the eyes, the nose and the mouth corners.
CHIP_150 = np.array([[46.1, 45.5], [101.1, 45.5], [73.8, 76.1], [50.3, 100.4], [96.9, 100.4]])
#: Where ArcFace crops of 112 px have them (insightface's `arcface_dst`).
CROP_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIZE = 160  # so small that chips are enlarged, and nothing is shrunk before


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


@cache
def dlib_network() -> Any:
    dlib = pytest.importorskip("dlib")
    if reason := catalogue.missing("dlib_resnet"):
        pytest.skip(reason)
    return dlib.face_recognition_model_v1(str(catalogue.locate("dlib_resnet")))


def described(chip: np.ndarray) -> np.ndarray:
    """dlib's descriptor, less the mean of the training photographs."""
    content = json.loads(Path(bench.faces.__path__[0], "dlib_judge_mean.json").read_text("utf-8"))
    return np.array(dlib_network().compute_face_descriptor(np.ascontiguousarray(chip))) - np.array(content["mean"])


def chip_of(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    matrix = transform.SimilarityTransform.from_estimate(points, CHIP_150).params[:2]
    return cv2.warpAffine(picture, matrix, (150, 150), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_id_is_dlibs_cosine(sigma: float) -> None:
    truth = astronaut(SIZE)
    restored, points = blurred(truth, sigma), points_of(truth)
    expected = cosine(described(chip_of(restored, points)), described(chip_of(truth, points)))
    assert value("id", batch_of(restored, truth, points)) == pytest.approx(expected, abs=1e-9)


def test_ips_is_the_mean_of_dlibs_cosines() -> None:
    truth = astronaut(SIZE)
    restored, points = blurred(truth, 1.5), points_of(truth)
    references = (turned(truth, 15.0), truth[:, ::-1].copy(), blurred(truth, 2.0))
    own = described(chip_of(restored, points))
    cosines = [cosine(own, described(chip_of(reference, points_of(reference)))) for reference in references]
    assert max(cosines) - min(cosines) > 0.01
    found = value("ips", batch_of(restored, truth, points, references))
    assert found == pytest.approx(sum(cosines) / len(cosines), abs=1e-9)


@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_id_detected_is_dlibs_cosine_at_the_restored_pictures_own_face(degrees: float) -> None:
    truth = astronaut(SIZE)
    restored, points = blurred(turned(truth, degrees), 1.0), points_of(truth)
    expected = cosine(described(chip_of(restored, points_of(restored))), described(chip_of(truth, points)))
    found = value("id_detected", batch_of(restored, truth, points))
    assert found == pytest.approx(expected, abs=1e-9)
    if degrees:
        assert found > value("id", batch_of(restored, truth, points)) + 0.05


def test_id_detected_is_near_dlibs_own_detection_and_chips() -> None:
    """Nothing of ours: dlib's detector, its five-point predictor, its chips. Other points, so near and not equal."""
    dlib = pytest.importorskip("dlib")
    network = dlib_network()
    file = catalogue.locate("dlib_resnet").with_name("shape_predictor_5_face_landmarks.dat")
    if not file.is_file():
        pytest.skip("needs dlib's five-point predictor beside its recogniser")
    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(file))

    def own(picture: np.ndarray) -> np.ndarray:
        box = detector(picture, 1)[0]
        return described(dlib.get_face_chip(picture, predictor(picture, box), size=150, padding=0.25))

    assert network is not None
    truth = astronaut(256)
    for restored in (turned(truth, 12.0), blurred(truth, 3.0), blurred(turned(truth, -8.0), 2.0)):
        found = value("id_detected", batch_of(restored, truth, points_of(truth)))
        assert found == pytest.approx(cosine(own(restored), own(truth)), abs=0.06)


@cache
def sface_session() -> Any:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if reason := catalogue.missing("sface"):
        pytest.skip(reason)
    model = onnx.load(str(catalogue.locate("sface")))
    data = [item for item in model.graph.input if item.name == "data"]
    del model.graph.input[:]
    model.graph.input.extend(data)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def sface(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """SFace by onnxruntime on a crop that scikit-image cuts, bilinear, black outside."""
    to_crop = transform.SimilarityTransform.from_estimate(points, CROP_112)
    crop = transform.warp(picture / 255.0, to_crop.inverse, output_shape=(112, 112), order=1) * 255
    return sface_session().run(None, {"data": crop.transpose(2, 0, 1)[None].astype(np.float32)})[0][0].astype(float)


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_id_sface_is_onnxruntimes_cosine(sigma: float) -> None:
    truth = astronaut(SIZE)
    restored, points = blurred(truth, sigma), points_of(truth)
    expected = cosine(sface(restored, points), sface(truth, points))
    assert value("id_sface", batch_of(restored, truth, points)) == pytest.approx(expected, abs=1e-4)


def test_ips_sface_is_the_mean_of_onnxruntimes_cosines() -> None:
    truth = astronaut(SIZE)
    restored, points = blurred(truth, 1.5), points_of(truth)
    references = (turned(truth, 15.0), truth[:, ::-1].copy())
    own = sface(restored, points)
    expected = np.mean([cosine(own, sface(reference, points_of(reference))) for reference in references])
    assert value("ips_sface", batch_of(restored, truth, points, references)) == pytest.approx(expected, abs=1e-4)


def test_spreads_over_degradations_are_scipys_on_dlibs_descriptors() -> None:
    distance, stats = pytest.importorskip("scipy.spatial.distance"), pytest.importorskip("scipy.stats")
    truth = astronaut(SIZE)
    points = points_of(truth)
    restored = [truth, blurred(truth, 1.5), blurred(truth, 3.0), turned(truth, 5.0)]
    batch = replace(batch_of(restored[1], truth, points), restorations=[restored])
    own = np.stack([described(chip_of(picture, points)) for picture in restored])
    cosines = [cosine(one, own[0]) for one in own]
    assert value("id_spread", batch) == pytest.approx(stats.moment(cosines, order=2) ** 0.5, abs=1e-9)
    assert value("id_change", batch) == pytest.approx(distance.pdist(own, "cosine").mean(), abs=1e-9)
