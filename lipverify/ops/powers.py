"""Scalar functions without a global constant (they occur inside patterns): rules where a box keeps them finite."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.op import Shape
from lipverify.ops.enclosure import Enclosure, rounded
from lipverify.ops.planes import scalar_planes
from lipverify.ops.scalar import box_slopes, scalar_gain, uniform_slopes
from lipverify.ops.smooth import Exp, Power, Reciprocal, Sqrt
from lipverify.rules import Slopes, Unbounded, gain, interval, relax, slopes

gain.register(Exp, Power, Sqrt, Reciprocal)(scalar_gain)
relax.register(Exp, Power, Sqrt, Reciprocal)(scalar_planes)


@slopes.register(Exp)
def _exp_slopes(op: Exp, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        raise Unbounded("the slope of the exponential grows without limit; give a region")
    return box_slopes(Enclosure.of(box).exp(), shape)


@interval.register(Exp)
def _exp_interval(op: Exp, box: Interval) -> Interval:
    return Enclosure.of(box).exp()


@slopes.register(Sqrt)
def _sqrt_slopes(op: Sqrt, box: Interval | None, shape: Shape) -> Slopes:
    """1 / (2 sqrt x)."""
    if box is None:
        raise Unbounded("the slope of the square root grows without limit near 0; give a region away from 0")
    return box_slopes(0.5 / _not_negative(box).sqrt(), shape)


@interval.register(Sqrt)
def _sqrt_interval(op: Sqrt, box: Interval) -> Interval:
    return _not_negative(box).sqrt()


def _not_negative(box: Interval) -> Enclosure:
    if bool((box.lower < 0).any()):
        raise UnsupportedModel(
            "a root or a broken power is not defined for negative numbers, which this box contains"
        )
    return Enclosure.of(box)


@slopes.register(Reciprocal)
def _reciprocal_slopes(op: Reciprocal, box: Interval | None, shape: Shape) -> Slopes:
    """-1 / x^2."""
    if box is None:
        raise Unbounded("the slope of 1/x grows without limit near 0; give a region away from 0")
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
        raise Unbounded(f"the slope of x^{op.exponent:g} grows without limit; give a region")
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
