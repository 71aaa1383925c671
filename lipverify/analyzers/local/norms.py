"""From ranges of Jacobians to operator norms.

Statement: for every J with l <= J <= u entry by entry and M = max(|l|, |u|), |J x|_q <= |M |x||_q: the norm of M bounds that of
J in every pair of norms, and norms of non-negative matrices are sums of rows or columns wherever linf or l1 is involved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.linalg.dense import operator_norm
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import UNIT_ROUNDOFF, gamma

LARGEST_MATRIX = 1 << 24
"""Entries of a Jacobian beyond which only row norms are used."""


def from_rows(rows: Tensor, norm_out: Norm) -> Tensor:
    """Bound of |J|_{p -> q} from upper bounds [count, rows] of the dual norms of all rows: their q-norm."""
    slack = 1.0 + 4.0 * gamma(rows.shape[1] + 8)
    if norm_out is Norm.LINF:
        return rows.amax(1)
    return _up((euclidean_norm(rows, 1) if norm_out is Norm.L2 else rows.sum(1)) * slack)


def from_matrix(box: Interval, norm_in: Norm, norm_out: Norm) -> Tensor | None:
    """Bound from all entries at once, [count]; None where the rows alone are as good. box [count, rows, inputs]."""
    if norm_in is Norm.LINF or norm_out is Norm.LINF or box.lower[0].numel() > LARGEST_MATRIX:
        return None
    largest = torch.maximum(box.lower.abs(), box.upper.abs())
    slack = 1.0 + 4.0 * gamma(sum(largest.shape[1:]) + 16)
    if norm_in is Norm.L1:
        # Columns: extreme points of the l1 ball.
        columns = {Norm.L1: largest.sum(1), Norm.LINF: largest.amax(1)}.get(norm_out)
        return _up((euclidean_norm(largest, 1) if columns is None else columns).amax(1) * slack)
    if norm_out is Norm.L1:
        # | M x |_1 = (column sums)' x for x >= 0.
        return _up(euclidean_norm(largest.sum(1), 1) * slack)
    center = box.lower / 2 + box.upper / 2
    radius = torch.maximum(box.upper - center, center - box.lower)
    radius = torch.nextafter(radius, torch.full_like(radius, math.inf))
    whole = [float(operator_norm(m, "l2", "l2")) for m in largest]
    parts = [
        float(operator_norm(c, "l2", "l2")) + float(operator_norm(r, "l2", "l2"))
        for c, r in zip(center, radius, strict=True)
    ]
    best = [min(a, math.nextafter(b, math.inf)) for a, b in zip(whole, parts, strict=True)]
    return torch.tensor(best, dtype=torch.float64, device=largest.device)


def _up(value: Tensor) -> Tensor:
    return torch.nextafter(value * (1.0 + 4.0 * UNIT_ROUNDOFF), torch.full_like(value, math.inf))
