"""Integers in place of real numbers: stored ones are folded, computed ones are what they stand for, rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import (
    FLOATS,
    INT4,
    UINT4,
    Builder,
    Operand,
    Stored,
    Value,
    size_of,
    stored,
    weights,
)
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.folding import finite, multiplied
from lipverify.checkers.reader.matrices import product
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.windows import conv

Kind = np.dtype[Any]
REAL, _SUM = np.dtype("<f4"), np.dtype("<i4")
KINDS: tuple[Kind, ...] = tuple(np.dtype(name) for name in ("u1", "i1", "<u2", "<i2"))


def _scales(c: Call, shape: tuple[int, ...]) -> tuple[Array, int, Array, Kind | None]:
    """Scales and zero points that broadcast to `shape`, roundings behind the scales, and the type of the integers where told."""
    scale, zero = c.any(1), c.operand(2)
    need(isinstance(scale, Stored), "a computed scale is not covered by the checker")
    assert isinstance(scale, Stored)
    axis = c.integer("axis", 1) if c.version >= 13 else 1
    if c.version >= 21:
        need(c.integer("block_size", 0) == 0, "scales of blocks are not covered by the checker")
        need(c.integer("output_dtype", 0) == 0, "another type of results is not covered by the checker")
    values, rounded = weights(scale)
    need(bool((values > 0).all()), "scales that are not positive")
    shift = np.zeros(values.shape, np.int64) if zero is None else whole_numbers(c.stored(2))
    # One number for all may be written as [] or as [1], the scale one way and the zero point the other: exporters of biases do.
    need(
        max(values.ndim, shift.ndim) <= 1 and shift.size == values.size,
        "zero points of another size than scales",
    )
    if values.size > 1:
        need(-len(shape) <= axis < len(shape) and shape[axis] == values.size, "scales of another size")
        form = [1] * len(shape)
        form[axis] = values.size
        values, shift = values.reshape(form), shift.reshape(form)
    else:
        need(values.size == 1, "scales of another size")
        values, shift = values.reshape(()), shift.reshape(())
    return values, rounded, shift, None if zero is None else c.stored(2).dtype


def whole_numbers(array: Array) -> Array:
    """Integers of a type that numpy has, or of four bits."""
    if array.dtype in (INT4, UINT4):
        array = array[(array.dtype.names or ())[0]]
    need(array.dtype.kind in "iu", "zero points or numbers that are no integers")
    return array.astype(np.int64)


def _dequantised(p: Builder, c: Call) -> list[Operand]:
    """(q - zero point) scale."""
    q = c.any(0)
    values, rounded, shift, kind = _scales(c, q.shape)
    scale = c.any(1)
    assert isinstance(scale, Stored)
    need(kind is None or kind == q.kind, "a zero point of another type")
    if isinstance(q, Value):
        need(q.kind in KINDS, "dequantisation of other numbers")
        offset, more = multiplied(values, -shift)
        y = p.scaled(q, values, rounded + more, offset)
        return [y._replace(kind=scale.kind)]
    array = q.array
    narrow = array.dtype in (INT4, UINT4)
    need(
        narrow or (array.dtype.kind in "iu" and array.dtype.itemsize <= 4), "dequantisation of other numbers"
    )
    p.charge(3 * array.size)
    whole = whole_numbers(array) - shift
    product, more = multiplied(values, whole)
    return [finite(product, scale, rounded + more)]


def _quantised(p: Builder, c: Call) -> list[Operand]:
    """round(x / scale) + zero point, ties to even, held in what the integers represent: as what it stands for, over the scale."""
    x = c.any(0)
    values, rounded, shift, kind = _scales(c, x.shape)
    if c.version >= 19:
        need(c.flag("saturate", 1), "integers that wrap around are not covered by the checker")
    if c.version >= 23:
        need(c.integer("precision", 0) == 0, "another precision is not covered by the checker")
    told = np.dtype("u1") if kind is None else kind
    need(told in KINDS and x.kind in FLOATS, "quantisation of other numbers")
    need(c.any(1).kind == x.kind and rounded == 0, "quantisation by scales of another type")
    return [
        folded(p, x, values, shift, told) if isinstance(x, Stored) else requantised(p, x, values, shift, told)
    ]


def folded(p: Builder, x: Stored, values: Array, shift: Array, told: Kind) -> Stored:
    """Stored numbers as integers; refused near a tie, where it is a matter of a runtime's rounding which one is next."""
    array, rounded = weights(x)
    need(rounded == 0, "quantisation of stored numbers that are rounded is not covered by the checker")
    p.charge(4 * array.size)
    steps = array / values
    need(bool((np.abs(steps) < 1 << 20).all()), "stored numbers far beyond what integers represent")
    apart = np.abs(steps - np.floor(steps) - 0.5)
    need(bool((apart > 1e-6 * (1.0 + np.abs(steps))).all()), "stored numbers half-way between two integers")
    ends = np.iinfo(told)
    return stored(np.clip(np.rint(steps).astype(np.int64) + shift, ends.min, ends.max).astype(told))


