"""Units of work in a pool: one whose process dies, and one that hangs, are lost alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    two, hangs = [(0,), (fault,)], fault != DIES
    with none_left():
        for place, result in results(
            unit, tmp_path / "begun", two, 2, jobs=2, deadline=1.0 if hangs else None
        ):
            found[place] = result
            now = 100.0
    assert found == {0: 0, 1: Lost(HUNG if hangs else DIED)}


@contextmanager
def none_left() -> Iterator[None]:
    """The block leaves no process, which this program would wait for when it ends: not even one that is stopped."""
    before = set(active_children())
    yield
    for process in set(active_children()) - before:
        process.join(60.0)
        left = process.exitcode is None
        process.kill()
        assert not left


@dataclass(frozen=True)
class Stopping:
    """What units share; the first processes that read it are stopped by that, before they have begun."""

    folder: Path
    count: int

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for number in range(self.count):
            try:
                (self.folder / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGSTOP)


def doubled(shared: Stopping, k: int, seconds: float | None) -> int:
    return 2 * k


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_process_that_is_stopped_before_it_began_leaves_others_take(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two, or both: then two others are started. No clock decides: who waits for both sees that they are stopped."""
    waited: list[float | None] = []

    def patient(running: Any, timeout: float | None = None, return_when: str = ALL_COMPLETED) -> Any:
        waited.append(timeout)
        if count == 2 and len(waited) == 1:
            while len(list(tmp_path.iterdir())) < count:
                time.sleep(0.01)
            timeout = 0.0
        return wait(running, timeout, return_when)

    monkeypatch.setattr(units, "wait", patient)
    monkeypatch.setattr(units, "GRACE", 1e6)
    monkeypatch.setattr(units, "multiprocessing", SimpleNamespace(get_context=lambda method: server()))
    asked = [(k,) for k in range(5)]
    with none_left():
        found = dict(results(doubled, Stopping(tmp_path, count), asked, 5, jobs=2, deadline=1e9))
    assert found == {k: 2 * k for k in range(5)}
    assert len(list(tmp_path.iterdir())) == count
