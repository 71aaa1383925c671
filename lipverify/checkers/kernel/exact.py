"""The exact tier: norms and definiteness by integers alone, for what small networks store as it is."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.checkers.kernel.account import charge

Array = NDArray[Any]
_LIMB, _OBJECT = 20, 32


def integers(values: Array) -> tuple[Array, int]:
    """Float64 numbers as exact integers (dtype object) times 2^-scale."""
    charge(_OBJECT * values.size)
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = int(exponent[whole != 0].min(initial=0))
    spread = np.where(whole != 0, exponent - lowest, 0).astype(object)
    return whole.astype(object) * 2**spread, 53 - lowest


def _limbs(whole: Array) -> list[Array]:
    sign = np.where(whole < 0, -1, 1)
    rest: Any = abs(whole)
    found = []
    while rest.any():
        found.append((rest % (1 << _LIMB)).astype(np.float64) * sign.astype(np.float64))
        rest = rest >> _LIMB
    return found


def exact_gram(whole: Array) -> Array:
    """Z'Z of an integer matrix, exactly: float64 products of 20-bit limbs stay below 2^53, whatever their order."""
    if whole.shape[0] > 1 << 12:
        raise ValueError("exact products are limited to 4096 rows")
    limbs = _limbs(whole)
    charge(_OBJECT * whole.shape[1] ** 2, len(limbs) ** 2 * whole.size * whole.shape[1])
    total = np.zeros((whole.shape[1], whole.shape[1]), dtype=object)
    for i, first in enumerate(limbs):
        for j, second in enumerate(limbs):
            total = total + (first.T @ second).astype(np.int64).astype(object) * (1 << _LIMB * (i + j))
    return total


def exactly_definite(a: Array) -> bool:
    """Proves an integer matrix positive semidefinite: any R on a dyadic grid, a - R'R diagonally dominant.

    Statement: R'R >= 0, and a symmetric matrix with a_ii >= sum over j != i of |a_ij| is positive semidefinite. R comes from a
        float64 Cholesky factor and needs no trust.
    """
    top = max(int(v).bit_length() for v in np.diagonal(a))
    guess = np.array(
        [[float(int(v) >> top - 60 if top > 60 else int(v) << 60 - top) for v in row] for row in a]
    )
    guess = np.ldexp(guess, -60)
    mean = float(np.diagonal(guess).mean())
    for shift in (2.0**-49, 2.0**-46, 2.0**-42, 2.0**-36, 2.0**-30):
        try:
            lower = np.linalg.cholesky(guess - shift * mean * np.eye(len(a)))
        except np.linalg.LinAlgError:
            continue
        whole = np.rint(np.ldexp(lower.T, 58)).astype(np.int64).astype(object)
        # guess is about a 2^-top, so that R'R is about a 2^(116 - top).
        error = a * 2 ** max(0, 116 - top) - exact_gram(whole) * 2 ** max(0, top - 116)
        if bool((2 * np.diagonal(error) >= abs(error).sum(1)).all()):
            return True
    return False


def exact_norm_at_most(w: Array, limit: float) -> bool:
    """|W|_2 <= limit for exactly these float64 entries, in integers."""
    whole, scale = integers(w if w.shape[0] >= w.shape[1] else w.T)
    square = math.floor(Fraction(limit) ** 2 * Fraction(4) ** scale)
    return exactly_definite(np.eye(whole.shape[1], dtype=int).astype(object) * square - exact_gram(whole))


def exact_blocks(diagonal: Array, half: Array, blocks: list[tuple[slice, slice, Array, Array]]) -> Array:
    """A diagonal plus blocks `entries * factor` and their transposes, rows and columns times powers of two, in integers."""
    charge(_OBJECT * len(diagonal) ** 2)
    values, fine = integers(diagonal)
    pieces = []
    for here, there, entries, factor in blocks:
        (w, a), (f, b) = integers(entries), integers(factor)
        pieces.append((here, there, w * f, a + b))
    finest, exponents = max((fine, *(scale for *_, scale in pieces))), np.frexp(half)[1]
    powers = np.array([2 ** int(h) for h in exponents - exponents.min()], dtype=object)
    matrix = np.diag(values * 2 ** (finest - fine) * powers * powers)
    for here, there, whole, scale in pieces:
        block = whole * 2 ** (finest - scale) * powers[here][:, None] * powers[there]
        matrix[here, there] += block
        matrix[there, here] += block.T
    return matrix
