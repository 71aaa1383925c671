"""LayerNorm and RMSNorm from their parts; wrong axes, wrong tensors and missing eps stay."""

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
EPS = torch.tensor(1e-5)


def _build(spelling: Spelling, *shape: int) -> Graph:
    b = Builder(symbolic_batch=True)
    return b.graph([spelling(b, b.elementwise(ops.Sin(), b.input((1, *shape), 0)))], Origin())


def _same(before: Graph, after: Graph) -> None:
    x = torch.randn(20, *before.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    old, new = (evaluate(graph.to(dtype=torch.float64), x) for graph in (before, after))
    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def _mean(b: Builder, v: Value, *axes: int) -> Value:
    return b.reduce(ops.ReduceMean, v, axes or [-1], True)


def _root(b: Builder, v: Value, *axes: int) -> Value:
    square = b.elementwise(ops.Power(2.0), v)
    return b.elementwise(ops.Sqrt(), b.plus(_mean(b, square, *axes), EPS))


def layer_norm(b: Builder, v: Value) -> Value:
    d = b.minus(v, _mean(b, v))
    return b.over(d, _root(b, d))


def layer_norm_twice_centered(b: Builder, v: Value) -> Value:
    first, second = b.minus(v, _mean(b, v)), b.minus(v, _mean(b, v))
    root = b.elementwise(ops.Sqrt(), b.plus(_mean(b, b.times(second, second)), EPS))
    return b.times(first, b.elementwise(ops.Reciprocal(), root))


def layer_norm_by_powers(b: Builder, v: Value) -> Value:
    d = b.minus(v, _mean(b, v))
    variance = _mean(b, b.elementwise(ops.Power(2.0), d))
    return b.times(b.elementwise(ops.Power(-0.5), b.plus(variance, EPS)), d)


def layer_norm_by_sums(b: Builder, v: Value) -> Value:
    size = torch.tensor(float(v.shape[-1]))
    center = b.over(b.reduce(ops.ReduceSum, v, [-1], False), size)
    d = b.minus(v, b.unsqueeze(center, [-1]))
    variance = b.over(b.reduce(ops.ReduceSum, b.times(d, d), [-1], True), size)
    return b.over(d, b.elementwise(ops.Power(0.5), b.plus(variance, EPS)))


def rms_norm(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Reciprocal(), _root(b, v)))


@pytest.mark.parametrize("shape", [(6,), (3, 6)])
@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        (layer_norm, "LayerNorm"),
        (layer_norm_twice_centered, "LayerNorm"),
        (layer_norm_by_powers, "LayerNorm"),
        (layer_norm_by_sums, "LayerNorm"),
        (rms_norm, "RMSNorm"),
    ],
)
def test_chain_is_one_normalisation(spelling: Spelling, kind: str, shape: tuple[int, ...]) -> None:
    before = _build(spelling, *shape)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, kind: 1}
    op = after.output.op
    assert isinstance(op, ops.LayerNorm | ops.RMSNorm)
    assert op.shape == (6,)
    assert op.eps == float(EPS)
    _same(before, after)
    assert simplify(after).digest == after.digest


def test_several_axes() -> None:
    def spelling(b: Builder, v: Value) -> Value:
        d = b.minus(v, _mean(b, v, 2, 3))
        return b.over(d, _root(b, d, 2, 3))

    before = _build(spelling, 2, 3, 4)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "LayerNorm": 1}
    assert after.output.op.shape == (3, 4)  # type: ignore[attr-defined]
    _same(before, after)


def test_channels_are_moved_to_the_end_and_back() -> None:
    def spelling(b: Builder, v: Value) -> Value:
        d = b.minus(v, _mean(b, v, 1))
        return b.over(d, _root(b, d, 1))

    before = _build(spelling, 5, 3, 4)
    after = simplify(before)
    assert after.operators() == {"Transpose": 2, "Sin": 1, "LayerNorm": 1}
    _same(before, after)


