"""Printed numbers never say more than was proved."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipverify.errors import InternalError
from lipverify.reporting.format import (
    Magnitude,
    decimal_text,
    lower_text,
    plain_text,
    ratio_text,
    seconds_text,
    upper_text,
)
from tests.unit.reporting.pages import number

bounds = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False)


@given(bounds, st.integers(1, 8))
def test_an_upper_bound_is_printed_at_or_above_it(value: float, digits: int) -> None:
    printed = Fraction(number(upper_text(Magnitude(value), digits)))
    assert Fraction(value) <= printed <= Fraction(value) * (1 + Fraction(10) ** (1 - digits))


@given(bounds, st.integers(1, 8))
def test_a_lower_bound_is_printed_at_or_below_it(value: float, digits: int) -> None:
    printed = Fraction(number(lower_text(value, digits)))
    assert Fraction(value) * (1 - Fraction(10) ** (1 - digits)) <= printed <= Fraction(value)


@given(positive, positive)
def test_a_ratio_is_printed_at_or_above_it(a: float, b: float) -> None:
    upper, lower = max(a, b), min(a, b)
    text = ratio_text(Magnitude(upper), lower)
    assert text is not None
    exact = Fraction(upper) / Fraction(lower)
    assert exact <= Fraction(number(text)) <= exact * (1 + Fraction(1, 10**5))


@given(st.floats(308.3, 1e12))
def test_a_bound_beyond_float64_is_printed_as_a_power_at_or_above_it(log10: float) -> None:
    base, _, exponent = upper_text(Magnitude(log10=log10)).partition("^")
    assert base == "10"
    assert Decimal(log10) <= Decimal(exponent) <= Decimal(log10) + Decimal("0.01")


def test_the_ratio_to_a_bound_beyond_float64_is_rounded_up() -> None:
    text = ratio_text(Magnitude(log10=400.0), 3.0)
    assert text is not None
    exponent = Decimal(text.removeprefix("10^"))
    assert 400 - math.log10(3) <= float(exponent) <= 400 - math.log10(3) + 0.01


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (48.5, "48.5"),
        (9.72, "9.72001"),
        (0.25, "0.25"),
        (123456.5, "123457"),
        (1e20, "1 × 10²⁰"),
        (1.5e-7, "1.5 × 10⁻⁷"),
        (0.99999999, "1"),
        (1.7976931348623157e308, "1.7977 × 10³⁰⁸"),
    ],
)
def test_upper_bounds_in_print(value: float, text: str) -> None:
    assert upper_text(Magnitude(value)).replace("\u00a0", " ") == text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -1.0])
def test_what_is_no_bound_is_never_printed(value: float) -> None:
    with pytest.raises(InternalError, match="finite"):
        Magnitude(value)
    if value < 0:
        return
    with pytest.raises(InternalError, match="finite"):
        Magnitude(log10=value)
    with pytest.raises(InternalError, match="finite"):
        decimal_text(value)
    with pytest.raises(InternalError, match="finite"):
        seconds_text(value)


def test_zero_bounds_have_the_ratio_one_and_a_zero_lower_bound_has_none() -> None:
    assert ratio_text(Magnitude(0.0), 0.0) == "1"
    assert ratio_text(Magnitude(2.0), 0.0) is None
    assert ratio_text(Magnitude(log10=400.0), 0.0) is None


@pytest.mark.parametrize("upper", [Magnitude(1.0), Magnitude(log10=-1.0), Magnitude(0.0)])
def test_a_lower_bound_above_an_upper_bound_has_no_ratio(upper: Magnitude) -> None:
    with pytest.raises(InternalError, match="exceeds"):
        ratio_text(upper, 1.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "under 1 ms"),
        (0.4, "400 ms"),
        (0.9999, "1.0 s"),
        (59.96, "1 min 00 s"),
        (72.4, "1 min 12 s"),
        (3599.9, "1 h 00 min"),
        (86400.0, "24 h 00 min"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_words_of_strangers_beside_figures() -> None:
    text = f"-2.842{chr(0xA0)}×{chr(0xA0)}10⁻¹⁴ to 7.911"
    assert plain_text(text, 300) == text
    assert plain_text("a\x1b[2J × \u202e b", 300) == "a\\x1b[2J × \\u202e b"
    assert len(plain_text("×" * 400, 300)) <= 300
