"""Scalar functions, one table of them: slopes everywhere, and on intervals slopes, lines around values, lines around slopes.

A function is known by its values, by its derivative, and by places between which the derivative is monotone. There its difference
to a line is convex or concave: it is largest at an end, or where a tangent says so. Nothing is searched that needs trust.

Assumptions: exp, expm1, log, log1p, sqrt, powers, tanh, arcsinh, arctan, sin, cos of numpy and `math.erf` are within 8 units in
the last place. Then values are within 2^-46 size (1 + |x|) and slopes within 2^-46 size, and places within `_NEAR`.

Where the derivative turns: GELU at +-sqrt 2 (f'' = density (2 - x^2)), SiLU where t tanh(t/2) = 2. GELU by tanh and Mish: f'' has
two zeros (tests/unit/ops/test_curves.py proves it by bisection). The others turn at 0, at kinks or, as sines, every half period.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import TINY, Array, need
from lipverify.errors import NotCovered

_TIES = 2.0**-20
"""How near a tie a value may go either way, relative to 1 + |x / step|: far more than a division in single precision loses."""
_NEAR, _UNIT, _PIECES, _HALVINGS, _PERIODS = 2.0**-48, 2.0**-42, 256, 48, 32
_ENTRIES, _EFFORT, _LEAST, _NEAREST_TURNS = 1 << 18, 1024, 2.0**-1000, 2.0**20
_ERF = np.frompyfunc(math.erf, 1, 1)
Function = Callable[[Array], Array]
Setting = Callable[[str, float], float]
Ends = tuple[Any, Any]


class Lines(NamedTuple):
    """below v + under <= w - also <= above v + over, and low <= w <= high, entry by entry. also: (factor, signal) of a
    product row by row, or none.

    among: [groups, members] of neurons w_i = p_i v with p_i >= 0 of sum 1, of one v; below is 1 and under 0, above v + over at
    least max(v, 0). Members may be listed twice. Then low and high are those of neurons, the rest has one number for each group.
    """

    below: Array
    under: Array
    above: Array
    over: Array
    low: Array
    high: Array
    also: Any = None
    among: Any = None


class Curve(NamedTuple):
    """A function by `value`, and `slope` of the piece with this number, between two turns, also at its ends.

    everywhere: the range of its difference quotients; steepest: the largest, where `everywhere` is written to fewer digits.
    period: of endless turns from the first one on. step: of what is rounded to its multiples, [size]; there are no slopes then,
    and the function is within half a step of `held`, which it is without rounding. jumps: the slope is constant on every piece,
    and exact; kinks: the pieces are two lines through 0. tails: small slopes are within 2^-42 of themselves as well. size: at
    least 2 and the largest slope; None: the largest of these at the ends, for functions that are monotone with monotone slopes.
    positive: arguments have to be.
    """

    value: Function
    slope: Callable[[Array, int], Array]
    everywhere: Ends
    turns: tuple[Any, ...] = ()
    size: float | None = 2.0
    steepest: float = 0.0
    period: float = 0.0
    jumps: bool = False
    kinks: bool = False
    tails: bool = False
    positive: bool = False
    step: Any = None
    held: Any = None

    def pieces(self, low: Array, high: Array) -> Iterator[tuple[int, Array, Array, Array]]:
        """Parts [p, q] of the intervals with a monotone slope, and where there is one."""
        turns: list[Any] = list(self.turns)
        if self.period:
            # Further out the turns are known less well than the slopes around them have to be.
            if not max(np.abs(low).max(initial=0.0), np.abs(high).max(initial=0.0)) <= _NEAREST_TURNS:
                raise NotCovered("a sine of numbers that large is not covered")
            first, last = (np.floor((end - turns[0]) / self.period) for end in (low, high))
            if not (last - first).max(initial=0.0) < _PERIODS:
                raise NotCovered(f"a sine over more than {_PERIODS} half periods is not covered")
            count = int((last - first).max(initial=0.0)) + 2
            turns = [(first + k) * self.period + turns[0] for k in range(count)]
        if self.positive and not bool((low > 0).all()):
            raise NotCovered("a function of positive numbers where they may not be positive")
        for k, (s, t) in enumerate(itertools.pairwise([-np.inf, *turns, np.inf])):
            inside = (low <= t + _NEAR * (1.0 + np.abs(t))) & (high >= s - _NEAR * (1.0 + np.abs(s)))
            if self.kinks:
                # The turn at 0 is exact: an interval that ends there lies on one side, unless it is a single point.
                inside &= ((low < t) & (high > s)) | (low == high)
            yield k, np.clip(s, low, high), np.clip(t, low, high), inside

    def sized(self, low: Array, high: Array) -> Any:
        """`size` on these intervals."""
        if self.size is not None:
            return self.size
        ends = [np.abs(f) for end in (low, high) for f in (self.value(end), self.slope(end, 0))]
        return 2.0 + np.max(ends, axis=0)

    def slopes(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Ranges of the derivative: its values at the ends of all pieces, within those everywhere."""
        if self.step is not None:
            return np.full(low.shape, -np.inf), np.full(low.shape, np.inf)
        if self.kinks:  # the slope of the other side, where an end is the kink, does not matter
            a, b = self.slope(low, 0), self.slope(low, 1)
            a, b = np.where(low < 0, a, b), np.where(high > 0, b, a)
            return np.minimum(a, b), np.maximum(a, b)
        first, last = np.full(low.shape, np.inf), np.full(low.shape, -np.inf)
        with np.errstate(all="ignore"):
            for k, p, q, inside in self.pieces(low, high):
                for s in (self.slope(p, k), self.slope(q, k)):
                    first = np.where(inside, np.minimum(first, s), first)
                    last = np.where(inside, np.maximum(last, s), last)
            size = self.sized(low, high)
        margins = [2.0**-42 * np.abs(s) + _LEAST if self.tails else size * 2.0**-45 for s in (first, last)]
        if not self.jumps:
            first, last = first - margins[0], last + margins[1]
        return np.clip(first, *self.everywhere), np.clip(last, *self.everywhere)

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
                charge(0, _EFFORT * _HALVINGS * low.size)
                rising, a, b = self.slope(q, piece) >= self.slope(p, piece), p, q
                for _ in range(_HALVINGS):  # any m is sound
                    m = a / 2 + b / 2
                    later = (self.slope(m, piece) < k) == rising
                    a, b = np.where(later, m, a), np.where(later, b, m)
                m = a / 2 + b / 2
                d, h = self.slope(m, piece) - k, self.value(m) - k * m
                x, y = (self.value(e) - k * e for e in (p, q))
                fall, climb = np.maximum(-d, 0.0), np.maximum(d, 0.0)
                top = np.where(rising, np.maximum(x, y), h + fall * (m - p) + climb * (q - m))
                bottom = np.where(rising, h - climb * (m - p) - fall * (q - m), np.minimum(x, y))
                over = np.where(inside, np.maximum(over, top), over)
                under = np.where(inside, np.minimum(under, bottom), under)
            slack = _UNIT * (self.sized(low, high) + np.abs(k)) * reach
        return under - slack, over + slack

    def lines(self, low: Array, high: Array, first: Array, last: Array, flat: Array | None = None) -> Lines:
        """Lines around the values, where the slopes are in [first, last]. flat: as in `_kinked`."""
        if self.step is not None:
            return self._rounded(low, high)
        if self.kinks:
            return self._kinked(low, high, flat)
        with np.errstate(all="ignore"):
            k = (self.value(high) - self.value(low)) / (high - low)
        k = np.clip(np.where(np.isfinite(k), k, first), first, last)
        under, over = self.around(k, low, high)
        return Lines(k, under, k, over, *self.around(np.zeros_like(k), low, high))

    def _rounded(self, low: Array, high: Array) -> Lines:
        """A constant where one multiple is left, else lines around `held` and half a step more.

        Statement: next to a tie a value goes either way, as runtimes divide in single precision: rounding moves x by at most
            half a step and `_TIES` (step + |x|).
        """
        clip, step, reach = self.held, self.step, np.maximum(np.abs(low), np.abs(high))
        near = _TIES * (step + reach)
        half = step / 2 + 2 * near
        whole = [np.ceil((low - near) / step - 0.5), np.floor((high + near) / step + 0.5)]
        ends = [clip.value(step * end) for end in whole]
        slack = _NEAR * (step + reach + np.abs(ends[0]) + np.abs(ends[1])) + TINY
        lines = clip.lines(low, high, *clip.slopes(low, high))
        one = ends[0] == ends[1]
        bottom = np.maximum(ends[0] - slack, lines.low - half)
        top = np.minimum(ends[1] + slack, lines.high + half)
        return Lines(np.where(one, 0.0, lines.below), np.where(one, bottom, lines.under - half),
                     np.where(one, 0.0, lines.above), np.where(one, top, lines.over + half), bottom, top)  # fmt: skip

    def _kinked(self, low: Array, high: Array, flat: Array | None) -> Lines:
        """left v + (right - left) max(v, 0): on the convex side a secant, on the other max(v, 0) >= flat v, flat in [0, 1].

        By default that of the larger part.
        """
        left, right = self.slope(low, 0), self.slope(high, 1)
        span, most = right - left, np.maximum(np.abs(low), np.abs(high))
        s, o = secant(low, high)
        flat = np.where((low < 0) & (high > 0), np.where(high > -low, 1.0, 0.0) if flat is None else flat, s)
        slack = 2.0**-49 * (np.abs(left) + np.abs(right)) * most + TINY
        up, down = np.maximum(span, 0.0), np.minimum(span, 0.0)
        a, b = self.value(low), self.value(high)
        ends = np.sort([a, b, np.where((low < 0) & (high > 0), 0.0, a)], axis=0)
        return Lines(left + up * flat + down * s, down * o - slack, left + up * s + down * flat, up * o + slack,
                     ends[0] - slack, ends[2] + slack)  # fmt: skip

    def bent(self, low: Array, high: Array) -> tuple[Array, Array, Array]:
        """k, under and over with k x + under <= f'(x) <= k x + over on [low, high]: from ranges of slopes on short parts."""
        ends = [sum(self.slopes(end, end)) / 2 for end in (low, high)]
        with np.errstate(all="ignore"):
            k = (ends[1] - ends[0]) / (high - low)
        k = np.where(np.isfinite(k) & (np.abs(k) < 2.0**100), k, 0.0)
        x = np.clip(low + (high - low) * np.linspace(0.0, 1.0, _PIECES + 1)[:, None], low, high)
        x[-1] = high
        under, over = np.full(low.shape, np.inf), np.full(low.shape, -np.inf)
        charge(0, 8 * _EFFORT * _PIECES * low.size)
        step = 1 + _ENTRIES // (1 + low.size)
        for part in range(0, _PIECES, step):
            p, q = x[part:-1][:step], x[part + 1 :][:step]
            a, b = self.slopes(p, q)
            under = np.minimum(under, (a - np.maximum(k * p, k * q)).min(0))
            over = np.maximum(over, (b - np.minimum(k * p, k * q)).max(0))
        reach = np.maximum(np.abs(low), np.abs(high))
        slack = 2.0**-50 * (np.abs(under) + np.abs(over) + np.abs(k) * reach) + _LEAST
        return k, under - slack, over + slack


