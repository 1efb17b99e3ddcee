"""Fixtures of the tests that prepare data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data_helpers import use_cards, wrapped_people


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, without data, and a folder of cards of its own."""
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BENCH_DATA", raising=False)
    use_cards(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def people(tmp_path: Path, orl_root: Path) -> Path:
    """Folders of people, one below another, as archives often hold them."""
    return wrapped_people(tmp_path / "source", orl_root)
