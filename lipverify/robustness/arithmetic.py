"""Radii from margins and constants, rounded towards what is safe. A radius is never infinite: it ends at `LARGEST`."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

from torch import Tensor

from lipverify.ir.norm import Norm
from lipverify.linalg.rounding import down, sum_up, up

LARGEST = sys.float_info.max


def quotient_down(margin: float, constant: float) -> float:
    """The largest float64 <= margin / constant, at most `LARGEST`; 0 for a margin that is not positive."""
    if not margin > 0.0:
        return 0.0
    if constant == 0.0 or Fraction(margin) >= Fraction(constant) * Fraction(LARGEST):
        return LARGEST
    found = margin / constant
    while Fraction(found) * Fraction(constant) > Fraction(margin):
        found = down(found)
    return found


def length_up(step: Tensor, x: Tensor, norm: Norm) -> float:
    """|step - x| of two stored points, rounded up (nonzero differences are not underflowing squares in l2)."""
    from torch import nextafter, tensor

    infinity = tensor(math.inf, dtype=x.dtype, device=x.device)
    sizes = nextafter((step - x).abs().flatten(), infinity)
    sizes = sizes.where((step != x).flatten(), sizes.new_zeros(()))
    if norm is Norm.LINF:
        return float(sizes.max())
    if norm is Norm.L1:
        return sum_up(sizes.tolist())
    squares = sum((Fraction(size) ** 2 for size in sizes.tolist() if size), Fraction(0))
    root = math.sqrt(squares)
    while Fraction(root) ** 2 < squares:
        root = up(root)
    return root
