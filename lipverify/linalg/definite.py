"""Proofs that a symmetric matrix is positive definite, the rounding of its entries included.

Legend: A the stored matrix, M any symmetric matrix with |M - A| <= error entrywise, L an untrusted Cholesky factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.linalg.eigen import eigvalsh
from lipverify.linalg.rounding import gamma, inflate

# Absorbs underflow: entries are near 1 after scaling.
_UNDERFLOW = 2.0**-400
_SLACKS = tuple(10.0**-k for k in range(13, 2, -1))
"""How far above its floating-point value a corner is tried, relatively."""


def proved_definite(matrix: Tensor, error: Tensor) -> bool:
    """Whether every symmetric matrix within `error` of `matrix` is proved to be positive definite.

    Statement: True implies M > 0. With E = A - diag(t) - LL': M = LL' + diag(t) + (E + M - A), and the last two terms together
        are diagonally dominant with a non-negative diagonal when t_i >= sum_j |E_ij| + error_ij.
    Source: Rump, "Verification of positive definiteness", BIT 46 (2006), with the residual instead of a backward error; the
        residual carries its own error gamma_(n+4) (|A| + t + |L||L|') (Higham, section 3.5).
    Sound when: the assumptions of `lipverify.linalg` hold.

    Args:
        matrix: [n, n] float64, exactly symmetric. error: [n, n], non-negative, symmetric.

    Raises:
        InternalError: the matrix is not symmetric.
    """
    diagonal = matrix.diagonal()
    if not bool((diagonal > 0).all() & torch.isfinite(matrix).all() & torch.isfinite(error).all()):
        return False
    if not torch.equal(matrix, matrix.T):
        raise InternalError("a definiteness proof needs an exactly symmetric matrix")
    _, exponent = torch.frexp(diagonal)
    # Powers of two on both sides keep definiteness and are exact.
    half = torch.exp2(-torch.div(exponent, 2, rounding_mode="floor").to(torch.float64))
    a = half[:, None] * matrix * half
    outside = (half[:, None] * error * half).sum(1)
    size = a.abs().sum(1)
    count = len(a)
    unit, slack = gamma(count + 4), 1.0 + gamma(8 * count + 100)
    shift = 1.000001 * outside + 4.0 * unit * size + _UNDERFLOW
    for _ in range(4):
        shifted = a - torch.diag(shift)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) != 0 or not bool(torch.isfinite(factor).all()):
            return False
        residual = (shifted - factor @ factor.T).abs().sum(1)
        magnitude = size + shift + factor.abs() @ factor.abs().sum(0)
        need = inflate((residual + outside + unit * magnitude) * slack, 0.0) + _UNDERFLOW
        # Comparisons with NaN are false, so that a NaN never passes.
        if bool((shift >= need).all()):
            return True
        shift = torch.maximum(shift, 2.0 * need)
    return False


def corner_upper(matrix: Tensor, error: Tensor, corner: int) -> float | None:
    """A small rho for which M + rho I on the first `corner` coordinates is proved positive definite; None where none is found.

    The value found in floating point, by the Schur complement, is only a candidate; `proved_definite` decides.

    Args:
        matrix, error: as for `proved_definite`.
    """
    first, rest = matrix[:corner, :corner], matrix[corner:, corner:]
    estimate = -first
    if len(rest):
        factor, info = torch.linalg.cholesky_ex(rest)
        if int(info) != 0:
            return None
        half = torch.linalg.solve_triangular(factor, matrix[corner:, :corner], upper=False)
        estimate = estimate + half.T @ half
    if not bool(torch.isfinite(estimate).all()):
        return None
    rho = float(eigvalsh((estimate + estimate.T) / 2)[-1]) if corner else 0.0
    rho = max(rho, 2.0**-100 * float(matrix.abs().max()) if matrix.numel() else 0.0)
    added = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    for slack in _SLACKS:
        candidate = rho * (1.0 + slack)
        if not math.isfinite(candidate):
            return None
        added[:corner] = candidate
        # The sum on the diagonal rounds once.
        rounded = torch.diag(gamma(2) * (matrix.diagonal().abs() + added))
        if proved_definite(matrix + torch.diag(added), error + rounded):
            return candidate
    return None