def secant(low: Array, high: Array) -> tuple[Array, Array]:
    """Slope and offset of a line above max(v, 0) on [low, high]: s in [0, 1] and the larger of -s low and (1 - s) high."""
    width = np.where(high > low, high - low, 1.0)
    slope = np.clip(np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / width)), 0.0, 1.0)
    offset = np.maximum(np.maximum(-slope * low, (1.0 - slope) * high), 0.0)
    return slope, np.where((low >= 0) | (high <= 0), 0.0, offset * (1.0 + 2.0**-50) + TINY)


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


def _gate(x: Array) -> tuple[Array, Array]:
    """tanh(softplus(x)) and its derivative, with w = exp(x)."""
    w = np.exp(np.minimum(x, 100.0))
    q = w * (w + 2.0)
    return q / (q + 2.0), 4.0 * w * (w + 1.0) / (q + 2.0) ** 2


def _gelu_tanh() -> Curve:
    c, d, turn = 0.044715, 2.0 * math.sqrt(2.0 / math.pi), 1.4185040087908284

    def slope(x: Array, _: int) -> Array:
        y = d * (x + c * x**3)
        return _logistic(y) + x * (d * (1.0 + 3.0 * c * x**2)) * _bell(y)

    def value(x: Array) -> Array:
        return x * _logistic(d * (x + c * x**3))

    return Curve(value, slope, (-0.129, 1.129), (-turn, turn), steepest=1.1289930687)


