"""Shared fixtures: seeds that are printed, one thread for each worker, the optional folder of third-party networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.refused_models import asked_again as asked_again

ROOT = Path(__file__).resolve().parent.parent
THIRD_PARTY = ROOT.parent / "shared" / "checkpoints"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator whose seed depends on the test's name alone; pytest prints the name of a failing test."""
    return np.random.default_rng([ord(letter) for letter in request.node.nodeid])


@pytest.fixture(scope="session")
def third_party() -> Path:
    """The sibling folder of third-party networks; users do not have it."""
    if not THIRD_PARTY.is_dir():
        pytest.skip("the folder shared/checkpoints with third-party networks is not beside this checkout")
    return THIRD_PARTY
