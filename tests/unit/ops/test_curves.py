"""Proofs of the tables of smooth activations by interval bisection, and their enclosures against 40-digit arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from mpmath import iv, mp

from lipverify import ops, rules
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.ops.curves import curve

mp.dps = 40
iv.dps = 40


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x)) if isinstance(x, mp.mpf) else 1 / (1 + iv.exp(-x))


def tanh_gelu_sign(x: Any) -> Any:
    """f'' = sigmoid'(s) times this, s = 2 sqrt(2/pi) (x + 0.044715 x^3)."""
    c, cubic = 2 * iv.sqrt(2 / iv.pi), iv.mpf("0.044715")
    s, first, second = c * (x + cubic * x**3), c * (1 + 3 * cubic * x**2), 6 * c * cubic * x
    return 2 * first + x * second - x * first**2 * (2 * sigmoid(s) - 1)


def silu_sign(x: Any) -> Any:
    """f'' = sigmoid'(x) times this."""
    return 2 - x * (2 * sigmoid(x) - 1)


def mish_sign(x: Any) -> Any:
    """f'' = 4 w / (q + 2)^3 times this, w = exp(x), q = w (w + 2)."""
    w = iv.exp(x)
    return 2 * (w + 1) * (w**2 + 2 * w + 2) + x * (2 + 2 * w - 3 * w**2 - 2 * w**3)


def gelu_sign(x: Any) -> Any:
    """f'' = density(x) times this."""
    return 2 - x**2


def signs(function: Callable[[Any], Any], low: float, high: float, depth: int = 0) -> set[int]:
    """The signs an expression takes on [low, high], proven by interval bisection."""
    value = function(iv.mpf([low, high]))
    if value.a > 0 or value.b < 0:
        return {1 if value.a > 0 else -1}
    assert depth < 60, f"no sign on [{low}, {high}]"
    middle = (low + high) / 2
    return signs(function, low, middle, depth + 1) | signs(function, middle, high, depth + 1)


CURVED: list[tuple[Op, Callable[[Any], Any], float]] = [
    (ops.GELU(False), gelu_sign, 40.0),
    (ops.GELU(True), tanh_gelu_sign, 3.0),
    (ops.SiLU(), silu_sign, 40.0),
    (ops.Mish(), mish_sign, 3.0),
]


@pytest.mark.parametrize(("op", "sign", "reach"), CURVED, ids=lambda x: x.kind() if isinstance(x, Op) else "")
def test_derivative_turns_exactly_where_the_table_says(
    op: Op, sign: Callable[[Any], Any], reach: float
) -> None:
    first, second = curve(op).slope.turns
    assert first.x[1] < second.x[0]
    assert signs(sign, -reach, first.x[0]) == {-1}
    assert signs(sign, first.x[1], second.x[0]) == {1}
    assert signs(sign, second.x[1], reach) == {-1}


def test_tail_of_the_tanh_form() -> None:
    # For x >= 3, 2 s' + x s'' < 4 s', so that x s' tanh(s/2) > 4 is enough; x s' and tanh(s/2) increase.
    c, cubic = 2 * iv.sqrt(2 / iv.pi), iv.mpf("0.044715")
    x = iv.mpf(3)
    assert (x * c * (1 + 3 * cubic * x**2) * (2 * sigmoid(c * (x + cubic * x**3)) - 1)).a > 4


def test_tails_of_mish() -> None:
    w = iv.exp(iv.mpf(-3))
    # x <= -3: the first term grows with w, the bracket behind x is at least 2.
    assert (2 * (w + 1) * (w**2 + 2 * w + 2)).b < 6
    assert (2 * w - 3 * w**2 - 2 * w**3).a > 0
    assert signs(lambda v: 2 - 3 * v - 2 * v**2, 0.0, float(w.b)) == {1}
    # x >= 3: w >= 20, the bracket is negative, and with x = 3 the sum is -4w^3 - 3w^2 + 14w + 10 < 0.
    assert iv.exp(iv.mpf(3)).a > 20
    assert -4 * 20**3 + 14 * 20 + 10 < 0


