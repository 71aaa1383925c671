"""Definiteness is claimed for definite matrices only, up to rounding, and the entrywise error counts."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.linalg.definite import corner_upper, proved_definite


def symmetric(seed: int, size: int, smallest: float) -> Tensor:
    """A random symmetric matrix whose smallest eigenvalue is about `smallest`, badly scaled."""
    rng = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))
    values = torch.rand(size, generator=rng, dtype=torch.float64) + 0.5
    values[0] = smallest
    scale = torch.exp2(torch.randint(-30, 30, (size,), generator=rng).double())
    matrix = scale[:, None] * ((basis * values) @ basis.T) * scale
    return torch.tril(matrix) + torch.tril(matrix, -1).T


def leading_minors(matrix: Tensor) -> list[Fraction]:
    """Exact leading principal minors: all positive exactly for a positive definite matrix."""
    rows = [[Fraction(v) for v in row] for row in matrix.tolist()]
    minors, product = [], Fraction(1)
    for k in range(len(rows)):
        product *= rows[k][k]
        minors.append(product)
        if rows[k][k] == 0:
            break
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return minors


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("smallest", [1e-3, 1e-10, 1e-15, 0.0, -1e-15, -1e-6])
def test_agrees_with_exact_arithmetic(seed: int, smallest: float) -> None:
    matrix = symmetric(seed, 7, smallest)
    proved = proved_definite(matrix, torch.zeros_like(matrix))
    definite = all(minor > 0 for minor in leading_minors(matrix))
    assert not proved or definite
    # Far enough from the boundary the proof is found, or definiteness is refused.
    if abs(smallest) >= 1e-10:
        assert proved == definite


def test_every_matrix_within_the_error_counts() -> None:
    matrix = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    assert proved_definite(matrix, torch.full((2, 2), 0.04, dtype=torch.float64))
    # Diagonal down, beside up: 0.94 against 0.96.
    assert not proved_definite(matrix, torch.full((2, 2), 0.06, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_prove_nothing(bad: float) -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 2] = bad
    assert not proved_definite(matrix, torch.zeros_like(matrix))
    assert not proved_definite(
        torch.eye(3, dtype=torch.float64), torch.full((3, 3), bad, dtype=torch.float64)
    )
    assert corner_upper(matrix, torch.zeros_like(matrix), 1) is None


def test_an_unsymmetric_matrix_is_our_own_mistake() -> None:
    with pytest.raises(InternalError):
        proved_definite(
            torch.tensor([[1.0, 0.1], [0.2, 1.0]], dtype=torch.float64), torch.zeros(2, 2).double()
        )


@pytest.mark.parametrize("seed", range(10))
def test_corner_is_the_edge(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    # The smallest rho for [[rho, -w'], [-w, I]] is |w|^2.
    w = torch.randn(5, generator=rng, dtype=torch.float64)
    matrix = torch.eye(6, dtype=torch.float64)
    matrix[0, 0] = 0.0
    matrix[0, 1:] = matrix[1:, 0] = -w
    found = corner_upper(matrix, torch.zeros_like(matrix), 1)
    exact = sum(Fraction(v) ** 2 for v in w.tolist())
    assert found is not None
    assert exact < Fraction(found) < exact * (1 + Fraction(1, 10**10))
    # With the lower block indefinite nothing helps.
    matrix[3, 3] = -1.0
    assert corner_upper(matrix, torch.zeros_like(matrix), 1) is None
