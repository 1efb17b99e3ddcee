"""References of two people are noticed, and the odd one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.faces.same_person import SAME_PERSON, odd_references, split_odd
from bench.image import read_image
from bench.weights import catalogue

needs_faces = pytest.mark.skipif(
    any(catalogue.missing(name) is not None for name in ("yunet", "sface")), reason="needs YuNet and SFace"
)


def faces(root: Path, *files: str) -> Tensor:
    """ORL photographs as squares, (R, 3, 128, 128)."""
    crops = [
        torch.from_numpy(read_image(root / f"{file}.pgm"))[10:102].permute(2, 0, 1).float() / 255 for file in files
    ]
    return F.interpolate(torch.stack(crops), (128, 128), mode="bicubic", antialias=True).clamp(0, 1)


@needs_faces
@pytest.mark.parametrize("person", [1, 4, 17, 33])
def test_one_person_brings_no_warning(orl_root: Path, person: int) -> None:
    pictures = faces(orl_root, *(f"s{person}/{number}" for number in range(1, 6)))
    for count in (1, 2, 3, 5):
        assert odd_references(pictures[:count], [f"{number}.png" for number in range(count)]) == []


@needs_faces
@pytest.mark.parametrize("place", range(4))
def test_the_picture_of_somebody_else_is_named_and_no_other(orl_root: Path, place: int) -> None:
    files = ["s1/1", "s1/2", "s1/3"]
    files.insert(place, "s2/1")
    names = [f"{file}.png" for file in files]
    (warning,) = odd_references(faces(orl_root, *files), names)
    assert "s2/1.png" in warning and "somebody else" in warning
    assert not any(name in warning for name in names if name != "s2/1.png")


@needs_faces
@pytest.mark.parametrize("files", [("s1/1", "s2/1"), ("s1/1", "s1/2", "s2/1", "s2/2"), ("s1/1", "s2/1", "s5/1")])
def test_where_nobody_can_say_who_is_meant_all_are_named(orl_root: Path, files: tuple[str, ...]) -> None:
    (warning,) = odd_references(faces(orl_root, *files), files)
    assert all(file in warning for file in files)
    assert "different people" in warning


@needs_faces
def test_two_of_one_person_and_one_of_another(orl_root: Path) -> None:
    (warning,) = odd_references(faces(orl_root, "s1/1", "s2/1", "s1/2"), ["a", "B.png", "c"])
    assert "B.png" in warning and "somebody else" in warning


@needs_faces
def test_a_picture_without_a_face_is_named_and_the_others_are_still_compared(orl_root: Path) -> None:
    pictures = torch.cat([faces(orl_root, "s1/1", "s1/2", "s1/3", "s2/1"), torch.full((1, 3, 128, 128), 0.4)])
    found = odd_references(pictures, ["a", "b", "c", "other.png", "flat.png"])
    assert len(found) == 2
    assert "No face" in found[0] and "flat.png" in found[0]
    assert "other.png" in found[1]
    assert odd_references(torch.zeros(2, 3, 40, 40), ["x", "y"])[1].startswith("No face")
    assert odd_references(torch.zeros(0, 3, 40, 40), []) == []


@pytest.mark.parametrize("name", ["yunet", "sface"])
def test_absent_weights_leave_the_check_out_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(catalogue, "missing", lambda asked: "not here.\nGet it." if asked == name else None)
    (sentence,) = odd_references(torch.zeros(2, 3, 40, 40), ["a", "b"])
    assert "left out" in sentence and "not here. Get it." in sentence
    assert "\n" not in sentence


def test_the_strangest_are_set_aside_first() -> None:
    """Two agree, two are nobody's: the mean of those that agree is lifted only once the others are gone."""
    cosines = np.array([[1, 0.8, 0.0, 0.1], [0.8, 1, 0.1, 0.0], [0.0, 0.1, 1, -0.1], [0.1, 0.0, -0.1, 1]])
    assert cosines[0, 1:].mean() < SAME_PERSON
    assert split_odd(cosines) == ([2, 3], [0, 1])
    assert split_odd(np.ones((3, 3))) == ([], [0, 1, 2])
    assert split_odd(np.ones((1, 1))) == ([], [0])
