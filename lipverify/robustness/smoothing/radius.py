"""Radii of smoothed classifiers from bounds of probabilities.

Legend: p the expectation of one class-probability map in [0, 1] under N(x, sigma^2 I), L its Lipschitz constant in l2, Phi the
normal distribution function, phi its density, G(t) = t Phi(t) + phi(t).
Source: Cohen et al., ICML 2019 (arXiv 1902.02918); Levine, Singla, Feizi 2019 (arXiv 1905.12105) for expectations of maps;
Delattre et al., ICLR 2024 (arXiv 2309.16883) for the constant of a smoothed Lipschitz map. V below: among all maps into
[0, 1] with constant L and expectation p the ramp across the centre falls fastest; its expectation at distance m beyond its
middle is V(m) = L sigma (G((m + 1/(2L)) / sigma) - G((m - 1/(2L)) / sigma)), increasing in m, V(0) = 1/2.
"""

from __future__ import annotations

import math

from lipverify.errors import InternalError

# Relative allowance for erf, exp and the normal quantile of the library (documented errors are below 1e-14).
_LIBRARY = 1e-12


def cohen_radius(lower: float, sigma: float, upper: float | None = None) -> float:
    """sigma Phi^-1(lower), or half of sigma (Phi^-1(lower) - Phi^-1(upper)) against a rival; rounded down, never negative.

    Statement: the smoothed classifier keeps its class for |d|_2 < radius where its probability is >= lower, and every rival's
        <= upper (by default 1 - lower).
    """
    if upper is None or upper >= 1.0 - lower:
        return _down(sigma * _quantile(lower))
    return _down(0.5 * sigma * (_quantile(lower) - _quantile(upper)))


def ramp(m: float, sigma: float, constant: float) -> float:
    """V(m), the expectation of the ramp of slope `constant` whose middle lies m behind the centre."""
    half = 0.5 / constant
    # L sigma (G(b) - G(a)) is the mean of Phi over [a, b]: integrate, since G(b) - G(a) cancels for steep ramps.
    a, b = (m - half) / sigma, (m + half) / sigma
    if b - a < 1e-2:
        middle = 0.5 * (a + b)
        # Simpson; the fourth derivative of Phi is below 1.5.
        return (_phi_cdf(a) + 4.0 * _phi_cdf(middle) + _phi_cdf(b)) / 6.0
    return (_primitive(b) - _primitive(a)) / (b - a)


def ramp_distance(p: float, sigma: float, constant: float) -> float:
    """V^-1(p) for p in (0, 1), rounded down."""
    if not 0.0 < p < 1.0:
        raise InternalError(f"there is no ramp with expectation {p}")
    if constant == 0.0:
        raise InternalError("a map that does not change has no ramp")
    if p < 0.5:
        return -_inverse(1.0 - p, sigma, constant, upward=True)
    return _inverse(p, sigma, constant, upward=False)


def _inverse(p: float, sigma: float, constant: float, upward: bool) -> float:
    low, high = 0.0, sigma
    while ramp(high, sigma, constant) < p and high < 1e6 * sigma + 1e6 / constant:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        # In favour of the safe side: V is known to about 1e-15 here.
        allowed = ramp(middle, sigma, constant) + (-1e-15 if upward else 1e-15)
        low, high = (middle, high) if allowed <= p else (low, middle)
    return high if upward else low


def lipschitz_radius(lower: float, sigma: float, constant: float | None, upper: float | None = None) -> float:
    """The radius with the constant of the class-probability maps known: V^-1, never below the one without it.

    Statement: as `cohen_radius`, for maps with Lipschitz constant `constant` (None: unknown).
    """
    plain = cohen_radius(lower, sigma, upper)
    if constant is None or not lower > 0.5:
        return plain
    if constant == 0.0:
        return plain
    rival = None if upper is None or upper >= 1.0 - lower else upper
    if lower >= 1.0:
        raise InternalError("a bound of a probability from samples is below 1")
    distance = ramp_distance(lower, sigma, constant)
    if rival is not None and rival > 0.0:
        distance = 0.5 * (distance - ramp_distance(rival, sigma, constant))
    return max(plain, _down(distance))


def smoothed_constant(constant: float, sigma: float, height: float = 1.0) -> float:
    """Constant of x -> E f(x + N(0, sigma^2 I)), f into [0, height] with constant L: L erf(height / (2 sqrt2 L sigma)).

    Source: Delattre et al. 2024; attained by the ramp. Infinite L: height / (sigma sqrt(2 pi)).
    """
    if math.isinf(constant):
        return height / (sigma * math.sqrt(2.0 * math.pi)) * (1.0 + _LIBRARY)
    if constant == 0.0:
        return 0.0
    return constant * math.erf(height / (2.0 * math.sqrt(2.0) * constant * sigma)) * (1.0 + _LIBRARY)


def _quantile(p: float) -> float:
    from scipy.special import ndtri

    if not 0.0 <= p <= 1.0:
        raise InternalError(f"{p} is no probability")
    return float(ndtri(p))


def _phi_cdf(t: float) -> float:
    return 0.5 * math.erfc(-t / math.sqrt(2.0))


def _primitive(t: float) -> float:
    return t * _phi_cdf(t) + math.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)


def _down(radius: float) -> float:
    if not radius > 0.0:
        return 0.0
    if math.isinf(radius):
        raise InternalError("a radius from samples is finite")
    return math.nextafter(radius * (1.0 - _LIBRARY), 0.0)
