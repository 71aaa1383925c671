"""Scalar activations made of straight pieces (and Hardswish, whose middle piece is a parabola)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import down, up
from lipverify.ops.activation import activation
from lipverify.ops.enclosure import Enclosure, monotone_box, negative_part, positive_part, two_sided
from lipverify.ops.planes import kinked_planes, scalar_planes
from lipverify.ops.scalar import box_slopes, proven, uniform_slopes
from lipverify.rules import Relaxation, Slopes, Unbounded, interval, relax, slopes


def _pieces(op: PiecewiseLinear, x: Tensor) -> Tensor:
    first, last = op.knots[0], op.knots[-1]
    y = (
        op.start
        + op.slopes[0] * torch.clamp(x - first, max=0.0)
        + op.slopes[-1] * torch.clamp(x - last, min=0.0)
    )
    for low, high, slope in zip(op.knots, op.knots[1:], op.slopes[1:], strict=False):
        if slope:
            y = y + slope * torch.clamp(x - low, 0.0, high - low)
    return y


@activation(lambda op, x: torch.relu(x), onnx="Relu", aten="relu", word="Relu")
@dataclass(frozen=True, eq=False)
class ReLU(Op):
    """max(x, 0)."""


@activation(lambda op, x: torch.where(x >= 0, x, op.slope * x), word="LeakyRelu", settings="alpha:slope")
@dataclass(frozen=True, eq=False)
class LeakyReLU(Op):
    """x for x >= 0, slope * x below; any finite slope."""

    slope: float


@activation(lambda op, x: torch.where(x >= 0, x, op.slope * x))
@dataclass(frozen=True, eq=False)
class PReLU(Op):
    """Leaky ReLU with learned slopes that broadcast to the sample shape."""

    slope: Tensor


@activation(lambda op, x: torch.abs(x), onnx="Abs", aten="abs", word="Abs")
@dataclass(frozen=True, eq=False)
class Abs(Op):
    """|x|."""


@activation(lambda op, x: torch.clamp(x, op.low, op.high), word="Clip", settings="min:low max:high")
@dataclass(frozen=True, eq=False)
class Clip(Op):
    """x limited to [low, high]; Hardtanh and ReLU6 are spellings of it. Ends may be infinite."""

    low: float
    high: float


@activation(
    lambda op, x: torch.clamp(op.alpha * x + op.beta, 0.0, 1.0), word="HardSigmoid", settings="alpha beta"
)
@dataclass(frozen=True, eq=False)
class Hardsigmoid(Op):
    """min(max(alpha * x + beta, 0), 1); torch means alpha = 1/6, beta = 1/2, ONNX by default alpha = 0.2."""

    alpha: float
    beta: float


@activation(
    lambda op, x: x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0,
    onnx="HardSwish",
    aten="hardswish",
    word="HardSwish",
)
@dataclass(frozen=True, eq=False)
class Hardswish(Op):
    """x * min(max(x + 3, 0), 6) / 6."""


@activation(_pieces)
@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Op):
    """Straight pieces that meet at increasing `knots`: slopes[i] left of knots[i], slopes[-1] behind the last one.

    start: the value at knots[0]. Softshrink is one, with knots -limit and limit, slopes 1, 0, 1 and start 0.
    """

    knots: tuple[float, ...]
    slopes: tuple[float, ...]
    start: float

    def __post_init__(self) -> None:
        finite = all(math.isfinite(number) for number in (*self.knots, *self.slopes, self.start))
        rising = all(a < b for a, b in pairwise(self.knots))
        if not (self.knots and finite and rising and len(self.slopes) == len(self.knots) + 1):
            raise UsageError(f"{self!r} is no function of straight pieces")


interval.register(ReLU, Clip)(monotone_box)
relax.register(Clip, Hardsigmoid, Hardswish, PiecewiseLinear)(scalar_planes)


@relax.register(ReLU, Abs, LeakyReLU, PReLU)
def _kinked_planes(op: ReLU | Abs | LeakyReLU | PReLU, box: Interval) -> Relaxation:
    """Two straight pieces that meet at 0."""
    if isinstance(op, ReLU | Abs):
        return kinked_planes(0.0 if isinstance(op, ReLU) else -1.0, 1.0, box)
    return kinked_planes(op.slope, 1.0, box)


def _kink(left: Tensor | float, right: Tensor | float, box: Interval, shape: Shape) -> Slopes:
    """Slope `left` below 0 and `right` above; a box that touches 0 has both (Clarke's set)."""
    device = box.lower.device
    ends = [
        end.to(torch.float64)
        if isinstance(end, Tensor)
        else torch.tensor(end, dtype=torch.float64, device=device)
        for end in (left, right)
    ]
    sides = [Enclosure.of(end.expand(box.lower.shape)) for end in ends]
    return box_slopes(two_sided(box, *sides), shape)


@slopes.register(ReLU)
def _relu_slopes(op: ReLU, box: Interval | None, shape: Shape) -> Slopes:
    return uniform_slopes(0.0, 1.0, shape) if box is None else _kink(0.0, 1.0, box, shape)


@slopes.register(Abs)
def _abs_slopes(op: Abs, box: Interval | None, shape: Shape) -> Slopes:
    return uniform_slopes(-1.0, 1.0, shape) if box is None else _kink(-1.0, 1.0, box, shape)


@interval.register(Abs)
def _abs_interval(op: Abs, box: Interval) -> Interval:
    return Enclosure.of(box).abs()


@slopes.register(LeakyReLU)
def _leaky_relu_slopes(op: LeakyReLU, box: Interval | None, shape: Shape) -> Slopes:
    if not math.isfinite(op.slope):
        raise Unbounded(f"its slope {op.slope!r} is not finite")
    if box is None:
        return uniform_slopes(min(1.0, op.slope), max(1.0, op.slope), shape)
    return _kink(op.slope, 1.0, box, shape)


@slopes.register(PReLU)
def _prelu_slopes(op: PReLU, box: Interval | None, shape: Shape) -> Slopes:
    if box is None:
        slope = op.slope.to(torch.float64).expand(shape)
        return proven(slope.clamp(max=1.0), slope.clamp(min=1.0))
    return _kink(op.slope, 1.0, box, shape)


@interval.register(LeakyReLU, PReLU)
def _leaky_relu_interval(op: LeakyReLU | PReLU, box: Interval) -> Interval:
    """Monotone on either side of 0; with a negative slope the smallest value is at 0."""
    return two_sided(box, negative_part(box) * Enclosure.of(op.slope), positive_part(box))


@slopes.register(Clip)
def _clip_slopes(op: Clip, box: Interval | None, shape: Shape) -> Slopes:
    """1 between the ends, 0 outside, both at an end."""
    if box is None:
        endless = math.isinf(op.low) and math.isinf(op.high)
        return uniform_slopes(1.0 if endless else 0.0, 1.0, shape)
    return _flat_outside(Enclosure.of(box), op.low, op.high, 1.0, shape)


def _flat_outside(x: Enclosure, low: float, high: float, slope: float, shape: Shape) -> Slopes:
    """Slopes of a function that has this slope where low <= x <= high and is constant elsewhere."""
    moves = (x.upper >= low) & (x.lower <= high)
    rests = (x.lower <= low) | (x.upper >= high)
    full = torch.full_like(x.lower, slope)
    steep, flat = full.masked_fill(~moves, 0.0), full.masked_fill(rests, 0.0)
    return box_slopes(Enclosure(torch.minimum(steep, flat), torch.maximum(steep, flat)), shape)


@slopes.register(Hardsigmoid)
def _hardsigmoid_slopes(op: Hardsigmoid, box: Interval | None, shape: Shape) -> Slopes:
    """alpha where 0 <= alpha x + beta <= 1, 0 elsewhere."""
    if not (math.isfinite(op.alpha) and math.isfinite(op.beta)):
        raise Unbounded(f"its parameters {op.alpha!r}, {op.beta!r} are not finite")
    if box is None:
        return uniform_slopes(min(0.0, op.alpha), max(0.0, op.alpha), shape)
    return _flat_outside(Enclosure.of(box) * op.alpha + op.beta, 0.0, 1.0, op.alpha, shape)


@interval.register(Hardsigmoid)
def _hardsigmoid_interval(op: Hardsigmoid, box: Interval) -> Interval:
    return (Enclosure.of(box) * op.alpha + op.beta).clipped(0.0, 1.0)


@slopes.register(Hardswish)
def _hardswish_slopes(op: Hardswish, box: Interval | None, shape: Shape) -> Slopes:
    """(2x + 3)/6 from -1/2 to 3/2 where -3 <= x <= 3, 0 below, 1 above."""
    if box is None:
        return uniform_slopes(-0.5, 1.5, shape)
    x = Enclosure.of(box)
    found = ((x.clipped(-3.0, 3.0) * 2.0 + 3.0) / 6.0).clipped(-0.5, 1.5)
    zero, one = (Enclosure.of(torch.full_like(x.lower, value)) for value in (0.0, 1.0))
    found = found.hull(zero).where(x.lower <= -3.0, found)
    found = found.hull(one).where(x.upper >= 3.0, found)
    return box_slopes(zero.where(x.upper < -3.0, one.where(x.lower > 3.0, found)), shape)


@interval.register(Hardswish)
def _hardswish_interval(op: Hardswish, box: Interval) -> Interval:
    """0 up to -3, falling to -3/8 at -3/2, then rising; x from 3 on."""
    x = Enclosure.of(box)
    ends = [_hardswish_at(Enclosure.of(end)) for end in (x.lower, x.upper)]
    found = ends[0].hull(ends[1])
    lowest = (x.lower <= -1.5) & (x.upper >= -1.5)
    return Enclosure(torch.where(lowest, -0.375, found.lower), found.upper).clipped(-0.375, math.inf)


def _hardswish_at(x: Enclosure) -> Enclosure:
    inner = x.clipped(-3.0, 3.0)
    found = inner * (inner + 3.0) / 6.0
    zero = Enclosure.of(torch.zeros_like(x.lower))
    return zero.where(x.upper <= -3.0, x.where(x.lower >= 3.0, found))


@slopes.register(PiecewiseLinear)
def _piecewise_linear_slopes(op: PiecewiseLinear, box: Interval | None, shape: Shape) -> Slopes:
    """Those of the pieces that a box touches."""
    if box is None:
        return uniform_slopes(min(op.slopes), max(op.slopes), shape)
    x = Enclosure.of(box)
    low, high = torch.full_like(x.lower, math.inf), torch.full_like(x.lower, -math.inf)
    for left, right, slope in zip((-math.inf, *op.knots), (*op.knots, math.inf), op.slopes, strict=True):
        touched = (x.upper >= left) & (x.lower <= right)
        low = torch.where(touched, low.clamp(max=slope), low)
        high = torch.where(touched, high.clamp(min=slope), high)
    return box_slopes(Enclosure(low, high), shape)


@interval.register(PiecewiseLinear)
def _piecewise_linear_interval(op: PiecewiseLinear, box: Interval) -> Interval:
    """Largest and smallest at the ends or at a knot inside."""
    x = Enclosure.of(box)
    found = _piece_values(op, x.lower).hull(_piece_values(op, x.upper))
    for knot, value in zip(op.knots, _knot_values(op), strict=True):
        inside = (x.lower <= knot) & (x.upper >= knot)
        found = found.hull(_enclosed(value, x.lower)).where(inside, found)
    return found


def _knot_values(op: PiecewiseLinear) -> list[Fraction]:
    """The exact values at the knots."""
    values = [Fraction(op.start)]
    for low, high, slope in zip(op.knots, op.knots[1:], op.slopes[1:], strict=False):
        values.append(values[-1] + Fraction(slope) * (Fraction(high) - Fraction(low)))
    return values


def _enclosed(value: Fraction, like: Tensor) -> Enclosure:
    near = float(value)
    ends = (near, near) if Fraction(near) == value else (down(near), up(near))
    return Enclosure(torch.full_like(like, ends[0]), torch.full_like(like, ends[1]))


def _piece_values(op: PiecewiseLinear, x: Tensor) -> Enclosure:
    """Values at points: from the knot beside a point along its piece."""
    values = _knot_values(op)
    point = Enclosure.of(x)
    found = _enclosed(values[0], x) + (point - op.knots[0]) * op.slopes[0]
    for knot, value, slope in zip(op.knots, values, op.slopes[1:], strict=True):
        piece = _enclosed(value, x) + (point - knot) * slope if slope else _enclosed(value, x)
        found = piece.where(x >= knot, found)
    return found
