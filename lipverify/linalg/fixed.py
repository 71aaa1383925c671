"""Fixed-point numbers of any precision, each known to within a radius, as tensors: sums of products without rounding.

A sum of products of integers is exact in float64 as long as it stays below 2^53, in any order. So numbers are held as digits
to the base 2^20, products of digits are left to the fast kernels of torch, and digits are carried afterwards. What is cut off
is added to the radius.
Source: Ozaki, Ogita, Oishi, Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication", Numerical Algorithms 59 (2012), for the splitting; midpoint and radius as in Rump, BIT 39 (1999).
Sound when: sums of products on the CPU are formed by adding and multiplying float64 numbers (no Winograd, no Fourier transforms).

Legend: a number is (d_0 + d_1 B + d_2 B^2 + ...) 2^exponent with B = 2^20; every d_k but the last lies in [0, B), the last in
[-B, B], so that a number is negative exactly where its last digit is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lipverify.deadline import look
from lipverify.errors import InternalError, UsageError
from lipverify.linalg.rounding import gamma

BITS = 20
_BASE = 2.0**BITS
_EXACT_BITS = 52
MOST_TERMS = 1 << 24
"""Longest sum of products: digits of factors get shorter with it, down to 8 bits."""
_SMALLEST = 2.0**-200
"""No radius but 0 is smaller, in units of the last digit, so that no product with it underflows."""
_LARGEST = 2.0**700
"""Radii above it, in units of the last digit, say nothing."""
Apply = Callable[[Tensor], Tensor]


class Imprecise(UsageError):
    """The radius is so large that the number is not known at all."""


@dataclass(frozen=True)
class Fixed:
    """digits [count, *shape] and radius [*shape], both float64; the radius in units of 2^exponent, a multiple of 20."""

    digits: Tensor
    radius: Tensor
    exponent: int

    @property
    def shape(self) -> torch.Size:
        """Of the numbers."""
        return self.radius.shape

    @property
    def top(self) -> int:
        """The exponent of the place above the last digit."""
        return self.exponent + BITS * len(self.digits)

    @classmethod
    def of(cls, value: Tensor, count: int) -> Fixed:
        """Finite float64 numbers; exact where `count` digits from the largest entry's on hold them."""
        values = value.detach().cpu().to(torch.float64).reshape(-1).numpy()
        if not np.isfinite(values).all():
            raise Imprecise("a number is not finite")
        largest = int(np.frexp(np.abs(values).max(initial=0.0))[1])
        top = BITS * -(-largest // BITS)
        rest = np.ldexp(values, -top)
        lost = np.ldexp(rest, top) != values
        places: list[Tensor] = []
        while len(places) < count and rest.any():
            rest = rest * _BASE
            whole = np.trunc(rest)
            rest = rest - whole
            places.append(torch.from_numpy(whole))
        places = places or [torch.zeros(len(values), dtype=torch.float64)]
        radius = torch.from_numpy(((rest != 0) | lost).astype(np.float64)).reshape(value.shape)
        digits = torch.stack(places[::-1]).reshape(-1, *value.shape)
        return carried(digits, radius, top - BITS * len(places))

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor, count: int) -> Fixed:
        """Numbers known to lie between float64 ends.

        Raises:
            Imprecise: an end is infinite.
        """
        center = lower / 2 + upper / 2
        distance = torch.maximum(upper - center, center - lower)
        distance = torch.nextafter(distance, torch.full_like(distance, math.inf))
        distance = torch.where(lower == upper, 0.0, distance)
        if not bool(distance.isfinite().all()):
            raise Imprecise("a value is not bounded")
        found = cls.of(center, count)
        if not bool((center != 0).any()) and bool((distance > 0).any()):
            # The radius alone sets the unit.
            size = BITS * -(-int(np.frexp(distance.max().item())[1]) // BITS)
            found = Fixed(found.digits, found.radius, size - BITS * count)
        return Fixed(
            found.digits, _added(found.radius, scaled_up(distance, -found.exponent)), found.exponent
        )._known()

    @classmethod
    def ratios(
        cls,
        values: Sequence[Fraction],
        shape: Sequence[int],
        count: int,
        above: Sequence[Fraction] | None = None,
    ) -> Fixed:
        """Rational numbers in row-major order, each cut off after `count` digits from the largest one's on.

        Args:
            above: upper ends, where the values are lower ends of numbers that are not known better.
        """
        largest = max((abs(value) for value in (*values, *(above or ()))), default=Fraction(0))
        size = largest.numerator.bit_length() - largest.denominator.bit_length() + 1
        exponent = BITS * -(-size // BITS) - BITS * count
        unit = Fraction(2) ** exponent
        scaled = [value / unit for value in values]
        whole = [math.floor(value) for value in scaled]
        highest = scaled if above is None else [value / unit for value in above]
        radius = [float(math.ceil(h - w)) for h, w in zip(highest, whole, strict=True)]
        return cls.wholes(
            whole, torch.tensor(radius, dtype=torch.float64).reshape(tuple(shape)), count, exponent
        )

    @classmethod
    def wholes(cls, values: Sequence[int], radius: Tensor, count: int, exponent: int) -> Fixed:
        """Integers below 2^(20 count + 20) in size, in row-major order, in units of 2^exponent; radius: in the same units, and of
        the shape of the numbers.
        """
        places = [[float((w >> (BITS * k)) & (2**BITS - 1)) for w in values] for k in range(count)]
        places.append([float(w >> (BITS * count)) for w in values])
        digits = torch.tensor(places, dtype=torch.float64).reshape(count + 1, *radius.shape)
        return carried(digits, radius, exponent)

    def _known(self) -> Fixed:
        """Itself.

        Raises:
            Imprecise: a radius says nothing.
        """
        if not bool((self.radius < _LARGEST).all()):
            raise Imprecise("nothing is known of a value")
        return self

    # -- reading

    def middle(self) -> Tensor:
        """The numbers in units of 2^exponent, to relative gamma(2 digits + 2)."""
        value = self.digits[-1]
        for digit in self.digits.flip(0)[1:]:
            value = value * _BASE + digit
        return value

    def size(self) -> Tensor:
        """|number| in units of 2^exponent, rounded up; without the radius."""
        return self.middle().abs() * (1.0 + gamma(2 * len(self.digits) + 8))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Float64 numbers below and above."""
        middle = self.middle()
        error = _added(middle.abs() * gamma(2 * len(self.digits) + 4), self.radius)
        infinity = torch.full_like(middle, math.inf)
        lower = torch.nextafter(middle - error, -infinity)
        upper = torch.nextafter(middle + error, infinity)
        exact = (self.radius == 0) & (middle.abs() < 2.0**_EXACT_BITS)
        lower, upper = torch.where(exact, middle, lower), torch.where(exact, middle, upper)
        ends = []
        for end, outward in ((lower, -infinity), (upper, infinity)):
            moved = ldexp(end, self.exponent)
            same = ldexp(moved, -self.exponent) == end
            ends.append(torch.where(same, moved, torch.nextafter(moved, outward)))
        return ends[0], ends[1]

    def integers(self) -> list[int]:
        """The numbers in units of 2^exponent, in row-major order, without their radius."""
        rows = self.digits.flatten(1).to(torch.int64).tolist()
        found = [0] * self.radius.numel()
        for row in reversed(rows):
            found = [(value << BITS) + digit for value, digit in zip(found, row, strict=True)]
        return found

    def keys(self) -> list[Tensor]:
        """Float64 tensors, most important first, whose lexicographic order is that of the numbers (without their radius)."""
        digits = list(self.digits.flip(0))
        if len(digits) % 2:
            digits.append(torch.zeros_like(self.radius))
        return [a * _BASE + b for a, b in zip(digits[::2], digits[1::2], strict=True)]

    # -- moving entries

    def moved(self, move: Apply, radius: Apply | None = None) -> Fixed:
        """Entries copied, moved or dropped by a map of tensors [rows, ...] that keeps the first axis."""
        count, rows = self.digits.shape[:2]
        digits = move(self.digits.flatten(0, 1))
        return Fixed(
            digits.reshape(count, rows, *digits.shape[1:]), (radius or move)(self.radius), self.exponent
        )

    def entry(self, pick: Callable[[Tensor], Tensor]) -> Fixed:
        """Any map that copies entries, applied to every digit's tensor of the shape of the numbers."""
        return Fixed(torch.stack([pick(digit) for digit in self.digits]), pick(self.radius), self.exponent)

    # -- precision

    def lifted(self, exponent: int) -> Fixed:
        """The same numbers in larger units; digits below are cut off."""
        drop = min((exponent - self.exponent) // BITS, len(self.digits))
        if drop <= 0:
            return self
        cut = (self.digits[:drop] != 0).any(0)
        kept = self.digits[drop:]
        if not len(kept):
            # A number of size at most B^count is at most one of the new units.
            kept = torch.zeros_like(self.digits[:1])
        radius = _added(_shrunk(self.radius, exponent - self.exponent), cut.to(torch.float64))
        return Fixed(kept, radius, exponent)

    def rounded(self, count: int) -> Fixed:
        """At most `count` digits."""
        return self.lifted(self.top - BITS * count)

    def lowered(self, exponent: int) -> Fixed:
        """The same numbers in smaller units, exact."""
        extra = (self.exponent - exponent) // BITS
        if extra <= 0:
            return self
        zeros = torch.zeros((extra, *self.shape), dtype=torch.float64)
        radius = self.radius * 2.0 ** (BITS * extra)
        return Fixed(torch.cat([zeros, self.digits]), radius, exponent)._known()

    # -- arithmetic

    def __neg__(self) -> Fixed:
        return carried(-self.digits, self.radius, self.exponent)

    def plus(self, other: Fixed, count: int) -> Fixed:
        """The sum, to about `count` digits. Shapes broadcast."""
        a, b = aligned((self, other), count)
        radius = _added(a.radius, b.radius)
        return carried(a.digits + b.digits, radius, a.exponent).rounded(count)

    def minus(self, other: Fixed, count: int) -> Fixed:
        """The difference, to about `count` digits. Shapes broadcast."""
        return self.plus(-other, count)

    def times(self, factor: Fixed, count: int) -> Fixed:
        """The product entry by entry, to about `count` digits. Shapes broadcast."""
        total = _Total(len(self.digits) + len(factor.digits) + 3)
        for place, digit in enumerate(factor.digits):
            total.add(self.digits * digit, BITS * place)
        # |x y - x0 y0| <= |x0| s + r (|y0| + s).
        radius = self.size() * factor.radius + self.radius * (factor.size() + factor.radius)
        found = carried(total.digits(), _inflated(radius, 8), self.exponent + factor.exponent)
        return found._known().rounded(count)

    def through(
        self, weight: Fixed, apply: Callable[[Tensor, Tensor], Tensor], terms: int, count: int
    ) -> Fixed:
        """A linear map whose coefficients are the entries of `weight` or 0, applied to rows [rows, ...].

        Args:
            apply: (weight, rows) -> rows; a sum of at most `terms` products for each result.
        """
        if terms > MOST_TERMS:
            raise Imprecise(f"a sum of {terms} products is too long")
        digits, rows = self.digits.shape[:2]
        stacked = self.digits.flatten(0, 1)
        bits = min(BITS, _EXACT_BITS - BITS - max(terms - 1, 0).bit_length())
        total = _Total(len(self.digits) + len(weight.digits) + 3)
        for shift, part in _parts(weight.digits, bits):
            image = apply(part, stacked)
            total.add(image.reshape(digits, rows, *image.shape[1:]), shift)
        size = weight.size()
        radius = apply(size + weight.radius, self.radius)
        if bool((weight.radius > 0).any()):
            radius = radius + apply(weight.radius, self.size())
        found = carried(total.digits(), _inflated(radius, terms + 8), self.exponent + weight.exponent)
        return found._known().rounded(count)


class _Total:
    """A sum of integer tensors, each times a power of two, in digits that are not carried yet."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sums: Tensor | None = None

    def add(self, values: Tensor, shift: int) -> None:
        """values [digits, ...], integers of at most 53 bits, times 2^shift B^k in place k."""
        look()
        place, more = divmod(shift, BITS)
        rest = values * 2.0**more
        if self.sums is None:
            self.sums = torch.zeros((self.count, *values.shape[1:]), dtype=torch.float64)
        last = place + len(values)
        # 53 bits and a shift below 20 are four digits.
        for step in range(3):
            above = (rest * (1.0 / _BASE)).floor_()
            # In place, and exact: what is left is an integer in [0, B).
            self.sums[place + step : last + step] += rest.sub_(above, alpha=_BASE)
            rest = above
        self.sums[place + 3 : last + 3] += rest

    def digits(self) -> Tensor:
        assert self.sums is not None
        return self.sums


def _parts(digits: Tensor, bits: int) -> list[tuple[int, Tensor]]:
    """Integers below 2^bits in size that sum up to the digits, each with its shift."""
    found = []
    for place, digit in enumerate(digits):
        rest, shift = digit, BITS * place
        while bool((rest != 0).any()):
            if bits >= BITS:
                found.append((shift, rest))
                break
            above = torch.trunc(rest * 2.0**-bits)
            found.append((shift, rest - above * 2.0**bits))
            rest, shift = above, shift + bits
    return found or [(0, torch.zeros_like(digits[0]))]


def carried(sums: Tensor, radius: Tensor, exponent: int) -> Fixed:
    """The number with these sums for digits: integers of at most 2^52."""
    digits: list[Tensor] = []
    over = torch.zeros_like(sums[0])
    for value in sums:
        look()
        value = value + over
        over = torch.floor(value * (1.0 / _BASE))
        digits.append(value - over * _BASE)
    while bool((over.abs() > _BASE).any()):
        above = torch.floor(over * (1.0 / _BASE))
        digits.append(over - above * _BASE)
        over = above
    digits.append(over)
    # A last digit of 0 or -1 joins the one before it, which may be in [-B, B].
    while len(digits) > 1 and bool(((digits[-1] == 0) | (digits[-1] == -1)).all()):
        last = digits.pop()
        digits[-1] = digits[-1] + last * _BASE
    if bool((digits[-1].abs() > _BASE).any()):
        raise InternalError("a carried digit is out of range")
    found = torch.stack(digits)
    return Fixed(found, radius.expand(found.shape[1:]), exponent)


def aligned(numbers: Sequence[Fixed], count: int) -> list[Fixed]:
    """The same numbers with equal units and equally many digits; what lies far below the largest is cut off."""
    top = max(number.top for number in numbers)
    exponent = max(min(number.exponent for number in numbers), top - BITS * (count + 2))
    found = [number.lifted(exponent).lowered(exponent) for number in numbers]
    digits = max(len(number.digits) for number in found)
    return [_extended(number, digits) for number in found]


def _extended(number: Fixed, count: int) -> Fixed:
    """More digits at the top: a negative number is its last digit minus one more unit of the place above."""
    missing = count - len(number.digits)
    if missing <= 0:
        return number
    digits = list(number.digits)
    for _ in range(missing):
        above = torch.floor(digits[-1] * (1.0 / _BASE))
        digits[-1] = digits[-1] - above * _BASE
        digits.append(above)
    return Fixed(torch.stack(digits), number.radius, number.exponent)


def where(condition: Tensor, a: Fixed, b: Fixed, count: int) -> Fixed:
    """Entries of a where the condition holds, of b elsewhere. Shapes broadcast."""
    a, b = aligned((a, b), count)
    return Fixed(
        torch.where(condition, a.digits, b.digits), torch.where(condition, a.radius, b.radius), a.exponent
    )


def sharper(a: Fixed, b: Fixed, count: int) -> Fixed:
    """Two enclosures of the same numbers: in every entry the one of smaller radius."""
    a, b = aligned((a, b), count)
    take = a.radius <= b.radius
    return Fixed(torch.where(take, a.digits, b.digits), torch.where(take, a.radius, b.radius), a.exponent)


def scaled_up(value: Tensor, exponent: int) -> Tensor:
    """value 2^exponent for value >= 0, rounded up."""
    moved = ldexp(value, exponent)
    return torch.where(value > 0, torch.nextafter(moved, torch.full_like(moved, math.inf)), 0.0)


def ldexp(value: Tensor, exponent: int) -> Tensor:
    """value 2^exponent, correctly rounded also where it underflows (torch.ldexp overflows on the way)."""
    limited = max(min(exponent, 10_000), -10_000)
    with np.errstate(over="ignore", under="ignore"):
        return torch.from_numpy(np.ldexp(value.numpy(), limited))


def _shrunk(radius: Tensor, exponent: int) -> Tensor:
    """Radii in units 2^exponent times larger."""
    smaller = radius * 2.0**-exponent if exponent < 1000 else torch.zeros_like(radius)
    return torch.where(radius > 0, smaller.clamp_min(_SMALLEST), 0.0)


def _added(a: Tensor, b: Tensor) -> Tensor:
    """a + b >= 0, rounded up."""
    total = a + b
    return torch.where(total > 0, (total * (1.0 + 4.0 * gamma(1))).clamp_min(_SMALLEST), 0.0)


def _inflated(radius: Tensor, count: int) -> Tensor:
    """A sum of non-negative products of `count` roundings, rounded up."""
    return torch.where(radius > 0, (radius * (1.0 + 4.0 * gamma(count))).clamp_min(_SMALLEST), 0.0)