REFERENCE: dict[type[Op], Callable[[Op, Any], Any]] = {
    ops.Sigmoid: lambda op, x: sigmoid(x),
    ops.Tanh: lambda op, x: mp.tanh(x),
    ops.Softplus: lambda op, x: mp.log1p(mp.exp(mp.mpf(op.beta) * x)) / mp.mpf(op.beta),
    ops.ELU: lambda op, x: x if x > 0 else mp.mpf(op.alpha) * mp.expm1(x),
    ops.SELU: lambda op, x: mp.mpf(op.gamma) * (x if x > 0 else mp.mpf(op.alpha) * mp.expm1(x)),
    ops.CELU: lambda op, x: x if x > 0 else mp.mpf(op.alpha) * mp.expm1(x / mp.mpf(op.alpha)),
    ops.GELU: lambda op, x: (
        x * sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))
        if op.tanh
        else x * mp.erfc(-x / mp.sqrt(2)) / 2
    ),
    ops.SiLU: lambda op, x: x * sigmoid(mp.mpf(op.beta) * x),
    ops.Mish: lambda op, x: x * mp.tanh(mp.log1p(mp.exp(x))),
    ops.Softsign: lambda op, x: x / (1 + abs(x)),
    ops.Tanhshrink: lambda op, x: x - mp.tanh(x),
    ops.LogSigmoid: lambda op, x: -mp.log1p(mp.exp(-x)),
    ops.Sin: lambda op, x: mp.sin(x),
    ops.Cos: lambda op, x: mp.cos(x),
    ops.Erf: lambda op, x: mp.erf(x),
    ops.Atan: lambda op, x: mp.atan(x),
    ops.Asinh: lambda op, x: mp.asinh(x),
    ops.Exp: lambda op, x: mp.exp(x),
    ops.Hardswish: lambda op, x: x * min(max(x + 3, mp.mpf(0)), mp.mpf(6)) / 6,
    ops.Hardsigmoid: lambda op, x: min(max(mp.mpf(op.alpha) * x + mp.mpf(op.beta), mp.mpf(0)), mp.mpf(1)),
    ops.LeakyReLU: lambda op, x: x if x > 0 else mp.mpf(op.slope) * x,
    ops.Sqrt: lambda op, x: mp.sqrt(x),
    ops.Reciprocal: lambda op, x: 1 / x,
    ops.Power: lambda op, x: x ** mp.mpf(op.exponent),
}

SMOOTH: list[Op] = [
    ops.Sigmoid(),
    ops.Tanh(),
    ops.Softplus(1.0),
    ops.Softplus(-0.3),
    ops.Softplus(7.1),
    ops.ELU(1.0),
    ops.ELU(-0.7),
    ops.SELU(),
    ops.CELU(0.3),
    ops.GELU(False),
    ops.GELU(True),
    ops.SiLU(1.0),
    ops.SiLU(1.702),
    ops.SiLU(-0.4),
    ops.Mish(),
    ops.Softsign(),
    ops.Tanhshrink(),
    ops.LogSigmoid(),
    ops.Atan(),
    ops.Asinh(),
    ops.Sin(),
    ops.Cos(),
    ops.Erf(),
    ops.Hardswish(),
    ops.Hardsigmoid(1 / 6, 0.5),
    ops.LeakyReLU(0.01),
]


@pytest.mark.parametrize("op", [op for op, *_ in CURVED], ids=lambda op: op.kind())
def test_table_values_hold_the_exact_values(op: Op) -> None:
    def value(x: Any) -> Any:
        return REFERENCE[type(op)](op, x)

    found = curve(op)
    for turn in found.slope.turns:
        root = mp.findroot(lambda x: mp.diff(value, x, 2), mp.mpf(sum(turn.x) / 2))
        assert turn.x[0] <= root <= turn.x[1]
        assert turn.value[0] <= mp.diff(value, root) <= turn.value[1]
        assert found.slopes[0] <= turn.value[0]
        assert turn.value[1] <= found.slopes[1]
    assert found.slopes[0] <= 0.0
    assert found.slopes[1] >= 1.0
    # f' comes from 0, falls to its minimum, rises to its maximum and falls to 1: it has one zero, between both turns.
    (lowest,) = found.value.turns
    assert found.slope.turns[0].x[1] < lowest.x[0] < lowest.x[1] < found.slope.turns[1].x[0]
    assert mp.diff(value, mp.mpf(lowest.x[0])) < 0 < mp.diff(value, mp.mpf(lowest.x[1]))
    assert lowest.value[0] <= value(mp.mpf(lowest.x[0])) <= lowest.value[1]
    assert found.values[0] <= lowest.value[0]


POSITIVE: list[Op] = [ops.Sqrt(), ops.Reciprocal(), *(ops.Power(a) for a in (0.5, 2.5, -1.5, -2.0, 3.0, 0.1))]


def points(op: Op) -> torch.Tensor:
    rng = torch.Generator().manual_seed(7)
    noise = torch.randn(120, generator=rng, dtype=torch.float64) * torch.logspace(
        -12, 2.6, 120, dtype=torch.float64
    )
    awkward = torch.tensor(
        [0.0, 1e-300, -1e-300, 29.9, -29.9, -37.5, 99.0, -710.0, -745.5, 720.0, 3.0, -3.0, 1e8, -1e8]
    )
    found = torch.cat((noise, awkward.double()))
    return found.abs().clamp_min(1e-9) if op in POSITIVE else found


