"""Scalar functions of the kernel against eighty digits: values, slopes, lines around both; and what wrong ones would do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest

from lipverify.checkers.kernel.curves import Curve, curve
from lipverify.errors import NotCovered

Exact = Callable[[mpmath.mpf], mpmath.mpf]
mp = mpmath
FINITE = mp.mpf(10) ** -36
"""What slopes of short secants in eighty digits are off by."""


@pytest.fixture(autouse=True)
def eighty_digits() -> Iterator[None]:
    """The precision is one for the whole process, and other tests have their own."""
    with mpmath.workdps(80):
        yield


def logistic(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mp.exp(-x))


def exponential(alpha: float, gamma: float, scale: float) -> Exact:
    return lambda x: gamma * (x if x > 0 else mp.mpf(alpha) * mp.expm1(x / scale))


def clipped(x: mpmath.mpf, low: float, high: float) -> mpmath.mpf:
    return min(max(x, mp.mpf(low)), mp.mpf(high))


CASES: list[tuple[str, dict[str, float], Exact]] = [
    ("Relu", {}, lambda x: max(x, mp.mpf(0))),
    ("Abs", {}, abs),
    *(("LeakyRelu", {"alpha": a}, lambda x, a=a: x if x > 0 else a * x) for a in (-0.5, 1.75)),
    ("Exp", {}, mp.exp),
    ("Sqrt", {}, mp.sqrt),
    ("Log", {}, mp.log),
    ("Reciprocal", {}, lambda x: 1 / x),
    *(("Power", {"exponent": e}, lambda x, e=e: x ** mp.mpf(e)) for e in (-0.5, 3.0)),
    ("Square", {}, lambda x: x * x),
    ("Sigmoid", {}, logistic),
    ("Tanh", {}, mp.tanh),
    *(("Softplus", {"beta": b}, lambda x, b=b: mp.log1p(mp.exp(b * x)) / b) for b in (1.0, 7.0, -0.3)),
    ("LogSigmoid", {}, lambda x: -mp.log1p(mp.exp(-x))),
    ("Gelu", {}, lambda x: x * mp.ncdf(x)),
    ("GeluTanh", {}, lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)))),
    *(("ErfGate", {"scale": a}, lambda x, a=a: x * (1 + mp.erf(a * x))) for a in (math.sqrt(0.5), -2.0)),
    *(("TanhGate", {"scale": a, "cubic": c}, lambda x, a=a, c=c: x * (1 + mp.tanh(a * x + c * x**3)))
      for a, c in ((0.7978845834732056, 0.03567740613636141), (1.0, 0.0), (-2.0, -7.5), (0.5, 0.125))),
    *(("Silu", {"beta": b}, lambda x, b=b: x * logistic(b * x)) for b in (1.0, 1.702, -0.5, 0.0)),
    ("Mish", {}, lambda x: x * mp.tanh(mp.log1p(mp.exp(x)))),
    ("Softsign", {}, lambda x: x / (1 + abs(x))),
    ("Asinh", {}, mp.asinh),
    ("Atan", {}, mp.atan),
    ("Tanhshrink", {}, lambda x: x - mp.tanh(x)),
    ("Erf", {}, mp.erf),
    ("Sin", {}, mp.sin),
    ("Cos", {}, mp.cos),
    *(("Elu", {"alpha": a}, exponential(a, 1.0, 1.0)) for a in (1.0, 0.4, -0.6)),
    ("Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805},
     exponential(1.6732632423543772, 1.0507009873554805, 1.0)),
    ("Celu", {"alpha": 0.7}, exponential(0.7, 1.0, 0.7)),
    ("Clip", {"min": -0.5, "max": 0.75}, lambda x: clipped(x, -0.5, 0.75)),
    ("Clip", {"max": 0.75}, lambda x: min(x, mp.mpf(0.75))),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, lambda x: clipped(mp.mpf(1 / 6) * x + 0.5, 0.0, 1.0)),
    ("HardSigmoid", {"alpha": -0.2, "beta": 0.1}, lambda x: clipped(-mp.mpf(0.2) * x + mp.mpf(0.1), 0.0, 1.0)),
    ("HardSwish", {}, lambda x: x * clipped(x + 3, 0.0, 6.0) / 6),
]  # fmt: skip
NAMES = [f"{law} {settings}" for law, settings, _ in CASES]


def curve_of(law: str, settings: dict[str, float]) -> Curve:
    return curve(law, tuple(settings.items()), None)


def slope_of(exact: Exact, x: mpmath.mpf, side: int) -> mpmath.mpf:
    """The derivative from one side, to about 38 digits."""
    step = side * mp.mpf(10) ** -40
    return (exact(x + step) - exact(x)) / step


def intervals(rng: np.random.Generator, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Around 0, around turns and at them, wide and narrow, and single points."""
    places = [
        0.0,
        *(t for t in curve.turns if math.isfinite(t)),
        *rng.normal(0, 3, 8),
        20.0,
        -7.0,
        -25.0,
        -40.0,
    ]
    centres = np.repeat(places, 3)
    widths = np.tile([0.0, 1e-9, 1.0], len(places)) * rng.uniform(0.5, 4, len(centres))
    shares = rng.choice([0.0, 0.3, 1.0], len(centres))
    low, high = centres - widths * shares, centres + widths * (1 - shares)
    return (np.exp(low / 4), np.exp(high / 4)) if curve.positive else (low, high)