def _tanh_gate(scale: float, cubic: float) -> Curve:
    """x (1 + tanh(s x + c x^3)) = F(s x) / s, F(u) = u (1 + tanh p), p = u + q u^3, q = c / s^3 in [0, 1].

    F'' = sech(p)^2 (2 + 12 q u^2 - 2 u (1 + 3 q u^2)^2 tanh p) is 0 for u > 0 where tanh p, which grows, is
    (1 + 6 q u^2) / (u (1 + 3 q u^2)^2), which falls: once, before 1.2. F'(u) + F'(-u) = 2.
    """
    need(scale != 0 and 0 <= cubic / scale**3 <= 1, "a setting of an activation")
    q, a, b = cubic / scale**3, 2.0**-10, 1.2
    for _ in range(60):
        t = a / 2 + b / 2
        later = math.tanh(t + q * t**3) * t * (1.0 + 3.0 * q * t * t) ** 2 < 1.0 + 6.0 * q * t * t
        a, b = (t, b) if later else (a, t)

    def slope(x: Array, _: int) -> Array:
        u = scale * x
        y = 2.0 * (u + q * u**3)
        return 2.0 * _logistic(y) + 4.0 * u * (1.0 + 3.0 * q * u * u) * _bell(y)

    most = float(slope(np.array(a / scale), 0)) * (1.0 + 2.0**-40)

    def value(x: Array) -> Array:
        return 2.0 * x * _logistic(2.0 * (scale * x + cubic * x**3))

    return Curve(value, slope, (2.0 - most, most), (-a / abs(scale), a / abs(scale)), max(3.0, most), most)


