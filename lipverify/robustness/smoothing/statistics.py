"""Confidence bounds from independent samples, and what they cost when several are looked at.

Legend: n samples, k successes, alpha the probability that a bound is wrong.
"""

from __future__ import annotations

import math

from lipverify.errors import InternalError
from lipverify.linalg.rounding import down, up


def clopper_pearson_lower(k: int, n: int, alpha: float) -> float:
    """A lower bound of a probability from k successes in n trials, rounded down.

    Statement: P(bound > p) <= alpha for Binomial(n, p).
    Source: Clopper, Pearson, Biometrika 26 (1934): the p with P(X >= k) = alpha, a quantile of Beta(k, n - k + 1).
    Sound when: the incomplete beta function of scipy is within 1e-12 relative; the result is checked with it and lowered.
    """
    _require(k, n, alpha)
    if k == 0:
        return 0.0
    if k == n:
        # alpha^(1/n): two library functions, a few units in the last place each.
        return math.exp(math.log(alpha) / n) * (1.0 - 1e-14)
    from scipy.special import betainc, betaincinv

    found = float(betaincinv(k, n - k + 1, alpha)) * (1.0 - 1e-13)
    # P(X >= k) = I_p(k, n - k + 1) grows with p: too large a quantile shows here.
    while float(betainc(k, n - k + 1, found)) * (1.0 + 1e-12) > alpha and found > 0.0:
        found *= 1.0 - 1e-11
    return down(found)


def clopper_pearson_upper(k: int, n: int, alpha: float) -> float:
    """An upper bound of a probability, rounded up: one minus the lower bound of the failures."""
    return min(1.0, up(1.0 - clopper_pearson_lower(n - k, n, alpha)))


def bernstein_width(variance: float, n: int, alpha: float) -> float:
    """How far the mean of n samples in [0, 1] with this sample variance may lie from the expectation on one side, rounded up.

    Statement: P(|expectation - mean| on the chosen side > width) <= alpha.
    Source: Maurer, Pontil, COLT 2009 (arXiv 0907.3740), theorem 4: sqrt(2 S^2 ln(2/a) / n) + 7 ln(2/a) / (3 (n - 1)), S^2 with
        n - 1 in the denominator.
    """
    if not (variance >= 0.0 and n >= 2 and 0.0 < alpha < 1.0):
        raise InternalError(f"no empirical Bernstein bound for variance {variance}, n {n}, alpha {alpha}")
    log = math.log(2.0 / alpha)
    return (math.sqrt(2.0 * variance * log / n) + 7.0 * log / (3.0 * (n - 1))) * (1.0 + 1e-14)


def _require(k: int, n: int, alpha: float) -> None:
    if not (0 <= k <= n and n >= 1 and 0.0 < alpha < 1.0):
        raise InternalError(f"no binomial bound for {k} of {n} at alpha {alpha}")
