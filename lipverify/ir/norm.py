"""The three norms of the query language, and their duals."""

from __future__ import annotations

from enum import Enum

from lipverify.errors import UsageError


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
    def parse(cls, text: str | Norm) -> Norm:
        """Reads `l1`, `l2` or `linf`.

        Raises:
            UsageError: any other word.
        """
        if isinstance(text, Norm):
            return text
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"unknown norm {text!r}; choose l1, l2 or linf") from None

    def __str__(self) -> str:
        return self.value