def _erf_gate(scale: float) -> Curve:
    """x (1 + erf(scale x)) = 2 g(b x) / b with the GELU g, b = scale sqrt 2."""

    def slope(x: Array, _: int) -> Array:
        y = scale * x
        return 1.0 + _erf(y) + y * (2.0 / math.sqrt(math.pi)) * np.exp(-y * y)

    turns = () if scale == 0 else (-1.0 / abs(scale), 1.0 / abs(scale))
    return Curve(lambda x: x * (1.0 + _erf(scale * x)), slope, (-0.25781, 2.25781), turns, 3.0, 2.2578082904)


def _softplus(beta: float) -> Curve:
    need(beta != 0, "a setting of an activation")
    size = max(2.0, 1.0 / abs(beta))
    return Curve(
        lambda x: _plus(beta * x) / beta, lambda x, _: _logistic(beta * x), (0.0, 1.0), (), size, tails=True
    )


def _silu(beta: float) -> Curve:
    turns = () if beta == 0 else (-2.3993572805154677 / abs(beta), 2.3993572805154677 / abs(beta))
    return Curve(lambda x: x * _logistic(beta * x), lambda x, _: _logistic(beta * x) + beta * x * _bell(beta * x),
                 (-0.09984, 1.09984), turns, steepest=1.0998393202)  # fmt: skip


def _exponential(alpha: float, gamma: float, scale: float) -> Curve:
    """gamma x above 0, gamma alpha (exp(x / scale) - 1) below."""
    need(scale > 0, "a setting of an activation")
    ends = sorted((0.0, gamma * alpha / scale, gamma))
    return Curve(lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / scale)),
                 lambda x, k: gamma * (alpha / scale * np.exp(np.minimum(x, 0.0) / scale) if k == 0 else np.ones_like(x)),
                 (ends[0] - abs(ends[0]) * 2.0**-50, ends[2] + abs(ends[2]) * 2.0**-50), (0.0,),
                 max(2.0, abs(gamma), abs(gamma * alpha), abs(gamma * alpha / scale)), tails=True)  # fmt: skip