def requantised(p: Builder, x: Value, values: Array, shift: Array, told: Kind) -> Value:
    ends = np.iinfo(told)
    # With one zero point for all; where there are several each has ends of its own.
    need(bool((shift == shift.reshape(-1)[0]).all()), "several zero points are not covered by the checker")
    zero = int(shift.reshape(-1)[0])
    p.charge(2 * size_of(x.shape))
    steps = np.broadcast_to(values, x.shape).reshape(-1).copy()
    y = p.scalar(x, "Round", {"min": ends.min - zero, "max": ends.max - zero}, steps)
    back = p.scaled(y, 1.0 / np.broadcast_to(values, x.shape), 1, np.full(x.shape, float(zero)))
    return back._replace(kind=told)


def centred(p: Builder, c: Call, place: int, zero: int) -> Value:
    """Computed integers less their zero point, as real numbers."""
    q = c.any(place)
    need(
        isinstance(q, Value) and q.kind in KINDS[:2],
        "products of other numbers are not covered by the checker",
    )
    assert isinstance(q, Value)
    return p.scaled(q, 1.0, 0, np.array(-float(zero_point(c, zero, q.kind))))._replace(kind=REAL)


def zero_point(c: Call, place: int, kind: np.dtype[Any]) -> int:
    """One zero point of integers of this type, 0 where it is left out."""
    if c.operand(place) is None:
        return 0
    zero = c.stored(place)
    need(zero.dtype == kind and zero.size == 1, "a zero point of another type")
    return int(zero.reshape(()))


def _matrix(p: Builder, c: Call, place: int, zero: int, axis: int) -> Stored:
    """Stored integers less their zero points, one or as many as there are along an axis, as real numbers."""
    q = c.stored(place)
    need(q.dtype in KINDS[:2] and q.ndim >= 2, "products of other numbers are not covered by the checker")
    p.charge(3 * q.size)
    whole = q.astype(np.int64)
    if c.operand(zero) is not None:
        shift = c.stored(zero)
        need(shift.dtype == q.dtype and shift.ndim <= 1, "a zero point of another type")
        need(shift.size in (1, q.shape[axis]), "zero points of another size")
        form = [1] * q.ndim
        form[axis] = shift.size
        whole = whole - shift.astype(np.int64).reshape(form)
    terms = np.abs(whole).sum(tuple(k for k in range(q.ndim) if k != axis % q.ndim))
    # What a sum can be, with what is added behind it: beyond 31 bits integers wrap around.
    need(
        bool((terms < 1 << 22).all()), "sums of integers that may wrap around are not covered by the checker"
    )
    return Stored(whole.astype(np.float64), REAL)


def _convolved(p: Builder, c: Call) -> list[Operand]:
    x, weight = centred(p, c, 0, 2), _matrix(p, c, 1, 3, 0)
    return [conv(p, c.continued([x, weight]))[0]._replace(kind=_SUM)]


def _multiplied(p: Builder, c: Call) -> list[Operand]:
    return [product(p, centred(p, c, 0, 2), _matrix(p, c, 1, 3, -1))._replace(kind=_SUM)]


