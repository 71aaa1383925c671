"""Dense affine maps and elementwise scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.dense import operator_norm_upper
from lipverify.ops.embedding import blocks_norm, diagonal_norm, single
from lipverify.ops.enclosure import Enclosure, linear_box
from lipverify.rules import Gain, Unbounded, forward, gain, interval, linear, magnitude


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """y = x W' + b on the last axis. weight [out, in], bias [out] or None; x [batch, ..., in]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Scale(Op):
    """y = scale * x + shift, elementwise. Both broadcast to the sample shape without enlarging it; None means 1 and 0."""

    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DivideBy(Op):
    """y = x / divisor, elementwise by stored numbers; kept as a division because reciprocals round."""

    divisor: Tensor


@forward.register(Linear)
def _linear(op: Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, op.weight, op.bias)


@linear.register(Linear)
def _linear_part(op: Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, op.weight)


@forward.register(Scale)
def _scale(op: Scale, x: Tensor) -> Tensor:
    scaled = x if op.scale is None else x * op.scale
    return scaled if op.shift is None else scaled + op.shift


@linear.register(Scale)
def _scale_part(op: Scale, x: Tensor) -> Tensor:
    return x if op.scale is None else x * op.scale


@forward.register(DivideBy)
@linear.register(DivideBy)
def _divide_by(op: DivideBy, x: Tensor) -> Tensor:
    return x / op.divisor


@magnitude.register(Linear)
def _linear_size(op: Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, op.weight.abs(), None if op.bias is None else op.bias.abs())


@magnitude.register(Scale)
def _scale_size(op: Scale, x: Tensor) -> Tensor:
    scaled = x if op.scale is None else x * op.scale.abs()
    return scaled if op.shift is None else scaled + op.shift.abs()


@magnitude.register(DivideBy)
def _divide_by_size(op: DivideBy, x: Tensor) -> Tensor:
    return x / op.divisor.abs()


@gain.register(Linear)
def _linear_gain(op: Linear, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """The operator norm of the matrix; further axes are blocks. Exact for p <= q up to the dense norm's own slack."""
    block = operator_norm_upper(op.weight, norm_in.value, norm_out.value)
    return single(blocks_norm(block, math.prod(shapes[0][:-1]), norm_in, norm_out))


@gain.register(Scale)
def _scale_gain(op: Scale, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """A diagonal matrix."""
    scale = torch.ones((), dtype=torch.float64) if op.scale is None else op.scale.to(torch.float64).abs()
    return single(diagonal_norm(scale.expand(shapes[0]), norm_in, norm_out))


@gain.register(DivideBy)
def _divide_by_gain(op: DivideBy, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """A diagonal matrix of reciprocals, each rounded up."""
    divisor = op.divisor.to(torch.float64).abs()
    if not bool((divisor > 0).all()):
        raise Unbounded("a divisor is zero or not a number")
    reciprocal = torch.nextafter(1.0 / divisor, torch.full_like(divisor, math.inf))
    if not bool(reciprocal.isfinite().all()):
        raise Unbounded("a divisor is so small that its reciprocal is above the largest float64")
    return single(diagonal_norm(reciprocal.expand(shapes[0]), norm_in, norm_out))


@interval.register(Linear)
def _linear_interval(op: Linear, box: Interval) -> Interval:
    exact = op.to(dtype=torch.float64)
    size = Linear(exact.weight.abs())
    return linear_box(
        lambda x: _linear_part(exact, x), lambda x: _linear_part(size, x), exact.bias, box, op.weight.shape[1]
    )


@interval.register(Scale)
def _scale_interval(op: Scale, box: Interval) -> Interval:
    scaled = Enclosure.of(box) if op.scale is None else Enclosure.of(box) * Enclosure.of(op.scale)
    return scaled if op.shift is None else scaled + Enclosure.of(op.shift)


@interval.register(DivideBy)
def _divide_by_interval(op: DivideBy, box: Interval) -> Interval:
    return Enclosure.of(box) / Enclosure.of(op.divisor)