def _stepped(value: Function, slope: float, ends: tuple[Any, Any], size: float) -> Curve:
    """Constant outside two kinks."""
    most = min(0.0, slope), max(0.0, slope)
    return Curve(value, lambda x, k: np.full_like(x, slope if k == 1 else 0.0), most, ends, size, jumps=True)


def _clipped(low: float, high: float) -> Curve:
    need(low <= high, "ends of a clip")
    return _stepped(lambda x: np.clip(x, low, high), 1.0, (low, high), 2.0)


def _rounding(step: Array, least: float, most: float) -> Curve:
    """The multiple of `step` next to x, ties to even, held between two of them; step: [size]."""
    need(
        bool((step > 0).all()) and least <= most and least == int(least) and most == int(most),
        "a setting of a rounding",
    )
    low, high = step * least, step * most
    held = _stepped(lambda x: np.clip(x, low, high), 1.0, (low, high), 2.0)
    return Curve(lambda x: step * np.clip(np.rint(x / step), least, most), lambda x, _: np.zeros_like(x), (-np.inf, np.inf),
                 jumps=True, step=step, held=held)  # fmt: skip


def _hard_sigmoid(alpha: float, beta: float) -> Curve:
    ends = sorted((-beta / alpha, (1.0 - beta) / alpha)) if alpha else [np.inf, np.inf]
    size = max(2.0, abs(alpha), abs(beta))
    return _stepped(lambda x: np.clip(alpha * x + beta, 0.0, 1.0), alpha, (ends[0], ends[1]), size)


def _kinked(left: Any) -> Curve:
    """x above 0, left x below; left: a number, or one for each entry."""
    return Curve(lambda x: np.where(x < 0, left * x, x), lambda x, k: np.ones_like(x) if k else left + np.zeros_like(x),
                 (np.minimum(left, 1.0), np.maximum(left, 1.0)), (0.0,), jumps=True, kinks=True)  # fmt: skip


def _growing(value: Function, slope: Function, low: float, high: float, positive: bool = True) -> Curve:
    """Monotone with monotone slopes, where slopes have no bound everywhere."""
    return Curve(value, lambda x, _: slope(x), (low, high), (), None, positive=positive)


def _power(e: float) -> Curve:
    need(0.0 < abs(e) <= 8.0, "a setting of an activation")
    ends = (-np.inf, 0.0) if e < 0 else (0.0, np.inf)
    return _growing(lambda x: x**e, lambda x: e * x ** (e - 1.0), *ends)


