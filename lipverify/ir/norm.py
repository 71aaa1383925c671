"""The three norms of the query language, and their duals."""

from __future__ import annotations

from enum import Enum

from lipverify.errors import UsageError
from lipverify.loading.names import display

_OTHER_WORDS = {
    "1": "l1",
    "1.0": "l1",
    "2": "l2",
    "2.0": "l2",
    "inf": "linf",
    "l_inf": "linf",
    "l_1": "l1",
    "l_2": "l2",
}
"""What people write too: exponents, and the names of papers."""


class Norm(Enum):
    """A vector norm on the flattened sample. The value is the name used on the command line and in JSON."""

    L1 = "l1"
    L2 = "l2"
    LINF = "linf"

    @property
    def dual(self) -> Norm:
        """The norm q with 1/p + 1/q = 1."""
        return {Norm.L1: Norm.LINF, Norm.L2: Norm.L2, Norm.LINF: Norm.L1}[self]

    @property
    def order(self) -> float:
        """The exponent p, as `torch.linalg.vector_norm` takes it."""
        return {Norm.L1: 1.0, Norm.L2: 2.0, Norm.LINF: float("inf")}[self]

    @classmethod
    def parse(cls, text: str | float | Norm) -> Norm:
        """Reads `l1`, `l2` or `linf`, in capitals too, and the exponents 1, 2 and inf.

        Raises:
            UsageError: any other word or number.
        """
        if isinstance(text, Norm):
            return text
        word = str(text).strip().lower() if isinstance(text, str | int | float) else ""
        try:
            return cls(_OTHER_WORDS.get(word, word))
        except ValueError:
            choice = f"{', '.join(norm.value for norm in list(cls)[:-1])} or {list(cls)[-1].value}"
            raise UsageError(f"unknown norm {display(str(text), 40)!r}; choose {choice}") from None

    def __str__(self) -> str:
        return self.value
