"""Consistency: every photograph under each of several degradations, and how much its restorations differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.config import compose
from bench.errors import UsageError
from bench.image import write_png
from bench.metrics.consistency import METRICS, ONE_DEGRADATION, PictureSpread
from bench.metrics.metric import Score, ScoringBatch
from bench.protocol.card import data_root, load_card
from bench.protocol.freeze import committed_path, freeze, load_protocol
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.probe import SEPARATOR
from bench.protocol.protocol import DataSettings, Protocol, ProtocolMismatchError
from bench.registry import load_metric
from bench.runs.journal import Journal
from bench.runs.pictures import restored_path
from bench.runs.plan import RunPlan, metric_names
from bench.runs.score import all_records, score_share, scoring_batch
from bench.runs.sets import make_features, run_sets
from bench.scores.panel import ONE_PHOTOGRAPH_SEVERAL_TIMES

PRESETS = ["blur_only", "jpeg_only", "heavy"]
FEW = ["method=input", "data=orl_heavy_ci", "data.identities=2", "data.references=1", "data.name=few"]
SEVERAL = f"data.degradation=[{','.join(PRESETS)}]"


def _settings(*words: str) -> DataSettings:
    return DataSettings(**compose("run", [*FEW, *words])["data"])


@pytest.fixture(scope="module")
def protocol(orl_root: Path) -> Protocol:
    return freeze(_settings(SEVERAL, f"data.root={orl_root}"))


@pytest.fixture(scope="module")
def pictures(protocol: Protocol, orl_root: Path) -> ProtocolPictures:
    return ProtocolPictures(protocol, data_root(load_card(protocol.card), str(orl_root)))


def test_every_photograph_comes_once_under_each_degradation(protocol: Protocol, pictures: ProtocolPictures) -> None:
    photographs = list(dict.fromkeys(image.photograph for image in protocol.images))
    assert protocol.image_ids == [f"{own}@{preset}" for own in photographs for preset in PRESETS]
    assert len(photographs) == len({image.identity for image in protocol.images}) == 2
    for image in protocol.images:
        versions = protocol.versions(image)
        assert image in versions
        assert [own.degradation for own in versions] == PRESETS
        assert {own.photograph for own in versions} == {image.photograph}
        assert len({own.gt_sha256 for own in versions}) == 1
        assert len({own.lq_sha256 for own in versions}) == len(PRESETS)
        assert all(own.references is versions[0].references for own in versions)
        theta = pictures.theta(image)
        assert theta is not None
        assert theta["preset"] == image.degradation


def test_the_manifest_reads_back_and_its_id_depends_on_the_list(
    protocol: Protocol, orl_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads(json.dumps(protocol.as_dict()))
    assert [preset["name"] for preset in record["degradation"]] == PRESETS
    assert [image["degradation"] for image in record["images"][:3]] == PRESETS
    assert Protocol.from_dict(record).as_dict() == protocol.as_dict()
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    root = f"data.root={orl_root}"
    assert load_protocol(_settings(SEVERAL, root)).as_dict() == protocol.as_dict()
    others = [_settings(word, root) for word in ("data.degradation=[heavy,blur_only]", "data.degradation=heavy")]
    assert len({protocol.id, *(load_protocol(own).id for own in others)}) == 3


def test_a_protocol_of_one_degradation_says_nothing_of_several(orl_root: Path) -> None:
    plain = freeze(_settings(f"data.root={orl_root}"))
    assert plain.degradation is not None
    assert plain.as_dict()["degradation"]["name"] == "heavy"
    assert all("degradation" not in image and "@" not in image["image_id"] for image in plain.as_dict()["images"])
    assert all(plain.versions(image) == [image] for image in plain.images)


def test_another_operator_version_is_named(
    protocol: Protocol, orl_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.degradation.operators.jpeg import JPEG
    from bench.protocol import freeze as module

    kept = tmp_path / "few.json"
    kept.write_text(json.dumps(protocol.as_dict()))
    monkeypatch.setattr(module, "committed_path", lambda _: kept)
    monkeypatch.setattr(JPEG, "version", 7)
    with pytest.raises(ProtocolMismatchError, match="jpeg v1 → v7"):
        load_protocol(_settings(SEVERAL, f"data.root={orl_root}"))


def test_marks_and_several_degradations_go_together(orl_root: Path) -> None:
    both = freeze(_settings(SEVERAL, "probe=marks", f"data.root={orl_root}"))
    pictures = ProtocolPictures(both, data_root(load_card(both.card), str(orl_root)))
    assert both.image_ids[:4] == [f"s29/2@both@{preset}" for preset in PRESETS] + ["s29/2@reference@blur_only"]
    first = [pictures.degradation_seed(image) for image in both.images[: 2 * len(PRESETS)]]
    assert first[: len(PRESETS)] == first[len(PRESETS) :]
    assert len(set(first)) == len(PRESETS)


@pytest.mark.parametrize("given", ["[heavy]", "[heavy,heavy]", "[]", "[heavy,3]"])
def test_wrong_lists_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="two or more different presets"):
        _settings(f"data.degradation={given}")


def test_unknown_presets_of_a_list_are_named_and_training_takes_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'heavy'"):
        _settings("data.degradation=[havy,light]")
    with pytest.raises(UsageError, match=r"several degradations \(blur_only, jpeg_only, heavy\)"):
        _settings(SEVERAL).pipeline()


def test_several_degradations_score_their_own_metrics_and_one_does_not() -> None:
    words = ["method=input", "metrics.names=[psnr_y]"]
    assert metric_names(compose("run", [*words, "data=orl_consistency"])) == ["psnr_y", *METRICS]
    assert metric_names(compose("run", [*words, "data=orl_heavy"])) == ["psnr_y"]
    assert not set(METRICS) & set(metric_names(compose("run", ["method=input", "data=orl_heavy"])))
    panel = metric_names(compose("run", ["method=input", "data=orl_consistency", "metrics=consistency"]))
    assert set(METRICS) < set(panel)
    assert "id" in panel


def test_the_committed_protocol_has_the_photographs_of_orl_heavy_ci() -> None:
    ours, other = (
        Protocol.from_dict(json.loads(committed_path(name).read_text("utf-8")))
        for name in ("orl_consistency", "orl_heavy_ci")
    )
    presets = [preset["name"] for preset in ours.degradation or ()]
    assert isinstance(ours.degradation, list)
    assert ours.image_ids == [image_id + SEPARATOR + preset for image_id in other.image_ids for preset in presets]
    truths = {image.image_id: image.gt_sha256 for image in other.images}
    assert all(image.gt_sha256 == truths[image.photograph] for image in ours.images)


def _batch(restorations: Any, valid: np.ndarray | None = None) -> ScoringBatch:
    first = restorations[0]
    inside = np.ones(first.shape[:2], dtype=bool) if valid is None else valid
    return ScoringBatch(["a"], first[None], None, [[]], None, None, inside[None], restorations=[restorations])


def test_picture_spread_is_numpys_over_valid_pixels_of_the_luma() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)
    valid = rng.random((12, 10)) > 0.3
    total = 0.0
    for row, column in np.argwhere(valid):
        levels = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pictures[:, row, column].tolist()]
        total += float(stats.moment(levels, order=2))
    found = PictureSpread().score_batch(_batch(list(pictures), valid))[0]
    assert found.value == pytest.approx((total / valid.sum()) ** 0.5, abs=1e-9)
    outside = pictures.copy()
    outside[:, ~valid] = 0
    assert PictureSpread().score_batch(_batch(list(outside), valid))[0] == found
    nothing = PictureSpread().score_batch(_batch(list(pictures), np.zeros_like(valid)))[0]
    assert nothing.value is None and nothing.reason


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(5)), st.integers(0, 99), st.integers(1, 3))
def test_order_changes_nothing_and_a_constant_has_no_spread(order: list[int], seed: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = list(rng.integers(50, 200, (5, 6, 6, 3), dtype=np.uint8))
    straight, turned = (
        PictureSpread().score_batch(_batch(own))[0].value for own in (pictures, [pictures[place] for place in order])
    )
    assert straight == pytest.approx(turned)
    assert straight > 0
    assert PictureSpread().score_batch(_batch([pictures[0]] * 5))[0].value == pytest.approx(0, abs=1e-9)
    apart = [pictures[0], pictures[0] + np.uint8(2 * distance)]
    assert PictureSpread().score_batch(_batch(apart))[0].value == pytest.approx(distance)


def test_pictures_of_several_sizes_are_null_with_a_reason() -> None:
    sizes = [np.zeros((6, 6, 3), np.uint8), np.zeros((7, 6, 3), np.uint8)]
    found = PictureSpread().score_batch(_batch(sizes))[0]
    assert found.value is None and found.reason


def _scores(pictures: ProtocolPictures, restored: dict[str, np.ndarray]) -> dict[str, list[Score]]:
    images = pictures.protocol.images
    batch = scoring_batch(pictures, images, [restored[own.image_id] for own in images], restored.__getitem__)
    metrics = [load_metric(name)() for name in METRICS]
    if reason := next((reason for metric in metrics if (reason := metric.unavailable())), None):
        pytest.skip(reason)
    return {metric.name: metric.score_batch(batch) for metric in metrics}


def test_the_ground_truth_and_a_constant_have_no_spread_and_the_input_has(pictures: ProtocolPictures) -> None:
    images = pictures.protocol.images
    truths = {image.image_id: pictures.truth(image) for image in images}
    constant = {image.image_id: pictures.truth(images[-1]) for image in images}
    for restored in (truths, constant):
        for found in _scores(pictures, restored).values():
            assert [score.value for score in found] == pytest.approx([0.0] * len(images), abs=1e-9)
    degraded = _scores(pictures, {image.image_id: pictures.lq(image) for image in images})
    for found in degraded.values():
        assert all(score.value is not None and score.value > 0.01 for score in found)
        assert found[0] == found[1] == found[2] != found[3]


def test_where_every_photograph_comes_once_they_are_null(orl_root: Path) -> None:
    plain = freeze(_settings(f"data.root={orl_root}", "data.identities=1"))
    pictures = ProtocolPictures(plain, data_root(load_card(plain.card), str(orl_root)))
    restored = pictures.truth(plain.images[0])
    batch = scoring_batch(pictures, plain.images, [restored], lambda _: restored)
    assert batch.restorations is None
    for name in METRICS:
        assert load_metric(name)().score_batch(batch) == [Score(None, ONE_DEGRADATION)]


@pytest.fixture
def plan(pictures: ProtocolPictures, tmp_path: Path) -> RunPlan:
    for image in pictures.protocol.images:
        write_png(restored_path(tmp_path, image.image_id), pictures.lq(image))
    config = {"batch_size": 2}
    made: Any = SimpleNamespace(
        config=config, protocol=pictures.protocol, pictures=pictures, metrics=["psnr_y", "picture_spread"],
        run_dir=tmp_path,
    )  # fmt: skip
    return made


def _values(plan: RunPlan, metric: str) -> dict[str, tuple[float | None, str | None]]:
    return {image_id: tuple(entry["scores"][metric][1:]) for image_id, entry in all_records(plan).items()}


def test_a_missing_restoration_makes_its_photograph_null_until_it_is_there(plan: RunPlan) -> None:
    path = restored_path(plan.run_dir, "s29/2@jpeg_only")
    content = path.read_bytes()
    path.unlink()
    Journal(plan.run_dir / "journal" / "restore", 0).append(
        {"image_id": "s29/2@jpeg_only", "reason": "out of luck", "seconds": None}
    )
    score_share(plan, 0, 1)
    spread = _values(plan, "picture_spread")
    assert len(spread) == len(plan.protocol.images)
    for image in plan.protocol.images:
        value, reason = spread[image.image_id]
        assert (value is None) == (image.photograph == "s29/2") == (reason is not None)
    assert spread["s29/2@heavy"][1] == "s29/2@jpeg_only, of the same photograph, is missing: out of luck"
    assert spread["s29/2@jpeg_only"][1] == "out of luck"
    assert _values(plan, "psnr_y")["s29/2@heavy"][0] is not None

    path.write_bytes(content)
    score_share(plan, 0, 1)
    complete = _values(plan, "picture_spread")
    assert all(value is not None for value, _ in complete.values())
    assert complete["s29/2@heavy"] == complete["s29/2@jpeg_only"]


def test_another_restoration_of_the_photograph_is_scored_anew_and_processes_agree(plan: RunPlan) -> None:
    for rank in range(2):
        score_share(plan, rank, 2)
    before = _values(plan, "picture_spread")
    assert len(before) == len(plan.protocol.images)
    image = plan.protocol.images[0]
    write_png(restored_path(plan.run_dir, image.image_id), plan.pictures.truth(image))
    assert set(all_records(plan)) == {
        own.image_id for own in plan.protocol.images if own.photograph != image.photograph
    }
    score_share(plan, 0, 1)
    after = _values(plan, "picture_spread")
    changed = {image_id for image_id in before if before[image_id] != after[image_id]}
    assert changed == {own.image_id for own in plan.protocol.versions(image)}


def _set_settings() -> dict[str, Any]:
    return {"batch_size": 2, "seed": 0, "cache": False, **compose("run", ["method=input", "metrics=standard"])}


def test_no_set_counts_a_photograph_several_times(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at(*_: Any) -> Any:
        raise AssertionError("features were made for a set that is none")

    monkeypatch.setattr("bench.runs.sets._features", looked_at)
    plan.config = _set_settings()
    plan.method, plan.revision = SimpleNamespace(label="made"), "0" * 12  # type: ignore[assignment]
    make_features(plan, 0, 1)
    table = run_sets(plan)
    assert set(table["metric"]) == {"fid_gt", "fid_ffhq", "kid_gt"}
    assert table["value"].isna().all()
    assert set(table["reason"]) == {ONE_PHOTOGRAPH_SEVERAL_TIMES}
    assert set(table["n"]) == {0}


def test_pictures_handed_in_get_the_spreads_and_no_set_scores(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.leaderboard.accept import accept
    from bench.leaderboard.submission import Submission

    sets = ["fid_gt", "fid_ffhq", "kid_gt"]
    monkeypatch.setattr("bench.config.read_preset", lambda group, name: {"names": ["psnr_y"], "sets": sets})
    file = tmp_path / "few.json"
    file.write_text(json.dumps(plan.protocol.as_dict()))
    restored = restored_path(tmp_path, "s29/2@heavy").parents[1]
    given: dict[str, Any] = {"protocol": str(file), "restored": restored, "method": "theirs", "reported_by": "a lab"}
    entry = accept(Submission(**given))
    assert set(entry["metrics"]) == {"psnr_y", *METRICS}
    score_share(plan, 0, 1)
    own = {value for value, _ in _values(plan, "picture_spread").values()}
    assert entry["metrics"]["picture_spread"]["n"] == len(plan.protocol.images)
    assert min(own) <= entry["metrics"]["picture_spread"]["mean"] <= max(own)  # type: ignore[type-var]
    assert {name: one["reason"] for name, one in entry["set_metrics"].items()} == dict.fromkeys(
        sets, ONE_PHOTOGRAPH_SEVERAL_TIMES
    )
    assert not set(sets) & set(entry["accepted"]["not_recomputed"])

    restored_path(tmp_path, "s29/2@heavy").unlink()
    partial = accept(Submission(**given, allow_incomplete=True))
    assert partial["metrics"]["picture_spread"]["n"] == len(plan.protocol.images) - len(PRESETS)
    assert str(tmp_path) not in json.dumps(partial)


def test_people_are_the_unit_and_runs_can_be_tested_against_each_other() -> None:
    import pandas as pd

    from bench.scores.summary import summarise

    metric = {"metric": "id_change", "metric_id": "id_change@1", "reason": None}
    rows = [
        {"image_id": f"{person}/{photo}@{preset}", "identity": person, "value": value, **metric}
        for person, photos in {"a": [0.1, 0.3], "b": [0.6]}.items()
        for photo, value in enumerate(photos)
        for preset in PRESETS
    ]
    found = summarise(pd.DataFrame(rows), {"id_change": load_metric("id_change")})["id_change"]
    assert found["mean"] == pytest.approx((0.2 + 0.6) / 2)
    assert (found["n"], found["identities"], found["higher_is_better"]) == (9, 2, False)


@pytest.mark.parametrize("metric", ["id_change", "haarpsi"])
def test_boards_say_that_consistency_alone_is_no_evidence(metric: str) -> None:
    from bench.leaderboard import view

    column = SimpleNamespace(name=metric, identity=f"{metric}@1")
    board: Any = SimpleNamespace(groups={}, entries=[])
    _, texts = view._footnotes([column], [], [], board)  # type: ignore[list-item]
    assert any("perfectly consistent" in text for text in texts) == (metric in METRICS)


@pytest.mark.parametrize("metric", ["id_change", "haarpsi"])
def test_reports_say_that_consistency_alone_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    from bench.report.report import write_report
    from tests.unit import run_folders

    monkeypatch.setitem(run_folders.METRICS, metric, (f"{metric}@1", metric, "", False))
    frame = run_folders.score_frame(identities=3)
    frame.loc[frame["metric"] == metric, "value"] = 0.25
    run = run_folders.make_run(tmp_path / "run", frame)
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert ("perfectly consistent" in text) == (metric in METRICS)


def test_replacing_the_preset_of_a_picture_is_noticed(protocol: Protocol, pictures: ProtocolPictures) -> None:
    with pytest.raises(ProtocolMismatchError, match="LQ picture"):
        pictures.lq(replace(protocol.images[0], degradation="heavy"))
