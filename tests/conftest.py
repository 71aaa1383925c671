"""Shared fixtures: seeds that are printed, one thread for each worker, the optional folder of third-party networks."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from lipverify.checkers.reader import agreement, runtimes
from lipverify.falsify import search
from lipverify.loading import state_dict
from lipverify.questions import labels
from lipverify.questions.climb import Climb
from lipverify.robustness.attack import Attack
from tests import checkpoint_children, clocks
from tests.refused_models import asked_again as asked_again
from tests.tiers import FULL

ROOT = Path(__file__).resolve().parent.parent
THIRD_PARTY = ROOT.parent / "shared" / "checkpoints"

# Of hypothesis too nothing hangs on the clock: examples that a busy machine draws slowly are as good as others.
settings.register_profile("clockless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("clockless")

# Objects of a test are soon gone: to look for circles among all there are after each 700 new ones takes a fifteenth of the time.
gc.set_threshold(100_000, 50, 100)

# Searches of tests end after few rounds that gain nothing; what they look for, and what is proved of it, is the same.
SHORT = {"SCOUTS": 4, "STILL": 6, "VAIN": 1}
WHOLE = {name: getattr(search, name) for name in SHORT}
for _name, _value in SHORT.items():
    setattr(search, _name, _value)

# So do searches for adversarial examples: restarts, steps, halvings, doublings.
SHORT_ATTACK, WHOLE_ATTACK = (6, 16, 6, 12), Attack.__init__.__defaults__
Attack.__init__.__defaults__ = SHORT_ATTACK

# And those for inputs where two networks are far apart: starts, steps, points looked at, those that walk, their steps.
SHORT_CLIMB, WHOLE_CLIMB = (8, 20, 4e9, 12, 2048, 16, 20, 1 << 22), Climb.__init__.__defaults__
CHANGES = labels.CHANGES
Climb.__init__.__defaults__ = SHORT_CLIMB
labels.CHANGES = Climb()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("long")
        if mark is not None and not FULL:
            item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]}; set LIPVERIFY_SOUNDNESS=full"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _processor_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", clocks.monotonic)


@pytest.fixture
def system_child() -> None:
    """For tests of the start itself: a fresh interpreter unpickles checkpoints, and evaluates ONNX files, as users have it."""


@pytest.fixture(autouse=True)
def _forked_child(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "system_child" not in request.fixturenames:
        monkeypatch.setattr(state_dict, "subprocess", checkpoint_children.SYSTEM)
        # What `verify` compares is the same in this process, and two interpreters cost a second.
        monkeypatch.setattr(agreement, "evaluated_apart", lambda asked, *limits: runtimes.evaluated(asked))


@pytest.fixture
def whole_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of how steep a witness is, or how near an example: the search as users have it."""
    for name, value in WHOLE.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(Attack.__init__, "__defaults__", WHOLE_ATTACK)
    monkeypatch.setattr(Climb.__init__, "__defaults__", WHOLE_CLIMB)
    monkeypatch.setattr(labels, "CHANGES", CHANGES)


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
