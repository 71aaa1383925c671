"""Addition, multiplication, division, powers and maxima of two tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Masked, Operand, Value
from lipverify.frontends.building.choices import Condition, Gated, Sign, gated, signed, ungated
from lipverify.frontends.building.pairs import Pairs, product
from lipverify.frontends.building.window_norms import rooted_windows
from lipverify.frontends.torch_export.lowering import INFINITE, Lowerer
from lipverify.frontends.torch_export.registry import lower


def scaled(b: Lowerer, x: Operand, factor: Any) -> Operand:
    """factor * x for a number of the program."""
    if factor == 1:
        return x
    number = b.number(factor)
    return b.held(x * number, x, number) if isinstance(x, Tensor) else b.times(x, number)


@lower.register("aten.add")
def _add(b: Lowerer, x: Any, other: Any, alpha: Any = 1) -> Value | Masked:
    if isinstance(x, Gated) and isinstance(other, Gated) and alpha == 1:
        return ungated(b, x, other)
    (x, kept), (other, hidden) = b.extended(x), b.extended(other)
    if hidden is not None and not float(alpha) > 0:
        raise b.refuse(INFINITE, (x, other))
    return b.masked(b.plus(x, scaled(b, other, alpha)), kept, hidden)


@lower.register("aten.sub", "aten.subtract")
def _sub(b: Lowerer, x: Any, other: Any, alpha: Any = 1) -> Value:
    return b.minus(b.operand(x), scaled(b, b.operand(other), alpha))


@lower.register("aten.rsub")
def _rsub(b: Lowerer, x: Any, other: Any, alpha: Any = 1) -> Value:
    return b.minus(b.operand(other), scaled(b, b.operand(x), alpha))


@lower.register("aten.mul", "aten.multiply")
def _mul(b: Lowerer, x: Any, other: Any) -> Value | Gated | Pairs:
    if isinstance(x, Condition):
        x, other = other, x
    if isinstance(other, Condition):
        return gated(b, b.operand(x), other)
    if isinstance(x, Sign) or isinstance(other, Sign):
        sign, factor = (x, other) if isinstance(x, Sign) else (other, x)
        return signed(b, sign, b.operand(factor))
    if isinstance(x, Pairs) or isinstance(other, Pairs):
        return product(b, *(f if _complex(f) else b.operand(f) for f in (x, other)))
    return b.times(b.operand(x), b.operand(other))


def _complex(x: Any) -> bool:
    return isinstance(x, Pairs) or (isinstance(x, Tensor) and x.is_complex())


@lower.register("aten.view_as_complex")
def _view_as_complex(b: Lowerer, x: Value) -> Pairs:
    return Pairs(x)


@lower.register("aten.complex")
def _of_parts(b: Lowerer, real: Any, imag: Any) -> Pairs:
    parts = [b.expand(b.value(part), b.sizes()) for part in (real, imag)]
    return Pairs(b.concat([b.unsqueeze(part, [part.rank]) for part in parts], parts[0].rank))


@lower.register("aten.view_as_real")
def _view_as_real(b: Lowerer, x: Pairs) -> Value:
    return x.value


@lower.register("aten.real", "aten.imag")
def _part(b: Lowerer, x: Any) -> Value:
    if not isinstance(x, Pairs):
        return b.value(x)
    entry = 1 if b.what.endswith("imag") else 0
    v = x.value
    return b.squeeze(b.gather(v, v.rank - 1, torch.tensor([entry])), [v.rank - 1])


@lower.register("aten.div", "aten.divide", "aten.true_divide")
def _div(b: Lowerer, x: Any, other: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        raise b.refuse(f"rounds its quotient ({rounding_mode}), so it is not continuous")
    return b.over(b.operand(x), b.operand(other))


@lower.register("aten.neg", "aten.negative")
def _neg(b: Lowerer, x: Value) -> Value:
    return b.negative(x)


@lower.register("aten.pow.Tensor_Scalar")
def _pow(b: Lowerer, x: Value, exponent: Any) -> Value:
    power = float(b.number(exponent))
    if power == 0:
        raise b.refuse("a power 0 does not depend on its input", (x,), "remove it")
    return rooted_windows(b, x, power) or (x if power == 1 else b.elementwise(ops.Power(power), x))


@lower.register("aten.sign", "aten.sgn")
def _sign(b: Lowerer, x: Value) -> Sign:
    return Sign(x)


@lower.register("aten.maximum", "aten.max.other")
def _maximum(b: Lowerer, x: Any, other: Any) -> Value:
    return b.maximum(b.operand(x, infinite=True), b.operand(other, infinite=True))


@lower.register("aten.minimum", "aten.min.other")
def _minimum(b: Lowerer, x: Any, other: Any) -> Value:
    return b.minimum(b.operand(x, infinite=True), b.operand(other, infinite=True))
