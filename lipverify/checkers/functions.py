"""Smooth and clipped activations: ranges of slopes, lines around values, and lines around slopes, on intervals.

A function is known by its values, by its derivative, and by places between which the derivative is monotone. There its difference
to a line is convex or concave: it is largest at an end, or where a tangent says so. Nothing is searched that needs trust.

Assumptions: exp, expm1, log1p, tanh, sin and cos of numpy and `math.erf` are within 8 units in the last place. Then values are
within 2^-46 size (1 + |x|) and slopes within 2^-46 size, `size` at least 2 and the largest slope, and places within `_NEAR`.

Where the derivative turns: GELU at +-sqrt 2 (f'' = density (2 - x^2)), SiLU where t tanh(t/2) = 2. GELU by tanh and Mish: f'' has
two zeros (tests/unit/ops/test_curves.py proves it by bisection). The others turn at 0, at kinks or, as sines, every half period.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered

_NEAR, _UNIT, _PIECES, _HALVINGS, _PERIODS = 2.0**-48, 2.0**-42, 256, 48, 32
_ENTRIES, _LEAST = 1 << 18, 2.0**-1000
_ERF = np.frompyfunc(math.erf, 1, 1)
Function = Callable[[Array], Array]
Setting = Callable[[str, float], float]


class Curve(NamedTuple):
    """slope: of the piece with this number, between two turns, also at its ends. period: of endless turns from the first one on.

    jumps: the slope is constant on every piece, and exact. tails: small slopes are within 2^-42 of themselves as well.
    """

    value: Function
    slope: Callable[[Array, int], Array]
    turns: tuple[float, ...] = ()
    size: float = 2.0
    period: float = 0.0
    jumps: bool = False
    tails: bool = False

    def pieces(self, low: Array, high: Array) -> Iterator[tuple[int, Array, Array, Array]]:
        """Parts [p, q] of the intervals with a monotone slope, and where there is one."""
        turns: list[Any] = list(self.turns)
        if self.period:
            first, last = (np.floor((end - turns[0]) / self.period) for end in (low, high))
            if not (last - first).max(initial=0.0) < _PERIODS:
                raise NotCovered(
                    f"a sine over more than {_PERIODS} half periods is not covered by the checker"
                )
            count = int((last - first).max(initial=0.0)) + 2
            turns = [(first + k) * self.period + turns[0] for k in range(count)]
        for k, (s, t) in enumerate(itertools.pairwise([-np.inf, *turns, np.inf])):
            inside = (low <= t + _NEAR * (1.0 + np.abs(t))) & (high >= s - _NEAR * (1.0 + np.abs(s)))
            yield k, np.clip(s, low, high), np.clip(t, low, high), inside

    def slopes(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Ranges of the derivative: its values at the ends of all pieces."""
        first, last = np.full(low.shape, np.inf), np.full(low.shape, -np.inf)
        with np.errstate(all="ignore"):
            for k, p, q, inside in self.pieces(low, high):
                for s in (self.slope(p, k), self.slope(q, k)):
                    first = np.where(inside, np.minimum(first, s), first)
                    last = np.where(inside, np.maximum(last, s), last)
        if self.jumps:
            return first, last
        margins = [
            2.0**-42 * np.abs(s) + _LEAST if self.tails else self.size * 2.0**-45 for s in (first, last)
        ]
        return first - margins[0], last + margins[1]

    def around(self, k: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """Bounds of f(x) - k x on [low, high].

        Statement: on a piece with h = f - k x concave, h(x) <= h(m) + h'(m) (x - m) for any m; m is close to where h' = 0. Where
            h is convex it is at most its larger end. The same for -h.
        Rounding: values, slopes (times a width of at most twice the reach), places, and a piece whose slope is so close to
            constant that its direction is not seen add up to less than `_UNIT` (size + |k|) reach.
        """
        reach = 1.0 + np.maximum(np.abs(low), np.abs(high))
        under, over = np.full(low.shape, np.inf), np.full(low.shape, -np.inf)
        with np.errstate(all="ignore"):
            for piece, p, q, inside in self.pieces(low, high):
                rising, a, b = self.slope(q, piece) >= self.slope(p, piece), p, q
                for _ in range(_HALVINGS):
                    m = a / 2 + b / 2
                    later = (self.slope(m, piece) < k) == rising
                    a, b = np.where(later, m, a), np.where(later, b, m)
                m = a / 2 + b / 2
                d, h, (x, y) = (
                    self.slope(m, piece) - k,
                    self.value(m) - k * m,
                    (self.value(e) - k * e for e in (p, q)),
                )
                fall, climb = np.maximum(-d, 0.0), np.maximum(d, 0.0)
                top = np.where(rising, np.maximum(x, y), h + fall * (m - p) + climb * (q - m))
                bottom = np.where(rising, h - climb * (m - p) - fall * (q - m), np.minimum(x, y))
                over = np.where(inside, np.maximum(over, top), over)
                under = np.where(inside, np.minimum(under, bottom), under)
        slack = _UNIT * (self.size + np.abs(k)) * reach
        return under - slack, over + slack

    def secant(self, low: Array, high: Array, first: Array, last: Array) -> Array:
        """A slope within a range of slopes: that of the secant."""
        with np.errstate(all="ignore"):
            k = (self.value(high) - self.value(low)) / (high - low)
        return np.clip(np.where(np.isfinite(k), k, first), first, last)

    def bent(self, low: Array, high: Array) -> tuple[Array, Array, Array]:
        """k, under and over with k x + under <= f'(x) <= k x + over on [low, high]: from ranges of slopes on short parts."""
        ends = [sum(self.slopes(end, end)) / 2 for end in (low, high)]
        with np.errstate(all="ignore"):
            k = (ends[1] - ends[0]) / (high - low)
        k = np.where(np.isfinite(k) & (np.abs(k) < 2.0**100), k, 0.0)
        x = np.clip(low + (high - low) * np.linspace(0.0, 1.0, _PIECES + 1)[:, None], low, high)
        x[-1] = high
        under, over, step = (
            np.full(low.shape, np.inf),
            np.full(low.shape, -np.inf),
            1 + _ENTRIES // (1 + low.size),
        )
        for part in range(0, _PIECES, step):
            p, q = x[part:-1][:step], x[part + 1 :][:step]
            a, b = self.slopes(p, q)
            under = np.minimum(under, (a - np.maximum(k * p, k * q)).min(0))
            over = np.maximum(over, (b - np.minimum(k * p, k * q)).max(0))
        slack = (
            2.0**-50 * (np.abs(under) + np.abs(over) + np.abs(k) * np.maximum(np.abs(low), np.abs(high)))
            + _LEAST
        )
        return k, under - slack, over + slack


def _erf(x: Array) -> Array:
    return np.asarray(_ERF(x), dtype=np.float64)


def _logistic(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _bell(x: Array) -> Array:
    return _logistic(x) * _logistic(-x)


def _plus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))))


