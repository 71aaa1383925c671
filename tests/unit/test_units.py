"""Units of work in a pool: one whose process dies, and one that hangs, are lost alone."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest

from lipverify import units
from lipverify.units import DIED, HUNG, Lost, results
from tests.processes import server

DIES, HANGS, STOPS = 2, 4, 6


def unit(begun: Path, k: int, seconds: float | None) -> int:
    """k, once the other one has begun; of the others nothing."""
    if k:
        begun.touch()
    while not begun.exists():
        time.sleep(0.01)
    if k in (DIES, STOPS):
        os.kill(os.getpid(), signal.SIGKILL if k == DIES else signal.SIGSTOP)
    while k == HANGS:
        time.sleep(1.0)
    return k


@pytest.mark.parametrize("fault", [DIES, HANGS, STOPS])
def test_what_dies_or_hangs_is_lost_alone(
    fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands until the other unit has ended, however long a busy machine takes, and then all time is over.

    No process is left, which this one would wait for when it ends: a stopped one heeds no other signal than the last.
    """
    now, found = 0.0, {}
    monkeypatch.setattr(units, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(units, "GRACE", 1.0)
    # Those of tests/unit/robustness are spawned.
    monkeypatch.setattr(units, "multiprocessing", SimpleNamespace(get_context=lambda method: server()))
    before = set(active_children())
    two, hangs = [(0,), (fault,)], fault != DIES
    for place, result in results(unit, tmp_path / "begun", two, 2, jobs=2, deadline=1.0 if hangs else None):
        found[place] = result
        now = 100.0
    assert found == {0: 0, 1: Lost(HUNG if hangs else DIED)}
    for process in set(active_children()) - before:
        process.join(2.0)
        left = process.exitcode is None
        process.kill()
        assert not left
