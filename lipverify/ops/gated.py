"""Activations x * gate(x) with the constants a file stores, exactly, as fractions.

An exporter writes GELU as x/2 (1 + erf(x / 1.41421354)): not GELU, but a member of the same family with another constant.
Legend: f(x) = weight * h(kappa x) / kappa with a known activation h, so f'(x) = weight * h'(kappa x): the range of slopes
over the whole line does not depend on kappa.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import down, up
from lipverify.ops.curves import Curve, curve
from lipverify.ops.enclosure import Enclosure
from lipverify.ops.planes import scalar_planes
from lipverify.ops.scalar import box_slopes, scalar_gain, uniform_slopes
from lipverify.ops.smooth import GELU, SiLU
from lipverify.rules import Slopes, forward, gain, interval, relax, slopes


@dataclass(frozen=True, eq=False)
class ErfGate(Op):
    """outer * x * (1 + erf(inner * x)), inner not 0. GELU has inner = 1/sqrt 2, outer = 1/2."""

    inner: Fraction
    outer: Fraction

    def __post_init__(self) -> None:
        _require(self, self.inner != 0)


@dataclass(frozen=True, eq=False)
class TanhGate(Op):
    """outer * x * (1 + tanh(linear * x + cubic * x^3)), linear not 0, cubic / linear >= 0.

    The usual approximation of GELU has linear = sqrt(2/pi), cubic = 0.044715 linear, outer = 1/2.
    """

    linear: Fraction
    cubic: Fraction
    outer: Fraction

    def __post_init__(self) -> None:
        _require(self, self.linear != 0 and self.linear * self.cubic >= 0)


@dataclass(frozen=True, eq=False)
class SigmoidGate(Op):
    """outer * x * sigmoid(inner * x), inner not 0: SiLU where a number is not a float64 or the factor is not 1."""

    inner: Fraction
    outer: Fraction

    def __post_init__(self) -> None:
        _require(self, self.inner != 0)


@dataclass(frozen=True, eq=False)
class ClipGate(Op):
    """outer * x * min(max(inner * x + offset, 0), 1), inner not 0. Hardswish has inner = 1/6, offset = 1/2, outer = 1."""

    inner: Fraction
    offset: Fraction
    outer: Fraction

    def __post_init__(self) -> None:
        _require(self, self.inner != 0)


def _require(op: Op, holds: bool) -> None:
    if not holds:
        raise UsageError(f"the constants of {op!r} are outside the range for which its rules are proven")


@forward.register(ErfGate)
def _erf_gate(op: ErfGate, x: Tensor) -> Tensor:
    return float(op.outer) * x * (1.0 + torch.erf(float(op.inner) * x))


@forward.register(TanhGate)
def _tanh_gate(op: TanhGate, x: Tensor) -> Tensor:
    argument = float(op.linear) * x + float(op.cubic) * (x * x * x)
    return float(op.outer) * x * (1.0 + torch.tanh(argument))


@forward.register(SigmoidGate)
def _sigmoid_gate(op: SigmoidGate, x: Tensor) -> Tensor:
    return float(op.outer) * x * torch.sigmoid(float(op.inner) * x)


@forward.register(ClipGate)
def _clip_gate(op: ClipGate, x: Tensor) -> Tensor:
    return float(op.outer) * x * torch.clamp(float(op.inner) * x + float(op.offset), 0.0, 1.0)


gain.register(ErfGate, TanhGate, SigmoidGate, ClipGate)(scalar_gain)
relax.register(ErfGate, TanhGate, SigmoidGate, ClipGate)(scalar_planes)


@dataclass(frozen=True)
class _Family:
    """f = weight * (h(kappa x) / kappa + [-1, 1] value_slack), f' = weight * (h'(kappa x) + [-1, 1] slope_slack)."""

    known: Curve
    kappa: Enclosure
    weight: Enclosure
    slope_slack: float = 0.0
    value_slack: Enclosure | None = None


def _enclosed(number: Fraction) -> Enclosure:
    near = float(number)
    if Fraction(near) == number:
        return Enclosure.of(near)
    return _between(down(near), up(near))


def _between(lower: float, upper: float) -> Enclosure:
    return Enclosure(*torch.tensor([lower, upper], dtype=torch.float64))


def _around(constant: float) -> Enclosure:
    """An irrational number given by its nearest float64."""
    return _between(down(constant), up(constant))


_ROOT_TWO = _around(1.4142135623730951)
_ROOT_HALF_PI = _around(1.2533141373155003)
_HALF_PI = _around(1.5707963267948966)


def _family(op: ErfGate | TanhGate | SigmoidGate) -> _Family:
    """The known activation behind a gate.

    A tanh gate is h(y) = y sigmoid(2 y + 2 c y^3), y = linear * x, c = cubic / linear^3; the approximated GELU is the case
    c0 = 0.044715 pi/2. With s = 2 y + 2 c y^3 and c >= 0: |y| <= |s|/2, |y| s' <= 3 |s|, sigmoid'(s) and |sigmoid''(s)| are
    at most exp(-|s|), so
    |dh'/dc| <= exp(-|s|) (8 |y|^3 + 2 y^4 s') <= exp(-|s|) (|s|^3 + 3/4 s^4) <= 27 e^-3 + 192 e^-4 < 5,
    |dh/dc| <= exp(-|s|) 2 y^4 <= exp(-|s|) s^4/8 <= 32 e^-4 < 3/5.
    """
    if isinstance(op, SigmoidGate):
        return _Family(curve(SiLU()), _enclosed(op.inner), _enclosed(op.outer))
    weight = _enclosed(2 * op.outer)
    if isinstance(op, ErfGate):
        return _Family(curve(GELU()), _enclosed(op.inner) * _ROOT_TWO, weight)
    gap = _enclosed(op.cubic / op.linear**3) - _enclosed(Fraction("0.044715")) * _HALF_PI
    distance = up(max(abs(gap.lower.item()), abs(gap.upper.item())))
    slack = _between(0.0, distance) * 0.6 / _enclosed(abs(op.linear))
    kappa = _enclosed(op.linear) * _ROOT_HALF_PI
    return _Family(curve(GELU(tanh=True)), kappa, weight, up(5.0 * distance), slack)


def _on(device: torch.device, found: Enclosure) -> Enclosure:
    return Enclosure(found.lower.to(device), found.upper.to(device))


@slopes.register(ErfGate, TanhGate, SigmoidGate)
def _gate_slopes(op: ErfGate | TanhGate | SigmoidGate, box: Interval | None, shape: Shape) -> Slopes:
    family = _family(op)
    slack = _between(-family.slope_slack, family.slope_slack)
    if box is None:
        found = (_between(*family.known.slopes) + slack) * family.weight
        return uniform_slopes(found.lower.item(), found.upper.item(), shape)
    device = box.lower.device
    argument = Enclosure.of(box) * _on(device, family.kappa)
    known = family.known.slope.over(argument).clipped(*family.known.slopes)
    return box_slopes((known + _on(device, slack)) * _on(device, family.weight), shape)


@interval.register(ErfGate, TanhGate, SigmoidGate)
def _gate_interval(op: ErfGate | TanhGate | SigmoidGate, box: Interval) -> Interval:
    family, device = _family(op), box.lower.device
    kappa = _on(device, family.kappa)
    known = family.known.value.over(Enclosure.of(box) * kappa).clipped(*family.known.values) / kappa
    if family.value_slack is not None:
        largest = family.value_slack.upper.item()
        known = known + _on(device, _between(-largest, largest))
    return known * _on(device, family.weight)


@slopes.register(ClipGate)
def _clip_gate_slopes(op: ClipGate, box: Interval | None, shape: Shape) -> Slopes:
    """With v = inner x + offset: 0 for v < 0, 2 v - offset for 0 <= v <= 1, 1 for v > 1, all times outer."""
    outer, offset = _enclosed(op.outer), _enclosed(op.offset)
    if box is None:
        ends = [Enclosure.of(0.0), Enclosure.of(1.0), -offset, 2.0 - offset]
        found = ends[0].hull(ends[1]).hull(ends[2]).hull(ends[3]) * outer
        return uniform_slopes(found.lower.item(), found.upper.item(), shape)
    device = box.lower.device
    v = Enclosure.of(box) * _on(device, _enclosed(op.inner)) + _on(device, offset)
    middle = v.clipped(0.0, 1.0) * 2.0 - _on(device, offset)
    zero, one = (Enclosure.of(torch.full_like(v.lower, value)) for value in (0.0, 1.0))
    found = middle.hull(zero).where(v.lower <= 0.0, middle)
    found = found.hull(one).where(v.upper >= 1.0, found)
    found = zero.where(v.upper < 0.0, one.where(v.lower > 1.0, found))
    return box_slopes(found * _on(device, outer), shape)


@interval.register(ClipGate)
def _clip_gate_interval(op: ClipGate, box: Interval) -> Interval:
    """Largest and smallest at the ends, at a kink, or where the parabola between the kinks turns."""
    device = box.lower.device
    inner, offset, outer = (_on(device, _enclosed(value)) for value in (op.inner, op.offset, op.outer))
    x = Enclosure.of(box)

    def at(end: Tensor) -> Enclosure:
        point = Enclosure.of(end)
        return point * (point * inner + offset).clipped(0.0, 1.0)

    found = at(x.lower).hull(at(x.upper))
    turns = [(-op.offset / op.inner, Fraction(0)), ((1 - op.offset) / op.inner, (1 - op.offset) / op.inner)]
    if 0 < op.offset < 2:
        turns.append((-op.offset / (2 * op.inner), -(op.offset**2) / (4 * op.inner)))
    for where, value in turns:
        place, reached = _on(device, _enclosed(where)), _on(device, _enclosed(value))
        inside = (x.lower <= place.upper) & (x.upper >= place.lower)
        found = found.hull(reached).where(inside, found)
    return found * outer
