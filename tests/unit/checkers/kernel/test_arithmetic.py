"""The proof arithmetic accepts what is true with little room, and never what is false."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipverify.checkers.kernel import arithmetic, exact


def matrices(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    found = []
    for _ in range(count):
        rows, columns = rng.integers(1, 20, 2)
        w = rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-20, 20)
        if rng.random() < 0.3:
            w = np.outer(w[:, 0], w[0])
        if rng.random() < 0.2:
            w[rng.random(w.shape) < 0.7] = 0.0
        found.append(w)
    return found


def test_norms_are_proved_from_just_above_and_never_from_below(rng: np.random.Generator) -> None:
    for w in matrices(rng, 150):
        size = float(np.linalg.norm(w, 2))
        slack = 10.0 ** rng.uniform(-11, -1)
        assert arithmetic.norms_at_most(w, 0.0, np.asarray(size * (1 + slack)))
        if size:
            assert not arithmetic.norms_at_most(w, 0.0, np.asarray(size * (1 - slack)))
            assert not arithmetic.norms_at_most(w, size * slack, np.asarray(size))


def test_norms_of_complex_matrices_as_well(rng: np.random.Generator) -> None:
    for k in range(60):
        m, n = rng.integers(1, 12, 2)
        w = rng.standard_normal((m, n)) + 1j * rng.standard_normal((m, n))
        w = w * 2.0 ** rng.integers(-600, 300) if k else 0.0 * w
        size, slack = float(np.linalg.norm(w, 2)), 10.0 ** rng.uniform(-10, -1)
        assert arithmetic.norms_at_most(w, 0.0, np.asarray(size * (1 + slack)))
        if size:
            assert not arithmetic.norms_at_most(w, 0.0, np.asarray(size * (1 - slack)))
            assert not arithmetic.norms_at_most(w, size * slack, np.asarray(size))


def test_the_exact_tier_agrees(rng: np.random.Generator) -> None:
    for w in matrices(rng, 60):
        size = float(np.linalg.norm(w, 2))
        if size:
            assert exact.exact_norm_at_most(w, size * (1 + 1e-10))
            assert not exact.exact_norm_at_most(w, size * (1 - 1e-11))


def test_exact_products_are_exact(rng: np.random.Generator) -> None:
    whole = rng.integers(-(2**62), 2**62, (30, 7)).astype(object)
    expected = [[sum(int(a) * int(b) for a, b in zip(x, y, strict=True)) for y in whole.T] for x in whole.T]
    assert exact.exact_gram(whole).tolist() == expected


def test_integers_hold_every_float(rng: np.random.Generator) -> None:
    values = rng.standard_normal(50) * 2.0 ** rng.integers(-200, 200, 50)
    values[:3] = 0.0, 5e-324, -(2.0**900)
    whole, scale = exact.integers(values)
    assert all(
        Fraction(int(n)) / Fraction(2) ** scale == Fraction(float(v))
        for n, v in zip(whole, values, strict=True)
    )


def test_singular_and_indefinite_matrices_are_not_proved(rng: np.random.Generator) -> None:
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    for smallest, expected in ((1e-9, True), (0.0, False), (-1e-12, False), (-1e-3, False)):
        a = basis @ np.diag([smallest, *np.linspace(0.5, 2, 11)]) @ basis.T
        assert arithmetic.positive_definite((a + a.T) / 2, np.zeros(12)) is expected


def test_hermitian_matrices_are_definite_by_their_smallest_eigenvalue(rng: np.random.Generator) -> None:
    basis = np.linalg.qr(rng.standard_normal((12, 12)) + 1j * rng.standard_normal((12, 12)))[0]
    for smallest, expected in ((1e-9, True), (0.0, False), (-1e-12, False), (-1e-3, False)):
        a = basis @ np.diag([smallest, *np.linspace(0.5, 2, 11)]) @ basis.conj().T
        assert arithmetic.positive_definite((a + a.conj().T) / 2, np.zeros(12)) is expected


def test_slack_counts_against_the_smallest_eigenvalue() -> None:
    a = np.eye(4)
    assert arithmetic.positive_definite(a, np.full(4, 0.999))
    assert not arithmetic.positive_definite(a, np.full(4, 1.001))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_proved_of_what_is_not_finite(bad: float) -> None:
    a = np.eye(3)
    a[1, 0] = a[0, 1] = bad
    assert not arithmetic.positive_definite(a, np.zeros(3))
    assert not arithmetic.norms_at_most(a, 0.0, np.asarray(5.0))
    assert not arithmetic.positive_definite(np.eye(3), np.full(3, bad))


def test_roots_and_roundings_go_up() -> None:
    for value in (Fraction(2), Fraction(1, 3), Fraction(10) ** 300, Fraction(1, 10**300), Fraction(0)):
        root = arithmetic.root_above(value)
        assert root * root >= value
        assert root * root <= value * (1 + Fraction(1, 2**80))
        assert value <= arithmetic.trimmed(value) <= value * (1 + Fraction(1, 2**180))
    assert arithmetic.above(Fraction(1, 10)) == 0.1 or Fraction(
        arithmetic.above(Fraction(1, 10))
    ) >= Fraction(1, 10)
    assert Fraction(arithmetic.below(Fraction(1, 10))) <= Fraction(1, 10)
