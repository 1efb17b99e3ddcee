"""The adaptive ID-scale is the released code's (source in the fixture's JSON)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods.restorerid.adaptive_scale import adaptive_id_scale


def test_adaptive_scale_agrees():
    tensors = load_file(Path(__file__).parent / "fixture_schedule_a.safetensors")
    musiq, expected = tensors["in.musiq"], tensors["out.lambda"].double()
    assert len(musiq) == 8
    torch.testing.assert_close(adaptive_id_scale(musiq.double()), expected, atol=0, rtol=1e-5)
    assert [adaptive_id_scale(float(value)) for value in musiq] == pytest.approx(expected.tolist(), rel=1e-5)
