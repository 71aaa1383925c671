"""Units of work in a pool: one whose process dies, and one that hangs, are lost alone."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest

from lipverify import units
from lipverify.units import DIED, HUNG, Lost, results
from tests.processes import server

DIES, HANGS = 2, 4


def unit(shared: int, k: int, seconds: float | None) -> int:
    """shared + k; of two units that is not reached."""
    if k == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    while k == HANGS and seconds is not None:
        time.sleep(1.0)
    return shared + k


@pytest.mark.parametrize("hangs", [False, True])
def test_what_dies_or_hangs_is_lost_alone(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands until the other unit has ended, however long a busy machine takes, and then all time is over."""
    now, found = 0.0, {}
    monkeypatch.setattr(units, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(units, "GRACE", 1.0)
    # Those of tests/unit/robustness are spawned.
    monkeypatch.setattr(units, "multiprocessing", SimpleNamespace(get_context=lambda method: server()))
    two = [(0,), (HANGS if hangs else DIES,)]
    for place, result in results(unit, 10, two, 2, jobs=2, deadline=1.0 if hangs else None):
        found[place] = result
        now = 100.0
    assert found == {0: 10, 1: Lost(HUNG if hangs else DIED)}
