"""Fixtures of the soundness tests."""

from pathlib import Path

import pytest


@pytest.fixture
def marker(tmp_path: Path):
    path = tmp_path / "payload-was-run"
    yield path
    assert not path.exists(), "a payload was executed"
