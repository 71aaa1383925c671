"""Values and slopes at stored points hold the truth, which rational numbers or eighty digits know, and hardly anything else."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Origin
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.linalg.fixed import Fixed, where
from lipverify.linalg.lengths import at_most, length_above, length_below, ratio_below
from lipverify.propagation import interval_ranges
from lipverify.propagation.points import derivatives_below, slopes_below, slopes_roughly_below, values
from tests.networks import chain, random_graph, tensor

mpmath.mp.dps = 80
Number = mpmath.mpf
SCALARS: dict[str, tuple[Op, Callable[[Number], Number]]] = {
    "relu": (ops.ReLU(), lambda v: max(v, mpmath.mpf(0))),
    "leaky": (ops.LeakyReLU(-0.3), lambda v: v if v >= 0 else mpmath.mpf(-0.3) * v),
    "abs": (ops.Abs(), abs),
    "clip": (ops.Clip(-0.2, 0.7), lambda v: min(max(v, mpmath.mpf(-0.2)), mpmath.mpf(0.7))),
    "tanh": (ops.Tanh(), mpmath.tanh),
    "sigmoid": (ops.Sigmoid(), lambda v: 1 / (1 + mpmath.exp(-v))),
    "gelu": (ops.GELU(), lambda v: v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2),
    "softplus": (ops.Softplus(), lambda v: mpmath.log1p(mpmath.exp(v))),
}


def exact(weights: list[Tensor], scalar: Callable[[Number], Number], x: Tensor) -> list[Number]:
    """A chain of dense layers on one sample, in eighty digits."""
    v = [mpmath.mpf(value) for value in x.tolist()]
    for index, weight in enumerate(weights):
        v = [mpmath.fsum(mpmath.mpf(w) * a for w, a in zip(row, v, strict=True)) for row in weight.tolist()]
        if index < len(weights) - 1:
            v = [scalar(a) for a in v]
    return v


def length(v: list[Number], norm: Norm) -> Number:
    sizes = [abs(a) for a in v]
    if norm is Norm.LINF:
        return max(sizes)
    return mpmath.fsum(sizes) if norm is Norm.L1 else mpmath.sqrt(mpmath.fsum(a * a for a in sizes))


def true_slope(
    weights: list[Tensor], scalar: Callable[[Number], Number], x: Tensor, y: Tensor, norms: tuple[Norm, Norm]
) -> Number:
    first, second = exact(weights, scalar, x), exact(weights, scalar, y)
    step = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    change = [b - a for a, b in zip(first, second, strict=True)]
    return length(change, norms[1]) / length(step, norms[0])


# -- numbers


@pytest.mark.parametrize("count", [2, 4, 9])
def test_fixed_point_numbers_hold_what_rational_numbers_give(count: int, rng: np.random.Generator) -> None:
    a, b = (
        torch.tensor(rng.standard_normal((3, 4)) * 10.0 ** rng.integers(-20, 20, (3, 4))) for _ in range(2)
    )
    weight = torch.tensor(rng.standard_normal((5, 4)) * 10.0 ** rng.integers(-8, 8, (5, 4)))
    x, y = Fixed.of(a, count), Fixed.of(b, count)
    p, q, w = ([Fraction(v) for v in t.flatten().tolist()] for t in (a, b, weight))
    through = x.through(Fixed.of(weight, count), lambda part, rows: rows @ part.T, 4, count)
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    for found, truth in (
        (x, p),
        (-x, [-v for v in p]),
        (x.plus(y, count), [v + u for v, u in zip(p, q, strict=True)]),
        (x.minus(y, count), [v - u for v, u in zip(p, q, strict=True)]),
        (x.times(y, count), [v * u for v, u in zip(p, q, strict=True)]),
        (through, [sum(w[4 * o + k] * p[4 * r + k] for k in range(4)) for r in range(3) for o in range(5)]),
        (where(a > 0, x, y, count), [v if v > 0 else u for v, u in zip(p, q, strict=True)]),
        (Fixed.between(lower, upper, count), p),
        (Fixed.between(lower, upper, count), q),
        (Fixed.ratios([1 / v for v in p], [3, 4], count), [1 / v for v in p]),
    ):
        ends = [end.flatten().tolist() for end in found.ends()]
        assert all(
            Fraction(low) <= t <= Fraction(high)
            for low, t, high in zip(*ends[:1], truth, ends[1], strict=True)
        )


def test_sums_of_products_are_exact_with_enough_digits(rng: np.random.Generator) -> None:
    a = torch.tensor(rng.standard_normal((2, 700)) * 10.0 ** rng.integers(-10, 10, (2, 700)))
    weight = torch.tensor(rng.standard_normal((3, 700)), dtype=torch.float32)
    found = Fixed.of(a, 12).through(Fixed.of(weight, 12), lambda part, rows: rows @ part.T, 700, 30)
    assert bool((found.radius == 0).all())
    for row in range(2):
        for out in range(3):
            truth = sum(
                Fraction(x) * Fraction(w) for x, w in zip(a[row].tolist(), weight[out].tolist(), strict=True)
            )
            digits = found.digits[:, row, out].tolist()
            held = sum(Fraction(int(d)) * 2 ** (20 * k) for k, d in enumerate(digits))
            assert held * Fraction(2) ** found.exponent == truth


@pytest.mark.parametrize("norm", list(Norm))
def test_lengths_and_their_quotients_are_rounded_to_the_right_side(
    norm: Norm, rng: np.random.Generator
) -> None:
    for scale in (1e-320, 1e-160, 1.0, 1e160, 1e305):
        rows = torch.tensor(rng.standard_normal((4, 9)) * scale)
        above, below = length_above(rows, norm.value), length_below(rows, norm.value)
        for index in range(4):
            truth = length([mpmath.mpf(v) for v in rows[index].tolist()], norm)
            high, low = (mpmath.ldexp(m[index].item(), int(e[index])) for m, e in (above, below))
            assert low <= truth <= high
            assert high - low <= truth * mpmath.mpf(1e-12)
            limit = float(high)
            assert bool(at_most(above, limit * 1.01)[index]) or limit < 1e-300
            assert not bool(at_most(above, float(low * mpmath.mpf(0.99)))[index])
        assert bool((ratio_below(below, above) <= 1.0).all())


# -- networks


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("distance", [1e-12, 1e-3, 1.0])
def test_slopes_are_below_the_truth_and_close_to_it(
    name: str, distance: float, rng: np.random.Generator
) -> None:
    op, scalar = SCALARS[name]
    weights = [tensor(rng, 7, 5), tensor(rng, 6, 7), tensor(rng, 3, 6)]
    graph = chain(weights, op)
    x = torch.tensor(rng.standard_normal((2, 5)))
    y = x + distance * torch.tensor(rng.standard_normal((2, 5)))
    for norms in ((Norm.L2, Norm.L2), (Norm.LINF, Norm.L1), (Norm.L1, Norm.LINF)):
        found = slopes_below(graph, x, y, *norms).tolist()
        rough = slopes_roughly_below(graph, x, y, *norms).tolist()
        for index in range(2):
            truth = true_slope(weights, scalar, x[index], y[index], norms)
            assert (1 - 1e-6) * truth <= found[index] <= truth
            assert rough[index] <= truth
            assert distance < 1e-6 or rough[index] >= (1 - 1e-9) * truth


@pytest.mark.parametrize("scale", [1e-320, 1e-160, 1e160])
def test_weights_of_any_size(scale: float, rng: np.random.Generator) -> None:
    """Products of two such weights underflow or overflow in float64; what exceeds it is its largest number."""
    weights = [torch.tensor(rng.standard_normal((4, 3))) * scale, torch.tensor(rng.standard_normal((2, 4)))]
    for one in (weights, [weights[0], weights[1] * scale]):
        x, y = torch.tensor(rng.standard_normal((2, 1, 3)))
        found = slopes_below(chain(one, ops.ReLU()), x, y, Norm.L2, Norm.L2).item()
        truth = true_slope(one, SCALARS["relu"][1], x[0], y[0], (Norm.L2, Norm.L2))
        largest = mpmath.mpf(torch.finfo(torch.float64).max)
        assert found <= truth
        if scale < 1:  # intervals of float64 end at its largest number
            assert slopes_roughly_below(chain(one, ops.ReLU()), x, y, Norm.L2, Norm.L2).item() <= truth
        assert found >= min(truth, largest) * (1 - mpmath.mpf(1e-9)) - mpmath.mpf(1e-323)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hilbert_times_its_inverse(dtype: torch.dtype) -> None:
    """Float64 evaluation of this product is off by thousands of times its norm."""
    size = 12
    hilbert = 1.0 / (torch.arange(size)[:, None] + torch.arange(size) + 1.0).double()
    weights = [hilbert.to(dtype), torch.linalg.inv(hilbert.to(dtype).double()).to(dtype)]
    x = torch.linspace(-1, 1, size, dtype=torch.float64)[None]
    for distance in (1e-9, 1.0):
        y = x + distance * torch.cos(torch.arange(size, dtype=torch.float64))
        truth = true_slope(weights, lambda v: v, x[0], y[0], (Norm.L2, Norm.L2))
        found = slopes_below(chain(weights), x, y, Norm.L2, Norm.L2).item()
        assert (1 - 1e-9) * truth <= found <= truth
        assert slopes_roughly_below(chain(weights), x, y, Norm.L2, Norm.L2).item() <= truth


def test_random_networks(rng: np.random.Generator) -> None:
    """Every operator of the random networks, against float64, whose error is small at this distance."""
    seen = set()
    for _ in range(60):
        graph = random_graph(rng)
        seen |= {type(node.op) for node in graph.nodes}
        x = torch.tensor(rng.standard_normal((3, *graph.input_shape)))
        y = x + 0.3 * torch.tensor(rng.standard_normal((3, *graph.input_shape)))
        double = graph.to(dtype=torch.float64)
        first, second = (evaluate(double, point).flatten(1) for point in (x, y))
        box = values(graph, x)
        error = 1e-9 * (1.0 + first.abs().max())
        assert bool(((box.lower.flatten(1) - error <= first) & (first <= box.upper.flatten(1) + error)).all())
        assert bool((box.width <= 1e-9 * (1.0 + first.abs().max())).all())
        change = torch.linalg.vector_norm(second - first, dim=1)
        distance = torch.linalg.vector_norm((y - x).flatten(1), dim=1)
        found = slopes_below(graph, x, y, Norm.L2, Norm.L2)
        sizes = torch.linalg.vector_norm(first, dim=1) + torch.linalg.vector_norm(second, dim=1)
        off = 1e-12 * sizes / distance
        assert bool((found <= change / distance * (1 + 1e-9) + off).all())
        rough = slopes_roughly_below(graph, x, y, Norm.L2, Norm.L2)
        assert bool((rough <= change / distance * (1 + 1e-9) + off).all())
        assert bool((rough >= change / distance * (1 - 1e-3) - off).all())
        assert bool((found >= change / distance * (1 - 1e-6) - off).all())
    assert len(seen) > 30


def test_deep_networks_of_which_intervals_know_nothing(rng: np.random.Generator) -> None:
    """Twenty-five orthogonal layers keep every length; boxes of float64 grow by the root of the width in each."""
    layers = [torch.tensor(np.linalg.qr(rng.standard_normal((36, 36)))[0]) for _ in range(25)]
    graph, x = chain(layers), torch.tensor(rng.standard_normal((2, 36)))
    box = interval_ranges(graph, Interval(x, x))[graph.output.name]
    assert float(box.width.min()) > 0.1
    sharp = values(graph, x, enough=1e-9)
    assert float(sharp.width.max()) < 1e-13
    computed = evaluate(graph, x)
    assert bool(((sharp.lower - 1e-12 <= computed) & (computed <= sharp.upper + 1e-12)).all())


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_long_recurrences_of_curves(gated: bool, rng: np.random.Generator) -> None:
    """What is not known of a value grows by the largest row sum at every step, what happens between two points by far less: of
    curves in float64 nothing would be left."""
    width, steps = 32, 24
    b = Builder(symbolic_batch=True)
    x = h = b.input((1, width), 0)
    w = torch.from_numpy(rng.normal(size=(width, width)) / width**0.5)
    for _ in range(steps):
        new = b.elementwise(ops.Tanh(), b.plus(b.linear(h, w), x))
        h = (
            b.plus(h, b.times(b.elementwise(ops.Sigmoid(), b.linear(h, w)), b.minus(new, h)))
            if gated
            else new
        )
    graph = b.graph([h], Origin())
    a, step = (torch.from_numpy(rng.normal(size=(1, width))) for _ in range(2))
    other = a + 1e-6 * step
    found = float(slopes_below(graph, a, other, Norm.L2, Norm.L2))
    apart = (evaluate(graph, other) - evaluate(graph, a)).norm() / (other - a).norm()
    assert float(apart) * (1 - 1e-6) < found < float(apart) * (1 + 1e-6)
    box = interval_ranges(graph, Interval(a, a))[graph.output.name]
    assert float(box.width.max()) > 1e-8  # a hundredth of the change is lost in float64


def test_derivatives(rng: np.random.Generator) -> None:
    """Against automatic differentiation, away from kinks."""
    for _ in range(40):
        graph = random_graph(rng)
        x = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        v = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        double = graph.to(dtype=torch.float64)
        pushed = torch.func.jvp(lambda z, g=double: evaluate(g, z), (x,), (v,))[1].flatten(1)
        exact_norm = torch.linalg.vector_norm(pushed, dim=1) / torch.linalg.vector_norm(v.flatten(1), dim=1)
        found = derivatives_below(graph, x, v, Norm.L2, Norm.L2)
        assert bool((found <= exact_norm * (1 + 1e-9) + 1e-13).all())
        assert bool((found >= exact_norm * (1 - 1e-6) - 1e-13).all())


def test_derivatives_of_what_joins_many_entries(rng: np.random.Generator) -> None:
    """Normalisations, reflections, products and quotients; and the changes of the same between near points."""
    numbers = tensor(rng, 4)
    for op in (
        ops.LayerNorm((4,), numbers, numbers, 1e-3),
        ops.RMSNorm((4,), numbers, 1e-3),
        ops.LogSoftmax(1),
        ops.Softmax(0),
        ops.Householder(tensor(rng, 2, 2), axis=1),
        ops.Exp(),
        ops.Reciprocal(),
        ops.Mul(),
        ops.Div(),
        ops.MatMul(),
    ):
        b = Builder(symbolic_batch=True)
        x = b.input((1, 3, 4), 0)
        sides = (
            (x,)
            if not isinstance(op, ops.Mul | ops.Div | ops.MatMul)
            else (x, b.plus(b.times(x, numbers), 3.0 + numbers))
        )
        if isinstance(op, ops.MatMul):
            sides = (x, b.transpose(sides[1], (0, 2, 1)))
        graph = b.graph([b.add(op, sides, x.batch)], Origin())
        double = graph.to(dtype=torch.float64)
        point, v = (torch.tensor(rng.uniform(0.5, 2.0, (2, 3, 4))) for _ in range(2))
        pushed = torch.func.jvp(lambda z, g=double: evaluate(g, z), (point,), (v,))[1].flatten(1)
        steep = torch.linalg.vector_norm(pushed, dim=1) / torch.linalg.vector_norm(v.flatten(1), dim=1)
        found = derivatives_below(graph, point, v, Norm.L2, Norm.L2)
        assert bool((found <= steep * (1 + 1e-9)).all() & (found >= steep * (1 - 1e-9)).all()), op
        # So near that float64 knows nothing of the difference of the outputs.
        near = slopes_below(graph, point, point + 1e-11 * v, Norm.L2, Norm.L2)
        assert bool((near <= steep * (1 + 1e-4)).all() & (near >= steep * (1 - 1e-3)).all()), op


def test_at_a_kink_a_derivative_is_at_most_what_every_limit_shows() -> None:
    """relu at 0 has the slopes 0 and 1 for limits, |x| the slopes -1 and 1: of both only 0 is common."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for op in (ops.ReLU(), ops.Abs()):
        graph = chain([torch.ones(1, 1), torch.ones(1, 1)], op)
        assert derivatives_below(graph, zero, one, Norm.L2, Norm.L2).item() == 0.0
    pool = chain([torch.tensor([[1.0], [2.0], [0.0], [0.0]]), torch.ones(1, 4)], ops.GroupSort(2))
    assert derivatives_below(pool, one, one, Norm.L2, Norm.L2).item() == pytest.approx(3.0, abs=1e-12)
    b = Builder(symbolic_batch=True)
    x = b.linear(b.input((1, 1), 0), torch.tensor([[1.0], [2.0]]))
    top = b.graph([b.add(ops.ReduceMax((0,), True), (x,), x.batch)], Origin())
    # At 0 the larger entry may be either: what is common to both is a change of 1.
    assert derivatives_below(top, zero, one, Norm.L2, Norm.L2).item() == pytest.approx(1.0, abs=1e-12)
    assert derivatives_below(top, one, one, Norm.L2, Norm.L2).item() == pytest.approx(2.0, abs=1e-12)


def test_what_has_no_rule_is_refused_by_name(rng: np.random.Generator) -> None:
    class Unknown(Op):
        """An operator of somebody else."""

    other = chain([tensor(rng, 2, 2)]).append(Unknown(), (2,), "unknown")
    point = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(UnsupportedModel, match="Unknown"):
        slopes_below(other, point, point + 1, Norm.L2, Norm.L2)
