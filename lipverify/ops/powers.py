"""Scalar functions without a global constant (they occur inside patterns): rules where a box keeps them finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.op import Shape
from lipverify.ops.enclosure import Enclosure, between_values, rounded
from lipverify.ops.planes import scalar_planes
from lipverify.ops.scalar import box_slopes, uniform_slopes
from lipverify.ops.smooth import (
    Acos,
    Acosh,
    Asin,
    Atanh,
    Cosh,
    Exp,
    Log,
    Power,
    Reciprocal,
    Sinh,
    Sqrt,
    Tan,
)
from lipverify.rules import Slopes, Unbounded, interval, relax, slopes

_UNBOUNDED = (Exp, Power, Sqrt, Reciprocal, Log, Sinh, Cosh, Tan, Asin, Acos, Atanh, Acosh)
relax.register(*_UNBOUNDED)(scalar_planes)


@slopes.register(Exp)
def _exp_slopes(op: Exp, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        raise Unbounded(
            "the slope of the exponential grows without limit; ask over a ball, with an analyzer like local"
        )
    return box_slopes(Enclosure.of(box).exp(), shape)


@interval.register(Exp)
def _exp_interval(op: Exp, box: Interval) -> Interval:
    return Enclosure.of(box).exp()


@slopes.register(Sqrt)
def _sqrt_slopes(op: Sqrt, box: Interval | None, shape: Shape) -> Slopes:
    """1 / (2 sqrt x)."""
    if box is None:
        raise Unbounded(
            "the slope of the square root grows without limit near 0; ask over a ball away from 0, with an analyzer like local"
        )
    return box_slopes(0.5 / _not_negative(box).sqrt(), shape)


@interval.register(Sqrt)
def _sqrt_interval(op: Sqrt, box: Interval) -> Interval:
    return _not_negative(box).sqrt()


def _not_negative(box: Interval) -> Enclosure:
    if bool((box.lower < 0).any()):
        raise UnsupportedModel(
            f"a root or a broken power needs numbers of at least 0, and the range known of them here begins at "
            f"{float(box.lower.min()):.3g}; ask over a smaller ball, or away from 0"
        )
    return Enclosure.of(box)


@slopes.register(Reciprocal)
def _reciprocal_slopes(op: Reciprocal, box: Interval | None, shape: Shape) -> Slopes:
    """-1 / x^2."""
    if box is None:
        raise Unbounded(
            "the slope of 1/x grows without limit near 0; ask over a ball away from 0, with an analyzer like local"
        )
    return box_slopes(-(1.0 / _integer_power(Enclosure.of(box), 2)), shape)


@interval.register(Reciprocal)
def _reciprocal_interval(op: Reciprocal, box: Interval) -> Interval:
    return 1.0 / Enclosure.of(box)


@slopes.register(Power)
def _power_slopes(op: Power, box: Interval | None, shape: Shape) -> Slopes:
    """exponent * x^(exponent - 1)."""
    if op.exponent in (0.0, 1.0):
        return (
            uniform_slopes(op.exponent, op.exponent, shape)
            if box is None
            else _constant_slopes(op, box, shape)
        )
    if box is None:
        raise Unbounded(
            f"the slope of x^{op.exponent:g} grows without limit; ask over a ball, with an analyzer like local"
        )
    x = Enclosure.of(box)
    if Fraction(op.exponent) - 1 == Fraction(op.exponent - 1.0):
        found = _power(x, op.exponent - 1.0)
    else:
        # Only for exponents below 1/2: x^exponent / x falls on x > 0, so its range is that of both ends.
        ends = [_power(Enclosure.of(end), op.exponent) / Enclosure.of(end) for end in (x.lower, x.upper)]
        found = ends[0].hull(ends[1])
    return box_slopes(found * op.exponent, shape)


def _constant_slopes(op: Power, box: Interval, shape: Shape) -> Slopes:
    return box_slopes(Enclosure.of(torch.full_like(box.lower, op.exponent, dtype=torch.float64)), shape)


@interval.register(Power)
def _power_interval(op: Power, box: Interval) -> Interval:
    return _power(Enclosure.of(box), op.exponent)


def _power(x: Enclosure, exponent: float) -> Enclosure:
    """x^exponent over a box.

    Raises:
        UnsupportedModel: not defined on the box. Unbounded: not finite on it.
    """
    if not math.isfinite(exponent):
        raise UnsupportedModel(f"an exponent of {exponent!r}")
    if exponent == 0.0:
        return Enclosure.of(torch.ones_like(x.lower))
    if exponent.is_integer():
        found = _integer_power(x, abs(int(exponent)))
        return found if exponent > 0 else 1.0 / found
    x = _not_negative(x)
    if exponent < 0 and bool((x.lower <= 0).any()):
        raise Unbounded(f"x^{exponent:g} grows without limit near 0, which this box contains")
    return x.power(exponent)


def _integer_power(x: Enclosure, exponent: int) -> Enclosure:
    """x^n, n >= 1: even powers depend on |x|, odd ones keep the sign and increase."""
    if exponent == 1:
        return x
    if exponent % 2 == 0:
        return x.abs().power(exponent)
    size = (
        Enclosure(x.lower.abs(), x.lower.abs()).power(exponent),
        Enclosure(x.upper.abs(), x.upper.abs()).power(exponent),
    )
    lower = torch.where(x.lower < 0, -size[0].upper, size[0].lower)
    upper = torch.where(x.upper < 0, -size[1].lower, size[1].upper)
    return rounded(lower, upper)


@slopes.register(Log)
def _log_slopes(op: Log, box: Interval | None, shape: Shape) -> Slopes:
    """1 / x."""
    if box is None:
        raise Unbounded(
            "the slope of the logarithm grows without limit near 0; ask over a ball away from 0, with an analyzer like local"
        )
    return box_slopes(1.0 / _inside(box, 0.0, math.inf, "a logarithm", open_ends=True), shape)


@interval.register(Log)
def _log_interval(op: Log, box: Interval) -> Interval:
    return _inside(box, 0.0, math.inf, "a logarithm", open_ends=True).log()


@slopes.register(Sinh)
def _sinh_slopes(op: Sinh, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        raise Unbounded("the slope of sinh grows without limit; ask over a ball, with an analyzer like local")
    return box_slopes(Enclosure.of(box).cosh(), shape)


@interval.register(Sinh)
def _sinh_interval(op: Sinh, box: Interval) -> Interval:
    return Enclosure.of(box).sinh()


@slopes.register(Cosh)
def _cosh_slopes(op: Cosh, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        raise Unbounded("the slope of cosh grows without limit; ask over a ball, with an analyzer like local")
    return box_slopes(Enclosure.of(box).sinh(), shape)


@interval.register(Cosh)
def _cosh_interval(op: Cosh, box: Interval) -> Interval:
    return Enclosure.of(box).cosh()


@slopes.register(Tan)
def _tan_slopes(op: Tan, box: Interval | None, shape: Shape) -> Slopes:
    """1 + tan^2."""
    if box is None:
        raise Unbounded(
            "the slope of the tangent grows without limit; ask over a ball, with an analyzer like local"
        )
    return box_slopes(_tangent(box).square() + 1.0, shape)


@interval.register(Tan)
def _tan_interval(op: Tan, box: Interval) -> Interval:
    return _tangent(box)


def _tangent(box: Interval) -> Enclosure:
    """tan over boxes without a pole; poles are at (k + 1/2) pi, and between two of them it increases.

    Raises:
        Unbounded: a box may hold a pole.
    """
    x = Enclosure.of(box)
    first, last = x.lower / math.pi + 0.5, x.upper / math.pi + 0.5
    margin = 2.0**-48
    before = torch.floor(first - (first.abs() + 1.0) * margin)
    behind = torch.floor(last + (last.abs() + 1.0) * margin)
    if not bool(((before == behind) & (x.lower.abs() < 2.0**40) & (x.upper.abs() < 2.0**40)).all()):
        raise Unbounded("a tangent may have a pole on this box")
    return _monotone(torch.tan, x)


@slopes.register(Asin, Acos)
def _asin_slopes(op: Asin | Acos, box: Interval | None, shape: Shape) -> Slopes:
    """+-1 / sqrt((1 - x) (1 + x))."""
    if box is None:
        raise Unbounded(
            "the slope of an inverse sine grows without limit near -1 and 1; ask over a ball inside, with an analyzer like local"
        )
    x = _inside(box, -1.0, 1.0, "an inverse sine")
    size = x.abs()
    ends = [
        1.0 / ((1.0 - Enclosure.of(end)) * (Enclosure.of(end) + 1.0)).sqrt()
        for end in (size.lower, size.upper)
    ]
    found = ends[0].hull(ends[1])
    return box_slopes(found if isinstance(op, Asin) else -found, shape)


@interval.register(Asin)
def _asin_interval(op: Asin, box: Interval) -> Interval:
    return _monotone(torch.asin, _inside(box, -1.0, 1.0, "an inverse sine"))


@interval.register(Acos)
def _acos_interval(op: Acos, box: Interval) -> Interval:
    return _monotone(torch.acos, _inside(box, -1.0, 1.0, "an inverse cosine"))


@slopes.register(Atanh)
def _atanh_slopes(op: Atanh, box: Interval | None, shape: Shape) -> Slopes:
    """1 / ((1 - x) (1 + x))."""
    if box is None:
        raise Unbounded(
            "the slope of atanh grows without limit near -1 and 1; ask over a ball inside, with an analyzer like local"
        )
    size = _inside(box, -1.0, 1.0, "atanh", open_ends=True).abs()
    ends = [1.0 / ((1.0 - Enclosure.of(end)) * (Enclosure.of(end) + 1.0)) for end in (size.lower, size.upper)]
    return box_slopes(ends[0].hull(ends[1]), shape)


@interval.register(Atanh)
def _atanh_interval(op: Atanh, box: Interval) -> Interval:
    return _monotone(torch.atanh, _inside(box, -1.0, 1.0, "atanh", open_ends=True))


@slopes.register(Acosh)
def _acosh_slopes(op: Acosh, box: Interval | None, shape: Shape) -> Slopes:
    """1 / sqrt((x - 1) (x + 1)), falling."""
    if box is None:
        raise Unbounded(
            "the slope of acosh grows without limit near 1; ask over a ball away from 1, with an analyzer like local"
        )
    x = _inside(box, 1.0, math.inf, "acosh")
    ends = [
        1.0 / ((Enclosure.of(end) - 1.0) * (Enclosure.of(end) + 1.0)).sqrt() for end in (x.lower, x.upper)
    ]
    return box_slopes(ends[0].hull(ends[1]), shape)


@interval.register(Acosh)
def _acosh_interval(op: Acosh, box: Interval) -> Interval:
    return _monotone(torch.acosh, _inside(box, 1.0, math.inf, "acosh"))


def _inside(box: Interval, low: float, high: float, what: str, *, open_ends: bool = False) -> Enclosure:
    """The box, which has to lie where the function is defined."""
    x = Enclosure.of(box)
    outside = (x.lower <= low) | (x.upper >= high) if open_ends else (x.lower < low) | (x.upper > high)
    if math.isinf(high) and open_ends:
        outside = x.lower <= low
    if bool(outside.any()):
        raise UnsupportedModel(f"{what} is not defined on all of this box")
    return x


def _monotone(function: Callable[[Tensor], Tensor], x: Enclosure) -> Enclosure:
    """The values of a library function at both ends, in either order, widened by its error."""
    return between_values(function(x.lower), function(x.upper))
