"""What checking may take: numbers held at once and operations, counted before anything is made.

Arrays that are kept are charged with their size, sums of products with their number; buffers of a bounded size are not numbers.
Outside of `spending`, where proofs are written, single arrays alone are limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lipverify.deadline import look
from lipverify.errors import BudgetEnded, NotCovered

NUMBERS, NUMBERS_PER_BYTE = 1 << 30, 1 << 6
OPERATIONS, OPERATIONS_PER_BYTE, OPERATIONS_PER_LETTER = 1 << 41, 1 << 22, 1 << 28
"""What every certificate may take, and how much more for every byte of its arrays and of the model, and of its JSON."""
MAKING, STEP = 4, 1 << 20
"""Operations that making one number counts as, and looking at one step of a proof or of a program."""


class Account:
    """size: bytes of files so far; numbers, operations: what is left; expired: whether the time is over."""

    def __init__(self, expired: Callable[[], bool] = lambda: False) -> None:
        self.size, self.numbers, self.operations, self.expired = 0, NUMBERS, OPERATIONS, expired

    def read(self, size: int, letters: bool = False) -> None:
        """One more file, of so many bytes; letters: of JSON, whose steps take more than as many bytes of numbers."""
        self.size += size
        self.numbers += NUMBERS_PER_BYTE * size
        self.operations += (OPERATIONS_PER_LETTER if letters else OPERATIONS_PER_BYTE) * size

    def take(self, numbers: int, operations: int) -> None:
        self.numbers -= numbers
        self.operations -= operations + MAKING * numbers
        if self.expired():
            raise BudgetEnded("the time for checking is over")
        if self.numbers < 0:
            raise NotCovered(f"it takes more memory than files of {self.size} bytes may (docs/soundness.md)")
        if self.operations < 0:
            raise NotCovered(
                f"it takes more operations than files of {self.size} bytes may (docs/soundness.md)"
            )


_CURRENT: ContextVar[Account | None] = ContextVar("account", default=None)


@contextmanager
def spending(account: Account) -> Iterator[None]:
    """Everything in here is charged to this account."""
    token = _CURRENT.set(account)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def charge(numbers: int, operations: int = 0) -> None:
    """Takes from the current account, or limits a single array where there is none. Raises NotCovered: that is too much."""
    look()
    if (account := _CURRENT.get()) is not None:
        account.take(int(numbers), int(operations))
    elif numbers > NUMBERS // 4:
        raise NotCovered(f"a matrix of {numbers} numbers is too large for the checker")


def read(size: int, letters: bool = False) -> None:
    """A file of so many bytes is part of what is checked."""
    if (account := _CURRENT.get()) is not None:
        account.read(size, letters)


def held() -> int:
    """How many numbers the current account still holds; `returned` gives back what has been taken since."""
    account = _CURRENT.get()
    return 0 if account is None else account.numbers


def returned(numbers: int) -> None:
    if (account := _CURRENT.get()) is not None:
        account.numbers += numbers