def _linear(p: Builder, c: Call) -> list[Operand]:
    """Integers, their product with stored ones, over the scale of the result, rounded: QLinearConv and QLinearMatMul."""
    image = c.op == "QLinearConv"
    x = centred(p, c, 0, 2)
    computed = not image and isinstance(c.any(3), Value)
    weight = _of_sum(x, centred(p, c, 3, 5)) if computed else _matrix(p, c, 3, 5, 0 if image else -1)
    first, second, last = (factor(c, k) for k in (1, 4, 6))
    need(first.size == last.size == 1, "several scales of computed numbers are not covered by the checker")
    zero, told = c.stored(7), c.stored(7).dtype
    need(told in KINDS[:2] and zero.size == 1, "a zero point of another type")
    operands: list[Operand] = [x, weight]
    if image and c.operand(8) is not None:
        operands.append(Stored(_bias(c, 8), REAL))
    y = conv(p, c.continued(operands))[0] if image else product(p, x, weight)
    axis = 1 if image else -1
    need(second.size == 1 or (not computed and second.size == y.shape[axis]), "scales of another size")
    form = [1] * len(y.shape)
    form[axis] = second.size
    y = p.scaled(y, *multiplied(second.reshape(form), float(first.reshape(()))))
    return [requantised(p, y, last.reshape(()), zero.astype(np.int64).reshape(()), told)]


def _of_sum(x: Value, y: Value) -> Value:
    """y, if sums of products with it are integers of 31 bits."""
    need(
        y.places.ndim >= 2 and x.places.ndim >= 2 and x.shape[-1] < 1 << 14,
        "sums of integers that may wrap around are not covered by the checker",
    )
    return y


def _gemm(p: Builder, c: Call) -> list[Operand]:
    """alpha s t ((A - a) (B - b) + C), s and t the scales of A and B, over the scale of the result, rounded; or as it is."""
    need(not c.flag("transA", 0), "computed integers that are turned are not covered by the checker")
    turned = c.flag("transB", 0)
    x, weight = centred(p, c, 0, 2), _matrix(p, c, 3, 5, 0 if turned else -1)
    need(len(x.shape) == weight.array.ndim == 2, "a Gemm of tensors that are no matrices")
    y = product(p, x, weight._replace(array=weight.array.T) if turned else weight)
    if c.operand(6) is not None:
        bias = _bias(c, 6)
        need(np.broadcast_shapes(bias.shape, y.shape) == y.shape, "a bias of another size")
        y = p.scaled(y, 1.0, 0, bias)
    first, second = factor(c, 1), factor(c, 4)
    need(first.size == 1, "several scales of computed numbers are not covered by the checker")
    need(second.size in (1, y.shape[1]), "scales of another size")
    y = p.scaled(y, *multiplied(second.reshape(1, -1), float(first.reshape(()))))
    y = p.scaled(y, c.number("alpha", 1.0))
    if c.operand(8) is None:
        need(c.operand(7) is None, "a scale of the result without its zero point")
        return [y._replace(kind=REAL)]
    last, zero, told = factor(c, 7), c.stored(8), c.stored(8).dtype
    need(last.size == 1, "several scales of computed numbers are not covered by the checker")
    need(told in KINDS[:2] and zero.size == 1, "a zero point of another type")
    return [requantised(p, y, last.reshape(()), zero.astype(np.int64).reshape(()), told)]


def _bias(c: Call, place: int) -> Array:
    """Integers that are added to a product, as real numbers."""
    array = c.stored(place)
    need(
        array.dtype == np.dtype("<i4") and bool((np.abs(array.astype(np.int64)) < 1 << 30).all()),
        "a bias of other numbers",
    )
    return array.astype(np.float64)


def factor(c: Call, place: int) -> Array:
    """Positive scales of float32, exactly."""
    values = c.reals(place, REAL)
    need(values.ndim <= 1 and bool((values > 0).all()), "scales that are not positive")
    return values


QUANTISATION: dict[str, tuple[str, Callable[[Builder, Call], list[Operand]]]] = {
    "DequantizeLinear": ("10 13 19 21 23 24 25 !28", _dequantised),
    "QuantizeLinear": ("10 13 19 21 23 24 25 !28", _quantised),
    "ConvInteger": ("10", _convolved),
    "MatMulInteger": ("10", _multiplied),
    "QLinearConv": ("10", _linear),
    "QLinearMatMul": ("10 21", _linear),
    "com.microsoft.QGemm": ("1", _gemm),
    # As in ONNX; quantisers write these for integers of 16 bits, which older operator sets lack.
    "com.microsoft.DequantizeLinear": ("1", _dequantised),
    "com.microsoft.QuantizeLinear": ("1", _quantised),
}
"""Between real numbers and integers, and products of integers."""
