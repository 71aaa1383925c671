"""Units of work in a pool: one whose process dies, and one that hangs, are lost alone."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lipverify.units import DIED, HUNG, Lost, results

DIES, HANGS = 2, 4


@pytest.fixture(autouse=True)
def _processor_clock() -> None:
    """What hangs uses no processor time."""


def unit(shared: int, k: int, seconds: float | None) -> int:
    """shared + k; of two units that is not reached."""
    if k == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    while k == HANGS and seconds is not None:
        time.sleep(1.0)
    return shared + k


@pytest.mark.parametrize("hangs", [False, True])
def test_what_dies_or_hangs_is_lost_alone(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipverify.units.GRACE", 8.0)
    deadline = time.monotonic() + 6.0 if hangs else None
    found = dict(results(unit, 10, [(0,), (HANGS if hangs else DIES,)], 2, jobs=2, deadline=deadline))
    assert found == {0: 10, 1: Lost(HUNG if hangs else DIED)}