def test_weight_and_bias_are_its_own() -> None:
    weight, bias = torch.linspace(0.5, 2.0, 6), torch.linspace(-1.0, 1.0, 6)
    before = _build(lambda b, v: b.plus(b.times(layer_norm(b, v), weight), bias), 3, 6)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "LayerNorm": 1}
    op = after.output.op
    assert isinstance(op, ops.LayerNorm)
    assert op.weight is not None
    assert op.bias is not None
    assert torch.equal(op.weight, weight)
    assert torch.equal(op.bias, bias)
    _same(before, after)


def test_rms_norm_takes_a_weight_and_leaves_a_shift() -> None:
    before = _build(lambda b, v: b.plus(b.times(rms_norm(b, v), torch.full((6,), 3.0)), torch.tensor(1.0)), 6)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "RMSNorm": 1, "Scale": 1}
    _same(before, after)


def test_weight_of_a_token_is_not_the_layers() -> None:
    before = _build(lambda b, v: b.times(layer_norm(b, v), torch.tensor([[1.0], [2.0], [3.0]])), 3, 6)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "LayerNorm": 1, "Scale": 1}
    _same(before, after)


def no_eps(b: Builder, v: Value) -> Value:
    d = b.minus(v, _mean(b, v))
    return b.over(d, b.elementwise(ops.Sqrt(), _mean(b, b.times(d, d))))


def negative_eps(b: Builder, v: Value) -> Value:
    d = b.minus(v, _mean(b, v))
    return b.over(d, b.elementwise(ops.Sqrt(), b.minus(_mean(b, b.times(d, d)), torch.tensor(1e-9))))


def eps_outside_the_root(b: Builder, v: Value) -> Value:
    d = b.minus(v, _mean(b, v))
    return b.over(d, b.plus(b.elementwise(ops.Sqrt(), _mean(b, b.times(d, d))), EPS))


def root_of_another_tensor(b: Builder, v: Value) -> Value:
    return b.over(b.minus(v, _mean(b, v)), _root(b, b.elementwise(ops.Tanh(), v)))


def no_root(b: Builder, v: Value) -> Value:
    d = b.minus(v, _mean(b, v))
    return b.over(d, b.plus(_mean(b, b.times(d, d)), EPS))


def cubed(b: Builder, v: Value) -> Value:
    return b.over(v, b.elementwise(ops.Sqrt(), b.plus(_mean(b, b.elementwise(ops.Power(4.0), v)), EPS)))


def sum_for_mean(b: Builder, v: Value) -> Value:
    total = b.reduce(ops.ReduceSum, b.times(v, v), [-1], True)
    return b.over(v, b.elementwise(ops.Sqrt(), b.plus(total, EPS)))


def eps_for_each_token(b: Builder, v: Value) -> Value:
    variance = _mean(b, b.times(v, v))
    return b.over(v, b.elementwise(ops.Sqrt(), b.plus(variance, torch.tensor([[1.0], [2.0], [3.0]]))))


@pytest.mark.parametrize(
    "spelling",
    [
        eps_for_each_token,
        no_eps,
        negative_eps,
        eps_outside_the_root,
        root_of_another_tensor,
        no_root,
        cubed,
        sum_for_mean,
    ],
)
def test_near_misses_stay(spelling: Spelling) -> None:
    before = _build(spelling, 3, 6)
    after = simplify(before)
    assert not {"LayerNorm", "RMSNorm"} & set(after.operators())
    assert after.digest == before.digest


def test_root_over_another_axis_stays() -> None:
    def spelling(b: Builder, v: Value) -> Value:
        return b.over(v, b.transpose(_root(b, v, 1), (0, 2, 1)))

    before = _build(spelling, 4, 4)
    after = simplify(before)
    assert "RMSNorm" not in after.operators()
    _same(before, after)


def test_mean_over_another_axis_is_not_the_center() -> None:
    """What is normalised then is the difference itself: an RMS normalisation of it."""

    def spelling(b: Builder, v: Value) -> Value:
        d = b.minus(v, _mean(b, v, 1))
        return b.over(d, _root(b, d, 2))

    before = _build(spelling, 4, 4)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "ReduceMean": 1, "Expand": 1, "Sub": 1, "RMSNorm": 1}
    _same(before, after)
