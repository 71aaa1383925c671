"""Numbers as text. An upper bound is printed rounded up, a lower bound rounded down; neither as infinity or NaN."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from lipverify.errors import InternalError
from lipverify.loading.names import display

DIGITS = 6
_EXACT = Context(prec=60)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TIMES = "\u00a0×\u00a0"  # without a line break
_SIGNS = re.compile("([\u00a0×⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_FIXED = range(-4, 6)  # decimal exponents that are printed without a power of ten


@dataclass(frozen=True)
class Magnitude:
    """A bound: a float64, or the decimal logarithm of a number beyond float64. Exactly one of the two is set.

    Raises:
        InternalError: negative, infinite or NaN; such a number is no bound and is never shown as one.
    """

    value: float | None = None
    log10: float | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.log10 is None):
            raise InternalError("a bound to be printed is either a number or a logarithm")
        number = self.log10 if self.value is None else self.value
        if number is None or not math.isfinite(number) or (self.value is not None and self.value < 0):
            raise InternalError(f"a bound to be printed is finite and not negative, not {number!r}")

    @property
    def position(self) -> float | None:
        """The decimal logarithm, for drawing and ordering only; None for zero."""
        if self.log10 is not None:
            return self.log10
        return math.log10(self.value) if self.value else None

    @property
    def order(self) -> float:
        """A key that sorts bounds from small to large."""
        return -math.inf if self.position is None else self.position

    def is_below(self, lower: float) -> bool:
        """Whether a lower bound contradicts this upper bound."""
        if self.value is not None:
            return lower > self.value
        return lower > 0 and _EXACT.log10(Decimal(lower)) > Decimal(self.log10 or 0.0)


def upper_text(bound: Magnitude, digits: int = DIGITS) -> str:
    """The bound in at most `digits` significant digits, never below it; beyond float64 as 10^x."""
    if bound.value is None:
        return _power(Decimal(bound.log10 or 0.0), ROUND_CEILING)
    return decimal_text(bound.value, ROUND_CEILING, digits)


def lower_text(value: float, digits: int = DIGITS) -> str:
    """A lower bound in at most `digits` significant digits, never above it."""
    return decimal_text(Magnitude(value).value or 0.0, ROUND_FLOOR, digits)


def ratio_text(upper: Magnitude, lower: float, digits: int = DIGITS) -> str | None:
    """upper / lower, rounded up; None where the lower bound is zero and the upper bound is not.

    Raises:
        InternalError: the lower bound exceeds the upper bound: one of the two is wrong and neither may be shown.
    """
    if upper.is_below(lower):
        raise InternalError(f"the lower bound {lower!r} exceeds the upper bound {upper_text(upper)}")
    if upper.value is None:
        if lower == 0:
            return None
        return _power(
            _EXACT.subtract(Decimal(upper.log10 or 0.0), _EXACT.log10(Decimal(lower))), ROUND_CEILING
        )
    if lower == 0:
        return "1" if upper.value == 0 else None
    up = Context(prec=DIGITS + 20, rounding=ROUND_CEILING)
    return decimal_text(up.divide(Decimal(upper.value), Decimal(lower)), ROUND_CEILING, digits)


def decimal_text(value: float | Decimal, rounding: str = ROUND_HALF_EVEN, digits: int = DIGITS) -> str:
    """A finite number in at most `digits` significant digits, rounded as told; large and small ones with a power of ten."""
    exact = Decimal(value)
    if not exact.is_finite():
        raise InternalError(f"a number to be printed is finite, not {value!r}")
    rounded = Context(prec=digits, rounding=rounding).create_decimal(exact)
    if rounded == 0:
        return "0"
    exponent = rounded.adjusted()
    if exponent in _FIXED:
        return _trimmed(rounded)
    return f"{_trimmed(rounded.scaleb(-exponent))}{_TIMES}10{superscript(exponent)}"


def superscript(exponent: int) -> str:
    """A whole number in raised digits."""
    return str(exponent).translate(_SUPERSCRIPTS)


def plain_text(text: str, limit: int) -> str:
    """`display` of words that may be a stranger's, with the signs that figures are written with; cut at `limit` characters."""
    if len(text) > limit:
        return display(text, limit)
    return "".join(
        part if place % 2 else display(part, limit) for place, part in enumerate(_SIGNS.split(text))
    )


def factor_text(value: float) -> str:
    """A factor of a bound, rounded up to four digits; the exact one is in the certificate."""
    return f"×\u00a0{decimal_text(value, ROUND_CEILING, 4)}"


def seconds_text(seconds: float) -> str:
    """A running time for people."""
    if not math.isfinite(seconds) or seconds < 0:
        raise InternalError(f"a time to be printed is finite and not negative, not {seconds!r}")
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "under 1 ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count_text(count: int) -> str:
    """A whole number with its thousands marked."""
    return f"{count:,}"


def shape_text(shape: Sequence[int]) -> str:
    """The shape of one sample."""
    return " × ".join(str(size) for size in shape) if shape else "a single number"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count_text(count)} {one if count == 1 else many or one + 's'}"


def _trimmed(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _power(exponent: Decimal, rounding: str) -> str:
    """10^x with x in two decimals."""
    return f"10^{_trimmed(exponent.quantize(Decimal('0.01'), rounding=rounding, context=_EXACT))}"
