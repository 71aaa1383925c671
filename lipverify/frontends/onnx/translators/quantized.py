"""Quantised models as functions of real numbers: the integers they compute with are values like any other.

An integer stands for scale * (integer - zero point). `QuantizeLinear` limits to what integers represent and rounds; products of
integers are exact; scales are exact products of what is stored. What runtimes round besides (requantisation in single precision)
is covered by how `ops.Quantize` treats ties.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.registry import lower
from lipverify.frontends.onnx.translators.linear_maps import convolution, product

INTEGERS = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767), "uint4": (0, 15), "int4": (-8, 7),
}  # fmt: skip
"""Types that rounding may end in, with their ends."""
_CODES = {0: "uint8", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4"}
_FLOATING = "export the model with integers of 4, 8 or 16 bits"


@lower.register("QuantizeLinear", "com.microsoft::QuantizeLinear")
def _quantize_linear(c: Call) -> Value:
    if c.attribute("block_size", 0):
        raise c.refuse("quantises computed numbers in blocks", "use one scale")
    kind = _CODES.get(c.attribute("output_dtype", 0))
    if c.raw(2) is not None:
        kind = c.array(2, "zero point").dtype.name
    if kind not in INTEGERS:
        raise c.refuse(f"quantises to {kind or 'another type'}", _FLOATING)
    return _rounded(c, c.value(), _scale(c, 1), _zero(c, 2), *INTEGERS[kind])


def _rounded(c: Call, x: Value, step: float, zero: int, low: int, high: int) -> Value:
    """The integers of x, saturated first: both ends are products of a float32 number and a short integer, exact in float64."""
    held = c.build.elementwise(ops.Clip(step * (low - zero), step * (high - zero)), x)
    return c.build.elementwise(ops.Quantize(step, zero), held)


@lower.register("DequantizeLinear", "com.microsoft::DequantizeLinear")
def _dequantize_linear(c: Call) -> Value:
    x, scale = c.value(), c.stored(1, "scale")
    if c.attribute("block_size", 0):
        raise c.refuse("dequantises computed numbers in blocks", "use one scale, or one for each channel")
    zero = None if c.raw(2) is None else c.array(2, "zero point").astype(np.int64)
    if scale.numel() > 1:
        shape = [1] * x.rank
        shape[forms.normalised(c, c.attribute("axis", 1), x.rank)] = -1
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    shifted = x if zero is None or not zero.any() else c.build.minus(x, _real(zero))
    return c.build.times(shifted, scale)


@lower.register("ConvInteger")
def _conv_integer(c: Call) -> Value:
    x = _centred(c, c.value(), _zero(c, 2))
    return convolution(replace(c, inputs=(x, _weights(c, 1, 3, 0))))


@lower.register("MatMulInteger")
def _matmul_integer(c: Call) -> Value:
    x = _centred(c, c.value(), _zero(c, 2))
    return product(replace(c, inputs=(x, _weights(c, 1, 3, -1))))


@lower.register("QLinearConv")
def _qlinear_conv(c: Call) -> Value:
    x = _centred(c, c.value(), _zero(c, 2))
    bias = () if c.raw(8) is None else (_exact(c.array(8, "bias")),)
    found = convolution(replace(c, inputs=(x, _weights(c, 3, 5, 0), *bias)))
    scales = c.stored(4, "scale of the weight").reshape(-1)
    if scales.numel() not in (1, found.source_shape[1]):
        raise c.invalid(f"{scales.numel()} scales for {found.source_shape[1]} channels")
    scales = scales.reshape(1, -1, *(1,) * (found.rank - 2)) if scales.numel() > 1 else scales.reshape(())
    return _requantised(c, _scaled(c, found, scales), 6)


@lower.register("QLinearMatMul")
def _qlinear_matmul(c: Call) -> Value:
    x = _centred(c, c.value(), _zero(c, 2))
    other = c.raw(3)
    if isinstance(other, Value):
        found = product(replace(c, inputs=(x, _centred(c, other, _zero(c, 5)))))
        _scale(c, 4)
        return _requantised(c, _scaled(c, found, c.stored(4, "scale").reshape(())), 6)
    scales = c.stored(4, "scale of the weight")
    if scales.numel() == 1:
        scales = scales.reshape(())
    elif scales.ndim != 1:
        raise c.refuse(f"scales of shape {list(scales.shape)}", "use one scale, or one for each column")
    found = product(replace(c, inputs=(x, _weights(c, 3, 5, -1))))
    return _requantised(c, _scaled(c, found, scales), 6)


@lower.register("com.microsoft::QGemm")
def _qgemm(c: Call) -> Value:
    """alpha s_a s_b ((A - z_a)(B - z_b) + C), B turned where the flag says so; rounded where the result has a zero point."""
    turned = c.flag("transB")
    x = _centred(c, c.value(), _zero(c, 2))
    weight = _weights(c, 3, 5, 0 if turned else -1)
    if x.rank != 2 or weight.ndim != 2:
        raise c.invalid("it multiplies what are no matrices")
    if c.flag("transA"):
        raise c.refuse("transposes computed numbers", "quantise the model without that transposition")
    scales = c.stored(4, "scale of the weight").reshape(-1)
    rows = torch.from_numpy(weight if turned else weight.T.copy())
    bias = None if c.raw(6) is None else torch.from_numpy(_exact(c.array(6, "bias"))).reshape(-1)
    for numbers, kind in ((scales, "scales"), (bias, "numbers to add")):
        if numbers is not None and numbers.numel() not in (1, len(rows)):
            raise c.invalid(f"{numbers.numel()} {kind} for {len(rows)} columns")
    if bias is not None:
        bias = bias.expand(len(rows)).contiguous()
    found = c.build.linear(x, rows, bias)
    found = _scaled(c, found, scales if scales.numel() > 1 else scales.reshape(()))
    alpha = c.attribute("alpha", 1.0)
    if alpha != 1.0:
        found = c.build.times(found, torch.tensor(alpha, dtype=torch.float32))
    if c.raw(8) is None:
        if c.raw(7) is not None:
            raise c.invalid("it has a scale of its result, and no zero point")
        return found
    return _requantised(c, found, 7)


def _register_between(name: str, operands: int) -> None:
    """An operator of onnxruntime on integers: what they stand for goes through the operator of ONNX, and is rounded."""

    @lower.register(f"com.microsoft::QLinear{name}")
    def translate(c: Call) -> Value:
        if c.flag("channels_last"):
            raise c.refuse("holds its channels last", "quantise without channels_last")
        between = lower.find("", name)
        assert between is not None
        if name == "Softmax" and c.attribute("axis") is None:
            raise c.refuse("says no axis, and readers disagree which one is meant", "write its axis down")
        version = int(c.attribute("opset", 13))  # of Softmax, which says which definition it means
        inputs = tuple(_meant(c, 3 * k) for k in range(operands))
        if name == "Softmax" and _over_one(c, version):
            raise c.refuse(
                "is over one entry, where onnxruntime gives other numbers than 1",
                "store its result, 1, in its place",
            )
        found = between(replace(c, op=name, version=version, inputs=inputs, names=()))
        assert isinstance(found, Value)
        return _requantised(c, found, 3 * operands)


def _over_one(c: Call, version: int) -> bool:
    """Whether every group of a softmax is one entry: along its axis, or before operator set 13 from it on."""
    shape = c.value().source_shape
    axis = forms.normalised(c, c.attribute("axis"), len(shape))
    return math.prod(shape[axis:] if version < 13 else shape[axis : axis + 1]) == 1


for _name, _operands in {
    "Add": 2, "Mul": 2, "Sigmoid": 1, "LeakyRelu": 1, "AveragePool": 1, "GlobalAveragePool": 1, "Softmax": 1,
}.items():  # fmt: skip
    _register_between(_name, _operands)


@lower.register("com.microsoft::QLinearConcat")
def _qlinear_concat(c: Call) -> Value:
    """Integers of the result's scale stay as they are; others are rounded to it, each operand by itself."""
    if len(c.inputs) < 5 or len(c.inputs) % 3 != 2:
        raise c.invalid(
            f"it has {len(c.inputs)} inputs; two for the result and three for each operand belong there"
        )
    told = _scale(c, 0), _zero(c, 1), c.array(1, "zero point of the result").dtype
    parts: list[Value | Stored] = []
    for place in range(2, len(c.inputs), 3):
        own = _scale(c, place + 1), _zero(c, place + 2), c.array(place + 2, "zero point").dtype
        found = c.raw(place)
        meant = _meant(c, place)
        if own == told:
            parts.append(found if isinstance(found, Value) else c.array(place, "operand"))
        elif isinstance(meant, Value):
            parts.append(_requantised(c, meant, 0))
        else:
            parts.append(_stored_integers(c, meant / told[0], told[1], told[2].name))
    join = lower.find("", "Concat")
    assert join is not None
    joined = join(replace(c, op="Concat", inputs=tuple(parts), names=()))
    assert isinstance(joined, Value)
    return joined


