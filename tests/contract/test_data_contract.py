"""What holds for every data card and every data configuration, and that each layout is read as its card says."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import main
from bench.config import compose, group_choices
from bench.paths import resource_root
from bench.protocol.card import CONTENTS, LAYOUTS, SPLITS, DatasetCard, card_names, load_card
from bench.protocol.layout import PAIRED_FOLDERS, list_photos
from bench.protocol.protocol import DataSettings, presets_of
from bench.protocol.selection import RULES as SELECTION_RULES
from bench.protocol.splits import RULES as SPLIT_RULES
from bench.protocol.splits import split_identities
from bench.registry import metric_classes

CONFIGURATIONS = sorted((resource_root() / "configs" / "data").glob("*.yaml"))
KEYS = [
    "name",
    "title",
    "card",
    "degradation",
    "split",
    "size",
    "seed",
    "identities",
    "references",
    "targets",
    "selection",
    "minimum_photos",
    "root",
]
FILE_KEYS = {"name", "url", "sha256", "bytes", "verified"}
WANTED_CARDS = {
    "authface_hq",
    "casia_webface",
    "celeba_test",
    "celeba_test_ref",
    "celebchild_test",
    "celebref",
    "ffhq",
    "ffhq_ref",
    "folder",
    "lfw_test",
    "orl",
    "pfstorer_real20",
    "refine_celebrities34",
    "refine_real14",
    "restorerid_real20",
    "vggface2_hq",
    "webphoto_test",
    "wider_test",
}
WHERE_READ = re.compile(r"README|\.html|\.py\b|[\w.-]+/[\w.-]+#\d+")

every_card = pytest.mark.parametrize("name", card_names())
every_configuration = pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def test_the_data_sets_of_the_papers_have_cards() -> None:
    assert set(card_names()) >= WANTED_CARDS


@every_card
def test_card_says_what_it_is(name: str) -> None:
    card = load_card(name)
    assert card.name == name
    for field in ("title", "licence", "terms", "citation", "source", "obtain"):
        value = getattr(card, field)
        assert isinstance(value, str), field
        assert value.strip(), field
    assert card.traps
    assert all(isinstance(trap, str) and trap.strip() for trap in card.traps)
    assert card.layout in LAYOUTS
    assert card.contents in CONTENTS
    assert _whole(card.size, 16)
    assert set(card.statistics) <= {"images", "identities", "photographs"}
    assert all(card.statistics.get(key) is None or _whole(card.statistics[key], 1) for key in ("images", "identities"))
    assert isinstance(card.public, bool)
    if not card.public:
        assert "not public" in card.obtain
        assert not card.files
    re.compile(card.identity_pattern)
    re.compile(card.photo_pattern)


@every_card
def test_card_keeps_to_the_layout(name: str) -> None:
    card = load_card(name)
    assert set(card.folders) <= set(PAIRED_FOLDERS)
    assert card.align in (None, "ffhq_512")
    if card.folders:
        assert card.layout in ("paired", "auto")
    if card.contents == "lq" and card.layout == "paired":
        assert card.folders["ground_truth"] is None
        assert card.folders["lq"]
    if card.identities_from is not None:
        assert set(card.identities_from) in ({"pattern"}, {"file"})
        if "pattern" in card.identities_from:
            assert re.compile(card.identities_from["pattern"]).groups == 1
    if card.references_from is not None:
        assert set(card.references_from) == {"file", "image", "references"}
    if card.alignment is not None:
        assert (resource_root() / "datasets" / card.alignment).is_file()


@every_card
def test_nothing_is_claimed_of_an_archive_that_nobody_hashed(name: str) -> None:
    card = load_card(name)
    for file in card.files:
        assert set(file) == FILE_KEYS, file["name"]
        assert file["bytes"] is None or _whole(file["bytes"], 1)
        if file["sha256"] is None:
            assert file["verified"] == "unverified"
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", file["sha256"])
            assert str(file["verified"]).strip() not in ("", "unverified")
        if file["url"] is not None:
            assert file["url"].startswith("https://")
            assert WHERE_READ.search(card.source), "a link needs a place where it was read"


@every_card
def test_splits_are_disjoint_and_ours_are_seeded(name: str) -> None:
    card = load_card(name)
    if "rule" in card.splits:
        assert card.splits["rule"] in SPLIT_RULES
        if card.splits["rule"] == "hashed":
            assert set(card.splits) == {"rule", "seed", "test", "validation"}
            assert all(_whole(card.splits[key]) for key in ("seed", "test", "validation"))
        else:
            assert set(card.splits) == {"rule"}
        people = [f"{index:05d}" for index in range(400)]
    else:
        assert set(card.splits) == set(SPLITS)
        people = [str(identity) for part in card.splits.values() for identity in part]
        assert len(people) == len(set(people))
    parts = split_identities(card, people)
    joined = [identity for part in parts.values() for identity in part]
    assert sorted(joined) == sorted(people)
    assert parts == split_identities(card, people[::-1])
    if card.splits.get("rule") == "hashed":
        said = " ".join(card.traps)
        assert "seeded" in said, "a split of ours says so"


def test_celebref_keeps_its_split() -> None:
    people = [f"{index:05d}" for index in range(0, 2000, 2)]
    ranked = sorted(people, key=lambda own: hashlib.sha256(f"celebref/0/{own}".encode()).hexdigest())
    parts = split_identities(load_card("celebref"), people)
    assert parts["test"] == sorted(ranked[:50])
    assert parts["validation"] == sorted(ranked[50:100])
    assert len(parts["train"]) == 900


@every_configuration
def test_configuration_is_complete(path: Path) -> None:
    content = _read(path)
    assert list(content) == KEYS
    assert content["name"] == path.stem
    assert isinstance(content["title"], str)
    assert content["title"].strip()
    card = load_card(content["card"])
    given = content["degradation"]
    presets = given if isinstance(given, list) else [given]
    assert given is None or set(presets) <= set(group_choices("degradation"))
    assert content["split"] in SPLITS
    assert _whole(content["size"], 16)
    assert _whole(content["seed"])
    assert content["references"] is None or _whole(content["references"])
    for key in ("identities", "targets", "minimum_photos"):
        assert content[key] is None or _whole(content[key], 1), key
    assert content["root"] is None
    if content["selection"] is not None:
        assert set(content["selection"]) == {"rule", "metric"}
        assert content["selection"]["rule"] in SELECTION_RULES
    if card.contents == "lq":
        assert content["degradation"] is None, "real degraded pictures are never degraded again"
    if content["degradation"] is None:
        gives_lq = card.contents == "lq" or card.layout == "auto" or bool(card.folders.get("lq"))
        assert gives_lq, "without a preset the data set must bring its LQ pictures"


def test_selection_names_metrics_without_ground_truth() -> None:
    rules = [content["selection"] for content in map(_read, CONFIGURATIONS) if content["selection"]]
    assert rules
    for rule in rules:
        assert not metric_classes()[rule["metric"]].needs


@every_configuration
def test_nobody_tests_on_a_training_set(path: Path) -> None:
    content = _read(path)
    rule = load_card(content["card"]).splits.get("rule")
    if rule == "all_train":
        assert content["split"] == "train"
    if rule == "all_test":
        assert content["split"] == "test"


@every_configuration
def test_configuration_composes(path: Path) -> None:
    composed = compose("run", ["method=input", f"data={path.stem}"])["data"]
    settings = DataSettings(**composed)
    written = _read(path)
    assert settings.card == written["card"]
    assert settings.references == written["references"]
    presets = [preset["name"] for preset in presets_of(settings.degradation)]
    given = written["degradation"]
    assert presets == (given if isinstance(given, list) else [given] if given else [])
    assert not settings.pipelines() or settings.size >= 16


def test_a_folder_takes_a_preset_on_the_command_line() -> None:
    composed = compose("run", ["method=input", "data=folder", "data.degradation=heavy", "data.references=5"])["data"]
    assert composed["degradation"]["name"] == "heavy"
    assert DataSettings(**composed).references == 5


def test_ls_lists_every_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "data", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["data"]}
    assert {path.stem for path in CONFIGURATIONS} <= set(rows)
    for path in CONFIGURATIONS:
        content = _read(path)
        assert rows[path.stem]["title"] == content["title"]
        assert rows[path.stem]["licence"] == load_card(content["card"]).licence


IDENTITY_NAMES = {
    "celebref": ["00005", "00012"],
    "casia_webface": ["0000045", "0166921"],
    "vggface2_hq": ["n000002", "n000010"],
    "orl": ["s29", "s30"],
    "refine_celebrities34": ["Ada Lovelace", "É. du Châtelet"],
}
FLAT_PATHS = {
    "lfw_test": ["Aaron_Guiel_0001.png", "Abdel_Aziz_0001.png"],
    "webphoto_test": ["10045.png", "10046.jpg"],
    "wider_test": ["0000.png", "0001.png"],
    "celebchild_test": ["00_child.png", "01_child.png"],
    "ffhq": ["00000/00000.png", "01000/01000.png"],
    "authface_hq": ["man/man_14935.png", "woman/woman_11010.png"],
}


@pytest.fixture(scope="module")
def pictures(orl_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six ORL photographs of two people as PNG."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    sources = [orl_root / f"s{person}" / f"{photo}.pgm" for person in (29, 30) for photo in (1, 2, 3)]
    for index, source in enumerate(sources):
        paths.append(folder / f"{index}.png")
        cv2.imwrite(str(paths[-1]), cv2.imread(str(source)))
    return paths


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _cards(layout: str) -> list[DatasetCard]:
    return [card for card in map(load_card, card_names()) if card.layout == layout]


@pytest.mark.parametrize("card", _cards("identity_folders"), ids=lambda card: card.name)
def test_reads_identity_folders(card: DatasetCard, pictures: list[Path], tmp_path: Path) -> None:
    people = IDENTITY_NAMES[card.name]
    suffix = ".pgm" if card.name == "orl" else ".png"
    for index, source in enumerate(pictures):
        _copy(source, tmp_path / people[index // 3] / f"{index % 3 + 9}{suffix}")
    (tmp_path / people[0] / f"9{suffix}.txt").write_text("1 2\n" * 68)
    (tmp_path / "README.txt").write_text("not a person")
    _copy(pictures[0], tmp_path / "loose.png")
    photos = list_photos(card, tmp_path)
    assert [photo.path for photo in photos] == [f"{who}/{n}{suffix}" for who in people for n in (9, 10, 11)]
    assert [photo.identity for photo in photos] == [who for who in people for _ in range(3)]
    assert all(photo.has_truth and photo.lq is None and photo.references is None for photo in photos)


@pytest.mark.parametrize("card", _cards("flat"), ids=lambda card: card.name)
def test_reads_flat_folders(card: DatasetCard, pictures: list[Path], tmp_path: Path) -> None:
    paths = FLAT_PATHS[card.name]
    for source, path in zip(pictures, paths, strict=False):
        _copy(source, tmp_path / path)
    (tmp_path / paths[0]).with_suffix(".json").write_text("{}")
    photos = list_photos(card, tmp_path)
    assert [photo.path for photo in photos] == paths
    assert len({photo.identity for photo in photos}) == len(photos), "nobody says who is shown: each alone"
    assert len({photo.name for photo in photos}) == len(photos)
    real = card.contents == "lq"
    assert [photo.lq for photo in photos] == (paths if real else [None] * len(paths))
    assert all(photo.has_truth is not real for photo in photos)


@pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in _cards("paired")])
def test_reads_paired_folders(card: DatasetCard, pictures: list[Path], tmp_path: Path) -> None:
    truth, lq, reference = (card.folders[role] for role in ("ground_truth", "lq", "reference"))
    names = ["00001", "00002"]
    for index, name in enumerate(names):
        for folder in (truth, lq):
            if folder:
                _copy(pictures[index], tmp_path / folder / f"{name}.png")
    expected: list[tuple[str, ...] | None] = [None, None]
    if card.references_from:
        folder = reference or truth
        for index, name in enumerate(["00010", "00011"]):
            _copy(pictures[index + 2], tmp_path / str(folder) / f"{name}.png")
        rows = [["00001.png", "00001.png", ["00011.png", "00010.png"]], ["00002.png", "00002.png", ["00010.png"]]]
        listed = tmp_path / card.references_from["file"]
        listed.parent.mkdir(parents=True, exist_ok=True)
        with listed.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([card.references_from["image"], "lq_image", card.references_from["references"]])
            writer.writerows(rows)
        expected = [tuple(f"{folder}/{own}" for own in row[2]) for row in rows]
    elif reference:
        for index in (3, 4):
            _copy(pictures[index], tmp_path / reference / names[0] / f"{index}.png")
        _copy(pictures[5], tmp_path / reference / f"{names[1]}.png")
        expected = [(f"{reference}/00001/3.png", f"{reference}/00001/4.png"), (f"{reference}/00002.png",)]
    photos = list_photos(card, tmp_path)
    assert [photo.path for photo in photos] == [f"{truth or lq}/{name}.png" for name in names]
    assert [photo.lq for photo in photos] == [f"{lq}/{name}.png" for name in names]
    assert all(photo.has_truth is (truth is not None) for photo in photos)
    assert len({photo.identity for photo in photos}) == 2
    assert [photo.references for photo in photos] == expected


@pytest.mark.parametrize("name", [card.name for card in _cards("paired") if card.folders["ground_truth"]])
def test_paired_cards_do_without_given_lq(name: str, pictures: list[Path], tmp_path: Path) -> None:
    card = load_card(name)
    if card.references_from:
        listed = tmp_path / card.references_from["file"]
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(f"{card.references_from['image']},{card.references_from['references']}\n00001.png,[]\n")
    _copy(pictures[0], tmp_path / str(card.folders["ground_truth"]) / "00001.png")
    photos = list_photos(card, tmp_path)
    assert [(photo.path, photo.lq, photo.has_truth) for photo in photos] == [
        (f"{card.folders['ground_truth']}/00001.png", None, True)
    ]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["Ada/1.png", "Ada/2.png", "Bob/1.png"], [("Ada", None), ("Ada", None), ("Bob", None)]),
        (["1.png", "2.png", "10.png"], [("1", None), ("2", None), ("10", None)]),
        (["2019/a/1.png", "2020/a/1.png"], [("2019/a/1", None), ("2020/a/1", None)]),
        (
            ["gt/1.png", "gt/2.png", "lq/1.jpg", "lq/2.jpg", "reference/1/x.png"],
            [("1", "lq/1.jpg"), ("2", "lq/2.jpg")],
        ),
    ],
    ids=["identity_folders", "flat", "flat_deep", "paired"],
)
def test_a_folder_of_ones_own_is_recognised(
    paths: list[str], expected: list[tuple[str, str | None]], pictures: list[Path], tmp_path: Path
) -> None:
    for source, path in zip(pictures, paths, strict=False):
        _copy(source, tmp_path / path)
    photos = list_photos(load_card("folder"), tmp_path)
    assert [(photo.identity, photo.lq) for photo in photos] == expected
    if paths[0].startswith("gt/"):
        assert [photo.references for photo in photos] == [("reference/1/x.png",), ()]


@pytest.mark.parametrize("name", ["pfstorer_real20", "refine_real14", "restorerid_real20"])
def test_the_recipe_of_a_private_set_counts_people(name: str, pictures: list[Path], tmp_path: Path) -> None:
    assert "lq/<person>/<picture>" in load_card(name).obtain
    assert "reference/<person>/<photograph>" in load_card(name).obtain
    for who, person in (("ada", 0), ("bob", 3)):
        for number in (1, 2):
            _copy(pictures[person + number], tmp_path / "lq" / who / f"{number}.png")
        _copy(pictures[person], tmp_path / "reference" / who / "x.png")
    for card in (load_card(name), load_card("folder")):
        photos = list_photos(card, tmp_path)
        assert [photo.identity for photo in photos] == ["ada", "ada", "bob", "bob"]
        assert [photo.references for photo in photos] == [(f"reference/{photo.identity}/x.png",) for photo in photos]
        assert not any(photo.has_truth for photo in photos)
