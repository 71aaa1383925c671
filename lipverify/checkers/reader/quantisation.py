"""Integers in place of real numbers: stored ones are folded, computed ones are what they stand for, rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lipverify.checkers.kernel.arithmetic import held
from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import FLOATS, Builder, Operand, Stored, Value, size_of, weights
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.folding import _finite
from lipverify.checkers.reader.refusals import need

Kind = np.dtype[Any]
_KINDS: tuple[Kind, ...] = tuple(np.dtype(name) for name in ("u1", "i1", "<u2", "<i2"))


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
    shift = np.zeros(values.shape, np.int64) if zero is None else c.stored(2).astype(np.int64)
    need(shift.shape == values.shape and values.ndim <= 1, "scales of another shape")
    if values.ndim == 1 and values.size > 1:
        need(-len(shape) <= axis < len(shape) and shape[axis] == values.size, "scales of another size")
        form = [1] * len(shape)
        form[axis] = values.size
        values, shift = values.reshape(form), shift.reshape(form)
    elif values.ndim == 1:
        need(values.size == 1, "scales of another size")
        values, shift = values.reshape(()), shift.reshape(())
    return values, rounded, shift, None if zero is None else c.stored(2).dtype


def _dequantised(p: Builder, c: Call) -> list[Operand]:
    """(q - zero point) scale."""
    q = c.any(0)
    values, rounded, shift, kind = _scales(c, q.shape)
    scale = c.any(1)
    assert isinstance(scale, Stored)
    need(kind is None or kind == q.kind, "a zero point of another type")
    if isinstance(q, Value):
        need(q.kind in _KINDS, "dequantisation of other numbers")
        y = p.scaled(q, values, rounded, -values * shift)
        return [y._replace(kind=scale.kind)]
    array = q.array
    need(array.dtype.kind in "iu" and array.dtype.itemsize <= 4, "dequantisation of other numbers")
    p.charge(3 * array.size)
    whole = array.astype(np.int64) - shift
    # 29 bits times the 24 of a float32 are a float64.
    exact = scale.kind.itemsize < 8 and bool((np.abs(whole) < 1 << 29).all())
    return [_finite(held(whole * values, whole), scale, rounded + (0 if exact else 1))]


def _quantised(p: Builder, c: Call) -> list[Operand]:
    """round(x / scale) + zero point, ties to even, held in what the integers represent: as what it stands for, over the scale."""
    x = c.value(p, 0)
    values, rounded, shift, kind = _scales(c, x.shape)
    if c.version >= 19:
        need(c.flag("saturate", 1), "integers that wrap around are not covered by the checker")
    if c.version >= 23:
        need(c.integer("precision", 0) == 0, "another precision is not covered by the checker")
    told = np.dtype("u1") if kind is None else kind
    need(told in _KINDS and x.kind in FLOATS, "quantisation of other numbers")
    need(c.any(1).kind == x.kind and rounded == 0, "quantisation by scales of another type")
    ends = np.iinfo(told)
    # With one zero point for all; where there are several each has ends of its own.
    need(bool((shift == shift.reshape(-1)[0]).all()), "several zero points are not covered by the checker")
    zero = int(shift.reshape(-1)[0])
    p.charge(2 * size_of(x.shape))
    steps = np.broadcast_to(values, x.shape).reshape(-1).copy()
    y = p.scalar(x, "Round", {"min": ends.min - zero, "max": ends.max - zero}, steps)
    back = p.scaled(y, 1.0 / np.broadcast_to(values, x.shape), 1, np.full(x.shape, float(zero)))
    return [back._replace(kind=told)]


QUANTISATION: dict[str, tuple[str, Callable[[Builder, Call], list[Operand]]]] = {
    "DequantizeLinear": ("10 13 19 21 23 24 25 !28", _dequantised),
    "QuantizeLinear": ("10 13 19 21 23 24 25 !28", _quantised),
}
"""Between real numbers and integers."""