@pytest.mark.parametrize("op", SMOOTH + POSITIVE, ids=lambda op: op.kind())
def test_interval_of_a_point_holds_the_exact_value(op: Op) -> None:
    x = points(op)[:, None]
    found = rules.interval(op, Interval(x, x))
    for point, lower, upper in zip(
        x[:, 0].tolist(), found.lower[:, 0].tolist(), found.upper[:, 0].tolist(), strict=True
    ):
        with mp.workdps(400 if abs(point) > 50 else 60):
            exact = REFERENCE[type(op)](op, mp.mpf(point))
            assert mp.mpf(lower) <= exact <= mp.mpf(upper), (point, lower, upper)


@pytest.mark.parametrize("op", SMOOTH + POSITIVE, ids=lambda op: op.kind())
def test_slopes_at_a_point_hold_the_exact_derivative(op: Op) -> None:
    x = points(op)
    x = x[(x.abs() > 1e-6) & (x.abs() < 500.0)][:, None]
    kinks = {ops.Hardswish: (-3.0, 3.0), ops.Hardsigmoid: (-3.0, 3.0)}.get(type(op), ())
    found = rules.slopes(op, Interval(x, x), (1,))
    for point, lower, upper in zip(
        x[:, 0].tolist(), found.lower[:, 0].tolist(), found.upper[:, 0].tolist(), strict=True
    ):
        if point in kinks:
            continue
        with mp.workdps(600 if abs(point) > 50 else 100):
            h = mp.mpf(10) ** (-30)
            exact = (REFERENCE[type(op)](op, point + h) - REFERENCE[type(op)](op, point - h)) / (2 * h)
            # The central difference is off by h^2 f'''/6.
            slack = mp.mpf(10) ** (-50)
            assert mp.mpf(lower) - slack <= exact <= mp.mpf(upper) + slack, (point, lower, upper)


@pytest.mark.parametrize("op", SMOOTH + POSITIVE, ids=lambda op: op.kind())
def test_slopes_and_intervals_of_boxes_are_tight(op: Op) -> None:
    rng = torch.Generator().manual_seed(11)
    ends = torch.randn(2, 200, generator=rng, dtype=torch.float64) * 2.5
    if op in POSITIVE:
        ends = ends.abs() + 0.2
    box = Interval(ends.amin(0)[:, None], ends.amax(0)[:, None])
    share = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)[:, None, None]
    grid = (box.lower + share * box.width).requires_grad_(True)
    values = rules.forward(op, grid.reshape(-1, 1))
    (slopes,) = torch.autograd.grad(values.sum(), grid)
    image, found = rules.interval(op, box), rules.slopes(op, box, (1,))
    values = values.detach().reshape(grid.shape)
    # 2000 steps over the box miss an extremum by the squared step (values, smooth slopes) or by one step (at kinks).
    close = 2e-3 * (1.0 + slopes.abs().amax(0))
    assert bool((image.lower >= values.amin(0) - close * box.width).all())
    assert bool((image.upper <= values.amax(0) + close * box.width).all())
    assert bool((found.lower >= slopes.amin(0) - 5 * close).all())
    assert bool((found.upper <= slopes.amax(0) + 5 * close).all())


@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.kind())
def test_endless_boxes(op: Op) -> None:
    inf = math.inf
    box = Interval(
        torch.tensor([[-inf], [-inf], [1.0], [-1e300]], dtype=torch.float64),
        torch.tensor([[inf], [-1.0], [inf], [1e300]], dtype=torch.float64),
    )
    image, found, line = rules.interval(op, box), rules.slopes(op, box, (1,)), rules.slopes(op, None, (1,))
    x = torch.tensor([[0.0], [-50.0], [50.0], [2.0]], dtype=torch.float64)
    assert image.contains(rules.forward(op, x))
    assert bool((found.lower >= line.lower - 1e-15).all())
    assert bool((found.upper <= line.upper + 1e-15).all())


@pytest.mark.parametrize(
    ("op", "lower", "upper"),
    [
        (ops.Exp(), -1.0, math.inf),
        (ops.Exp(), 0.0, 1e4),
        (ops.Reciprocal(), -1.0, 1.0),
        (ops.Sqrt(), 0.0, 1.0),
    ],
)
def test_slopes_that_are_not_finite_are_refused(op: Op, lower: float, upper: float) -> None:
    box = Interval(torch.tensor([[lower]], dtype=torch.float64), torch.tensor([[upper]], dtype=torch.float64))
    with pytest.raises(rules.Unbounded):
        rules.slopes(op, box, (1,))
