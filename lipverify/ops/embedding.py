"""Norms of the matrices most operators are made of: embeddings, diagonals, copies, blocks. Every value rounds up.

Legend: p = norm_in, q = norm_out, r with 1/r = max(0, 1/q - 1/p), p* the dual of p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.ir.norm import Norm
from lipverify.linalg.dense import operator_norm_upper
from lipverify.linalg.rounding import Upper
from lipverify.rules import Gain, Unbounded

SAME_NORMS = (Norm.L1, Norm.L2, Norm.LINF)


def exponent_gap(norm_in: Norm, norm_out: Norm) -> Fraction:
    """1/r = max(0, 1/q - 1/p)."""
    inverse = {Norm.L1: Fraction(1), Norm.L2: Fraction(1, 2), Norm.LINF: Fraction(0)}
    return max(Fraction(0), inverse[norm_out] - inverse[norm_in])


def embedding(size: int, norm_in: Norm, norm_out: Norm) -> Upper:
    """Norm of the identity on `size` numbers.

    Statement: |x|_q <= size^max(0, 1/q - 1/p) |x|_p, attained by constant vectors or by unit vectors.
    Source: Hoelder's inequality.
    """
    if size == 0:
        return Upper.zero()
    gap = exponent_gap(norm_in, norm_out)
    whole = Upper.of(size)
    return {Fraction(0): Upper.one(), Fraction(1, 2): whole.sqrt(), Fraction(1): whole}[gap]


def diagonal_norm(diagonal: Tensor, norm_in: Norm, norm_out: Norm) -> Upper:
    """Norm of the diagonal matrix with these entries (any shape, upper bounds of the absolute values).

    Statement: |d x|_q <= |d|_r |x|_p. Source: Hoelder's inequality, attained.
    """
    if diagonal.numel() == 0:
        return Upper.zero()
    column = diagonal.to(torch.float64).reshape(-1, 1)
    out = {Fraction(0): "linf", Fraction(1, 2): "l2", Fraction(1): "l1"}[exponent_gap(norm_in, norm_out)]
    return operator_norm_upper(column, "l1", out)


def copies_norm(counts: Iterable[Tensor], norm_in: Norm, norm_out: Norm) -> Upper:
    """Norm of a map that copies entry (i, j, ...) counts[0][i] * counts[1][j] * ... times, and drops entries of count 0.

    Statement: |copies of x|_q = |(c_i^(1/q) x_i)|_q, the norm of a diagonal matrix; its r-norm is a product over axes.
    """
    total = Fraction(1)
    power = _power_of_counts(norm_in, norm_out)
    for count in counts:
        total *= power(count.to(torch.int64))
    rooted = norm_out is Norm.L2 or (norm_in is Norm.L2 and norm_out is Norm.L1)
    return Upper.of(total).sqrt() if rooted else Upper.of(total)


def _power_of_counts(norm_in: Norm, norm_out: Norm) -> Callable[[Tensor], int]:
    """|c^(1/q)|_r of one axis, or its square where `copies_norm` takes a root at the end."""
    if norm_out is Norm.LINF:
        return lambda count: int(bool((count > 0).any()))
    if exponent_gap(norm_in, norm_out) == 0:
        return lambda count: int(count.max()) if count.numel() else 0
    if norm_in is Norm.LINF:
        # linf -> l1: the sum of c; linf -> l2: the root of the sum of c.
        return lambda count: int(count.sum())
    return lambda count: int((count * count).sum())


def blocks_norm(block: Upper, blocks: int, norm_in: Norm, norm_out: Norm) -> Upper:
    """Norm of a block-diagonal map whose `blocks` blocks have at most this norm.

    Statement: (sum_b |A_b x_b|_q^q)^(1/q) <= block * (sum_b |x_b|_p^q)^(1/q) <= block * blocks^(1/r) |x|_p.
    """
    return block * embedding(blocks, norm_in, norm_out)


def through_same_norm(
    same: Callable[[Norm], Upper], size_in: int, size_out: int, norm_in: Norm, norm_out: Norm
) -> Upper:
    """The best mixed bound that gains from one norm to itself give.

    Statement: |A x|_q <= m^(..) |A x|_s <= m^(..) same(s) |x|_s <= m^(..) same(s) n^(..) |x|_p for s = l1, l2, linf.
    """
    if norm_in is norm_out:
        return same(norm_in)
    bounds = [
        embedding(size_out, norm, norm_out) * same(norm) * embedding(size_in, norm_in, norm)
        for norm in SAME_NORMS
    ]
    return min(bounds)


def single(bound: Upper) -> Gain:
    """The gain of an operator with one input.

    Raises:
        Unbounded: the number does not fit into float64.
    """
    return Gain((finite(bound),))


def finite(bound: Upper) -> float:
    """The bound as float64, rounded up.

    Raises:
        Unbounded: the number does not fit into float64.
    """
    try:
        value = float(bound)
    except OverflowError:
        raise Unbounded(f"its gain is above the largest float64 (10^{bound.log10():.1f})") from None
    assert math.isfinite(value)
    return value