def _normal(x: Array) -> Array:
    return (1.0 + _erf(x * math.sqrt(0.5))) / 2


def _softplus(beta: float) -> Curve:
    return Curve(
        lambda x: _plus(beta * x) / beta,
        lambda x, _: _logistic(beta * x),
        (),
        max(2.0, 1.0 / abs(beta)),
        tails=True,
    )


def _silu(beta: float) -> Curve:
    turns = () if beta == 0 else (-2.3993572805154677 / abs(beta), 2.3993572805154677 / abs(beta))
    return Curve(
        lambda x: x * _logistic(beta * x),
        lambda x, _: _logistic(beta * x) + beta * x * _bell(beta * x),
        turns,
    )


def _gate(x: Array) -> tuple[Array, Array]:
    """tanh(softplus(x)) and its derivative, with w = exp(x)."""
    w = np.exp(np.minimum(x, 100.0))
    q = w * (w + 2.0)
    return q / (q + 2.0), 4.0 * w * (w + 1.0) / (q + 2.0) ** 2


def _gelu_tanh() -> Curve:
    c, d = 0.044715, 2.0 * math.sqrt(2.0 / math.pi)

    def slope(x: Array, _: int) -> Array:
        y = d * (x + c * x**3)
        return _logistic(y) + x * (d * (1.0 + 3.0 * c * x**2)) * _bell(y)

    turn = 1.4185040087908284
    return Curve(lambda x: x * _logistic(d * (x + c * x**3)), slope, (-turn, turn))


def _erf_gate(scale: float) -> Curve:
    """x (1 + erf(scale x)) = 2 g(b x) / b with the GELU g, b = scale sqrt 2."""

    def slope(x: Array, _: int) -> Array:
        y = scale * x
        return 1.0 + _erf(y) + y * (2.0 / math.sqrt(math.pi)) * np.exp(-y * y)

    turn = 1.0 / abs(scale)
    return Curve(lambda x: x * (1.0 + _erf(scale * x)), slope, (-turn, turn), 3.0)


