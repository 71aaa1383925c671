"""Maxima and minima spelled by ReLU or by negation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.passes import simplify

Spelling = Callable[[Builder, Value, Value], Value]


def _build(spelling: Spelling) -> Graph:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 6), 0)
    pair = [b.elementwise(op, x) for op in (ops.Sin(), ops.Tanh())]
    return b.graph([spelling(b, *pair)], Origin())


def _same(before: Graph, after: Graph) -> None:
    x = 2 * torch.randn(
        40, *before.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    old, new = (evaluate(graph.to(dtype=torch.float64), x) for graph in (before, after))
    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def _relu(b: Builder, v: Value) -> Value:
    return b.elementwise(ops.ReLU(), v)


def largest(b: Builder, x: Value, y: Value) -> Value:
    return b.plus(_relu(b, b.minus(x, y)), y)


def largest_other_order(b: Builder, x: Value, y: Value) -> Value:
    return b.plus(x, _relu(b, b.minus(y, x)))


def largest_by_added_negative(b: Builder, x: Value, y: Value) -> Value:
    return b.plus(y, _relu(b, b.plus(b.negative(y), x)))


def smallest(b: Builder, x: Value, y: Value) -> Value:
    return b.minus(x, _relu(b, b.minus(x, y)))


def smallest_by_added_negative(b: Builder, x: Value, y: Value) -> Value:
    return b.plus(b.negative(_relu(b, b.minus(x, y))), x)


def smallest_by_negation(b: Builder, x: Value, y: Value) -> Value:
    return b.negative(b.maximum(b.negative(x), b.negative(y)))


def largest_by_negation(b: Builder, x: Value, y: Value) -> Value:
    return b.negative(b.minimum(b.negative(x), b.negative(y)))


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        (largest, "Maximum"),
        (largest_other_order, "Maximum"),
        (largest_by_added_negative, "Maximum"),
        (smallest, "Minimum"),
        (smallest_by_added_negative, "Minimum"),
        (smallest_by_negation, "Minimum"),
        (largest_by_negation, "Maximum"),
    ],
)
def test_spelling_is_one_extremum(spelling: Spelling, kind: str) -> None:
    before = _build(spelling)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "Tanh": 1, kind: 1}
    _same(before, after)


def test_reduction_of_the_negative() -> None:
    b = Builder(symbolic_batch=True)
    v = b.reduce(ops.ReduceMax, b.negative(b.input((1, 6), 0)), [1], True)
    before = b.graph([b.negative(v)], Origin())
    after = simplify(before)
    assert after.operators() == {"ReduceMin": 1}
    _same(before, after)


def test_maxmin_by_relu_is_a_sort() -> None:
    b = Builder(symbolic_batch=True)
    v = b.elementwise(ops.Sin(), b.input((1, 6), 0))
    first, second = b.slice(v, 1, 0, 3), b.slice(v, 1, 3, 6)
    excess = _relu(b, b.minus(first, second))
    before = b.graph([b.concat([b.plus(excess, second), b.minus(first, excess)], 1)], Origin())
    after = simplify(before)
    assert after.operators() == {"Reshape": 2, "Sin": 1, "GroupSort": 1}
    _same(before, after)


def added_to_the_wrong_side(b: Builder, x: Value, y: Value) -> Value:
    return b.plus(_relu(b, b.minus(x, y)), x)


def taken_from_the_wrong_side(b: Builder, x: Value, y: Value) -> Value:
    return b.minus(y, _relu(b, b.minus(x, y)))


def a_sum_inside(b: Builder, x: Value, y: Value) -> Value:
    return b.plus(_relu(b, b.plus(x, y)), y)


def one_side_not_negated(b: Builder, x: Value, y: Value) -> Value:
    return b.negative(b.maximum(b.negative(x), y))


def scaled_by_minus_two(b: Builder, x: Value, y: Value) -> Value:
    return b.times(b.maximum(b.negative(x), b.negative(y)), torch.tensor(-2.0))


@pytest.mark.parametrize(
    "spelling",
    [
        added_to_the_wrong_side,
        taken_from_the_wrong_side,
        a_sum_inside,
        one_side_not_negated,
        scaled_by_minus_two,
    ],
)
def test_near_misses_stay(spelling: Spelling) -> None:
    before = _build(spelling)
    assert simplify(before).digest == before.digest


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (
            lambda b, v: b.plus(_relu(b, b.minus(v, _number(0.3))), _number(0.3)),
            ops.Clip(float(_number(0.3)), math.inf),
        ),
        (lambda b, v: b.plus(v, _relu(b, b.minus(_number(0.3), v))), ops.Clip(float(_number(0.3)), math.inf)),
        (
            lambda b, v: b.minus(v, _relu(b, b.minus(v, _number(0.3)))),
            ops.Clip(-math.inf, float(_number(0.3))),
        ),
        (
            lambda b, v: b.minus(_number(0.3), _relu(b, b.minus(_number(0.3), v))),
            ops.Clip(-math.inf, float(_number(0.3))),
        ),
        (lambda b, v: b.minus(v, _relu(b, v)), ops.Clip(-math.inf, 0.0)),
        (lambda b, v: b.minus(b.times(_relu(b, v), _number(2.0)), v), ops.Abs()),
        (
            lambda b, v: b.plus(b.times(v, _number(0.25)), b.times(_relu(b, v), _number(0.75))),
            ops.LeakyReLU(0.25),
        ),
    ],
)
def test_one_relu_and_its_argument(spelling: Callable[[Builder, Value], Value], expected: object) -> None:
    b = Builder(symbolic_batch=True)
    before = b.graph([spelling(b, b.elementwise(ops.Sin(), b.input((1, 6), 0)))], Origin())
    after = simplify(before)
    assert [node.op.kind() for node in after] == ["Input", "Sin", type(expected).__name__]
    assert vars(after.output.op) == vars(expected)
    _same(before, after)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda b, v: b.plus(_relu(b, b.minus(v, _number(0.3))), _number(0.4)),
        lambda b, v: b.plus(v, _relu(b, v)),
        lambda b, v: b.plus(b.times(v, _number(0.1)), b.times(_relu(b, v), _number(0.9))),
        lambda b, v: b.minus(_number(0.3), _relu(b, b.minus(v, _number(0.3)))),
    ],
)
def test_other_sums_with_a_relu_stay(spelling: Callable[[Builder, Value], Value]) -> None:
    """The third one has 0.1 + 0.9 in float32, which is not 1."""
    b = Builder(symbolic_batch=True)
    before = b.graph([spelling(b, b.elementwise(ops.Sin(), b.input((1, 6), 0)))], Origin())
    assert simplify(before).digest == before.digest