LAWS: dict[str, Callable[[Setting], Curve]] = {
    "Relu": lambda a: _kinked(0.0), "Abs": lambda a: _kinked(-1.0), "LeakyRelu": lambda a: _kinked(a("alpha", 0.01)),
    "Sigmoid": lambda a: Curve(_logistic, lambda x, _: _bell(x), (0.0, 0.25), (0.0,), tails=True),
    "Tanh": lambda a: Curve(np.tanh, lambda x, _: 4.0 * _bell(2.0 * x), (0.0, 1.0), (0.0,), tails=True),
    "Softplus": lambda a: _softplus(a("beta", 1.0)),
    "LogSigmoid": lambda a: Curve(lambda x: -_plus(-x), lambda x, _: _logistic(-x), (0.0, 1.0), tails=True),
    "Gelu": lambda a: Curve(lambda x: x * _normal(x), lambda x, _: _normal(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
                            (-0.128905, 1.128905), (-math.sqrt(2.0), math.sqrt(2.0)), steepest=1.1289041452),
    "GeluTanh": lambda a: _gelu_tanh(), "TanhGate": lambda a: _tanh_gate(a("scale", 1.0), a("cubic", 0.0)),
    "ErfGate": lambda a: _erf_gate(a("scale", 1.0)), "Silu": lambda a: _silu(a("beta", 1.0)),
    "Mish": lambda a: Curve(lambda x: x * _gate(x)[0], lambda x, _: _gate(x)[0] + x * _gate(x)[1], (-0.11253, 1.0885),
                            (-2.2563763963607931, 1.4905711794854285), steepest=1.0884981613),
    "Atan": lambda a: Curve(np.arctan, lambda x, _: 1.0 / (1.0 + x * x), (0.0, 1.0), (0.0,), tails=True),
    "Asinh": lambda a: Curve(np.arcsinh, lambda x, _: 1.0 / np.hypot(1.0, x), (0.0, 1.0), (0.0,), tails=True),
    "Softsign": lambda a: Curve(lambda x: x / (1.0 + np.abs(x)), lambda x, _: 1.0 / (1.0 + np.abs(x)) ** 2, (0.0, 1.0), (0.0,),
                                tails=True),
    "Tanhshrink": lambda a: Curve(lambda x: x - np.tanh(x), lambda x, _: np.tanh(x) ** 2, (0.0, 1.0), (0.0,), tails=True),
    "Erf": lambda a: Curve(_erf, lambda x, _: 2.0 / math.sqrt(math.pi) * np.exp(-x * x), (0.0, 1.1283791670955128), (0.0,),
                           tails=True),
    "Sin": lambda a: Curve(np.sin, lambda x, _: np.cos(x), (-1.0, 1.0), (0.0,), period=math.pi),
    "Cos": lambda a: Curve(np.cos, lambda x, _: -np.sin(x), (-1.0, 1.0), (math.pi / 2,), period=math.pi),
    "Elu": lambda a: _exponential(a("alpha", 1.0), 1.0, 1.0),
    "Selu": lambda a: _exponential(a("alpha", 1.67326319), a("gamma", 1.05070102), 1.0),
    "Celu": lambda a: _exponential(a("alpha", 1.0), 1.0, a("alpha", 1.0)),
    "Clip": lambda a: _clipped(a("min", -math.inf), a("max", math.inf)),
    "HardSigmoid": lambda a: _hard_sigmoid(a("alpha", 0.2), a("beta", 0.5)),
    "HardSwish": lambda a: Curve(lambda x: x * (np.clip(x + 3.0, 0.0, 6.0) / 6.0),
                                 lambda x, k: (2.0 * x + 3.0) / 6.0 if k == 1 else np.full_like(x, float(k > 1)),
                                 (-0.5, 1.5), (-3.0, 3.0)),
    "Square": lambda a: _growing(np.square, lambda x: 2.0 * x, -np.inf, np.inf, False),
    "Exp": lambda a: _growing(np.exp, np.exp, 0.0, np.inf, False),
    "Log": lambda a: _growing(np.log, lambda x: 1.0 / x, 0.0, np.inf), "Sqrt": lambda a: _power(0.5),
    "Reciprocal": lambda a: _power(-1.0), "Power": lambda a: _power(a("exponent", 1.0)),
}  # fmt: skip
"""Law -> its curve with these settings; PRelu has slopes of its own beside them, Round steps."""


def curve(law: str, settings: Sequence[tuple[str, float]], slopes: Array | None) -> Curve:
    """The curve of a scalar step.

    Raises:
        NotCovered: no such law, or settings near the ends of float64. UnreadableCertificate: settings that it does not have.
    """
    given, asked = dict(settings), set()
    if law == "PRelu" and slopes is not None and not given:
        return _kinked(slopes)
    if law == "Round" and slopes is not None and given.keys() == {"min", "max"}:
        need(len(settings) == 2 and all(abs(v) < 2.0**31 for v in given.values()), "a setting of a rounding")
        return _rounding(slopes, given["min"], given["max"])
    if law not in LAWS or slopes is not None:
        raise NotCovered(f"the activation {law[:40]!a} is not covered by the checker")

    def setting(key: str, default: float) -> float:
        asked.add(key)
        value = given.get(key, float(np.float32(default)))
        need(not math.isnan(value) and (math.isfinite(value) or law == "Clip"), "a setting of an activation")
        # Curves multiply settings, up to a third power: no product of them is lost, or beyond float64.
        if value and law != "Clip" and not 2.0**-200 <= abs(value) <= 2.0**200:
            raise NotCovered("settings near the ends of float64 are not covered by the checker")
        return value

    found = LAWS[law](setting)
    need(asked >= given.keys() and len(given) == len(settings), "settings of another activation")
    return found
