"""The closed-form feasible point D_j = lmax(R_j) I, and the block scaling that very deep networks need before it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.factor import Factor, Pencil, largest_eigenvalue
from lipverify.analyzers.lipsdp.reduction import Reduced, scaled
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.errors import InternalError, Undecided
from lipverify.linalg.eigen import eigvalsh
from lipverify.ops.implicit import multiplier_candidates

UNCERTIFIED = (
    "no multipliers of the search could be proved in float64, nor could those in closed form: constants of this network are that "
    "far apart from layer to layer. Ask for product, or around points (--data FILE --radius R) for local, which need none"
)
# Multipliers between 2^-120 and 2^120 need no scaling: Cholesky factors are then far from overflow.
_RANGE = 120
_TINY = 1e-290


SHARES = (1.0, 0.6, 0.52, 0.5 + 1e-6)
"""Shares of lmax(R_j) that a multiplier may have; near one half they suit comparators, whose slopes are symmetric about 1/2."""


def scalar_start(reduced: Reduced, share: float = 1.0) -> tuple[Reduced, Factor, Tensor]:
    """One multiplier per block, D_j = share lmax(R_j) I in topological order; the system scaled so that they are near 1.

    Statement: A(D) > 0, so D is feasible.
    Source: ECLipsE-Fast (Xu, Sivaranjani, NeurIPS 2024, arXiv 2404.04375) in its recursion form, on any block system; there
    the share is 1. For networks of orthogonal maps and comparators every share gives 1 + O(share - 1/2).
    A block with a loop W takes D_j = t K with a diagonal K such that P = 2K - WK - KW' > 0 and t = 2 lmax(P^-1 R_j).
    Sound when: share > 1/2: S_j = 2 D_j - R_j >= (2 share - 1) lmax(R_j) I > 0 (with share 1 an estimated eigenvalue above
    lmax / 2 is enough); with a loop S_j = tP - R_j >= tP / 2 > 0.

    Raises:
        Undecided: no K was found for some loop. Or the multipliers of one block leave float64.

    Returns:
        The scaled system, the factor of A(D), and Y(D).
    """
    exponents, output = _estimated_exponents(reduced.system)
    while True:
        candidate = _scaled(reduced, exponents, output)
        pencil = Pencil(candidate.system, reduced.weighted)
        drift = _Drift(pencil, share)
        factor = pencil.eliminate(drift.choose)
        if drift.block is not None:
            # The estimate drifted from the recursion by this block: shift it and everything behind it.
            for k in range(drift.block, len(exponents)):
                exponents[k] += drift.exponent
            output += drift.exponent
            continue
        if factor is None:
            raise InternalError("the closed-form multipliers are not feasible")
        y = factor.output_form()
        shift = _half_log2(largest_eigenvalue(y))
        if abs(shift) <= _RANGE:
            return candidate, factor, y
        output += shift


def _scaled(reduced: Reduced, exponents: list[int], output: int) -> Reduced:
    system = scaled(reduced.system, exponents, output)
    return replace(reduced, system=system, exponents=tuple(exponents), output_exponent=output)


class _Drift:
    """Chooses scalar multipliers until one leaves the range."""

    def __init__(self, pencil: Pencil, share: float) -> None:
        self.weighted = pencil.weighted
        self.loops = {k: m for (k, j), m in pencil.C.items() if k == j}
        self.share = share
        self.block: int | None = None
        self.exponent = 0

    def choose(self, j: int, r: Tensor) -> Tensor:
        if self.block is not None:
            # All of this is done again in another scale; here the numbers behind that block may leave float64. It ends at once.
            return torch.zeros(len(r), dtype=r.dtype, device=r.device)
        # Weights of the input are free: all one to begin with.
        first = self.weighted and j == 0
        if j in self.loops:
            looped = _looped_start(self.loops[j], r)
            largest = float(looped.amax())
        else:
            largest = 1.0 if first else largest_eigenvalue(r)
        shift = _half_log2(largest)
        if abs(shift) > _RANGE:
            self.block, self.exponent = j, shift
        if j in self.loops:
            return looped
        if self.share != 1.0 and not first and self.block is None:
            # Near the edge of the feasible set an estimate is not enough.
            largest = self.share * float(eigvalsh(r)[-1]) * (1.0 + 1e-12)
        return torch.full((r.shape[0],), max(largest, _TINY), dtype=r.dtype, device=r.device)


def _looped_start(loop: Tensor, r: Tensor) -> Tensor:
    """t K for the K with the smallest sum; Winston, Kolter 2020 (arXiv 2006.08591) for K = I, Revay, Wang, Manchester 2020 (arXiv
    2010.01732) for diagonal K."""
    best: Tensor | None = None
    for weight in multiplier_candidates(loop.T):
        curvature = 2.0 * torch.diag(weight) - loop * weight - weight[:, None] * loop.T
        lower, info = torch.linalg.cholesky_ex(curvature)
        if info.item():
            continue
        half = torch.linalg.solve_triangular(lower, r, upper=False)
        inner = torch.linalg.solve_triangular(lower, half.T, upper=False)
        found = weight * max(2.0 * largest_eigenvalue(0.5 * (inner + inner.T)), _TINY)
        if bool(found.isfinite().all()) and (best is None or found.sum() < best.sum()):
            best = found
    if best is None:
        raise Undecided("no diagonal K with 2K - WK - KW' > 0 was found for an implicit layer")
    return best


def _half_log2(value: float) -> int:
    if not math.isfinite(value):
        raise Undecided(UNCERTIFIED)
    return round(math.log2(value) / 2) if value > _TINY else 0


def _estimated_exponents(system: Couplings) -> tuple[list[int], int]:
    """Powers of two near the size of every block's pre-activations, by average gains; zeros when all are moderate."""
    logs: list[float] = []
    for k in range(len(system.sizes)):
        incoming = [_log_gain(system.U[k])] if k in system.U else []
        incoming += [_log_gain(m) + logs[j] for (i, j), m in system.C.items() if i == k > j]
        logs.append(_log_sum(incoming))
    outgoing = [_log_gain(m) + logs[k] for k, m in system.V.items()]
    outgoing += [] if system.V0 is None else [_log_gain(system.V0)]
    logs.append(_log_sum(outgoing))
    if max((abs(value) for value in logs), default=0.0) < _RANGE / 2:
        return [0] * len(system.sizes), 0
    rounded = [round(value) for value in logs]
    return rounded[:-1], rounded[-1]


def _log_gain(matrix: Tensor) -> float:
    largest = float(matrix.abs().amax()) if matrix.numel() else 0.0
    if largest == 0.0:
        return -math.inf
    ratio = float(torch.linalg.matrix_norm(matrix / largest))
    return math.log2(largest) + math.log2(ratio / math.sqrt(min(matrix.shape)))


def _log_sum(logs: list[float]) -> float:
    """log2 of the root of the sum of squares, 0 for nothing."""
    top = max(logs, default=-math.inf)
    if top == -math.inf:
        return 0.0
    return top + 0.5 * math.log2(sum(4.0 ** (value - top) for value in logs))
