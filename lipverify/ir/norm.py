"""The norms of the query language: three of vectors with their duals, and two of sequences of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, EnumMeta
from typing import Any

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


class _Vectors(EnumMeta):
    """Whoever goes through all norms asks rules about vectors: those of tokens are no part of that."""

    def __iter__(cls) -> Iterator[Any]:
        every: Iterator[Any] = super().__iter__()
        return (norm for norm in every if not norm.of_tokens)


class Norm(Enum, metaclass=_Vectors):
    """A vector norm on the flattened sample, or the largest over tokens. The value is the name in the command line and in JSON.

    `token-l2` of a sample [..., width] is the largest l2 norm over its tokens, the vectors along the last axis; `token-rms` that
    over the root of the width. They are asked for by `audit` alone, and iteration leaves them out.
    """

    L1 = "l1"
    L2 = "l2"
    LINF = "linf"
    TOKEN_RMS = "token-rms"
    TOKEN_L2 = "token-l2"

    @property
    def of_tokens(self) -> bool:
        """Whether it is the largest over tokens."""
        return self in (Norm.TOKEN_RMS, Norm.TOKEN_L2)

    def word(self, shape: tuple[int, ...]) -> str:
        """The name with all that it depends on, for a sample of this shape: of tokens also their width, `token-rms/64`."""
        return f"{self.value}/{shape[-1] if shape else 1}" if self.of_tokens else self.value

    @property
    def dual(self) -> Norm:
        """The norm q with 1/p + 1/q = 1."""
        return {Norm.L1: Norm.LINF, Norm.L2: Norm.L2, Norm.LINF: Norm.L1}[self]

    @property
    def order(self) -> float:
        """The exponent p, as `torch.linalg.vector_norm` takes it."""
        return {Norm.L1: 1.0, Norm.L2: 2.0, Norm.LINF: float("inf")}[self]

    @classmethod
    def parse(cls, text: str | float | Norm, tokens: bool = False) -> Norm:
        """Reads `l1`, `l2` or `linf`, in capitals too, and the exponents 1, 2 and inf.

        Args:
            tokens: norms of tokens too.

        Raises:
            UsageError: any other word or number.
        """
        choices: list[Norm] = [*cls, *([cls.TOKEN_RMS, cls.TOKEN_L2] if tokens else [])]
        if isinstance(text, Norm) and text in choices:
            return text
        text = text.value if isinstance(text, Norm) else text
        word = str(text).strip().lower() if isinstance(text, str | int | float) else ""
        try:
            return choices[[norm.value for norm in choices].index(_OTHER_WORDS.get(word, word))]
        except ValueError:
            choice = f"{', '.join(norm.value for norm in choices[:-1])} or {choices[-1].value}"
            raise UsageError(f"unknown norm {display(str(text), 40)!r}; choose {choice}") from None

    def __str__(self) -> str:
        return self.value
