"""The stream of training samples: which photographs are learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.config import compose
from bench.data.training import TrainingPairs, TrainingSettings
from bench.protocol.aligner import PhotoAligner
from bench.protocol.protocol import DataSettings, ProtocolPhoto


def test_photographs_without_a_face_are_counted_and_left_out(
    orl_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    align = PhotoAligner.align_if_readable

    def faceless(self: PhotoAligner, relative: str, points: bool = True) -> ProtocolPhoto | None:
        photo = align(self, relative, points)
        return replace(photo, points=None) if photo is not None and relative.startswith("s1/") else photo

    data = DataSettings(**compose("train", ["method=refine"])["data"])
    everyone = TrainingPairs(data, TrainingSettings(batch_size=2, references=0))
    assert "left out" not in capsys.readouterr().err
    monkeypatch.setattr(PhotoAligner, "align_if_readable", faceless)
    pairs = TrainingPairs(data, TrainingSettings(batch_size=2, references=0))
    assert len(everyone.photos) - len(pairs.photos) == 10 and "s1" not in pairs.people
    assert "left out of the training: 10 of 240 photographs, which show no face" in capsys.readouterr().err
    TrainingPairs(data, TrainingSettings(batch_size=2, references=0), rank=1, world_size=2)
    assert "left out" not in capsys.readouterr().err, "one process says it"
