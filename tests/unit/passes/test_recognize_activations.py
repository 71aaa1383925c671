"""Activations taken apart by exporters: found in every order of operations, with the constants of the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.op import Op
from lipverify.passes import simplify

Spelling = Callable[[Builder, Value], Value]


def _number(value: float) -> torch.Tensor:
    """A constant as an exporter stores it."""
    return torch.tensor(value, dtype=torch.float32)


def _stored(value: float) -> Fraction:
    return Fraction(float(_number(value)))


ROOT_TWO, ROOT_HALF, ROOT_TWO_OVER_PI = math.sqrt(2.0), math.sqrt(0.5), math.sqrt(2.0 / math.pi)


def _build(spelling: Spelling) -> Graph:
    b = Builder(symbolic_batch=True)
    v = b.elementwise(ops.Sin(), b.input((1, 7), 0))
    return b.graph([spelling(b, v)], Origin())


def _same(before: Graph, after: Graph) -> None:
    x = 4 * torch.randn(
        40, *before.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    old, new = (evaluate(graph.to(dtype=torch.float64), x) for graph in (before, after))
    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def _erf(b: Builder, v: Value, *, divide: bool = False) -> Value:
    inner = b.over(v, _number(ROOT_TWO)) if divide else b.times(v, _number(ROOT_HALF))
    return b.elementwise(ops.Erf(), inner)


def gelu_divided(b: Builder, v: Value) -> Value:
    return b.times(b.times(v, b.plus(_erf(b, v, divide=True), _number(1.0))), _number(0.5))


def gelu_half_first(b: Builder, v: Value) -> Value:
    return b.times(b.times(v, _number(0.5)), b.plus(_erf(b, v), _number(1.0)))


def gelu_half_inside(b: Builder, v: Value) -> Value:
    return b.times(b.times(_number(0.5), b.plus(_number(1.0), _erf(b, v))), v)


def gelu_divided_by_two(b: Builder, v: Value) -> Value:
    return b.over(b.times(v, b.plus(_erf(b, v), _number(1.0))), _number(2.0))


def gelu_expanded(b: Builder, v: Value) -> Value:
    half = b.times(v, _number(0.5))
    return b.plus(half, b.times(half, _erf(b, v)))


def gelu_by_complement(b: Builder, v: Value) -> Value:
    erf = b.elementwise(ops.Erf(), b.times(v, _number(-ROOT_HALF)))
    return b.times(b.times(v, _number(0.5)), b.minus(_number(1.0), erf))


def _cubic(b: Builder, v: Value, cube: Value) -> Value:
    inner = b.times(b.plus(v, b.times(cube, _number(0.044715))), _number(ROOT_TWO_OVER_PI))
    return b.times(b.times(v, _number(0.5)), b.plus(b.elementwise(ops.Tanh(), inner), _number(1.0)))


def tanh_gelu_power(b: Builder, v: Value) -> Value:
    return _cubic(b, v, b.elementwise(ops.Power(3.0), v))


def tanh_gelu_products(b: Builder, v: Value) -> Value:
    return _cubic(b, v, b.times(v, b.times(v, v)))


def tanh_gelu_square(b: Builder, v: Value) -> Value:
    return _cubic(b, v, b.times(b.elementwise(ops.Power(2.0), v), v))


def tanh_gelu_factored(b: Builder, v: Value) -> Value:
    wide = b.plus(b.times(b.times(v, v), _number(0.044715)), _number(1.0))
    inner = b.times(b.times(b.times(v, _number(ROOT_TWO_OVER_PI)), wide), _number(1.0))
    return b.times(b.times(v, b.plus(b.elementwise(ops.Tanh(), inner), _number(1.0))), _number(0.5))


def silu(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Sigmoid(), v))


def quick_gelu(b: Builder, v: Value) -> Value:
    return b.times(b.elementwise(ops.Sigmoid(), b.times(v, _number(1.702))), v)


def silu_divided(b: Builder, v: Value) -> Value:
    return b.times(b.elementwise(ops.Sigmoid(), b.over(v, _number(3.0))), v)


def silu_by_tanh(b: Builder, v: Value) -> Value:
    half = b.times(v, _number(0.5))
    return b.times(half, b.plus(b.elementwise(ops.Tanh(), half), _number(1.0)))


def silu_of_a_shifted_value(b: Builder, v: Value) -> Value:
    return silu(b, b.plus(v, _number(0.7)))


def mish(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Tanh(), b.elementwise(ops.Softplus(), v)))


def hardswish_clip(b: Builder, v: Value) -> Value:
    gate = b.elementwise(ops.Clip(0.0, 6.0), b.plus(v, _number(3.0)))
    return b.over(b.times(v, gate), _number(6.0))


def hardswish_divided_first(b: Builder, v: Value) -> Value:
    gate = b.elementwise(ops.Clip(0.0, 6.0), b.plus(v, _number(3.0)))
    return b.times(v, b.over(gate, _number(6.0)))


def hardswish_by_two_limits(b: Builder, v: Value) -> Value:
    gate = b.minimum(b.elementwise(ops.ReLU(), b.plus(v, _number(3.0))), _number(6.0))
    return b.over(b.times(v, gate), _number(6.0))


def hardswish_by_hardsigmoid(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Hardsigmoid(float(_number(1 / 6)), 0.5), v))


def hardswish_rounded_sixth(b: Builder, v: Value) -> Value:
    gate = b.elementwise(ops.Clip(0.0, 6.0), b.plus(v, _number(3.0)))
    return b.times(b.times(v, gate), _number(1 / 6))


def clip_between_other_ends(b: Builder, v: Value) -> Value:
    return b.times(v, b.plus(b.elementwise(ops.Clip(-1.0, 3.0), v), _number(1.0)))


def softsign(b: Builder, v: Value) -> Value:
    return b.over(v, b.plus(b.elementwise(ops.Abs(), v), _number(1.0)))


def tanhshrink(b: Builder, v: Value) -> Value:
    return b.minus(v, b.elementwise(ops.Tanh(), v))


HALF = Fraction(1, 2)
_TANH_GELU = ops.TanhGate(
    _stored(ROOT_TWO_OVER_PI), _stored(ROOT_TWO_OVER_PI) * _stored(0.044715), Fraction(1, 2)
)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (gelu_divided, ops.ErfGate(1 / _stored(ROOT_TWO), HALF)),
        (gelu_half_first, ops.ErfGate(_stored(ROOT_HALF), HALF)),
        (gelu_half_inside, ops.ErfGate(_stored(ROOT_HALF), HALF)),
        (gelu_divided_by_two, ops.ErfGate(_stored(ROOT_HALF), HALF)),
        (gelu_expanded, ops.ErfGate(_stored(ROOT_HALF), HALF)),
        (gelu_by_complement, ops.ErfGate(_stored(ROOT_HALF), HALF)),
        (tanh_gelu_power, _TANH_GELU),
        (tanh_gelu_products, _TANH_GELU),
        (tanh_gelu_square, _TANH_GELU),
        (tanh_gelu_factored, _TANH_GELU),
        (silu, ops.SiLU(1.0)),
        (quick_gelu, ops.SiLU(float(_number(1.702)))),
        (silu_divided, ops.SigmoidGate(Fraction(1, 3), Fraction(1))),
        (silu_by_tanh, ops.SiLU(1.0)),
        (mish, ops.Mish()),
        (hardswish_clip, ops.Hardswish()),
        (hardswish_divided_first, ops.Hardswish()),
        (hardswish_by_two_limits, ops.Hardswish()),
        (hardswish_by_hardsigmoid, ops.ClipGate(_stored(1 / 6), HALF, Fraction(1))),
        (hardswish_rounded_sixth, ops.ClipGate(Fraction(1, 6), HALF, 6 * _stored(1 / 6))),
        (clip_between_other_ends, ops.ClipGate(Fraction(1, 4), Fraction(1, 4), Fraction(4))),
        (softsign, ops.Softsign()),
        (tanhshrink, ops.Tanhshrink()),
    ],
)
def test_spelling_is_one_activation(spelling: Spelling, expected: Op) -> None:
    before = _build(spelling)
    after = simplify(before)
    assert [node.op.kind() for node in after] == ["Input", "Sin", expected.kind()]
    assert vars(after.output.op) == vars(expected)
    _same(before, after)
    assert simplify(after).digest == after.digest != before.digest


def test_argument_may_be_computed_by_arithmetic() -> None:
    before = _build(silu_of_a_shifted_value)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "Scale": 1, "SiLU": 1}
    _same(before, after)


def test_residual_around_an_activation_stays_an_addition() -> None:
    before = _build(lambda b, v: b.plus(v, silu(b, v)))
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "SiLU": 1, "Add": 1}
    _same(before, after)


def test_gate_with_another_reader_is_kept_for_it() -> None:
    def spelling(b: Builder, v: Value) -> Value:
        gate = b.elementwise(ops.Sigmoid(), v)
        return b.concat([b.times(v, gate), gate], 1)

    before = _build(spelling)
    after = simplify(before)
    assert after.operators() == {"Sin": 1, "Sigmoid": 1, "SiLU": 1, "Concat": 1}
    _same(before, after)


def gate_of_another_tensor(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Sigmoid(), b.elementwise(ops.Sin(), v)))


def erf_plus_another_number(b: Builder, v: Value) -> Value:
    return b.times(b.times(v, _number(0.5)), b.plus(_erf(b, v), _number(1.0001)))


def sigmoid_with_a_shift(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Sigmoid(), b.plus(v, _number(0.25))))


def scale_for_each_channel(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Sigmoid(), b.times(v, torch.arange(1.0, 8.0))))


def cube_of_another_tensor(b: Builder, v: Value) -> Value:
    return _cubic(b, v, b.elementwise(ops.Power(3.0), b.elementwise(ops.Sin(), v)))


def negative_cubic(b: Builder, v: Value) -> Value:
    return _cubic(b, v, b.negative(b.elementwise(ops.Power(3.0), v)))


def fourth_power(b: Builder, v: Value) -> Value:
    return _cubic(b, v, b.times(b.times(v, v), b.times(v, v)))


def softplus_with_beta(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Tanh(), b.elementwise(ops.Softplus(2.0), v)))


def softsign_plus_two(b: Builder, v: Value) -> Value:
    return b.over(v, b.plus(b.elementwise(ops.Abs(), v), _number(2.0)))


def softsign_of_another_tensor(b: Builder, v: Value) -> Value:
    return b.over(v, b.plus(b.elementwise(ops.Abs(), b.elementwise(ops.Sin(), v)), _number(1.0)))


def tanhshrink_scaled(b: Builder, v: Value) -> Value:
    return b.minus(v, b.elementwise(ops.Tanh(), b.times(v, _number(1.5))))


def squared_gate(b: Builder, v: Value) -> Value:
    gate = b.elementwise(ops.Sigmoid(), v)
    return b.times(gate, gate)


def open_clip(b: Builder, v: Value) -> Value:
    return b.times(v, b.elementwise(ops.Clip(0.0, math.inf), b.plus(v, _number(3.0))))


@pytest.mark.parametrize(
    "spelling",
    [
        gate_of_another_tensor,
        erf_plus_another_number,
        sigmoid_with_a_shift,
        scale_for_each_channel,
        cube_of_another_tensor,
        negative_cubic,
        fourth_power,
        softplus_with_beta,
        softsign_plus_two,
        softsign_of_another_tensor,
        tanhshrink_scaled,
        squared_gate,
        open_clip,
    ],
)
def test_near_misses_stay(spelling: Spelling) -> None:
    before = _build(spelling)
    after = simplify(before)
    assert after.digest == before.digest or sorted(after.operators()) == sorted(before.operators())
    _same(before, after)
