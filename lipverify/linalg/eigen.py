"""Eigenvalues and eigenvectors of Hermitian matrices, as candidates: nothing is proved by them.

LAPACK's divide and conquer gives up on some matrices with many equal eigenvalues. Then the same matrix is taken in other
coordinates, where its rounding errors are others; and at last the coordinates themselves stand for eigenvectors, which is a poor
candidate and as honest a one: who uses these functions proves what follows from them in another way.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GaveUp: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
_TURNS = 3
"""Other coordinates that are tried."""


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(values [..., n] ascending, vectors [..., n, n]), as `torch.linalg.eigh`.

    Raises:
        torch.linalg.LinAlgError: an entry is not finite.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    except _GaveUp:
        if not bool(torch.isfinite(matrix).all()):
            raise
    size = matrix.shape[-1]
    pairs = [_turned(one) for one in matrix.reshape(-1, size, size)]
    return (
        torch.stack([values for values, _ in pairs]).reshape(matrix.shape[:-1]),
        torch.stack([vectors for _, vectors in pairs]).reshape(matrix.shape),
    )


def eigvalsh(matrix: Tensor) -> Tensor:
    """The values alone, as `torch.linalg.eigvalsh`.

    Raises:
        torch.linalg.LinAlgError: an entry is not finite.
    """
    try:
        values: Tensor = torch.linalg.eigvalsh(matrix)
        return values
    except _GaveUp:
        return eigh(matrix)[0]


def spectral_estimate(matrix: Tensor) -> float:
    """The largest singular value of a real matrix, unproved; 0 without entries."""
    if not matrix.numel():
        return 0.0
    scale = float(matrix.abs().max())
    if not scale > 0.0:
        return scale
    scaled = matrix / scale
    gram = scaled.mT @ scaled if scaled.shape[0] >= scaled.shape[1] else scaled @ scaled.mT
    return scale * float(eigvalsh(gram)[-1].clamp_min(0.0).sqrt())


def largest_singular(matrix: Tensor, steps: int) -> Tensor:
    """About the largest singular values of matrices [..., m, n], from below: steps of Lanczos on W*W from fixed starts.

    Without reorthogonalisation, which only repeats values that are there. Source: Golub, Van Loan, section 10.1.
    """
    generator = torch.Generator().manual_seed(0)
    n = matrix.shape[-1]
    start = torch.randn(n, dtype=torch.float64, generator=generator).to(matrix)
    v = (start / start.norm()).expand(*matrix.shape[:-2], n)[..., None]
    before = torch.zeros_like(v)
    size = torch.zeros((), dtype=matrix.real.dtype, device=matrix.device)
    diagonal, beside = [], []
    for _ in range(min(steps, n)):
        # Vectors are conjugated, not the matrix.
        image = (matrix.mT @ (matrix @ v).conj().resolve_conj()).conj().resolve_conj() - size * before
        diagonal.append((v.conj() * image).real.sum((-2, -1)))
        image = image - diagonal[-1][..., None, None] * v
        size = torch.linalg.vector_norm(image, dim=-2, keepdim=True)
        beside.append(size[..., 0, 0])
        # What is left of an invariant subspace is rounding: behind it the same values come again.
        before, v = v, image / size.clamp_min(torch.finfo(size.dtype).tiny)
    projected = torch.diag_embed(torch.stack(diagonal, -1))
    if len(diagonal) > 1:
        off = torch.stack(beside[:-1], -1)
        projected = projected + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return eigvalsh(projected.double())[..., -1].clamp_min(0.0).sqrt()


def _turned(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """One matrix [n, n]."""
    size = matrix.shape[-1]
    generator = torch.Generator().manual_seed(0)
    for turn in range(_TURNS + 1):
        basis = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        if turn:
            noise = torch.randn(size, size, dtype=torch.float64, generator=generator)
            basis = torch.linalg.qr(noise).Q.to(matrix)
        inside = basis.mH @ matrix @ basis
        try:
            values, vectors = torch.linalg.eigh((inside + inside.mH) / 2)
        except _GaveUp:
            continue
        return values, basis @ vectors
    order = matrix.diagonal().real.argsort()
    return matrix.diagonal().real[order], torch.eye(size, dtype=matrix.dtype, device=matrix.device)[:, order]