def _exponential(alpha: float, gamma: float, scale: float) -> Curve:
    """gamma x above 0, gamma alpha (exp(x / scale) - 1) below."""
    return Curve(
        lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / scale)),
        lambda x, k: (
            gamma * (alpha / scale * np.exp(np.minimum(x, 0.0) / scale) if k == 0 else np.ones_like(x))
        ),
        (0.0,),
        max(2.0, abs(gamma), abs(gamma * alpha), abs(gamma * alpha / scale)),
        tails=True,
    )


def _stepped(value: Function, inner: Callable[[Array], Array], ends: tuple[float, float], right: float, size: float = 2.0,
             jumps: bool = True) -> Curve:  # fmt: skip
    """Constant slopes outside two kinks, 0 on the left."""
    return Curve(
        value,
        lambda x, k: inner(x) if k == 1 else np.full_like(x, right if k else 0.0),
        ends,
        size,
        0.0,
        jumps,
    )


def _hard_sigmoid(alpha: float, beta: float) -> Curve:
    ends = sorted((-beta / alpha, (1.0 - beta) / alpha)) if alpha else [np.inf, np.inf]
    return _stepped(lambda x: np.clip(alpha * x + beta, 0.0, 1.0), lambda x: np.full_like(x, alpha), (ends[0], ends[1]), 0.0,
                    max(2.0, abs(alpha), abs(beta)))  # fmt: skip


CURVES: dict[str, Callable[[Setting], Curve]] = {
    "Sigmoid": lambda a: Curve(_logistic, lambda x, _: _bell(x), (0.0,), tails=True),
    "Tanh": lambda a: Curve(np.tanh, lambda x, _: 4.0 * _bell(2.0 * x), (0.0,), tails=True),
    "Softplus": lambda a: _softplus(a("beta", 1.0)),
    "LogSigmoid": lambda a: Curve(lambda x: -_plus(-x), lambda x, _: _logistic(-x), tails=True),
    "Gelu": lambda a: Curve(lambda x: x * _normal(x),
                            lambda x, _: _normal(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
                            (-math.sqrt(2.0), math.sqrt(2.0))),
    "GeluTanh": lambda a: _gelu_tanh(), "ErfGate": lambda a: _erf_gate(a("scale", 1.0)),
    "Silu": lambda a: _silu(a("beta", 1.0)),
    "Mish": lambda a: Curve(lambda x: x * _gate(x)[0], lambda x, _: _gate(x)[0] + x * _gate(x)[1],
                            (-2.2563763963607931, 1.4905711794854285)),
    "Softsign": lambda a: Curve(lambda x: x / (1.0 + np.abs(x)), lambda x, _: 1.0 / (1.0 + np.abs(x)) ** 2, (0.0,), tails=True),
    "Tanhshrink": lambda a: Curve(lambda x: x - np.tanh(x), lambda x, _: np.tanh(x) ** 2, (0.0,), tails=True),
    "Erf": lambda a: Curve(_erf, lambda x, _: 2.0 / math.sqrt(math.pi) * np.exp(-x * x), (0.0,), tails=True),
    "Sin": lambda a: Curve(np.sin, lambda x, _: np.cos(x), (0.0,), 2.0, math.pi),
    "Cos": lambda a: Curve(np.cos, lambda x, _: -np.sin(x), (math.pi / 2,), 2.0, math.pi),
    "Elu": lambda a: _exponential(a("alpha", 1.0), 1.0, 1.0),
    "Selu": lambda a: _exponential(a("alpha", 1.67326319), a("gamma", 1.05070102), 1.0),
    "Celu": lambda a: _exponential(a("alpha", 1.0), 1.0, a("alpha", 1.0)),
    "Clip": lambda a: _stepped(lambda x: np.clip(x, a("min", -np.inf), a("max", np.inf)), np.ones_like,
                               (a("min", -np.inf), a("max", np.inf)), 0.0),
    "HardSigmoid": lambda a: _hard_sigmoid(a("alpha", 0.2), a("beta", 0.5)),
    "HardSwish": lambda a: _stepped(lambda x: x * (np.clip(x + 3.0, 0.0, 6.0) / 6.0), lambda x: (2.0 * x + 3.0) / 6.0,
                                    (-3.0, 3.0), 1.0, 2.0, False),
}  # fmt: skip
"""Law -> its curve with these settings."""
