"""Interval arithmetic in float64 with outward rounding, and boxes of linear and of monotone maps.

Sound when: +, -, *, / and sqrt of float64 are correctly rounded; exp, expm1, log, log1p, tanh, erf, erfc, pow, the trigonometric
and hyperbolic functions and their inverses of torch are within `LIBRARY_ULPS` units in the last place (their documented errors,
on CPU and CUDA, are at most 5), or within the smallest normal number where results underflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.linalg.rounding import gamma
from lipverify.rules import Unbounded, forward

LIBRARY_ULPS = 8
_LARGEST = torch.finfo(torch.float64).max
_TINY = torch.finfo(torch.float64).tiny


class Enclosure(Interval):
    """An `Interval` of float64 with operators; every result holds the results of all its points."""

    @classmethod
    def of(cls, value: Tensor | float | Interval) -> Enclosure:
        """The same box, or the box of one exactly stored point, in float64."""
        if isinstance(value, Enclosure):
            return value
        if isinstance(value, Interval):
            return cls(value.lower.to(torch.float64), value.upper.to(torch.float64))
        point = torch.as_tensor(value, dtype=torch.float64)
        return cls(point, point)

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.upper, -self.lower)

    def __add__(self, other: Enclosure | float) -> Enclosure:
        other = self._like(other)
        lower, upper = self.lower + other.lower, self.upper + other.upper
        found = rounded(lower, upper)
        # A sum that is computed as 0 is 0 (IEEE 754: additions do not underflow): sums of squares stay free of negative numbers.
        return Enclosure(
            torch.where(lower == 0, lower, found.lower), torch.where(upper == 0, upper, found.upper)
        )

    def __sub__(self, other: Enclosure | float) -> Enclosure:
        return self + (-self._like(other))

    def __mul__(self, other: Enclosure | float) -> Enclosure:
        other = self._like(other)
        corners = [a * b for a in (self.lower, self.upper) for b in (other.lower, other.upper)]
        # 0 * infinity: the infinite end is a limit that no point reaches, the product of every point with 0 is 0.
        corners = [torch.nan_to_num(corner, nan=0.0, posinf=math.inf, neginf=-math.inf) for corner in corners]
        return rounded(*_extremes(corners))

    def __truediv__(self, other: Enclosure | float) -> Enclosure:
        other = self._like(other)
        if bool(((other.lower <= 0) & (other.upper >= 0)).any()):
            raise Unbounded("a divisor may be zero on this box")
        corners = [a / b for a in (self.lower, self.upper) for b in (other.lower, other.upper)]
        corners = [torch.nan_to_num(corner, nan=0.0, posinf=math.inf, neginf=-math.inf) for corner in corners]
        return rounded(*_extremes(corners))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Enclosure:
        return self._like(other) - self

    def __rtruediv__(self, other: float) -> Enclosure:
        return self._like(other) / self

    def _like(self, value: Enclosure | float) -> Enclosure:
        if isinstance(value, Enclosure):
            return value
        point = torch.tensor(value, dtype=torch.float64, device=self.lower.device)
        return Enclosure(point, point)

    def clipped(self, low: float, high: float) -> Enclosure:
        """Intersection with a range known to hold every point."""
        return Enclosure(self.lower.clamp(low, high), self.upper.clamp(low, high))

    def hull(self, other: Enclosure) -> Enclosure:
        """The smallest box around both."""
        return Enclosure(torch.minimum(self.lower, other.lower), torch.maximum(self.upper, other.upper))

    def where(self, condition: Tensor, other: Enclosure) -> Enclosure:
        """This box where the condition holds, the other elsewhere."""
        return Enclosure(
            torch.where(condition, self.lower, other.lower), torch.where(condition, self.upper, other.upper)
        )

    def abs(self) -> Enclosure:
        """|x|, exact."""
        crosses = (self.lower <= 0) & (self.upper >= 0)
        ends = self.lower.abs(), self.upper.abs()
        return Enclosure(torch.where(crosses, 0.0, torch.minimum(*ends)), torch.maximum(*ends))

    def square(self) -> Enclosure:
        """x^2."""
        size = self.abs()
        return rounded(size.lower * size.lower, size.upper * size.upper).clipped(0.0, math.inf)

    def sqrt(self) -> Enclosure:
        """Square root; negative points, which only rounding can have produced, count as 0."""
        found = rounded(self.lower.clamp_min(0.0).sqrt(), self.upper.clamp_min(0.0).sqrt())
        return found.clipped(0.0, math.inf)

    def sum(self, axes: tuple[int, ...], keepdim: bool = True) -> Enclosure:
        """Sum over axes (of the tensor), with the error gamma_n sum |x| of any order."""
        count = math.prod(self.lower.shape[axis] for axis in axes)
        ends = []
        for end, sign in ((self.lower, -1.0), (self.upper, 1.0)):
            error = 2.0 * gamma(count + 2) * end.abs().sum(axes, keepdim=keepdim) + _TINY
            ends.append(end.sum(axes, keepdim=keepdim) + sign * torch.nan_to_num(error, posinf=0.0))
        return rounded(*ends)

    def exp(self) -> Enclosure:
        return _increasing(torch.exp, self).clipped(0.0, math.inf)

    def expm1(self) -> Enclosure:
        return _increasing(torch.expm1, self).clipped(-1.0, math.inf)

    def log(self) -> Enclosure:
        return _increasing(torch.log, self)

    def log1p(self) -> Enclosure:
        return _increasing(torch.log1p, self)

    def tanh(self) -> Enclosure:
        return _increasing(torch.tanh, self).clipped(-1.0, 1.0)

    def atan(self) -> Enclosure:
        return _increasing(torch.atan, self)

    def asinh(self) -> Enclosure:
        return _increasing(torch.asinh, self)

    def sinh(self) -> Enclosure:
        return _increasing(torch.sinh, self)

    def cosh(self) -> Enclosure:
        """Even, and increasing with |x|."""
        return _increasing(torch.cosh, self.abs()).clipped(1.0, math.inf)

    def erf(self) -> Enclosure:
        return _increasing(torch.erf, self).clipped(-1.0, 1.0)

    def erfc(self) -> Enclosure:
        return _increasing(lambda x: torch.special.erfc(-x), -self).clipped(0.0, 2.0)

    def sigmoid(self) -> Enclosure:
        """1 / (1 + exp(-x)), to relative precision."""
        return (1.0 / ((-self).exp() + 1.0)).clipped(0.0, 1.0)

    def power(self, exponent: float) -> Enclosure:
        """x^exponent on points >= 0 (> 0 for a negative exponent)."""
        found = between_values(self.lower.clamp_min(0.0).pow(exponent), self.upper.pow(exponent))
        return found.clipped(0.0, math.inf)


def _extremes(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    low, high = values[0], values[0]
    for value in values[1:]:
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return low, high


def rounded(lower: Tensor, upper: Tensor) -> Enclosure:
    """Ends that are each one correctly rounded operation away from the truth, moved outward by one step.

    A lower end that overflowed to infinity becomes the largest number, which lies below the truth.
    """
    infinity = torch.full_like(lower, math.inf)
    return Enclosure(torch.nextafter(lower, -infinity), torch.nextafter(upper, infinity))


def _increasing(function: Callable[[Tensor], Tensor], x: Enclosure) -> Enclosure:
    return between_values(function(x.lower), function(x.upper))


def between_values(at_lower: Tensor, at_upper: Tensor) -> Enclosure:
    """The box between two values of library functions, in either order, widened by `LIBRARY_ULPS`."""
    lower = torch.minimum(at_lower, at_upper).clamp(max=_LARGEST)
    upper = torch.maximum(at_lower, at_upper).clamp(min=-_LARGEST)
    relative = LIBRARY_ULPS * 2.0**-52
    low = torch.where(lower.isfinite(), lower - (lower.abs() * relative + _TINY), lower)
    high = torch.where(upper.isfinite(), upper + (upper.abs() * relative + _TINY), upper)
    return rounded(low, high)


def monotone_box(op: Op, *boxes: Interval) -> Interval:
    """The image of a map that is nondecreasing in every entry and only moves, copies or compares entries: exact."""
    exact = [Enclosure.of(box) for box in boxes]
    op = op.to(dtype=torch.float64)
    return Interval(forward(op, *(box.lower for box in exact)), forward(op, *(box.upper for box in exact)))


def linear_box(
    apply: Callable[[Tensor], Tensor],
    magnitude: Callable[[Tensor], Tensor],
    offset: Tensor | None,
    box: Interval,
    terms: int,
) -> Interval:
    """The image of x -> A x + b.

    Statement: A(c + [-r, r]) + b lies in A c + b + [-1, 1] |A| r. Computed inner products of `terms` numbers are off by at
        most gamma_terms times the products of absolute values (Higham, section 3.1).
    Args: apply: x -> A x, magnitude: x -> |A| x, both in float64; offset broadcasts to the result.
    """
    x = Enclosure.of(box)
    endless = ~(x.lower.isfinite() & x.upper.isfinite())
    lower, upper = x.lower.masked_fill(endless, 0.0), x.upper.masked_fill(endless, 0.0)
    if torch.equal(lower, upper):
        # At points nothing is spread; the smallest subnormal numbers in its place would cost many times as much.
        image, size = apply(lower), magnitude(lower.abs())
        spread = torch.zeros_like(size)
    else:
        center = lower / 2 + upper / 2
        radius = torch.maximum(upper - center, center - lower)
        radius = torch.nextafter(radius, torch.full_like(radius, math.inf))
        image, spread, size = apply(center), magnitude(radius), magnitude(center.abs())
    if offset is not None:
        image, size = image + offset, size + offset.abs()
    # Both magnitudes are themselves off by gamma; 4 gamma_{n+4} covers that, the sum and this line.
    error = spread + 4.0 * gamma(terms + 4) * (size + spread) + terms * _TINY
    if not bool(error.isfinite().all()):
        raise Unbounded("its values on this box are above the largest float64")
    found = Interval(image, image).widened(error)
    if not bool(endless.any()):
        return found
    touched = magnitude(endless.to(torch.float64)) > 0
    return Interval(found.lower.masked_fill(touched, -math.inf), found.upper.masked_fill(touched, math.inf))


def two_sided(box: Interval, left: Enclosure, right: Enclosure) -> Enclosure:
    """Joins what holds on the part of the box in x <= 0 and on the part in x >= 0; a box that touches 0 has both parts."""
    if left.lower.shape != right.lower.shape:
        raise InternalError("both sides of a kink need the same shape")
    return left.where(box.upper < 0, right.where(box.lower > 0, left.hull(right)))


def negative_part(box: Interval) -> Enclosure:
    """The part in x <= 0, and 0 where there is none."""
    x = Enclosure.of(box)
    return Enclosure(x.lower.clamp(max=0.0), x.upper.clamp(max=0.0))


def positive_part(box: Interval) -> Enclosure:
    """The part in x >= 0, and 0 where there is none."""
    x = Enclosure.of(box)
    return Enclosure(x.lower.clamp(min=0.0), x.upper.clamp(min=0.0))
