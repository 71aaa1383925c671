"""Softmax from its parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.passes import simplify

Spelling = Callable[[Builder, Value], Value]


def _build(spelling: Spelling, *shape: int) -> Graph:
    b = Builder(symbolic_batch=True)
    return b.graph([spelling(b, b.elementwise(ops.Sin(), b.input((1, *shape), 0)))], Origin())


def _exp(b: Builder, v: Value) -> Value:
    return b.elementwise(ops.Exp(), v)


def plain(b: Builder, v: Value) -> Value:
    e = _exp(b, v)
    return b.over(e, b.reduce(ops.ReduceSum, e, [-1], True))


def shifted(b: Builder, v: Value) -> Value:
    return plain(b, b.minus(v, b.reduce(ops.ReduceMax, v, [-1], True)))


def by_reciprocal(b: Builder, v: Value) -> Value:
    e = _exp(b, v)
    total = b.unsqueeze(b.reduce(ops.ReduceSum, e, [-1], False), [-1])
    return b.times(b.elementwise(ops.Reciprocal(), total), e)


@pytest.mark.parametrize("spelling", [plain, shifted, by_reciprocal])
@pytest.mark.parametrize("shape", [(5,), (4, 4), (2, 3, 5)])
def test_parts_are_one_softmax(spelling: Spelling, shape: tuple[int, ...]) -> None:
    before = _build(spelling, *shape)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "Softmax": 1}
    assert vars(after.output.op) == {"axis": len(shape) - 1}
    x = torch.randn(9, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(evaluate(after, x), evaluate(before, x), rtol=1e-12, atol=1e-12)


def sum_over_another_axis(b: Builder, v: Value) -> Value:
    e = _exp(b, v)
    return b.over(e, b.transpose(b.reduce(ops.ReduceSum, e, [1], True), (0, 2, 1)))


def sum_of_another_tensor(b: Builder, v: Value) -> Value:
    return b.over(_exp(b, v), b.reduce(ops.ReduceSum, _exp(b, b.elementwise(ops.Sin(), v)), [-1], True))


def mean_for_sum(b: Builder, v: Value) -> Value:
    e = _exp(b, v)
    return b.over(e, b.reduce(ops.ReduceMean, e, [-1], True))


def one_more_in_the_sum(b: Builder, v: Value) -> Value:
    e = _exp(b, v)
    return b.over(e, b.plus(b.reduce(ops.ReduceSum, e, [-1], True), torch.tensor(1.0)))


def over_two_axes(b: Builder, v: Value) -> Value:
    e = _exp(b, v)
    return b.over(e, b.reduce(ops.ReduceSum, e, [1, 2], True))


@pytest.mark.parametrize(
    "spelling",
    [sum_over_another_axis, sum_of_another_tensor, mean_for_sum, one_more_in_the_sum, over_two_axes],
)
def test_near_misses_stay(spelling: Spelling) -> None:
    assert "Softmax" not in simplify(_build(spelling, 4, 4)).operators()


def test_maximum_over_another_axis_stays_in_the_argument() -> None:
    def spelling(b: Builder, v: Value) -> Value:
        return plain(b, b.minus(v, b.reduce(ops.ReduceMax, v, [1], True)))

    after = simplify(_build(spelling, 4, 4))
    assert after.operators() == {"Sin": 1, "ReduceMax": 1, "Expand": 1, "Sub": 1, "Softmax": 1}
