"""The arithmetic a proof rests on: exact rationals, norms and definiteness with every rounding accounted for.

Assumptions: IEEE round-to-nearest, matrix products and Cholesky made of ordinary inner products in any order, cos and sin within
2 units in the last place. Eigenvalue and singular value routines are never trusted; nothing here searches.

Legend: u = 2^-53; gamma_n = n u / (1 - n u) bounds n roundings (Higham, Accuracy and Stability, 2nd edition, Lemma 3.1).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.checkers.kernel.account import charge
from lipverify.errors import NotCovered, UnreadableCertificate

Array = NDArray[Any]
TINY = 2.0**-300
"""Covers every underflow: matrices are scaled near 1 first."""
_BITS, _FAR = 192, 1 << 16


def need(condition: object, message: str) -> None:
    """UnreadableCertificate with this message unless the condition holds."""
    if not condition:
        raise UnreadableCertificate(message)


def times(a: Array, b: Array) -> Array:
    """Products of stored numbers, each within gamma_1 of itself.

    Raises:
        NotCovered: one of two numbers other than 0 is lost below 2^-400, or beyond 2^400: 0 would be no rounding of it.
    """
    found = np.asarray(a * b)
    near = (np.abs(found) >= 2.0**-400) & (np.abs(found) <= 2.0**400)
    if not bool((near | (a == 0) | (b == 0)).all()):
        raise NotCovered("products of stored numbers near the ends of float64 are not covered by the checker")
    return found


def held(values: Array, *factors: Array | float) -> Array:
    """`values`, products or quotients of `factors` that broadcast to them, where a count of roundings bounds their error.

    A relative error says so only far from underflow: a result near 0 needs a 0 among its factors, where it is exact.

    Raises:
        NotCovered: a result below 2^-1000 in size without one.
    """
    there = np.array(np.abs(values) < 2.0**-1000)
    for factor in factors:
        there &= np.asarray(factor) != 0
    if there.any():
        raise NotCovered(
            "products or quotients of stored numbers that float64 rounds to 0, or nearly so, are not covered by the checker"
        )
    return values


def above(value: Fraction | int) -> float:
    """The smallest float64 >= value; infinity above the largest."""
    if not -(2**1023) < value < 2**1023:
        return math.inf if value > 0 else -(2.0**1023)
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def below(value: Fraction | int) -> float:
    """The largest float64 <= value."""
    return -above(-value)


def trimmed(value: Fraction) -> Fraction:
    """A dyadic number >= value >= 0 of at most 192 bits, and not below 2^-_FAR unless 0, so that long products stay short.

    Raises NotCovered: it is above 2^_FAR.
    """
    excess = max(value.numerator.bit_length() - value.denominator.bit_length() - _BITS, -_FAR)
    if excess > _FAR:
        raise NotCovered(f"a constant above 2^{_FAR} is not covered")
    scaled = value / Fraction(2) ** excess
    return Fraction(math.ceil(scaled)) * Fraction(2) ** excess


def root_above(value: Fraction) -> Fraction:
    """A rational >= the square root of value >= 0, within 2^-90 relatively."""
    if value == 0:
        return Fraction(0)
    shift = (_BITS - value.numerator.bit_length() + value.denominator.bit_length()) // 2
    scaled = math.ceil(value * Fraction(4) ** shift)
    root = math.isqrt(scaled)
    return Fraction(root if root * root == scaled else root + 1) / Fraction(2) ** shift


@lru_cache(maxsize=1 << 12)
def gamma(count: int) -> float:
    """gamma_count, rounded up. Raises NotCovered: too many roundings."""
    if not 0 <= count < 1 << 40:
        raise NotCovered(f"{count} roundings are too many to control")
    return above(Fraction(count, (1 << 53) - count))


def sums(values: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Upper bounds of sums of absolute values along axes."""
    size = values.size if axis is None else math.prod(values.shape[a] for a in np.atleast_1d(np.array(axis)))
    return np.asarray(np.abs(values).sum(axis=axis) * (1.0 + 2.0 * gamma(int(size) + 4)) + TINY * TINY)


