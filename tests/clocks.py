"""Time that no other process can use up. Tests never assert on a wall clock: the machine may be busy.

What must not take long is held to the processor time of this process. Budgets count it too: every test, and every program
that `processes.py` forks, has `monotonic` in the place of `time.monotonic`.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

_wall = time.monotonic
_CREEP = 0.02


def monotonic() -> float:
    """Processor time of this process, and a little of the wall clock: waiting for another process ends at last."""
    return time.process_time() + _CREEP * _wall()


def processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails where the block takes more processor time than this."""
    begun = processor_seconds()
    yield
    spent = processor_seconds() - begun
    assert spent < seconds, f"{spent:.1f} s of processor time, at most {seconds} allowed"
