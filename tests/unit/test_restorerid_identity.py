"""Face encoders, image states, reference faces and the LQ quality of RestorerID."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bench.errors import MissingError, UsageError
from bench.faces.geometry import ARCFACE_112
from bench.files import sha256_file
from bench.image import read_image
from methods.restorerid import quality, reference_faces
from methods.restorerid.identity_tokens import (
    CLIP_MEAN,
    CLIP_STD,
    ClipImageStates,
    DemoFaceEncoder,
    IdentityProjection,
    PublishedFaceEncoder,
)
from methods.restorerid.reference_faces import MissingFaceError, choose_references

SMALL_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 224,
}


@pytest.fixture(scope="module")
def face(orl_root: Path) -> torch.Tensor:
    """A photograph, (3, 112, 92)."""
    return torch.from_numpy(read_image(orl_root / "s1" / "1.pgm")).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def clip() -> ClipImageStates:
    torch.manual_seed(0)
    return ClipImageStates(SMALL_CLIP)


def test_image_states_are_the_layer_before_the_last(clip):
    crops = torch.rand(2, 3, 224, 224)
    states = clip(crops, bgr_compat=False)
    assert states.shape == (2, 28 * 28 + 1, 16)
    normalised = (crops - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    caught = []
    layers = clip.image_encoder.vision_model.encoder.layers
    hook = layers[-1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        clip.image_encoder(normalised)
    hook.remove()
    torch.testing.assert_close(states, caught[0])
    assert not states.requires_grad
    assert not clip.train().image_encoder.training


def test_bgr_compat_swaps_red_and_blue_before_the_normalisation(clip):
    crops = torch.rand(1, 3, 224, 224)
    assert torch.equal(clip(crops), clip(crops[:, [2, 1, 0]], bgr_compat=False))
    assert not torch.allclose(clip(crops), clip(crops, bgr_compat=False))


def test_unconditional_image_is_zero_after_the_normalisation(clip):
    average = torch.tensor(CLIP_MEAN)[None, :, None, None].expand(1, 3, 224, 224)
    none = clip.unconditional(3)
    assert none.shape == (3, 28 * 28 + 1, 16)
    torch.testing.assert_close(none[:1], clip(average, bgr_compat=False), atol=1e-5, rtol=0)


def test_image_encoder_loads_its_file_and_names_another(clip, tmp_path):
    state = clip.image_encoder.state_dict()
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file({**half, "vision_model.embeddings.position_ids": torch.arange(785)[None]}, tmp_path / "clip.safetensors")
    other = ClipImageStates(SMALL_CLIP)
    other.load_weights(tmp_path / "clip.safetensors")
    assert all(torch.equal(tensor.half(), half[name]) for name, tensor in other.image_encoder.state_dict().items())
    assert other.digest == f"clip {sha256_file(tmp_path / 'clip.safetensors')[:12]}"
    half.pop("visual_projection.weight")
    save_file(half, tmp_path / "short.safetensors")
    with pytest.raises(UsageError, match=r"short\.safetensors is not the expected.*\n.*visual_projection"):
        other.load_weights(tmp_path / "short.safetensors")
    with pytest.raises(MissingError):
        other.load_weights(tmp_path / "absent.safetensors")


def test_published_encoder_hands_the_224_crop_to_clip(clip):
    class Recogniser:
        def embed(self, images, points):
            return F.normalize(torch.ones(len(images), 512), dim=1)

        def short_hash(self):
            return "constant"

    encoder = PublishedFaceEncoder(Recogniser(), clip)
    images = torch.rand(1, 3, 224, 224)
    features = encoder.encode(images, 2 * torch.tensor(ARCFACE_112, dtype=torch.float64)[None])
    # Points at the template's own place: the crop is the picture.
    torch.testing.assert_close(features.image_states, clip(images), atol=1e-4, rtol=0)
    assert encoder.digest == "constant, clip, weights unnamed at 224 px, blue, green, red"
    none = encoder.unconditional(2, "cpu")
    assert not none.identity.any()
    assert none.image_states.shape == (2, 28 * 28 + 1, 16)


def test_demo_encoder_tells_people_apart_and_makes_tokens(orl_root):
    encoder = DemoFaceEncoder()
    pictures = [read_image(orl_root / person / f"{number}.pgm") for person in ("s1", "s2") for number in (1, 2)]
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures])
    faces = choose_references(images[:, None], torch.ones(4, 1, dtype=torch.bool), list("abcd"))
    features = encoder.encode(faces.images, faces.points)
    assert features.image_states.shape == (4, 49, encoder.image_dim)
    similarity = features.identity @ features.identity.T
    torch.testing.assert_close(similarity.diagonal(), torch.ones(4))
    assert min(similarity[0, 1], similarity[2, 3]) > max(similarity[0, 2], similarity[1, 3])
    none = encoder.unconditional(4, "cpu")
    assert none.image_states.shape == (4, 49, encoder.image_dim)
    assert not none.identity.any()
    projection = IdentityProjection(encoder.identity_dim, encoder.image_dim, 32, depth=1, head_width=16)
    tokens = projection(features.identity, features.image_states)
    assert tokens.shape == (4, 4, 32)


def test_references_without_a_face(face):
    empty = torch.zeros_like(face)
    references = torch.stack([torch.stack([empty, face]), torch.stack([empty, empty])])
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(MissingFaceError, match=r"Reference 1 of a\.png shows no face.*on_missing_face=skip .*=blind"):
        choose_references(references, mask, ["a.png", "b.png"])
    with pytest.raises(MissingFaceError, match=r"None of the 2 references of b\.png shows a face"):
        choose_references(references, mask, ["a.png", "b.png"], "skip")
    chosen = choose_references(references, mask, ["a.png", "b.png"], "blind")
    assert chosen.present.tolist() == [True, False]
    assert torch.equal(chosen.images[0], face)
    assert chosen.points[0].min() > 0
    assert chosen.points[0].max() < 112
    alone = choose_references(references, torch.zeros_like(mask), ["a.png", "b.png"])
    assert alone.present.tolist() == [False, False]
    with pytest.raises(UsageError, match="on_missing_face"):
        choose_references(references, mask, ["a.png", "b.png"], "ignore")


def test_of_two_faces_the_largest_is_taken_and_said(face, capsys):
    large = F.interpolate(face[None], scale_factor=2, mode="bicubic").clamp(0, 1)[0]
    both = torch.full((3, 224, 300), 0.5)
    both[:, 56:168, :92] = face
    both[:, :, 110:294] = large
    points = reference_faces.locate_face(both, "pair.png")
    assert points[:, 0].min() > 110
    assert "pair.png shows 2 faces" in capsys.readouterr().err


def test_quality_falls_with_blur_and_noise_and_rows_do_not_touch(face):
    estimator = quality.build_quality("bands")
    image = F.interpolate(face[None], size=(128, 128), mode="bicubic").clamp(0, 1)
    blurred = [quality._gaussian(image.transpose(0, 1), sigma).transpose(0, 1) for sigma in (1.0, 2.0, 4.0)]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(image + sigma / 255 * noise).clamp(0, 1) for sigma in (10.0, 25.0)]
    values = estimator(torch.cat([image, *blurred, *noisy]))
    assert values.shape == (6,)
    assert values[0] > values[1] > values[2] > values[3]
    assert values[0] > values[4] > values[5]
    torch.testing.assert_close(estimator(blurred[1]), values[2:3], atol=1e-3, rtol=0)
    doubled = F.interpolate(blurred[2], scale_factor=2, mode="bicubic")
    torch.testing.assert_close(estimator(doubled), values[3:4], atol=5.0, rtol=0)
    assert "HaarPSI" in estimator.name


def test_fit_of_the_quality_finds_what_was_put_in(tmp_path):
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(2000, quality.FEATURES)))
    targets = 50 + 8 * features[:, 3] - 4 * features[:, 0] * features[:, 5]
    estimator = quality.fit_quality("x", 128, features, targets, ridge=1e-4)
    error = (estimator.from_features(features) - targets).abs()
    assert error.median() < 0.5
    far = torch.full((1, quality.FEATURES), 1e3, dtype=torch.float64)
    assert estimator.from_features(far).abs() < 500, "beyond the fit the value stays bounded"
    (tmp_path / "short.json").write_text('{"weights": [1.0], "mean": [0.0]}')
    with pytest.raises(UsageError, match="does not hold the weights"):
        quality.demo_quality(tmp_path / "short.json")
    with pytest.raises(UsageError, match=r"method\.quality"):
        quality.build_quality("brisque")
