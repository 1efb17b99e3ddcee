"""Results of others: accepted only if pictures, table and protocol belong together."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from bench.errors import UsageError
from bench.files import sha256_bytes, sha256_file
from bench.image import read_image, write_png
from bench.leaderboard.accept import accept
from bench.leaderboard.entry import add_entry, read_entries
from bench.leaderboard.render_csv import board_csv
from bench.leaderboard.render_html import board_html
from bench.leaderboard.render_latex import board_latex
from bench.leaderboard.render_markdown import board_markdown
from bench.leaderboard.schema import validate
from bench.leaderboard.submission import Submission, find_protocol
from bench.leaderboard.view import view
from bench.metrics.set_metric import FeatureNetwork, FeatureSet
from bench.paths import resource_root
from bench.protocol.card import data_root, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.registry import load_metric, load_set_metric
from bench.runs.score import score_pictures
from bench.scores.sets import set_frame
from bench.scores.table import SET_SCHEMA, ScoreRow, read_table, rows_to_frame, write_table

METRICS = ("psnr_y", "haarpsi")


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory, orl_root):
    """Pictures, score table and hash list of somebody whose method brightens the degraded picture a little."""
    folder = tmp_path_factory.mktemp("handed in")
    protocol = find_protocol("orl_heavy_ci")
    pictures = ProtocolPictures(protocol, data_root(load_card(protocol.card)))
    metrics = [load_metric(name)() for name in METRICS]
    rows, lines = [], []
    for image in protocol.images:
        path = folder / "restored" / f"{image.image_id}.png"
        write_png(path, np.clip(pictures.lq(image).astype(int) + 2, 0, 255).astype(np.uint8))
        lines.append(f"{sha256_file(path)}  ./{image.image_id}.png")
        scores = score_pictures(pictures, [image], [read_image(path)], metrics)[0]
        rows += [
            ScoreRow(
                protocol.id, "theirs", "0123456789ab", 0, image.image_id, image.identity,
                metric.name, metric.identity, *scores[metric.name],
            )
            for metric in metrics
        ]  # fmt: skip
    write_table(rows_to_frame(rows), folder / "scores.parquet")
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def theirs(handed_in, tmp_path):
    return shutil.copytree(handed_in, tmp_path / "theirs")


def submission(folder, **changes):
    given = {
        "protocol": "orl_heavy_ci",
        "restored": folder / "restored",
        "scores": folder / "scores.parquet",
        "hashes": folder / "SHA256SUMS",
        "sample": 3,
        "reported_by": "a lab",
    }
    return Submission(**{**given, **changes})


def rewrite(folder, change):
    """Writes the table again after `change`, which gets and returns a frame."""
    path = folder / "scores.parquet"
    write_table(change(read_table(path)), path)


def test_what_holds_is_accepted(theirs, tmp_path):
    entry = accept(submission(theirs, licence="MIT", paper="Somebody 2030", parameters=7, hardware="one GPU"))
    validate(entry, "entry")
    accepted = entry["accepted"]
    assert accepted["recomputed"] == 3
    assert accepted["largest_differences"] == dict.fromkeys(sorted(METRICS), pytest.approx(0, abs=1e-9))
    names = sorted(find_protocol("orl_heavy_ci").image_ids)
    listing = "".join(f"{sha256_file(theirs / 'restored' / f'{name}.png')}  {name}.png\n" for name in names)
    assert accepted["pictures_sha256"] == sha256_bytes(listing.encode())
    table = read_table(theirs / "scores.parquet")
    means = table[table.metric == "psnr_y"].groupby("identity")["value"].mean()
    assert entry["metrics"]["psnr_y"]["mean"] == pytest.approx(means.mean())
    assert (entry["reported_by"], entry["licence"], entry["parameters"]) == ("a lab", "MIT", 7)
    assert (entry["images"], entry["of"], entry["hardware"]) == (12, 12, {"stated": "one GPU"})
    path = add_entry(entry, tmp_path / "boards", "theirs")
    assert path.name == "theirs@0123456789ab.json"
    assert read_entries(path.parent)[0] == json.loads(json.dumps(entry))


def test_the_sample_is_not_theirs_to_choose(theirs):
    from bench.leaderboard.accept import _sample

    names = [f"p{index}" for index in range(50)]
    draws = {tuple(_sample(names, 5)) for _ in range(20)}
    assert len(draws) > 1, "nothing that is handed in decides it"
    assert all(len(set(draw)) == 5 and set(draw) <= set(names) for draw in draws)
    assert _sample(names, None) == names
    accepted = [accept(submission(theirs))["accepted"] for _ in range(4)]
    assert all(len(one["sample"]) == one["recomputed"] == 3 for one in accepted)
    assert len({tuple(one["sample"]) for one in accepted}) > 1
    whole = accept(submission(theirs, sample=None))["accepted"]
    assert whole["sample"] == sorted(find_protocol("orl_heavy_ci").image_ids)


def test_the_stated_chance_of_finding_forged_scores_is_right():
    text = (resource_root() / "leaderboards" / "ENTRY.md").read_text("utf-8")
    stated = {int(many): int(share) for many, share in re.findall(r"(\d+) forged[^|%]*?(\d+) %", text)}
    assert len(stated) >= 3
    for many, share in stated.items():
        assert share == round(100 * (1 - math.comb(60 - many, 10) / math.comb(60, 10)))


def test_an_edited_score_is_caught(theirs):
    def better(frame):
        frame.loc[frame.metric == "psnr_y", "value"] += 0.02
        return frame

    rewrite(theirs, better)
    with pytest.raises(UsageError, match=r"psnr_y of .* computed again from the picture"):
        accept(submission(theirs))


def test_a_hidden_failure_is_caught(theirs):
    def hide(frame):
        chosen = frame.metric == "haarpsi"
        frame.loc[chosen, "value"] = None
        frame.loc[chosen, "reason"] = "no face found"
        return frame

    rewrite(theirs, hide)
    with pytest.raises(UsageError, match=r"haarpsi of .* is no value; computed again"):
        accept(submission(theirs))


def test_changed_pictures_are_caught_by_their_hash(theirs):
    name = find_protocol("orl_heavy_ci").image_ids[4]
    path = theirs / "restored" / f"{name}.png"
    write_png(path, read_image(path)[:, ::-1].copy())
    with pytest.raises(UsageError, match=rf"1 changed \({name}\)"):
        accept(submission(theirs))
    lines = (theirs / "SHA256SUMS").read_text().splitlines()
    (theirs / "SHA256SUMS").write_text("\n".join(line for line in lines if name not in line))
    with pytest.raises(UsageError, match=rf"1 without a hash \({name}\)"):
        accept(submission(theirs))


def test_without_hashes_all_pictures_are_scored_again(theirs):
    with pytest.raises(UsageError, match="--hashes FILE"):
        accept(submission(theirs, hashes=None))
    assert accept(submission(theirs, hashes=None, sample=None))["accepted"]["recomputed"] == 12


def test_the_journal_of_a_run_folder_serves_as_hashes(theirs):
    from bench.runs.journal import Journal

    journal = Journal(theirs / "journal" / "score")
    for name in find_protocol("orl_heavy_ci").image_ids:
        journal.append({"image_id": name, "sha256": "0" * 64, "scores": {}})
        journal.append({"image_id": name, "sha256": sha256_file(theirs / "restored" / f"{name}.png"), "scores": {}})
    assert accept(submission(theirs, hashes=None))["accepted"]["recomputed"] == 3
    journal.append({"image_id": name, "sha256": "1" * 64, "scores": {}})
    with pytest.raises(UsageError, match="1 changed"):
        accept(submission(theirs, hashes=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(protocol_id="fedcba9876543210"), "belongs to protocol id fedcba9876543210"),
        (lambda f: f.assign(protocol_id=""), "scored outside a protocol"),
        (lambda f: f[f.image_id != f.image_id.iloc[0]], "11 of the 12 pictures.*missing"),
        (lambda f: f.assign(image_id=f.image_id.replace({f.image_id.iloc[0]: "s99/1"})), "not of the protocol .s99/1"),
        (lambda f: f.assign(identity="s1"), "another identity than the protocol"),
        (lambda f: f.assign(metric_id=f.metric_id + "@other"), "different identities are never compared"),
        (lambda f: f.assign(metric=f.metric.replace({"psnr_y": "sharpness"})), "Unknown metric 'sharpness'"),
        (lambda f: f.assign(seed=range(len(f))), "several values of seed"),
        (lambda f: f.assign(method_revision=[str(i) for i in range(len(f))]), "several values of method_revision"),
        (lambda f: f.loc[[*f.index, f.index[0]]], "twice"),
        (lambda f: f.assign(value=np.inf), "not finite"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_tables_that_do_not_hold_are_refused(theirs, change, message):
    rewrite(theirs, change)
    with pytest.raises(UsageError, match=message):
        accept(submission(theirs))


def test_pictures_that_do_not_hold_are_refused(theirs):
    name = find_protocol("orl_heavy_ci").image_ids[0]
    path = theirs / "restored" / f"{name}.png"
    write_png(path, read_image(path)[:64, :64].copy())
    with pytest.raises(UsageError, match=r"64x64 px.*not resized"):
        accept(submission(theirs))
    path.unlink()
    with pytest.raises(UsageError, match=f"lacks 1 of the 12 pictures.*{name}"):
        accept(submission(theirs))
    with pytest.raises(UsageError, match="scores 1 pictures that are not there"):
        accept(submission(theirs, allow_incomplete=True))
    with pytest.raises(UsageError, match="not a folder"):
        accept(submission(theirs, restored=theirs / "nothing"))


class Brightness(FeatureNetwork):
    """Mean and spread of a picture: vectors that need no weights."""

    dimensions = 2

    @property
    def identity(self):
        return "brightness@1"

    def features(self, pictures):
        flat = pictures.reshape(len(pictures), -1).astype(np.float32)
        return np.stack([flat.mean(1), flat.std(1)], axis=1)


def write_sets(folder, **changes):
    """Writes KID of the pictures beside the table, as a run folder has it; returns the value."""
    protocol = find_protocol("orl_heavy_ci")
    pictures = ProtocolPictures(protocol, data_root(load_card(protocol.card)))
    metric = load_set_metric("kid_gt")()
    vectors = [
        metric.network.features(np.stack(each))
        for each in (
            [read_image(folder / "restored" / f"{image.image_id}.png") for image in protocol.images],
            [pictures.truth(image) for image in protocol.images],
        )
    ]
    score = metric.score_set(FeatureSet(*vectors, [image.identity for image in protocol.images]))
    row = {"protocol_id": protocol.id, "method": "theirs", "method_revision": "0123456789ab", "seed": 0}
    frame = set_frame([metric], {"kid_gt": score}, 12, 12, row)
    for key, value in changes.items():
        frame[key] = value
    write_table(frame, folder / "set_scores.parquet", SET_SCHEMA)
    return score.value


@pytest.fixture
def bright(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("bench.metrics.distribution.Inception", Brightness)


def test_set_scores_are_computed_again_from_all_pictures(theirs, tmp_path, bright):
    value = write_sets(theirs)
    entry = accept(submission(theirs))
    kid = entry["set_metrics"]["kid_gt"]
    assert list(entry["set_metrics"]) == ["kid_gt"], "what was not handed in is not added"
    assert kid["value"] == pytest.approx(value)
    assert kid["low"] <= value <= kid["high"]
    assert (kid["n"], kid["of"], kid["reason"], kid["shown"]) == (12, 12, None, True)
    assert kid["identity"] == load_set_metric("kid_gt")().identity
    assert entry["accepted"]["largest_differences"]["kid_gt"] == pytest.approx(0, abs=1e-9)
    path = add_entry(entry, tmp_path / "boards", "theirs")
    assert read_entries(path.parent)[0]["set_metrics"] == entry["set_metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 99.0}, "computed again from the pictures"),
        ({"metric_id": "kid@other"}, "different identities are never compared"),
        ({"method_revision": "another"}, "the score table beside it '0123456789ab'"),
        ({"protocol_id": "0" * 16}, "has protocol_id"),
        ({"metric": "kid_gtt"}, "Did you mean 'kid_gt'"),
        ({"n": 11}, "over 11 of 12 pictures; 12 of 12"),
        ({"reason": "broken"}, "either a value or a reason"),
        ({"high": np.inf}, "not finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_set_scores_that_do_not_hold_are_refused(theirs, bright, changes, message):
    write_sets(theirs, **changes)
    with pytest.raises(UsageError, match=message):
        accept(submission(theirs))


def test_set_scores_whose_weights_are_absent_here_are_carried_and_said(theirs, bright, monkeypatch):
    monkeypatch.setattr(Brightness, "identity", "brightness@weights absent")
    stated = load_set_metric("kid_gt")().identity.replace("absent", "0123")
    write_sets(theirs, metric_id="kid_gt@their inception")
    other = (theirs / "set_scores.parquet").read_bytes()
    value = write_sets(theirs, metric_id=stated)
    own = (theirs / "set_scores.parquet").read_bytes()
    monkeypatch.setattr(Brightness, "unavailable", lambda self: "Weights 'brightness' are not here")
    (theirs / "set_scores.parquet").write_bytes(other)
    with pytest.raises(UsageError, match="scores kid_gt as 'kid_gt@their inception'"):
        accept(submission(theirs))
    (theirs / "set_scores.parquet").write_bytes(own)
    entry = accept(submission(theirs))
    assert entry["set_metrics"]["kid_gt"]["value"] == value
    assert entry["set_metrics"]["kid_gt"]["identity"] == stated
    assert entry["accepted"]["not_recomputed"]["kid_gt"] == "weights missing: brightness", "no folder of here"
    assert "kid_gt" not in entry["accepted"]["largest_differences"]
    column = next(index for index, one in enumerate(view([entry]).columns) if one.name == "kid_gt")
    assert view([entry]).rows[0].cells[column].remark == "not recomputed"


def test_a_file_that_holds_no_set_scores_is_refused(theirs):
    (theirs / "set_scores.parquet").write_text("not parquet")
    with pytest.raises(UsageError, match="Cannot read the set scores"):
        accept(submission(theirs))
    shutil.copy(theirs / "scores.parquet", theirs / "set_scores.parquet")
    with pytest.raises(UsageError, match="holds no set scores: columns low, high"):
        accept(submission(theirs))


def test_somebody_must_vouch_for_it(theirs, monkeypatch):
    monkeypatch.delenv("BENCH_REPORTED_BY", raising=False)
    with pytest.raises(UsageError, match="--reported-by"):
        accept(submission(theirs, reported_by=None))
    with pytest.raises(UsageError, match=r"'orl_heavy_ci'"):
        accept(submission(theirs, protocol="orl_heavy_cj"))


def test_pictures_alone_are_scored_here(theirs, monkeypatch):
    monkeypatch.setattr("bench.config.read_preset", lambda group, name: {"names": list(METRICS)})
    entry = accept(submission(theirs, scores=None, hashes=None, method="pictures only"))
    table = read_table(theirs / "scores.parquet")
    expected = table[table.metric == "haarpsi"].groupby("identity")["value"].mean().mean()
    assert entry["metrics"]["haarpsi"]["mean"] == pytest.approx(expected, abs=1e-9)
    assert entry["accepted"]["recomputed"] == 12
    assert set(entry["set_metrics"]) == {"fid_gt", "fid_ffhq", "kid_gt"}
    for metric in entry["set_metrics"].values():
        assert (metric["value"] is None) == (metric["reason"] is not None)
    with pytest.raises(UsageError, match="--method LABEL"):
        accept(submission(theirs, scores=None, hashes=None))
    name = find_protocol("orl_heavy_ci").image_ids[0]
    (theirs / "restored" / f"{name}.png").unlink()
    partial = accept(submission(theirs, scores=None, hashes=None, method="partial", allow_incomplete=True))
    assert (partial["images"], partial["metrics"]["psnr_y"]["n"]) == (11, 11)


@pytest.mark.parametrize("label", ["input", "copy_reference", "Input", "copy_reference@demo"])
def test_comparison_rows_are_no_names_for_results_of_others(theirs, label):
    with pytest.raises(UsageError, match="belongs to a comparison row"):
        accept(submission(theirs, method=label))
    rewrite(theirs, lambda frame: frame.assign(method=label))
    with pytest.raises(UsageError, match="belongs to a comparison row"):
        accept(submission(theirs))
    assert accept(submission(theirs, method="another"))["method"] == "another"


def test_results_of_others_replace_none_but_their_own(theirs, tmp_path):
    entry = accept(submission(theirs))
    add_entry(entry, tmp_path / "boards", "theirs")
    add_entry(entry | {"title": "Again"}, tmp_path / "boards", "theirs")
    with pytest.raises(UsageError, match=r"reported by a lab\. Results of others replace none but their own"):
        add_entry(entry | {"reported_by": "another lab"}, tmp_path / "boards", "theirs")
    with pytest.raises(UsageError, match="replace none but their own"):
        add_entry(entry | {"reported_by": "another lab", "seed": 3}, tmp_path / "boards", "theirs")
    ours = {key: value for key, value in entry.items() if key != "accepted"}
    path = add_entry(ours | {"reported_by": "maintainers"}, tmp_path / "ours", "a run")
    with pytest.raises(UsageError, match="reported by maintainers"):
        add_entry(entry | {"reported_by": "maintainers"}, tmp_path / "ours", "theirs")
    # Neither may a board of one's own hide the row that came with the installation.
    with pytest.raises(UsageError, match="reported by maintainers"):
        add_entry(entry, tmp_path / "new", "theirs", others=[tmp_path / "ours"])
    assert read_entries(path.parent)[0]["reported_by"] == "maintainers"


def musiq(identity):
    def change(frame):
        rows = frame[frame.metric == "haarpsi"].assign(metric="musiq", metric_id=identity, value=99.0)
        return pd.concat([frame, rows], ignore_index=True)

    return change


def test_metrics_that_cannot_be_computed_here_need_this_version_and_win_nothing(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    own = load_metric("musiq")()
    assert own.unavailable()
    table = read_table(theirs / "scores.parquet")
    for wrong in ("musiq@whatever", own.identity.replace("KonIQ", "SPAQ")):
        write_table(musiq(wrong)(table), theirs / "scores.parquet")
        with pytest.raises(UsageError, match=r"scores musiq as .*different identities are never compared"):
            accept(submission(theirs))
    stated = own.identity.replace("absent", "0123456789ab")
    write_table(musiq(stated)(table), theirs / "scores.parquet")
    entry = accept(submission(theirs))
    assert entry["metrics"]["musiq"]["identity"] == stated
    assert "musiq" in entry["accepted"]["not_recomputed"]

    checked = {**entry, "method": "checked", "reported_by": "us"}
    del checked["accepted"]
    checked["metrics"] = copy.deepcopy(entry["metrics"])
    lower = checked["metrics"]["musiq"]
    lower |= {"mean": 50.0, "low": 50.0, "high": 50.0}
    lower["by_identity"] = {who: {**cell, "mean": 50.0} for who, cell in lower["by_identity"].items()}
    shown = view([entry, checked])
    cells = {
        row.entry["method"]: {column.name: cell for column, cell in zip(shown.columns, row.cells, strict=True)}
        for row in shown.rows
    }
    assert (cells["checked"]["musiq"].mark, cells["checked"]["musiq"].group) == ("best", "a")
    theirs_cell = cells["theirs"]["musiq"]
    assert (theirs_cell.mark, theirs_cell.group, theirs_cell.remark) == ("", "", "not recomputed")
    assert theirs_cell.value == 99.0
    assert "not recomputed" in board_markdown(shown)
    assert "not recomputed" in board_html(shown)
    assert "not recomputed" in board_latex(shown)
    rows = list(csv.DictReader(io.StringIO(board_csv(shown))))
    assert "not recomputed" in next(r for r in rows if (r["method"], r["metric"]) == ("theirs", "musiq"))["remark"]
    assert view([entry]).rows[0].cells[[c.name for c in shown.columns].index("musiq")].mark == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(seed=None), "rows have no seed"),
        (lambda f: f.assign(seed=0.5), "the column seed must hold int64"),
        (lambda f: f.assign(image_id=f.image_id.where(f.index != 0, None)), "1 rows have no image_id"),
        (lambda f: f.assign(value=f.value.astype(str)), "the column value must hold double"),
        (lambda f: f.assign(value="good"), "the column value must hold double"),
        (lambda f: f.assign(method=None), "rows have no method"),
        (lambda f: f.assign(method_revision=None), "rows have no method_revision"),
        (lambda f: f.assign(metric_id=None), "rows have no metric_id"),
        (lambda f: f.assign(identity=None), "rows have no identity"),
        (lambda f: f.assign(method=[[1]] * len(f)), "the column method must hold string"),
    ],
)
def test_columns_of_another_type_and_gaps_are_refused(theirs, change, message):
    path = theirs / "scores.parquet"
    change(read_table(path)).to_parquet(path)
    with pytest.raises(UsageError, match=message):
        accept(submission(theirs))


def test_categories_and_small_numbers_are_read_as_what_they_are(theirs):
    path = theirs / "scores.parquet"
    frame = read_table(path)
    frame.astype({"metric": "category", "seed": "int32"}).to_parquet(path)
    assert accept(submission(theirs))["accepted"]["recomputed"] == 3
