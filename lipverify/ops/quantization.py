"""Rounding to whole multiples of a step, as quantised models do it. It jumps, so it has ranges and planes and no constant.

Legend: s the step, z the zero point, t = x / s, r(t) the nearest whole number, ties to even.
Saturation is a `Clip` in front, to the ends of what integers represent: clip(r(t) + z, low, high) =
r(clip(t, low - z, high - z)) + z, because the ends are whole numbers.

Ties: runtimes compute t in single precision, so that a value next to a tie may go either way. Every rule here holds for both:
|r - t| <= 1/2 + `TIES` (1 + |t|).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.ops.enclosure import Enclosure
from lipverify.ops.planes import MARGIN
from lipverify.rules import Gain, Plane, Relaxation, Unbounded, forward, gain, interval, relax

TIES = 2.0**-20
"""How near a tie, relative to 1 + |t|, a value may go either way: far more than a division in single precision loses."""
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Quantize(Op):
    """round(x / step) + zero, ties to even: the integer that stands for x, as a real number. step > 0."""

    step: float
    zero: int = 0


@dataclass(frozen=True, eq=False)
class RoundingError(Op):
    """round(x / step) - x / step: what `Quantize` adds to an affine map, in steps."""

    step: float


@forward.register(Quantize)
def _quantize(op: Quantize, x: Tensor) -> Tensor:
    return torch.round(x / op.step) + op.zero


@forward.register(RoundingError)
def _rounding_error(op: RoundingError, x: Tensor) -> Tensor:
    t = x / op.step
    return torch.round(t) - t


@gain.register(Quantize, RoundingError)
def _no_constant(op: Op, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    raise Unbounded(
        "rounds to whole steps, so it jumps and has no Lipschitz constant; `deviate` bounds how far a quantised model is from "
        "its original, `radius` and `bounds` answer for it too"
    )


def _whole(step: float, box: Interval) -> tuple[Enclosure, Enclosure]:
    """t on the box, and all whole numbers it may be rounded to."""
    t = Enclosure.of(box) / step
    low = torch.ceil(t.lower - TIES * (1.0 + t.lower.abs()) - 0.5)
    high = torch.floor(t.upper + TIES * (1.0 + t.upper.abs()) + 0.5)
    return t, Enclosure(low, high)


@interval.register(Quantize)
def _quantize_interval(op: Quantize, box: Interval) -> Interval:
    """Nondecreasing, whichever way ties go; sums of whole numbers below 2^53 are exact."""
    _, whole = _whole(op.step, box)
    found = whole + float(op.zero)
    exact = (whole.lower.abs() < 2.0**52) & (whole.upper.abs() < 2.0**52)
    return Enclosure(whole.lower + op.zero, whole.upper + op.zero).where(exact, found)


@interval.register(RoundingError)
def _rounding_error_interval(op: RoundingError, box: Interval) -> Interval:
    """At most half a step, and what the range of both parts leaves."""
    t, whole = _whole(op.step, box)
    most = 0.5 + 2.0 * TIES * (1.0 + torch.maximum(t.lower.abs(), t.upper.abs()))
    apart = whole - t
    return Interval(torch.maximum(apart.lower, -most), torch.minimum(apart.upper, most))


@relax.register(Quantize)
def _quantize_planes(op: Quantize, box: Interval) -> Relaxation:
    """Constant where one whole number is left; else x / step + zero, give or take half a step."""
    t, whole = _whole(op.step, box)
    one = whole.lower == whole.upper
    slope = torch.full_like(t.lower, 1.0 / op.step)
    reach = torch.maximum(t.lower.abs(), t.upper.abs())
    half = 0.5 + 2.0 * TIES * (1.0 + reach) + MARGIN * (reach + abs(op.zero) + 1.0)
    image = _quantize_interval(op, box)
    slope = torch.where(one, torch.zeros_like(slope), slope)
    return Relaxation(
        Plane((slope,), torch.where(one, image.lower, op.zero - half)),
        Plane((slope,), torch.where(one, image.upper, op.zero + half)),
    )


@relax.register(RoundingError)
def _rounding_error_planes(op: RoundingError, box: Interval) -> Relaxation:
    """A line where one whole number is left; else the ends of the range."""
    t, whole = _whole(op.step, box)
    one = whole.lower == whole.upper
    reach = torch.maximum(t.lower.abs(), t.upper.abs())
    margin = MARGIN * (reach + whole.lower.abs() + 1.0) + _TINY
    image = _rounding_error_interval(op, box)
    slope = torch.where(one, torch.full_like(reach, -1.0 / op.step), torch.zeros_like(reach))
    return Relaxation(
        Plane((slope,), torch.where(one, whole.lower - margin, image.lower)),
        Plane((slope,), torch.where(one, whole.lower + margin, image.upper)),
    )
