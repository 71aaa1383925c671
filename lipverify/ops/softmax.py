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
from lipverify.linalg.rounding import Upper, gamma
from lipverify.ops.embedding import blocks_norm, single
from lipverify.ops.enclosure import Enclosure, rounded
from lipverify.rules import Gain, Unbounded, forward, gain, interval


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax along one sample axis."""

    axis: int


@dataclass(frozen=True, eq=False)
class MaskedSoftmax(Op):
    """Softmax along one sample axis over the entries that are kept; 0 elsewhere: softmax of x where kept, -infinity elsewhere.

    kept: bool, of the sample's shape, with at least one entry in each row along the axis.
    """

    axis: int
    kept: Tensor


@dataclass(frozen=True, eq=False)
class LogSoftmax(Op):
    """Logarithm of softmax along one sample axis."""

    axis: int


@forward.register(Softmax)
def _softmax(op: Softmax, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=op.axis + 1)


@forward.register(MaskedSoftmax)
def _masked_softmax(op: MaskedSoftmax, x: Tensor) -> Tensor:
    return torch.softmax(x.masked_fill(~op.kept, -math.inf), dim=op.axis + 1)


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
    return _rows_gain(shapes[0][op.axis], shapes[0], op.axis, norm_in, norm_out)


@gain.register(MaskedSoftmax)
def _masked_softmax_gain(op: MaskedSoftmax, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Every row is a softmax of fewer entries."""
    return _rows_gain(int(op.kept.sum(op.axis).max()), shapes[0], op.axis, norm_in, norm_out)


def _rows_gain(n: int, shape: Shape, axis: int, norm_in: Norm, norm_out: Norm) -> Gain:
    """Rows along an axis, each a softmax of at most n entries."""
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
    return single(blocks_norm(block, math.prod(shape) // max(shape[axis], 1), norm_in, norm_out))


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
    if not bool((x.lower.isfinite() & x.upper.isfinite()).all()):
        raise Unbounded("a softmax needs a finite box")
    lower, upper = x.lower.movedim(op.axis + 1, -1), x.upper.movedim(op.axis + 1, -1)
    smallest, largest = _entries(op, lower, upper).lower, _entries(op, upper, lower).upper
    return Interval(smallest.movedim(-1, op.axis + 1), largest.movedim(-1, op.axis + 1))


@interval.register(MaskedSoftmax)
def _masked_softmax_interval(op: MaskedSoftmax, box: Interval) -> Interval:
    """As for softmax, with entries so low in place of those left out that their exponentials are 0: as bounds from below these
    are right, and from above what they add is charged to the totals."""
    x = Enclosure.of(box)
    if not bool((x.lower.isfinite() & x.upper.isfinite()).all()):
        raise Unbounded("a softmax needs a finite box")
    kept = op.kept.movedim(op.axis, -1).expand(x.lower.movedim(op.axis + 1, -1).shape)
    lower, upper = x.lower.movedim(op.axis + 1, -1), x.upper.movedim(op.axis + 1, -1)
    out = lower.amin(-1, keepdim=True) - 2000.0  # exp(-2000) is 0 in float64
    low, high = (torch.where(kept, end, out.expand_as(end)) for end in (lower, upper))
    plain = Softmax(-1)
    smallest, largest = _entries(plain, low, high).lower, _entries(plain, high, low).upper
    zero = torch.zeros_like(smallest)
    smallest, largest = torch.where(kept, smallest, zero), torch.where(kept, largest, zero)
    return Interval(smallest.movedim(-1, op.axis + 1), largest.movedim(-1, op.axis + 1))


def _entries(op: Softmax | LogSoftmax, own: Tensor, others: Tensor) -> Enclosure:
    """Entry i at the point with x_i = own_i and x_j = others_j, for all i: along the last axis."""
    if own.shape[-1] == 1:
        return Enclosure.of(torch.full_like(own, float(isinstance(op, Softmax))))
    top, rest = _others(others)
    # A shift of all entries by one number changes nothing: the largest exponential below is 1, and the total at least 1.
    shift = torch.maximum(own, top)
    gap = Enclosure.of(own) - Enclosure.of(shift)
    total = (rest * (Enclosure.of(top) - Enclosure.of(shift)).exp() + gap.exp()).clipped(0.5, math.inf)
    return (
        (gap.exp() / total).clipped(0.0, 1.0)
        if isinstance(op, Softmax)
        else (gap - total.log()).clipped(-math.inf, 0.0)
    )


def _others(x: Tensor) -> tuple[Tensor, Enclosure]:
    """For each i the largest x_j, j != i, and the sum over j != i of exp(x_j - largest), which is at least 1."""
    (first, second), places = x.topk(2, dim=-1).values.split(1, dim=-1), x.argmax(-1, keepdim=True)
    mine = torch.zeros_like(x, dtype=torch.bool).scatter(-1, places, True)
    common = _sums_of_others((Enclosure.of(x) - Enclosure.of(first)).exp())
    without = (Enclosure.of(x.masked_fill(mine, -math.inf)) - Enclosure.of(second)).exp().sum((-1,))
    wide = Enclosure(without.lower.expand_as(x), without.upper.expand_as(x))
    return torch.where(mine, second, first), wide.where(mine, common)


def _sums_of_others(terms: Enclosure) -> Enclosure:
    """Sums over j != i of non-negative terms, without cancellation: what comes before i plus what comes after."""
    slack = 4.0 * gamma(terms.lower.shape[-1] + 2)
    found = []
    for end in (terms.lower, terms.upper):
        before = torch.nn.functional.pad(end, (1, -1)).cumsum(-1)
        after = torch.nn.functional.pad(end, (-1, 1)).flip(-1).cumsum(-1).flip(-1)
        found.append(before + after)
    return rounded(found[0] * (1.0 - slack), found[1] * (1.0 + slack)).clipped(0.0, math.inf)