def _stored_integers(c: Call, steps: Stored, zero: int, kind: str) -> Stored:
    """Stored numbers of steps as integers; refused near a tie, where it is a matter of a runtime's rounding which one is next."""
    if bool((np.abs(steps - np.floor(steps) - 0.5) <= 1e-6 * (1.0 + np.abs(steps))).any()):
        raise c.refuse("rounds stored numbers half-way between two integers", "round them in the file")
    return np.asarray(np.clip(np.rint(steps) + zero, *INTEGERS[kind]), kind)


def _meant(c: Call, position: int) -> Value | Stored:
    """The real numbers that integers stand for, which are followed by their scale and zero point."""
    found, step, zero = c.raw(position), _scale(c, position + 1), _zero(c, position + 2)
    if isinstance(found, Value):
        return c.build.times(_centred(c, found, zero), c.stored(position + 1, "scale").reshape(()))
    whole = c.array(position, "operand")
    if whole.dtype.name not in INTEGERS:
        raise c.invalid(f"its input {position} has the type {whole.dtype}")
    # A short integer times a number of float32: exact in float64.
    return np.asarray((whole.astype(np.int64) - zero) * step, np.float64)


def _scaled(c: Call, x: Value, scales: torch.Tensor) -> Value:
    """Times the scales of the weight, then that of the input: two operators, because their product is no float32 number."""
    _scale(c, 1)
    return c.build.times(c.build.times(x, scales), c.stored(1, "scale").reshape(()))


