"""Outward rounding against exact fractions: interval arithmetic, boxes of linear maps, certified constants."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from lipverify import ops, rules
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.ops.embedding import copies_norm, diagonal_norm, embedding
from lipverify.ops.enclosure import Enclosure
from lipverify.rules import Unbounded


def fractions(values: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.reshape(-1).tolist()]


def numbers(count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-40, 40, (count,), generator=rng)
    return torch.randn(count, generator=rng, dtype=torch.float64) * 2.0**exponent


def test_operators_hold_exact_results() -> None:
    a, b = Enclosure.of(numbers(2000, 1)), Enclosure.of(numbers(2000, 2))
    for found, exact in (
        (a + b, [x + y for x, y in zip(fractions(a.lower), fractions(b.lower), strict=True)]),
        (a - b, [x - y for x, y in zip(fractions(a.lower), fractions(b.lower), strict=True)]),
        (a * b, [x * y for x, y in zip(fractions(a.lower), fractions(b.lower), strict=True)]),
        (a / b, [x / y for x, y in zip(fractions(a.lower), fractions(b.lower), strict=True)]),
        (a.square(), [x * x for x in fractions(a.lower)]),
    ):
        for low, value, high in zip(fractions(found.lower), exact, fractions(found.upper), strict=True):
            assert low <= value <= high
    root = a.abs().sqrt()
    for low, value, high in zip(
        fractions(root.lower), fractions(a.abs().lower), fractions(root.upper), strict=True
    ):
        assert low**2 <= value <= high**2
    total = a.sum((0,))
    assert Fraction(total.lower.item()) <= sum(fractions(a.lower)) <= Fraction(total.upper.item())


def test_products_of_boxes_hold_all_corners() -> None:
    ends = numbers(400, 3).reshape(2, 200), numbers(400, 4).reshape(2, 200)
    boxes = [Enclosure(pair.amin(0), pair.amax(0)) for pair in ends]
    product = boxes[0] * boxes[1]
    for i in range(200):
        corners = [
            Fraction(x) * Fraction(y)
            for x in (boxes[0].lower[i].item(), boxes[0].upper[i].item())
            for y in (boxes[1].lower[i].item(), boxes[1].upper[i].item())
        ]
        assert Fraction(product.lower[i].item()) <= min(corners)
        assert Fraction(product.upper[i].item()) >= max(corners)


def test_infinite_and_overflowing_ends() -> None:
    inf = math.inf
    line = Enclosure(torch.tensor([-inf], dtype=torch.float64), torch.tensor([inf], dtype=torch.float64))
    zero = Enclosure.of(torch.zeros(1, dtype=torch.float64))
    assert (line * zero).contains(torch.zeros(1, dtype=torch.float64))
    huge = Enclosure.of(torch.tensor([1.7e308], dtype=torch.float64))
    assert (huge + huge).lower.item() < inf  # the exact sum is a number, so the lower end must be one too
    assert huge.exp().lower.item() < inf
    with pytest.raises(Unbounded):
        _ = huge / line


def exact_vertices(op: Op, box: Interval, outputs: int) -> tuple[list[Fraction], list[Fraction]]:
    """Exact image of a box under an affine operator: its matrix is read off with unit vectors (entries are exact)."""
    shape = box.lower.shape[1:]
    size = math.prod(shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    matrix = rules.linear(op, units).reshape(size, outputs)
    offset = fractions(rules.forward(op, torch.zeros(1, *shape, dtype=torch.float64)))
    lower, upper = fractions(box.lower[0]), fractions(box.upper[0])
    low, high = list(offset), list(offset)
    for j in range(outputs):
        for i, weight in enumerate(fractions(matrix[:, j])):
            ends = sorted((weight * lower[i], weight * upper[i]))
            low[j] += ends[0]
            high[j] += ends[1]
    return low, high


NO_PADS = ((0, 0), (0, 0))
RNG = torch.Generator().manual_seed(17)


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RNG)


AFFINE: list[tuple[Op, Shape]] = [
    (ops.Linear(weights(5, 40), weights(5)), (40,)),
    (ops.Conv(weights(3, 2, 3), weights(3), (2,), ((1, 2),), (2,)), (2, 9)),
    (ops.ConvTranspose(weights(2, 2, 3), weights(2), (2,), ((1, 0),), (1,), (1,)), (2, 4)),
    (ops.AvgPool((2, 2), (1, 1), NO_PADS, True, (0, 0)), (1, 3, 3)),
    (ops.ReduceSum((0,), False), (50,)),
    (ops.ReduceMean((0,), False), (64,)),
    (ops.Scale(weights(6), None), (6,)),
]


@pytest.mark.parametrize(("op", "shape"), AFFINE, ids=lambda x: x.kind() if isinstance(x, Op) else "")
@pytest.mark.parametrize("width", [0.0, 1e-15, 1.0])
def test_boxes_of_linear_maps_hold_the_exact_image(op: Op, shape: Shape, width: float) -> None:
    op = op.to(dtype=torch.float64)
    size = math.prod(shape)
    lower = numbers(size, 5).clamp(-1e6, 1e6).reshape(1, *shape)
    box = Interval(lower, lower + width * numbers(size, 6).abs().clamp(max=1e3).reshape(1, *shape))
    found = rules.interval(op, box)
    low, high = exact_vertices(op, box, found.lower[0].numel())
    scale = sum(abs(x) for x in fractions(box.upper)) + 1
    for a, x, y, b in zip(fractions(found.lower), low, high, fractions(found.upper), strict=True):
        assert a <= x
        assert y <= b
        assert b - a <= (y - x) * (1 + Fraction(1, 10**9)) + scale / 10**11


def test_batch_norm_and_division_are_rounded_up() -> None:
    rng = torch.Generator().manual_seed(3)
    weight, var = torch.randn(200, generator=rng), torch.rand(200, generator=rng)
    eps = 1e-5
    for g, v in zip(weight, var, strict=True):
        op = ops.BatchNorm(g[None], torch.zeros(1), torch.zeros(1), v[None], eps)
        factor = Fraction(rules.gain(op, ((1,),), Norm.L2, Norm.L2).factors[0])
        exact = Fraction(g.item()) ** 2 / (Fraction(v.item()) + Fraction(eps))
        assert exact <= factor**2 <= exact * (1 + Fraction(1, 10**14))
        (quotient,) = rules.gain(ops.DivideBy(g[None]), ((1,),), Norm.L2, Norm.L2).factors
        assert 1 <= Fraction(quotient) * abs(Fraction(g.item())) <= 1 + Fraction(1, 10**14)


PAIRS = list(itertools.product(Norm, Norm))


@pytest.mark.parametrize(("norm_in", "norm_out"), PAIRS, ids=lambda norm: str(norm))
def test_embedding_is_attained(norm_in: Norm, norm_out: Norm) -> None:
    candidates = [torch.ones(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)[0]]
    ratios = [
        float(torch.linalg.vector_norm(x, norm_out.order) / torch.linalg.vector_norm(x, norm_in.order))
        for x in candidates
    ]
    assert float(embedding(7, norm_in, norm_out)) == pytest.approx(max(ratios), rel=1e-15)
    assert float(embedding(0, norm_in, norm_out)) == 0.0


@pytest.mark.parametrize(("norm_in", "norm_out"), PAIRS, ids=lambda norm: str(norm))
def test_copies_are_a_diagonal_matrix(norm_in: Norm, norm_out: Norm) -> None:
    counts = [torch.tensor([3, 0, 1]), torch.tensor([2, 2])]
    multiplicity = torch.outer(*counts).to(torch.float64)
    diagonal = multiplicity.clamp(max=1.0) if norm_out is Norm.LINF else multiplicity ** (1 / norm_out.order)
    expected = float(diagonal_norm(diagonal, norm_in, norm_out))
    assert float(copies_norm(counts, norm_in, norm_out)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0, 500.0, 5000.0])
@pytest.mark.parametrize("op", [ops.Softmax(0), ops.LogSoftmax(0)], ids=lambda op: op.kind())
def test_softmax_boxes_hold_and_reach_the_exact_ends(op: Op, scale: float) -> None:
    rng = torch.Generator().manual_seed(5)
    lower = torch.randn(24, 5, generator=rng, dtype=torch.float64) * scale
    width = torch.rand(24, 5, generator=rng, dtype=torch.float64) * scale * (torch.arange(24) % 3)[:, None]
    upper = lower + width
    found = rules.interval(op, Interval(lower, upper))
    for row, i in itertools.product(range(24), range(5)):
        for own, others, end, sign in ((lower, upper, found.lower, 1), (upper, lower, found.upper, -1)):
            gaps = [mpf(others[row, j].item()) - mpf(own[row, i].item()) for j in range(5) if j != i]
            with mp.workdps(50):
                total = mp.fsum(mp.exp(gap) for gap in gaps)
                exact = 1 / (1 + total) if isinstance(op, ops.Softmax) else -mp.log1p(total)
                distance = sign * (exact - mpf(end[row, i].item()))
                assert 0 <= distance <= mpf("1e-12") * (1 + abs(exact))


def test_sums_that_are_zero_are_exact() -> None:
    """A root of a sum of squares is asked about numbers from 0 on, and not from the number below 0."""
    tiny = 5e-324
    ends = torch.tensor([0.0, 0.0, 1.0, tiny, 0.0, -1.5], dtype=torch.float64)
    others = torch.tensor([0.0, tiny, -1.0, -tiny, -tiny, 1.5], dtype=torch.float64)
    found = Enclosure(ends, ends) + Enclosure(others, others)
    for a, b, low, high in zip(
        ends.tolist(), others.tolist(), found.lower.tolist(), found.upper.tolist(), strict=True
    ):
        exact = Fraction(a) + Fraction(b)
        assert Fraction(low) <= exact <= Fraction(high)
        assert (low == 0 == high) == (exact == 0)
    square = Enclosure(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert bool(((square + square).lower == 0).all())
