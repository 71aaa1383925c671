"""Scalar activations. Argument names and defaults are those of torch's operator schemas."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.op import Op
from lipverify.ops.spellings import SPELLINGS


def _register_plain(name: str, op: Op) -> None:
    @lower.register(f"aten.{name}")
    def translate(b: Lowerer, x: Value) -> Value:
        return b.elementwise(op, x)


for _spelling in SPELLINGS:
    for _name in _spelling.aten:
        _register_plain(_name, _spelling.op)


@lower.register("aten.softshrink")
def _softshrink(b: Lowerer, x: Value, lambd: float = 0.5) -> Value:
    limit = float(lambd)
    return x if limit == 0 else b.elementwise(ops.PiecewiseLinear((-limit, limit), (1.0, 0.0, 1.0), 0.0), x)


@lower.register("aten.hardshrink")
def _hardshrink(b: Lowerer, x: Value, lambd: float = 0.5) -> Value:
    if lambd != 0:
        raise b.refuse(
            f"jumps by {lambd:g} where its argument is {lambd:g} or {-lambd:g}, so it is not continuous",
            (x,),
            "use softshrink",
        )
    return x


@lower.register("aten.log1p", "aten.special_log1p")
def _log1p(b: Lowerer, x: Value) -> Value:
    return b.elementwise(ops.Log(), b.plus(x, b.number(1.0)))


@lower.register("aten.erfc", "aten.special_erfc")
def _erfc(b: Lowerer, x: Value) -> Value:
    return b.minus(b.number(1.0), b.elementwise(ops.Erf(), x))


@lower.register("aten.log_sigmoid_forward")
def _log_sigmoid_forward(b: Lowerer, x: Value) -> tuple[Value]:
    return (b.elementwise(ops.LogSigmoid(), x),)


@lower.register("aten.leaky_relu")
def _leaky_relu(b: Lowerer, x: Value, negative_slope: float = 0.01) -> Value:
    return b.elementwise(ops.LeakyReLU(float(negative_slope)), x)


@lower.register("aten.rrelu")
def _rrelu(
    b: Lowerer,
    x: Value,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Value:
    if training:
        raise b.refuse("draws random slopes", (x,), "call module.eval() first")
    return b.elementwise(ops.LeakyReLU((lower + upper) / 2), x)


@lower.register("aten.prelu", "aten._prelu_kernel")
def _prelu(b: Lowerer, x: Value, weight: Any) -> Value:
    slope = b.stored(weight, "slope")
    if slope.ndim == 1 and slope.numel() > 1:  # one slope for each channel, which is axis 1
        slope = slope.reshape(-1, *(1,) * (x.rank - 2))
    return b.prelu(x, slope.reshape(()) if slope.numel() == 1 else slope)


@lower.register("aten.elu")
def _elu(b: Lowerer, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale != 1:
        raise b.refuse(f"ELU with input scale {input_scale}", (x,))
    result = b.elementwise(ops.ELU(float(alpha)), x)
    return result if scale == 1 else b.times(result, b.number(scale))


@lower.register("aten.celu")
def _celu(b: Lowerer, x: Value, alpha: float = 1.0) -> Value:
    return b.elementwise(ops.CELU(float(alpha)), x)


@lower.register("aten.gelu")
def _gelu(b: Lowerer, x: Value, *, approximate: str = "none") -> Value:
    return b.elementwise(ops.GELU(tanh=approximate == "tanh"), x)


@lower.register("aten.softplus")
def _softplus(b: Lowerer, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta <= 0:
        raise b.refuse(f"Softplus with beta {beta}", (x,), "beta is a positive number")
    # torch returns x itself where beta x > threshold: a jump of log(1 + exp(-threshold)) / beta.
    jump = math.log1p(math.exp(-threshold)) / beta
    if threshold < 20:
        raise b.refuse(
            f"Softplus with threshold {threshold} jumps by {jump:.2g} there, so it is not continuous",
            (x,),
            "use the default threshold 20",
        )
    remark = (
        f"Softplus is certified without torch's switch to the identity at {threshold:g}, a jump of {jump:.2g}"
    )
    if remark not in b.notes:
        b.notes.append(remark)
    return b.elementwise(ops.Softplus(float(beta)), x)


@lower.register("aten.hardtanh")
def _hardtanh(b: Lowerer, x: Value, min_val: float = -1, max_val: float = 1) -> Value:
    return b.elementwise(ops.Clip(float(min_val), float(max_val)), x)


@lower.register("aten.clamp", "aten.clip")
def _clamp(b: Lowerer, x: Any, min: Any = None, max: Any = None) -> Value:
    # With both ends given torch computes min(max(x, low), high), in this order.
    if isinstance(x, Value) and not any(isinstance(end, (Value, Tensor)) for end in (min, max)):
        low = -math.inf if min is None else float(min)
        high = math.inf if max is None else float(max)
        if low <= high:
            return b.elementwise(ops.Clip(low, high), x)
    result: Any = b.operand(x)
    result = result if min is None else b.maximum(result, b.operand(min, infinite=True))
    return result if max is None else b.minimum(result, b.operand(max, infinite=True))


@lower.register("aten.clamp_min")
def _clamp_min(b: Lowerer, x: Any, min: Any) -> Value:
    return _clamp(b, x, min)


@lower.register("aten.clamp_max")
def _clamp_max(b: Lowerer, x: Any, max: Any) -> Value:
    return _clamp(b, x, None, max)


@lower.register("aten.threshold")
def _threshold(b: Lowerer, x: Value, threshold: float, value: float) -> Value:
    if threshold != value:
        raise b.refuse(f"jumps from {value} to {threshold}, so it is not continuous", (x,))
    return b.elementwise(ops.Clip(float(threshold), math.inf), x)


@lower.register("aten.rsqrt")
def _rsqrt(b: Lowerer, x: Value) -> Value:
    return b.elementwise(ops.Reciprocal(), b.elementwise(ops.Sqrt(), x))


@lower.register("aten.expm1")
def _expm1(b: Lowerer, x: Value) -> Value:
    return b.plus(b.elementwise(ops.Exp(), x), torch.tensor(-1.0, dtype=torch.float64))


@lower.register("aten.glu")
def _glu(b: Lowerer, x: Value, dim: int = -1) -> Value:
    half = x.source_shape[dim % x.rank] // 2
    gate = b.elementwise(ops.Sigmoid(), b.slice(x, dim, half, 2 * half))
    return b.times(b.slice(x, dim, 0, half), gate)