@pytest.mark.parametrize(("law", "settings", "exact"), CASES, ids=NAMES)
def test_values_and_slopes_are_as_close_as_stated(
    law: str, settings: dict[str, float], exact: Exact, rng: np.random.Generator
) -> None:
    curve = curve_of(law, settings)
    for x in [*rng.normal(0, 3, 40), *rng.uniform(-40, 40, 20), 0.0, 1e-12, 300.0, -300.0]:
        x = math.exp(x / 10) if curve.positive else x
        point = np.array([x])
        with np.errstate(all="ignore"):
            value, size = float(curve.value(point)[0]), float(np.max(curve.sized(point, point)))
        if not size < 2.0**100:
            continue
        assert abs(mp.mpf(value) - exact(mp.mpf(x))) <= 2.0**-46 * size * (1 + abs(x))
        first, last = curve.slopes(point, point)
        for side in (-1, 1):
            assert first[0] - FINITE <= slope_of(exact, mp.mpf(x), side) <= last[0] + FINITE
        kink = min((abs(x - t) for t in curve.turns), default=math.inf) < 1e-9
        assert kink or last[0] - first[0] <= 2.0**-41 * size


def lines_hold(curve: Curve, exact: Exact, rng: np.random.Generator) -> None:
    """Ranges of slopes and lines around values and slopes, at points of intervals of all kinds."""
    low, high = intervals(rng, curve)
    first, last = curve.slopes(low, high)
    k = np.where(
        rng.random(len(low)) < 0.5, curve.lines(low, high, first, last).below, rng.normal(0, 1, len(low))
    )
    under, over = curve.around(k, low, high)
    bend, below, above = curve.bent(low, high)
    lines = curve.lines(low, high, first, last)
    for i in range(len(low)):
        a, b = mp.mpf(low[i]), mp.mpf(high[i])
        ends = [a, b, *(mp.mpf(t) for t in curve.turns if low[i] <= t <= high[i])]
        points = [*ends, *(a + (b - a) * mp.mpf(s) for s in rng.random(9))]
        rest = [exact(x) - mp.mpf(k[i]) * x for x in points]
        assert all(under[i] <= r <= over[i] for r in rest)
        for x in points:
            y = exact(x)
            assert mp.mpf(lines.below[i]) * x + mp.mpf(lines.under[i]) <= y
            assert y <= mp.mpf(lines.above[i]) * x + mp.mpf(lines.over[i])
            assert lines.low[i] <= y <= lines.high[i]
        for x, side in itertools.product(points, (-1, 1)):
            if not a <= x + side * mp.mpf(10) ** -40 <= b:
                continue
            slope = slope_of(exact, x, side)
            assert first[i] - FINITE <= slope <= last[i] + FINITE
            assert below[i] - FINITE <= slope - mp.mpf(bend[i]) * x <= above[i] + FINITE


@pytest.mark.parametrize(("law", "settings", "exact"), CASES, ids=NAMES)
def test_lines_hold_the_functions_and_their_slopes(
    law: str, settings: dict[str, float], exact: Exact, rng: np.random.Generator
) -> None:
    lines_hold(curve_of(law, settings), exact, rng)


@pytest.mark.parametrize(("law", "settings", "exact"), CASES, ids=NAMES)
def test_lines_touch_the_functions(
    law: str, settings: dict[str, float], exact: Exact, rng: np.random.Generator
) -> None:
    """No looser than rounding, against many points of each interval."""
    curve = curve_of(law, settings)
    low, high = (end[:24] for end in intervals(rng, curve))
    k = curve.lines(low, high, *curve.slopes(low, high)).below
    under, over = curve.around(k, low, high)
    with np.errstate(all="ignore"):
        kinks = np.array([np.clip(t, low, high) for t in curve.turns]).reshape(-1, len(low))
        x = np.concatenate([low + (high - low) * np.linspace(0, 1, 4001)[:, None], kinks])
        rest = np.array([curve.value(row) for row in x]) - k * x
    size = curve.sized(low, high)
    gap = 3e-7 * size * (high - low) + 5e-12 * size * (1 + np.abs(low) + np.abs(high))
    assert (over - rest.max(0) <= gap).all()
    assert (rest.min(0) - under <= gap).all()


WRONG: dict[str, Callable[[Curve], Curve]] = {
    "turns are overlooked": lambda c: c._replace(turns=()),
    "turns at another place": lambda c: c._replace(turns=tuple(t + 0.3 for t in c.turns)),
    "slopes of one side": lambda c: c._replace(slope=lambda x, k: c.slope(x, 0)),
    "values a little off": lambda c: c._replace(value=lambda x: c.value(x) + 1e-9),
    "slopes a little off": lambda c: c._replace(slope=lambda x, k: c.slope(x, k) + 1e-9),
    "small slopes taken as known": lambda c: c._replace(tails=True),
}
# One formula on all sides has no wrong side; only differences of numbers lose small slopes.
NOTICED = [
    (name, law)
    for name, law in itertools.product(WRONG, ("Tanh", "Gelu", "Silu", "Elu", "HardSwish"))
    if {"slopes of one side": law in ("Elu", "HardSwish"), "small slopes taken as known": law == "Gelu"}.get(
        name, True
    )
]


@pytest.mark.parametrize(("name", "law"), NOTICED)
def test_wrong_curves_are_noticed(name: str, law: str, rng: np.random.Generator) -> None:
    exact, settings = next((e, s) for other, s, e in CASES if other == law)
    settings = {"alpha": 0.4} if law == "Elu" else settings
    exact = exponential(0.4, 1.0, 1.0) if law == "Elu" else exact
    with pytest.raises(AssertionError):
        lines_hold(WRONG[name](curve_of(law, settings)), exact, rng)


def test_sines_over_many_periods_are_refused() -> None:
    curve = curve_of("Sin", {})
    ends = np.array([-100.0]), np.array([100.0])
    with pytest.raises(NotCovered, match="half periods"):
        curve.slopes(*ends)
