"""Norms and soft maxima of entries along axes: 1-Lipschitz functions of vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import blocks_norm, embedding, single
from lipverify.ops.enclosure import Enclosure
from lipverify.rules import Gain, Unbounded, forward, gain, interval


@dataclass(frozen=True, eq=False)
class ReduceNorm(Op):
    """The l_order norm over sample axes (>= 0, sorted); order is a whole number from 2 on."""

    axes: Shape
    keepdims: bool
    order: int = 2


@dataclass(frozen=True, eq=False)
class ReduceLogSumExp(Op):
    """log of the sum of exponentials over sample axes (>= 0, sorted)."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class Normalize(Op):
    """x over its l_order norm along sample axes, 0 where that is 0: it jumps there, and has no global constant."""

    axes: Shape
    order: int = 2


def _batched(axes: Shape) -> tuple[int, ...]:
    return tuple(axis + 1 for axis in axes)


@forward.register(ReduceNorm)
def _reduce_norm(op: ReduceNorm, x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, ord=op.order, dim=_batched(op.axes), keepdim=op.keepdims)
    return found


@forward.register(ReduceLogSumExp)
def _reduce_log_sum_exp(op: ReduceLogSumExp, x: Tensor) -> Tensor:
    return torch.logsumexp(x, dim=_batched(op.axes), keepdim=op.keepdims)


@forward.register(Normalize)
def _normalize(op: Normalize, x: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(x, ord=op.order, dim=_batched(op.axes), keepdim=True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


def _blocks(shape: Shape, axes: Shape) -> tuple[int, int]:
    """Entries of a block, number of blocks."""
    count = math.prod(shape[axis] for axis in axes)
    return count, math.prod(size for axis, size in enumerate(shape) if axis not in axes)


@gain.register(ReduceNorm)
def _reduce_norm_gain(op: ReduceNorm, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """| |x| - |y| | <= |x - y| in the same norm, which is at most the l2 norm for an order from 2 on (attained for order 2)."""
    count, blocks = _blocks(shapes[0], op.axes)
    return single(blocks_norm(embedding(count, norm_in, Norm.L2), blocks, norm_in, norm_out))


@gain.register(ReduceLogSumExp)
def _reduce_log_sum_exp_gain(
    op: ReduceLogSumExp, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm
) -> Gain:
    """The gradient is a vector of weights >= 0 of sum 1: at most 1 in every norm, attained where one entry dominates."""
    _, blocks = _blocks(shapes[0], op.axes)
    return single(blocks_norm(Upper.one(), blocks, norm_in, norm_out))


@interval.register(ReduceNorm)
def _reduce_norm_interval(op: ReduceNorm, box: Interval) -> Interval:
    """Increasing in every |x_i|. Powers of numbers scaled to at most 1: nothing overflows."""
    size = Enclosure.of(box).abs()
    if not bool(size.upper.isfinite().all()):
        raise Unbounded("a norm needs a finite box")
    axes = _batched(op.axes)
    ends = []
    for end in (size.lower, size.upper):
        largest = end.amax(axes, keepdim=True)
        scale = Enclosure.of(torch.where(largest > 0, largest, torch.ones_like(largest)))
        part = Enclosure.of(end) / scale
        powers = part.square() if op.order == 2 else part.power(float(op.order))
        total = powers.sum(axes, keepdim=True).clipped(0.0, math.inf)
        root = total.sqrt() if op.order == 2 else _root(total, op.order)
        found = root * scale
        ends.append(
            found if op.keepdims else Enclosure(*(_squeezed(e, axes) for e in (found.lower, found.upper)))
        )
    return Enclosure(ends[0].lower.clamp(min=0.0), ends[1].upper)


def _squeezed(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.squeeze(axes)


def _root(total: Enclosure, order: int) -> Enclosure:
    """total^(1/order); the exponent itself is rounded, so both its neighbours count."""
    near = 1.0 / order
    exponents = (math.nextafter(near, 0.0), near, math.nextafter(near, 1.0))
    found = total.power(exponents[0])
    for exponent in exponents[1:]:
        found = found.hull(total.power(exponent))
    return found


@gain.register(Normalize)
def _normalize_gain(op: Normalize, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    raise Unbounded(
        "a vector over its norm jumps at 0; ask over a ball away from 0, with an analyzer like local"
    )


@interval.register(Normalize)
def _normalize_interval(op: Normalize, box: Interval) -> Interval:
    """|x_i| <= |x|; away from 0 the quotient of both ranges."""
    x = Enclosure.of(box)
    size = (
        Enclosure.of(_reduce_norm_interval(ReduceNorm(op.axes, True, max(op.order, 2)), box))
        if op.order > 1
        else x.abs().sum(_batched(op.axes))
    )
    away = (size.lower > 0).expand_as(x.lower)
    safe = Enclosure(
        torch.where(size.lower > 0, size.lower, 1.0), torch.where(size.lower > 0, size.upper, 1.0)
    )
    one = Enclosure(torch.full_like(x.lower, -1.0), torch.ones_like(x.lower))
    return (x / safe).clipped(-1.0, 1.0).where(away, one)


@interval.register(ReduceLogSumExp)
def _reduce_log_sum_exp_interval(op: ReduceLogSumExp, box: Interval) -> Interval:
    """Increasing in every entry; with the largest entry taken out, the sum of exponentials lies in [1, n]."""
    x, axes = Enclosure.of(box), _batched(op.axes)
    if not bool((x.lower.isfinite() & x.upper.isfinite()).all()):
        raise Unbounded("a log of a sum of exponentials needs a finite box")
    ends = []
    for end in (x.lower, x.upper):
        top = end.amax(axes, keepdim=True)
        total = (Enclosure.of(end) - Enclosure.of(top)).exp().sum(axes, keepdim=True).clipped(1.0, math.inf)
        found = total.log() + Enclosure.of(top)
        ends.append(
            found if op.keepdims else Enclosure(*(_squeezed(e, axes) for e in (found.lower, found.upper)))
        )
    return Enclosure(ends[0].lower, ends[1].upper)
