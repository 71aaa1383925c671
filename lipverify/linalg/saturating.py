"""tanh and the logistic function of binary fractions of any length, in integers.

Numbers are integers X that stand for X / 2^p. Every result is within `ERROR` units of the function.
Proof: see `_exponential`; a relative error of 2^-(p + 7) in E = e^a moves (E - 1) / (E + 1) and E / (E + 1) by less than
one unit, since E / (E + 1)^2 <= 1/4, and dividing cuts off one. Where a is so large that the result is next to its limit, it is
the limit: 1 - tanh a < 2 e^(-2a) and 1 - s(a) < e^(-a).
"""

from __future__ import annotations

ERROR = 2
"""Units by which a result may be off."""


def tanh(x: int, places: int) -> int:
    """tanh(x / 2^places) 2^places."""
    if x < 0:
        return -tanh(-x, places)
    if 100 * x >= (35 * places + 35) << places:  # 2 a >= (places + 1) log 2
        return 1 << places
    power, one = _exponential(2 * x, places)
    return ((power - one) << places) // (power + one)


def logistic(x: int, places: int) -> int:
    """2^places / (1 + e^(-x / 2^places))."""
    size = abs(x)
    if 100 * size >= (70 * places) << places:  # a >= places log 2
        return 1 << places if x > 0 else 0
    power, one = _exponential(size, places)
    return ((power if x >= 0 else one) << places) // (power + one)


def _exponential(x: int, places: int) -> tuple[int, int]:
    """e^(x / 2^places) for x >= 0 and 1, in the same units, to relative 2^-(places + 7).

    Proof: the argument is halved j times, exactly, until it is below 2^-8. Each term of the series is cut off twice and inherits
    less than a hundredth of what the one before lost, so that it is at most 2.1 units too small, and so is what follows the last
    one; of fewer than 2^7 terms (places < 900) the sum lacks less than 2^9 units. A square doubles the relative error and adds a
    unit: after j of them it is below 2^(j + 10) units of 2^-(places + j + 32), far less than is claimed.
    """
    if places >= 900:
        raise ValueError("more places than the bound of the error covers")
    halved = max(0, x.bit_length() - places + 8)
    work = places + halved + 32
    argument = x << 32  # x / 2^places / 2^halved in units of 2^-work
    total = term = 1 << work
    count = 1
    while term:
        term = (term * argument >> work) // count
        total += term
        count += 1
    for _ in range(halved):
        total = total * total >> work
    return total, 1 << work
