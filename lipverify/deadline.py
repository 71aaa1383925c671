"""The wall behind every deadline: work inside `within` ends by `BudgetEnded` at its first look after the end.

An anytime method aims at `Compute.deadline` and returns its best. What does not, or aims badly, is ended here: every question to
an operator looks, every elimination of a block, every step of a proof. A look can only end work, never change a number; what was
begun and not finished gives no bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lipverify.errors import BudgetEnded

_END: ContextVar[float | None] = ContextVar("end", default=None)


@contextmanager
def within(end: float | None) -> Iterator[None]:
    """The block ends at the moment `end` of `time.monotonic`, or with a block around it that ends earlier; None: only with that.

    Raises:
        BudgetEnded: by a look of the block after the end.
    """
    around = _END.get()
    known = [moment for moment in (around, end) if moment is not None]
    token = _END.set(min(known, default=None))
    try:
        yield
    finally:
        _END.reset(token)


def look() -> None:
    """Costs a tenth of a microsecond where nothing ends. Raises BudgetEnded after the end of the block around it."""
    end = _END.get()
    if end is not None and time.monotonic() > end:
        raise BudgetEnded("the budget ended")


def left() -> float:
    """Seconds until the block around it ends; infinite where none does."""
    end = _END.get()
    return float("inf") if end is None else max(end - time.monotonic(), 0.0)
