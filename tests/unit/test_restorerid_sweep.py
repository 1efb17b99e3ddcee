"""The sweep of the ID-scale: one row per picture and lambda, nothing of the ground truth in the restoration."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import MissingError, UsageError
from bench.protocol.protocol import DataSettings
from bench.weights.method_weights import write_weights
from methods.restorerid import calibrate_scale, quality
from methods.restorerid.adaptive_scale import fit_alpha_beta, interval_curves, quality_edges
from methods.restorerid.identity_tokens import FaceFeatures
from methods.restorerid.module import RestorerID
from methods.restorerid.scale_sweep import read_sweep, sweep, write_sweep

SCALES = [round(0.1 * step, 1) for step in range(31)]
ALPHA, BETA = 60.0, 60.0


class Encoder:
    """The identity is the direction of the mean colour in two channels."""

    identity_dim: ClassVar[int] = 2
    image_dim: ClassVar[int] = 1
    digest: ClassVar[str] = "toy"

    def encode(self, images, points):
        assert points.shape == (len(images), 5, 2)
        identity = torch.nn.functional.normalize(images.mean((2, 3))[:, :2], dim=1)
        return FaceFeatures(identity, images.new_zeros(len(images), 1, 1))

    def unconditional(self, count, device):
        raise NotImplementedError


class Quality:
    name = "toy"
    alpha = beta = None

    def __call__(self, lq):
        return 100 * lq.mean((1, 2, 3))


def batch(names: str, levels: list[float], truth: bool = True) -> FaceBatch:
    lq = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    gt = torch.zeros_like(lq)
    gt[:, 0] = 1.0
    return FaceBatch(
        lq=lq,
        references=torch.zeros(len(lq), 1, 3, 8, 8),
        reference_mask=torch.ones(len(lq), 1, dtype=torch.bool),
        image_ids=list(names),
        identities=list(names),
        seeds=list(range(len(lq))),
        gt=gt if truth else None,
        landmarks=torch.zeros(len(lq), 5, 2) if truth else None,
    )


def restore(given: FaceBatch, scale: float) -> torch.Tensor:
    """The right identity at the lambda of Eq. 9 with ALPHA and BETA, the further from it the worse."""
    assert given.gt is None
    assert given.landmarks is None
    best = torch.exp((ALPHA - 100 * given.lq[:, :1].mean((2, 3), keepdim=True)) / BETA)
    wrong = (scale - best).abs() / 4
    return torch.cat([1 - wrong, wrong, torch.zeros_like(wrong)], 1).expand(-1, -1, 8, 8)


def test_sweep_becomes_a_calibration(tmp_path):
    batches = [batch("abc", [0.0, 0.25, 0.5]), batch("de", [0.75, 0.9])]
    rows = list(sweep(restore, batches, Quality(), Encoder(), SCALES))
    assert len(rows) == 5 * len(SCALES)
    best = {
        name: max((row for row in rows if row.image_id == name), key=lambda row: row.similarity) for name in "abcde"
    }
    assert [best[name].scale for name in "abcde"] == [2.7, 1.8, 1.2, 0.8, 0.6]
    assert best["a"].similarity == pytest.approx(1.0, abs=1e-3)
    assert best["d"].quality == pytest.approx(75.0)
    write_sweep(tmp_path / "sweep.csv", rows)
    again = read_sweep(tmp_path / "sweep.csv")
    assert again == rows
    curves = interval_curves(again, quality_edges([row.quality for row in again], 5))
    fit = fit_alpha_beta(curves)
    assert fit.alpha == pytest.approx(ALPHA, abs=3)
    assert fit.beta == pytest.approx(BETA, rel=0.1)


def test_wrong_tables_and_batches_are_named(tmp_path):
    with pytest.raises(UsageError, match="ground truth"):
        list(sweep(restore, [batch("a", [0.5], truth=False)], Quality(), Encoder(), SCALES))
    with pytest.raises(MissingError, match=r"absent\.csv"):
        read_sweep(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="columns must be image_id, quality, scale, similarity"):
        read_sweep(tmp_path / "other.csv")
    (tmp_path / "broken.csv").write_text("image_id,quality,scale,similarity\na,1,x,2\n")
    with pytest.raises(UsageError, match=r"broken\.csv is no sweep"):
        read_sweep(tmp_path / "broken.csv")


SWEEP = ["--pictures", "6", "--largest", "2", "--step", "1", "--intervals", "2"]
SMALL = ["data=orl_heavy", "size=demo", "method.sampling.preset=fast", "method.sampling.steps=2"]
SMALL += [f"method.network.{name}=8" for name in ("lq_encoder.channels", "lq_encoder.map_channels")]
SMALL += [f"method.network.{name}.hidden=8" for name in ("sft", "fir")]


@pytest.fixture
def weights(tmp_path):
    """Weights of a small network whose every part shows."""
    settings = method_settings(compose("run", ["method=restorerid", *SMALL])["method"], "demo")
    method = RestorerID(settings)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in method.network.parameters():
            if not value.any():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    file = tmp_path / "demo.safetensors"
    write_weights(file, method, "float32", {"size": "demo", "settings": settings})
    return file


def test_the_command_sweeps_training_people_fits_and_goes_on(tmp_path, capsys, monkeypatch, weights):
    folder = tmp_path / "sweep"
    words = ["--output", str(folder), *SWEEP, *SMALL, f"method.weights={weights}"]
    monkeypatch.setattr(calibrate_scale, "BATCH", 2)
    problem = ""
    try:
        calibrate_scale.main(words)
    except UsageError as error:  # of a network that has learnt nothing, lambda need not fall with the quality
        problem = str(error)
    assert not problem or "does not fall" in problem
    (table,) = folder.glob("*.csv")
    rows = read_sweep(table)
    assert {row.scale for row in rows} == {0.0, 1.0, 2.0}
    assert len(rows) == 6 * 3
    config = compose("run", ["method=input", "data=orl_heavy"])
    people = TrainingPairs(DataSettings(**config["data"]), TrainingSettings()).people
    assert {row.image_id.split(" ", 2)[2].split("/")[0] for row in rows} <= set(people)
    # The weight of the identity changes the picture, and nothing else does between rows of one picture.
    assert any(a.similarity != b.similarity for a, b in zip(rows[:2], rows[2:4], strict=True))
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "fit.json").is_file() == (not problem)
    assert "quality" in capsys.readouterr().out

    # A sweep of the same pictures with a best lambda of 2 for the worse half and of 1 for the better.
    middle = sorted(row.quality for row in rows)[len(rows) // 2]
    rows = [replace(row, similarity=-abs(row.scale - (2 if row.quality < middle else 1))) for row in rows]
    write_sweep(table, rows)
    committed = tmp_path / "package/quality_demo.json"
    committed.parent.mkdir()
    before = json.loads(Path(quality.__file__).with_name(committed.name).read_text("utf-8"))
    committed.write_text(json.dumps(before | {"alpha": None, "beta": None}), "utf-8")
    monkeypatch.setattr(quality, "__file__", str(committed.with_name("quality.py")))
    monkeypatch.setattr(calibrate_scale, "sweep", lambda *_: pytest.fail("a picture was restored again"))
    assert calibrate_scale.main([*words, "--commit"]) == 0

    # Two points determine the curve: ln 2 = (alpha - worse) / beta and 0 = (alpha - better) / beta.
    worse, better = (
        sum(own) / len(own)
        for own in ([row.quality for row in rows if (row.quality < middle) == half] for half in (True, False))
    )
    fit = json.loads((folder / "fit.json").read_text("utf-8"))
    assert fit["alpha"] == pytest.approx(better, rel=1e-3)
    assert fit["beta"] == pytest.approx((better - worse) / math.log(2), rel=1e-3)
    assert fit["residual"] == pytest.approx(0, abs=1e-3)
    printed = re.search(r"alpha (\S+), beta (\S+), residual", capsys.readouterr().out)
    assert printed is not None
    assert [float(number) for number in printed.groups()] == pytest.approx([fit["alpha"], fit["beta"]], rel=1e-3)
    stored = json.loads(committed.read_text("utf-8"))
    assert stored == before | {
        "alpha": pytest.approx(fit["alpha"], abs=1e-3),
        "beta": pytest.approx(fit["beta"], abs=1e-3),
    }

    with pytest.raises(UsageError, match="other lambdas"):
        calibrate_scale.main([*words, "--largest", "3"])
