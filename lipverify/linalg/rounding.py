"""Directed rounding: error constants of float64 and non-negative decimals that only ever round up.

Legend: u = 2^-53 is the unit roundoff; gamma_n = n u / (1 - n u) bounds the relative error of n roundings in any
order (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, Lemma 3.1).
"""

from __future__ import annotations

import decimal
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import total_ordering

import torch
from torch import Tensor

from lipverify.errors import InternalError, UsageError

UNIT_ROUNDOFF = 2.0**-53
_SMALL = 2.0**-1020


def up(value: float) -> float:
    """The next float64 above `value`."""
    return math.nextafter(value, math.inf)


def down(value: float) -> float:
    """The next float64 below `value`."""
    return math.nextafter(value, -math.inf)


def gamma(count: int) -> float:
    """gamma_count = count u / (1 - count u), rounded up; InternalError when count u is not small."""
    if count < 0 or count * UNIT_ROUNDOFF > 2.0**-10:
        raise InternalError(f"gamma({count}) is outside the range in which rounding errors are controlled")
    # count u is exact (a power of two times an integer below 2^53); one division, rounded up.
    return up(count * UNIT_ROUNDOFF / down(1.0 - count * UNIT_ROUNDOFF)) if count else 0.0


def inflate(value: Tensor, relative: float) -> Tensor:
    """A float64 tensor >= value (1 + relative); zero stays zero.

    Args:
        value: non-negative float64 tensor. An underflow before is not made good: zero counts as zero.
        relative: 0 <= relative <= 1.
    """
    if not 0.0 <= relative <= 1.0:
        raise InternalError(f"relative inflation {relative!r} is not in [0, 1]")
    # fl(1 + relative + 8u) >= (1 + relative + 8u)(1 - 2u), one more rounding in the product: 3 (1 + relative) < 8.
    grown = value * (1.0 + (relative + 8.0 * UNIT_ROUNDOFF))
    # Near 0 a product is off by half of the smallest number, whatever its size.
    stepped = torch.nextafter(grown, grown.new_tensor(math.inf))
    return torch.where((grown < _SMALL) & (value > 0), stepped, grown)


def sum_up(values: Iterable[float]) -> float:
    """The exact sum of float64 numbers, rounded up (exact when it is representable)."""
    terms = list(values)
    total = math.fsum(terms)
    # fsum is correctly rounded, so the residual has the sign of (exact sum - total).
    return up(total) if math.fsum([*terms, -total]) > 0.0 else total


_CONTEXT = decimal.Context(
    prec=40,
    rounding=decimal.ROUND_CEILING,
    Emin=decimal.MIN_EMIN,
    Emax=decimal.MAX_EMAX,
    traps=[decimal.Overflow, decimal.InvalidOperation, decimal.DivisionByZero],
)
_EXACT = decimal.Context(prec=80, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[decimal.Inexact])
_LARGEST = Decimal(sys.float_info.max)


@total_ordering
@dataclass(frozen=True, eq=False)
class Upper:
    """A non-negative number known from above: every operation rounds up, and nothing overflows in practice.

    Holds 40 decimal digits with an exponent range of about 10^18, so that a product of thousands of gains stays finite.
    Comparison and equality are those of the stored decimals.

    Raises:
        UsageError: a NaN, infinite or negative value.
    """

    value: Decimal

    def __post_init__(self) -> None:
        if not self.value.is_finite() or self.value < 0:
            raise UsageError(f"an upper bound must be a finite non-negative number, not {self.value}")

    @classmethod
    def of(cls, value: float | int | Fraction | Upper) -> Upper:
        """Exact for floats and Upper; integers and fractions beyond 40 digits round up."""
        if isinstance(value, Upper):
            return value
        if isinstance(value, Fraction):
            # The numerator is exact as a Decimal; only the division rounds, and it rounds up.
            return cls(_CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator)))
        return cls(Decimal(value))

    @classmethod
    def zero(cls) -> Upper:
        return cls(Decimal(0))

    @classmethod
    def one(cls) -> Upper:
        return cls(Decimal(1))

    @classmethod
    def sum(cls, values: Iterable[float | Upper]) -> Upper:
        """l1 accumulation."""
        total = Decimal(0)
        for value in values:
            total = _CONTEXT.add(total, cls.of(value).value)
        return cls(total)

    @classmethod
    def largest(cls, values: Iterable[float | Upper]) -> Upper:
        """linf accumulation; zero for no values."""
        return max((cls.of(value) for value in values), default=cls.zero())

    @classmethod
    def root_sum_squares(cls, values: Iterable[float | Upper]) -> Upper:
        """l2 accumulation."""
        total = Decimal(0)
        for value in values:
            term = cls.of(value).value
            total = _CONTEXT.add(total, _CONTEXT.multiply(term, term))
        return cls(total).sqrt()

    def __add__(self, other: float | Upper) -> Upper:
        return Upper(_CONTEXT.add(self.value, Upper.of(other).value))

    def __mul__(self, other: float | Upper) -> Upper:
        return Upper(_CONTEXT.multiply(self.value, Upper.of(other).value))

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return (
            self.value == Upper.of(other).value if isinstance(other, float | int | Upper) else NotImplemented
        )

    def __lt__(self, other: float | Upper) -> bool:
        return self.value < Upper.of(other).value

    def __hash__(self) -> int:
        return hash(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        """The smallest float64 >= the value; OverflowError above the largest float64."""
        if self.value > _LARGEST:
            raise OverflowError(f"{self.value:.6E} is above the largest float64; use log10()")
        nearest = float(self.value)
        return up(nearest) if Decimal(nearest) < self.value else nearest

    def log10(self) -> float:
        """The decimal logarithm, rounded up to a float64; UsageError for zero."""
        if not self.value:
            raise UsageError("the logarithm of an upper bound of zero does not exist")
        # Context.log10 rounds to nearest: one step up in 40 digits, one more in float64.
        logarithm = _CONTEXT.next_plus(_CONTEXT.log10(self.value))
        nearest = float(logarithm)
        return up(nearest) if Decimal(nearest) < logarithm else nearest

    def sqrt(self) -> Upper:
        root = _CONTEXT.sqrt(self.value)
        # Decimal.sqrt rounds to nearest whatever the context says; the square of 40 digits is exact in 80.
        return Upper(root if _EXACT.multiply(root, root) >= self.value else _CONTEXT.next_plus(root))

    def hypot(self, other: float | Upper) -> Upper:
        return Upper.root_sum_squares((self, other))

    def max(self, other: float | Upper) -> Upper:
        return max(self, Upper.of(other))

    def scale(self, exponent: int) -> Upper:
        """Times 2^exponent."""
        return self * Upper.of(Fraction(2) ** exponent)