def interpolated(values: Array) -> Array:
    """Upper bound of the l2 norm of matrices with these absolute values: root of largest row sum times largest column sum."""
    # Roots first: the product of two small sums would underflow.
    roots = np.sqrt(sums(values, -1).max(-1)) * np.sqrt(sums(values, -2).max(-1))
    return np.asarray(roots * (1.0 + gamma(8)))


def exponent_of(values: Array) -> int:
    """e with the largest absolute value in [2^(e-1), 2^e); 0 for zeros."""
    return int(np.frexp(np.abs(values).max(initial=0.0))[1])


def positive_definite(a: Array, slack: Array, spent: bool = False) -> bool:
    """Proves a + P positive semidefinite for every Hermitian P with P + diag(slack) positive semidefinite.

    Statement: Cholesky of a - diag(t) that runs to its end is exact for a matrix off by at most g sqrt(a_ii a_jj) in entry ij,
        g = gamma / (1 - gamma). With t_i >= slack_i + g sqrt(a_ii) sum_j sqrt(a_jj) diagonal dominance absorbs both.
    Source: Demmel (LAPACK Working Note 14, 1989); Rump, BIT 46 (2006), theorem 2.3; Higham, theorem 10.5, with 2n + 20 in place
        of n + 1 for blocked triangular solves; a complex inner product of n terms is two real ones of 2n (Higham, section 3.6).

    Args:
        a: [..., n, n], Hermitian, real or complex; the lower triangle is read, the diagonal is scaled near 1.
        slack: [..., n] or anything that broadcasts to it.
        spent: a is not read again: its place is taken.
    """
    diagonal, twice = np.diagonal(a, axis1=-2, axis2=-1).real, np.iscomplexobj(a)
    if not bool(np.isfinite(a).all() and (diagonal > 0).all() and np.isfinite(slack).all()):
        return False
    charge(2 * a.size * (1 + twice), a.size * a.shape[-1] * (4 if twice else 1) // 3)
    unit = gamma(8 * a.shape[-1] + 64 if twice else 2 * a.shape[-1] + 20)
    root = np.sqrt(diagonal)
    # u |a_ii| twice for the subtraction; the factor covers the roundings of this line.
    shift = (slack + 1.01 * unit * root * sums(root, -1)[..., None] + gamma(4) * diagonal) * (1 + 2.0**-30)
    shifted = (np.asarray if spent else np.array)(a, dtype=np.complex128 if twice else np.float64)
    places = np.arange(a.shape[-1])
    shifted[..., places, places] = diagonal - (shift + TINY)
    try:
        return bool(np.isfinite(np.linalg.cholesky(shifted)).all())
    except np.linalg.LinAlgError:
        return False


def norms_at_most(w: Array, error: float, limits: Array) -> bool:
    """Proves |W|_2 <= limit for W [..., m, n], real or complex, that are within `error` of w in the l2 norm, one limit for each.

    Statement: (c - error)^2 I - w*w >= 0. The product w*w is off by at most gamma_m |w|_F^2; of complex entries, whose real and
        imaginary parts are real sums of 2m products each, by at most sqrt(2) gamma_2m |w|_F^2.
    """
    w = w if w.shape[-2] >= w.shape[-1] else np.swapaxes(w.conj(), -1, -2)
    power, times = exponent_of(limits), 4 if np.iscomplexobj(w) else 1
    parts = np.ldexp(np.ascontiguousarray(w).view(np.float64), -power)
    w, error, limits = parts.view(w.dtype), np.ldexp(np.float64(error), -power), np.ldexp(limits, -power)
    reduced = (limits - error) * (1.0 - gamma(4)) - TINY
    if not bool(np.isfinite(w).all() and np.isfinite(error)):
        return False
    if not bool((reduced > TINY).all()):
        return bool((limits >= error).all()) and not w.any()
    square = reduced * reduced * (1.0 - gamma(2))
    charge(times * w.size * w.shape[-1] // w.shape[-2], times * w.size * w.shape[-1])
    gram = -(np.swapaxes(w.conj(), -1, -2) @ w)
    np.einsum("...ii->...i", gram)[...] += square[..., None]
    frobenius = sums(parts * parts, (-2, -1))
    slack = (gamma(times * (w.shape[-2] + 4)) * frobenius + gamma(4) * square) * 1.01 + TINY
    return positive_definite(gram, slack[..., None])