def _requantised(c: Call, x: Value, position: int) -> Value:
    if c.raw(position + 1) is None:
        raise c.refuse("has no zero point of its result", "write it, also where it is 0")
    kind = c.array(position + 1, "zero point of the result").dtype.name
    if kind not in INTEGERS:
        raise c.refuse(f"quantises to {kind}", _FLOATING)
    return _rounded(c, x, _scale(c, position), _zero(c, position + 1), *INTEGERS[kind])


def _scale(c: Call, position: int) -> float:
    """One positive scale."""
    found = c.stored(position, "scale")
    if found.numel() != 1:
        raise c.refuse(
            f"quantises computed numbers with {found.numel()} scales", "use one scale for each activation"
        )
    step = float(found.double().reshape(()))
    if not step > 0:
        raise c.invalid(f"its scale is {step}, not positive")
    return step


def _zero(c: Call, position: int) -> int:
    """One zero point, 0 where it is left out."""
    if c.raw(position) is None:
        return 0
    found = c.array(position, "zero point")
    if found.size != 1 or found.dtype.name not in (*INTEGERS, "int32"):
        raise c.refuse(
            f"a zero point {found.dtype} {list(found.shape)}", "use one integer for each activation"
        )
    return int(found.reshape(()))


def _weights(c: Call, position: int, zero: int, axis: int) -> Stored:
    """Stored integers minus their zero point, which may be one for each entry of an axis; exact as float64."""
    found = c.array(position, "weight")
    if found.dtype.name not in INTEGERS:
        raise c.invalid(f"its weight has the type {found.dtype}")
    whole = found.astype(np.int64)
    if c.raw(zero) is not None:
        offset = c.array(zero, "zero point of the weight").astype(np.int64)
        if offset.size > 1:
            if offset.ndim != 1 or offset.size != whole.shape[axis]:
                raise c.refuse(f"zero points of shape {list(offset.shape)}", "use one for each channel")
            shape = [1] * whole.ndim
            shape[axis] = -1
            offset = offset.reshape(shape)
        whole = whole - offset
    return _exact(whole)


def _exact(whole: Stored) -> Stored:
    """Whole numbers in the narrowest floating-point type that holds all of them."""
    large = bool((np.abs(whole.astype(np.int64)) > 1 << 24).any())
    return whole.astype(np.float64 if large else np.float32)


def _centred(c: Call, x: Value, zero: int) -> Value:
    return c.build.minus(x, _real(np.asarray(zero))) if zero else x


def _real(whole: Stored) -> torch.Tensor:
    return torch.from_numpy(np.asarray(whole, np.float32).copy())
