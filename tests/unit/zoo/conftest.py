"""A zoo that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lipverify import zoo
from lipverify.zoo import building, location, network


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of our own that a test may damage."""
    folder = tmp_path / "models_zoo"
    shutil.copytree(zoo.root(), folder)
    for module in (location, building, network):
        monkeypatch.setattr(module, "root", folder.resolve)
    return folder
