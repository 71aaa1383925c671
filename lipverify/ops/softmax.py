"""Softmax and its logarithm along one sample axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import blocks_norm, single
from lipverify.ops.enclosure import Enclosure
from lipverify.rules import Gain, forward, gain, interval


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax along one sample axis."""

    axis: int


@dataclass(frozen=True, eq=False)
class LogSoftmax(Op):
    """Logarithm of softmax along one sample axis."""

    axis: int


@forward.register(Softmax)
def _softmax(op: Softmax, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=op.axis + 1)


@forward.register(LogSoftmax)
def _log_softmax(op: LogSoftmax, x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=op.axis + 1)


@gain.register(Softmax)
def _softmax_gain(op: Softmax, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """J = diag(p) - pp', symmetric. Sharp bounds, attained at p = (1/2, 1/2) or its limits.

    Any norm to itself: 1/2 (Nair 2025, arXiv 2510.23012). l1 -> linf: the largest entry p(1-p) <= 1/4. l1 -> l2: a column has
    squared norm p_j^2 ((1-p_j)^2 + sum of the other p_i^2) <= 2 p_j^2 (1-p_j)^2 <= 1/8; l2 -> linf by symmetry. linf -> q:
    signs s with plus mass a give entries 2 p_i (1-a) and -2 p_i a: l1 norm 4a(1-a) <= 1, squared l2 norm
    <= 8 a^2 (1-a)^2 <= 1/2; l2 -> l1 by symmetry.
    """
    n = shapes[0][op.axis]
    if n == 1:
        return single(Upper.zero())
    squares = {
        (Norm.L1, Norm.LINF): Fraction(1, 16),
        (Norm.L1, Norm.L2): Fraction(1, 8),
        (Norm.L2, Norm.LINF): Fraction(1, 8),
        (Norm.LINF, Norm.L2): Fraction(1, 2),
        (Norm.L2, Norm.L1): Fraction(1, 2),
        (Norm.LINF, Norm.L1): Fraction(1),
    }
    block = Upper.of(squares.get((norm_in, norm_out), Fraction(1, 4))).sqrt()
    return single(blocks_norm(block, math.prod(shapes[0]) // max(n, 1), norm_in, norm_out))


@gain.register(LogSoftmax)
def _log_softmax_gain(op: LogSoftmax, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """J = I - 1p'. Convex in p, so every norm is largest at a vertex p = e_k, where row i is e_i' - e_k'.

    l2: I - 1p' is idempotent, of norm |1| |p| <= sqrt(n). l1 -> q: columns e_j and (for j = k) n - 1 entries of size 1.
    p -> linf: a row with 1 and -1. linf -> q: n - 1 entries of size 2. l2 -> l1: the adjoint, |J's| with n - 1 entries of
    size 1 and one of size n - 1.
    """
    n = shapes[0][op.axis]
    if n == 1:
        return single(Upper.zero())
    squares = {
        (Norm.L1, Norm.L1): (n - 1) ** 2,
        (Norm.L1, Norm.L2): n - 1,
        (Norm.L1, Norm.LINF): 1,
        (Norm.L2, Norm.L1): n * (n - 1),
        (Norm.L2, Norm.L2): n,
        (Norm.L2, Norm.LINF): 2,
        (Norm.LINF, Norm.L1): 4 * (n - 1) ** 2,
        (Norm.LINF, Norm.L2): 4 * (n - 1),
        (Norm.LINF, Norm.LINF): 4,
    }
    block = Upper.of(squares[norm_in, norm_out]).sqrt()
    return single(blocks_norm(block, math.prod(shapes[0]) // max(n, 1), norm_in, norm_out))


@interval.register(Softmax, LogSoftmax)
def _softmax_interval(op: Softmax | LogSoftmax, box: Interval) -> Interval:
    """p_i = 1 / (1 + sum over j != i of exp(x_j - x_i)) grows with x_i and falls with every other x_j."""
    x = Enclosure.of(box)
    lower, upper = x.lower.movedim(op.axis + 1, -1), x.upper.movedim(op.axis + 1, -1)
    ends: tuple[list[Enclosure], list[Enclosure]] = ([], [])
    for i in range(lower.shape[-1]):  # one entry at a time: memory stays that of the box
        for found, others, own in ((ends[0], upper, lower), (ends[1], lower, upper)):
            rest = torch.cat((others[..., :i], others[..., i + 1 :]), dim=-1)
            found.append(_entry(op, Enclosure.of(rest), Enclosure.of(own[..., i : i + 1])))
    stacked = Interval(
        torch.cat([entry.lower for entry in ends[0]], dim=-1),
        torch.cat([entry.upper for entry in ends[1]], dim=-1),
    )
    return Interval(stacked.lower.movedim(-1, op.axis + 1), stacked.upper.movedim(-1, op.axis + 1))


def _entry(op: Softmax | LogSoftmax, others: Enclosure, own: Enclosure) -> Enclosure:
    """The entry for points of both: others [..., n - 1], own [..., 1]."""
    gap = others - own
    # exp(t) + sum of exp(gap - t) with t = max(0, largest gap): nothing overflows; t is exact, any number would do.
    count = gap.upper.shape[-1]
    largest = gap.upper.clamp(min=0.0).amax(-1, keepdim=True) if count else torch.zeros_like(own.lower)
    shift = Enclosure.of(largest.clamp(max=torch.finfo(torch.float64).max))
    total = (gap - shift).exp().sum((-1,)) + (-shift).exp()
    if isinstance(op, Softmax):
        return ((-shift).exp() / total).clipped(0.0, 1.0)
    return -(shift + (total - 1.0).log1p()).clipped(0.0, math.inf)
