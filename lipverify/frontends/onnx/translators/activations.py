"""Scalar activations and softmax. Defaults are those of the ONNX operator definitions."""

from __future__ import annotations

import math

import numpy as np

from lipverify import ops
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower
from lipverify.ir.op import Op
from lipverify.ops.spellings import SPELLINGS

# ONNX stores these defaults as float32.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
_HARD_SIGMOID_ALPHA = float(np.float32(0.2))
_LEAKY_ALPHA = float(np.float32(0.01))


def _register_plain(name: str, op: Op) -> None:
    @lower.register(name)
    def translate(c: Call) -> Value:
        return c.build.elementwise(op, c.value())


for _spelling in SPELLINGS:
    if _spelling.onnx:
        _register_plain(_spelling.onnx, _spelling.op)


@lower.register("Exp")
def _exp(c: Call) -> Value:
    found = c.raw(0)
    if isinstance(found, Masked):  # 0 where its argument is -infinity
        return c.build.times(c.build.elementwise(ops.Exp(), found.value), found.kept.to(c.build.dtype))
    return c.build.elementwise(ops.Exp(), c.value())


@lower.register("LeakyRelu")
def _leaky_relu(c: Call) -> Value:
    return c.build.elementwise(ops.LeakyReLU(c.attribute("alpha", _LEAKY_ALPHA)), c.value())


@lower.register("PRelu")
def _prelu(c: Call) -> Value:
    return c.build.prelu(c.value(), c.stored(1, "slope"))


@lower.register("Elu")
def _elu(c: Call) -> Value:
    return c.build.elementwise(ops.ELU(c.attribute("alpha", 1.0)), c.value())


@lower.register("Selu")
def _selu(c: Call) -> Value:
    alpha, gamma = c.attribute("alpha", _SELU_ALPHA), c.attribute("gamma", _SELU_GAMMA)
    return c.build.elementwise(ops.SELU(alpha, gamma), c.value())


@lower.register("Celu")
def _celu(c: Call) -> Value:
    alpha = c.attribute("alpha", 1.0)
    if alpha <= 0:
        raise c.refuse(f"alpha {alpha} is not positive")
    return c.build.elementwise(ops.CELU(alpha), c.value())


@lower.register("HardSigmoid")
def _hard_sigmoid(c: Call) -> Value:
    op = ops.Hardsigmoid(c.attribute("alpha", _HARD_SIGMOID_ALPHA), c.attribute("beta", 0.5))
    return c.build.elementwise(op, c.value())


@lower.register("Gelu")
def _gelu(c: Call) -> Value:
    tanh = c.choice("approximate", "none", "none", "tanh") == "tanh"
    return c.build.elementwise(ops.GELU(tanh=tanh), c.value())


@lower.register("ThresholdedRelu")
def _thresholded_relu(c: Call) -> Value:
    alpha = c.attribute("alpha", 1.0)
    if alpha != 0:
        raise c.refuse(f"jumps by {alpha:g} at its threshold, so it is not continuous", "use Relu")
    return c.build.elementwise(ops.ReLU(), c.value())


@lower.register("Shrink")
def _shrink(c: Call) -> Value:
    bias, limit = c.attribute("bias", 0.0), c.attribute("lambd", 0.5)
    if bias != limit or limit < 0:
        raise c.refuse(
            f"jumps at its threshold {limit:g} (bias {bias:g}), so it is not continuous", "use equal numbers"
        )
    if limit == 0:
        return c.value()
    return c.build.elementwise(ops.PiecewiseLinear((-limit, limit), (1.0, 0.0, 1.0), 0.0), c.value())


@lower.register("Clip")
def _clip(c: Call) -> Value:
    if c.version < 11:
        low, high = c.attribute("min"), c.attribute("max")
    else:
        if isinstance(c.raw(1), Value) or isinstance(c.raw(2), Value):
            return _clip_by_values(c)
        low, high = c.scalar(1, "min"), c.scalar(2, "max")
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if math.isnan(low) or math.isnan(high) or low == math.inf or high == -math.inf:
        raise c.invalid(f"impossible limits {low}, {high}")
    # min(max(x, low), high), in this order: with low > high everything becomes high.
    if low <= high:
        return c.build.elementwise(ops.Clip(low, high), c.value())
    return c.build.elementwise(
        ops.Clip(-math.inf, high), c.build.elementwise(ops.Clip(low, math.inf), c.value())
    )


def _clip_by_values(c: Call) -> Value:
    result = c.operand(0)
    if c.raw(1) is not None:
        result = c.build.maximum(result, c.operand(1))
    return c.build.minimum(result, c.operand(2)) if c.raw(2) is not None else result  # type: ignore[return-value]


def _register_softmax(name: str, kind: type[Op]) -> None:
    @lower.register(name)
    def translate(c: Call) -> Value:
        found, b = c.raw(0), c.build
        if isinstance(found, Masked) and kind is ops.Softmax:
            rank = len(found.source_shape)
            axis = forms.normalised(c, c.attribute("axis", -1 if c.version >= 13 else 1), rank)
            if c.version < 13 and math.prod(found.source_shape[axis + 1 :]) != 1:
                raise c.refuse(
                    "several axes that hold -infinity are not covered as one", "use opset_version 13"
                )
            return b.masked_softmax(found, axis)
        x = c.value()
        axis = forms.normalised(c, c.attribute("axis", -1 if c.version >= 13 else 1), x.rank)
        if c.version >= 13 or math.prod(x.source_shape[axis + 1 :]) == 1:
            return b.along(kind, x, axis)
        # Below operator set 13 all axes from this one on are one.
        flat = b.flatten(x, axis, x.rank - 1)
        return b.reshape(b.along(kind, flat, axis), x.source_shape)


_register_softmax("Softmax", ops.Softmax)
_register_softmax("LogSoftmax", ops.LogSoftmax)
