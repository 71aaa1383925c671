"""Upward arithmetic never loses anything, and loses little."""

import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipverify.errors import InternalError, UsageError
from lipverify.linalg.rounding import Upper, down, gamma, inflate, sum_up, up

MAGNITUDES = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)
U = Fraction(1, 2**53)


@given(MAGNITUDES, MAGNITUDES)
def test_operations_round_up_and_are_sharp(a, b):
    x, y = Fraction(a), Fraction(b)
    for found, exact in ((Upper.of(a) + b, x + y), (Upper.of(a) * b, x * y)):
        assert Fraction(found.value) >= exact
        assert Fraction(found.value) <= exact * (1 + Fraction(1, 10**38))
    for found, square in ((Upper.of(a).hypot(b), x * x + y * y), (Upper.of(a).sqrt(), x)):
        assert Fraction(found.value) ** 2 >= square
        assert Fraction(found.value) ** 2 <= square * (1 + Fraction(1, 10**37))
    assert Upper.of(a).max(b) == max(a, b)
    assert (Upper.of(a) < Upper.of(b)) == (a < b)


@given(MAGNITUDES)
def test_floats_round_trip(a):
    assert float(Upper.of(a)) == a


@given(st.lists(st.floats(min_value=0.0, max_value=1e300), max_size=30))
def test_accumulations(values):
    assert Fraction(Upper.sum(values).value) >= sum(map(Fraction, values))
    assert Upper.largest(values) == max(values, default=0.0)
    assert Fraction(Upper.root_sum_squares(values).value) ** 2 >= sum(Fraction(v) ** 2 for v in values)


@given(st.lists(st.floats(min_value=-1e300, max_value=1e300), max_size=30))
def test_sum_up_is_the_tightest_float_above(values):
    exact, found = sum(map(Fraction, values), Fraction(0)), sum_up(values)
    assert Fraction(found) >= exact
    assert Fraction(found) == exact or Fraction(down(found)) < exact


@given(st.floats(min_value=0.0, max_value=1e307), st.floats(min_value=0.0, max_value=1.0))
def test_inflated_numbers_lie_above(value, relative):
    """Subnormal ones too, where a factor near 1 changes nothing."""
    for number in (value, 5e-324, 3e-310, 2.0**-1022):
        found = inflate(torch.tensor([number], dtype=torch.float64), relative)
        assert Fraction(found.item()) >= Fraction(number) * (1 + Fraction(relative))
    assert not inflate(torch.zeros(1, dtype=torch.float64), relative).any()


def test_no_overflow_and_an_honest_logarithm():
    huge = Upper.one()
    for _ in range(5000):
        huge = huge * 1e300
    assert 1_500_000 <= huge.log10() <= 1_500_000 * (1 + 1e-15)
    with pytest.raises(OverflowError):
        float(huge)
    with pytest.raises(OverflowError):
        float(Upper.of(sys.float_info.max) * Upper.of(Fraction(10**30 + 1, 10**30)))
    assert float(Upper.of(sys.float_info.max)) == sys.float_info.max


def test_float_and_logarithm_round_up():
    third = Upper.of(Fraction(1, 3))
    assert Fraction(float(third)) > Fraction(1, 3)
    assert float(third) == up(1 / 3)
    assert Fraction(Upper.of(2).log10()) > Fraction("0.30102999566398119521")
    assert Upper.of(1000).log10() >= 3.0
    with pytest.raises(UsageError, match="zero"):
        Upper.zero().log10()


@given(MAGNITUDES, st.integers(-1100, 1100))
def test_scaling_by_powers_of_two(a, exponent):
    assert Fraction(Upper.of(a).scale(exponent).value) >= Fraction(a) * Fraction(2) ** exponent


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, -0.5])
def test_refuses_what_is_no_bound(bad):
    with pytest.raises(UsageError, match="finite non-negative"):
        Upper.of(bad)


@pytest.mark.parametrize("n", [0, 1, 2, 10, 1000, 10**6, 2**40])
def test_gamma_is_above_the_exact_constant(n):
    exact = n * U / (1 - n * U)
    assert exact <= Fraction(gamma(n)) <= exact * (1 + 4 * U)


def test_gamma_refuses_uncontrolled_lengths():
    with pytest.raises(InternalError):
        gamma(2**50)
