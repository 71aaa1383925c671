"""Bias merging: exact numbers, and the cases where a shift is not a bias."""

from __future__ import annotations

import pytest
import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.passes import simplify
from lipverify.passes.merge_bias import merge_bias


def _graph(b: Builder, *outputs: Value) -> Graph:
    return b.graph(outputs, Origin())


def _same(before: Graph, after: Graph) -> None:
    x = torch.randn(5, *before.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    old, new = (evaluate(graph.to(dtype=torch.float64), x) for graph in (before, after))
    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def _rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _conv(*shape: int) -> ops.Conv:
    return ops.Conv(_rand(*shape), None, (1, 1), ((1, 1), (0, 2)), (1, 1))


@pytest.mark.parametrize("shift", [_rand(4), _rand(1, 4), torch.tensor(0.3)], ids=["vector", "row", "number"])
def test_linear_takes_the_shift_as_its_bias(shift: torch.Tensor) -> None:
    b = Builder(symbolic_batch=True)
    v = b.linear(b.input((1, 3), 0), _rand(4, 3))
    before = _graph(b, b.plus(v, shift))
    after = merge_bias(before)
    assert after.operators() == {"Linear": 1}
    op = after.output.op
    assert isinstance(op, ops.Linear)
    assert op.bias is not None
    assert torch.equal(op.bias, shift.expand(1, 4)[0] if shift.ndim < 2 else shift[0])
    assert after.outputs == before.outputs
    _same(before, after)


def test_subtracted_constant_is_a_bias() -> None:
    b = Builder(symbolic_batch=True)
    before = _graph(b, b.minus(b.linear(b.input((1, 3), 0), _rand(4, 3)), _rand(4)))
    after = merge_bias(before)
    assert after.operators() == {"Linear": 1}
    _same(before, after)


def test_convolutions_take_a_shift_of_their_channels() -> None:
    b = Builder(symbolic_batch=True)
    v = b.plus(b.conv(b.input((1, 2, 5, 6), 0), _conv(4, 2, 3, 3)), _rand(4, 1, 1))
    up = ops.ConvTranspose(_rand(4, 3, 2, 2), None, (2, 2), ((0, 0), (0, 0)), (0, 0), (1, 1))
    before = _graph(b, b.plus(b.conv(v, up), _rand(3, 1, 1)))
    after = merge_bias(before)
    assert after.operators() == {"Conv": 1, "ConvTranspose": 1}
    _same(before, after)


def test_shift_behind_views_is_carried_back() -> None:
    b = Builder(symbolic_batch=True)
    v = b.transpose(b.reshape(b.linear(b.input((1, 3), 0), _rand(6, 3)), (1, 2, 3)), (0, 2, 1))
    before = _graph(b, b.plus(v, _rand(3, 2)))
    after = merge_bias(before)
    assert after.operators() == {"Linear": 1, "Reshape": 1, "Transpose": 1}
    _same(before, after)


def test_matrix_times_column_with_a_bias_column() -> None:
    b = Builder(symbolic_batch=False)
    v = b.matmul(_rand(4, 3), b.input((3, 1), None))
    before = _graph(b, b.plus(v, _rand(4, 1)))
    after = simplify(before)
    assert after.operators()["Linear"] == 1
    assert "Scale" not in after.operators()
    assert "Transpose" not in after.operators()
    _same(before, after)


def _shift_differs_within_a_channel(b: Builder) -> Value:
    return b.plus(b.conv(b.input((1, 2, 5, 6), 0), _conv(4, 2, 3, 3)), _rand(4, 5, 1))


def _shift_differs_between_rows(b: Builder) -> Value:
    return b.plus(b.linear(b.input((1, 2, 3), 0), _rand(4, 3)), _rand(2, 1))


def _another_consumer(b: Builder) -> Value:
    v = b.linear(b.input((1, 3), 0), _rand(4, 3))
    return b.plus(b.plus(v, _rand(4)), v)


def _bias_already_there(b: Builder) -> Value:
    return b.plus(b.linear(b.input((1, 3), 0), _rand(4, 3), _rand(4)), torch.ones(4))


def _scaled_too(b: Builder) -> Value:
    v = b.linear(b.input((1, 3), 0), _rand(4, 3))
    return b.add(ops.Scale(_rand(4), torch.ones(4)), (v,), 0)


def _other_type(b: Builder) -> Value:
    return b.plus(b.linear(b.input((1, 3), 0), _rand(4, 3)), _rand(4).double())


def _behind_an_activation(b: Builder) -> Value:
    return b.plus(b.elementwise(ops.ReLU(), b.linear(b.input((1, 3), 0), _rand(4, 3))), _rand(4))


@pytest.mark.parametrize(
    "build",
    [
        _shift_differs_within_a_channel,
        _shift_differs_between_rows,
        _another_consumer,
        _bias_already_there,
        _scaled_too,
        _other_type,
        _behind_an_activation,
    ],
)
def test_what_is_not_a_bias_stays(build) -> None:  # type: ignore[no-untyped-def]
    b = Builder(symbolic_batch=True)
    before = _graph(b, build(b))
    assert merge_bias(before) is before


def test_an_output_of_its_own_stays() -> None:
    b = Builder(symbolic_batch=True)
    v = b.linear(b.input((1, 3), 0), _rand(4, 3))
    before = _graph(b, v, b.plus(v, _rand(4)))
    assert merge_bias(before) is before
