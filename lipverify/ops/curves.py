"""Scalar functions known by enclosures at points, and monotone between proven turning points.

The range over an interval is the hull of the values at both ends and at the turning points inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.op import Op, Shape
from lipverify.ops.enclosure import Enclosure
from lipverify.ops.scalar import box_slopes, uniform_slopes
from lipverify.rules import Rule, Slopes


@dataclass(frozen=True)
class Turn:
    """A turning point: an interval that holds it, and an interval that holds the value there."""

    x: tuple[float, float]
    value: tuple[float, float]

    @classmethod
    def near(cls, x: float, value: float) -> Turn:
        """Decimal digits to 1e-12; exact for zero arguments."""
        width = 1e-12
        return cls((x - width, x + width), (value - width, value + width))


@dataclass(frozen=True)
class Branch:
    """A function on the line, monotone between its turns.

    at: encloses the values at points, given as enclosures of them; left, right: limits at the ends of the line, used beyond
    `far` in place of the formula (None: the formula holds up to infinity).
    """

    at: Callable[[Enclosure], Enclosure]
    turns: tuple[Turn, ...] = ()
    left: float | None = None
    right: float | None = None
    far: float = math.inf

    def over(self, box: Interval) -> Enclosure:
        """The range over boxes, rounded outward."""
        x = Enclosure.of(box)
        found = self._point(x.lower).hull(self._point(x.upper))
        lower, upper = found.lower, found.upper
        for turn in self.turns:
            inside = (x.lower <= turn.x[1]) & (x.upper >= turn.x[0])
            lower = torch.where(inside, lower.clamp(max=turn.value[0]), lower)
            upper = torch.where(inside, upper.clamp(min=turn.value[1]), upper)
        return Enclosure(lower, upper)

    def _point(self, x: Tensor) -> Enclosure:
        low = -math.inf if self.left is None else -self.far
        high = math.inf if self.right is None else self.far
        found = self.at(Enclosure.of(x.clamp(low, high)))
        for limit, beyond in ((self.left, x < low), (self.right, x > high)):
            if limit is not None:
                # Monotone from `far` to the limit.
                found = found.hull(Enclosure.of(torch.full_like(x, limit))).where(beyond, found)
        return found


@dataclass(frozen=True)
class Curve:
    """An activation: its values, its derivative, and a proven range of each over the whole line."""

    value: Branch
    slope: Branch
    slopes: tuple[float, float]
    values: tuple[float, float] = (-math.inf, math.inf)
    scale: float = 1.0
    """The activation is x -> value(scale x) / scale; its slope at x is slope(scale x)."""


curve: Rule[Curve] = Rule(
    "curve", "smooth activations: values and derivative as proven branches. (op) -> Curve"
)


def curve_slopes(op: Op, box: Interval | None, shape: Shape) -> Slopes:
    """The `slopes` rule of every operator with a curve."""
    found = curve(op)
    if box is None:
        return uniform_slopes(*found.slopes, shape)
    argument = Enclosure.of(box) if found.scale == 1.0 else Enclosure.of(box) * found.scale
    return box_slopes(found.slope.over(argument).clipped(*found.slopes), shape)


def curve_interval(op: Op, box: Interval) -> Interval:
    """The `interval` rule of every operator with a curve."""
    found = curve(op)
    if found.scale == 1.0:
        return found.value.over(box).clipped(*found.values)
    return found.value.over(Enclosure.of(box) * found.scale).clipped(*found.values) / found.scale
