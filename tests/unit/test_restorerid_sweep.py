"""The sweep of the ID-scale: one row per picture and lambda, nothing of the ground truth in the restoration."""

from __future__ import annotations

import contextlib
from typing import ClassVar

import pytest
import torch

from bench.batch import FaceBatch
from bench.errors import MissingError, UsageError
from methods.restorerid.adaptive_scale import fit_alpha_beta, interval_curves, quality_edges
from methods.restorerid.identity_tokens import FaceFeatures
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


def test_the_command_sweeps_training_people_draws_and_goes_on(tmp_path, capsys, monkeypatch):
    from bench.data.training import TrainingPairs
    from methods.restorerid import calibrate_scale

    words = ["--output", str(tmp_path), "--pictures", "6", "--largest", "2", "--step", "1", "--intervals", "2"]
    words += ["data=orl_heavy", "size=demo", "method.sampling.preset=fast", "method.sampling.steps=2"]
    monkeypatch.setattr(calibrate_scale, "BATCH", 2)
    with contextlib.suppress(UsageError):  # two steps may well find that lambda does not fall with the quality
        calibrate_scale.main(words)
    rows = read_sweep(tmp_path / "sweep.csv")
    assert {row.scale for row in rows} == {0.0, 1.0, 2.0}
    assert len(rows) == 6 * 3
    config = calibrate_scale.compose("run", ["method=input", "data=orl_heavy"])
    people = TrainingPairs(calibrate_scale.DataSettings(**config["data"]), calibrate_scale.TrainingSettings()).people
    assert {row.image_id.split(" ", 2)[2].split("/")[0] for row in rows} <= set(people)
    # The weight of the identity changes the picture, and nothing else does between rows of one picture.
    assert any(a.similarity != b.similarity for a, b in zip(rows[:2], rows[2:4], strict=True))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "quality" in capsys.readouterr().out
    monkeypatch.setattr(calibrate_scale, "sweep", lambda *_: pytest.fail("a picture was restored again"))
    with contextlib.suppress(UsageError):
        calibrate_scale.main(words)
    with pytest.raises(UsageError, match="other lambdas"):
        calibrate_scale.main([*words, "--largest", "3"])
