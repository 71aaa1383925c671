"""onnxruntime's operators on integers that stand for real numbers: these go through the operator of ONNX, and are rounded."""

from __future__ import annotations

import math

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.activations import ACTIVATIONS
from lipverify.checkers.reader.building import Builder, Stored, Value
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.folding import multiplied
from lipverify.checkers.reader.groups import GROUPS
from lipverify.checkers.reader.layers import LAYERS
from lipverify.checkers.reader.moves import Results, Run, axis_of, concat
from lipverify.checkers.reader.quantisation import (
    KINDS,
    REAL,
    centred,
    factor,
    folded,
    requantised,
    whole_numbers,
    zero_point,
)
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.sums import SUMS

_PREFIX = "com.microsoft.QLinear"
_OPERANDS = {
    "Add": 2, "Mul": 2, "Sigmoid": 1, "LeakyRelu": 1, "AveragePool": 1, "GlobalAveragePool": 1, "Softmax": 1,
}  # fmt: skip
"""Operator of ONNX -> how many operands, each of them followed by its scale and its zero point; then those of the result."""


def _between(p: Builder, c: Call) -> Results:
    """round(f(s (q - z) ...) / scale) + zero point."""
    name = c.op.removeprefix(_PREFIX)
    last = 3 * _OPERANDS[name]
    if name.endswith("Pool"):
        need(not c.flag("channels_last", 0), "channels that come last are not covered by the checker")
    version = c.integer("opset", None) if name == "Softmax" else c.version
    # What is left out is the last axis for this operator, whatever its operator set says; for ONNX's it may be the second.
    need(name != "Softmax" or c.has("axis"), "a softmax of integers without an axis")
    scale, zero = _result(c, last)
    operands = [_meant(p, c, 3 * k) for k in range(_OPERANDS[name])]
    if name == "Softmax":
        # onnxruntime gives other numbers than 1 where every group is one entry.
        axis, shape = c.sees("axis"), operands[0].shape
        need(type(axis) is int, "an axis of another type")
        axis = axis_of(axis, len(shape))
        need(
            math.prod(shape[axis:] if version < 13 else shape[axis : axis + 1]) > 1,
            "a softmax of integers over one entry is not covered by the checker",
        )
    need(
        all(c.any(3 * k).kind == zero.dtype for k in range(_OPERANDS[name])),
        "a zero point of another type",
    )
    (_, run) = (ACTIVATIONS | GROUPS | LAYERS | SUMS)[name]
    found = run(p, c.continued(operands, name, version))[0]
    assert isinstance(found, Value)
    return [requantised(p, found, scale, zero.astype(np.int64).reshape(()), zero.dtype)]


def _joined(p: Builder, c: Call) -> Results:
    """Operands of the scale and zero point of the result as they are, others rounded to it; side by side."""
    count = len(c.operands)
    need(count >= 5 and count % 3 == 2, "an operator of integers without all of its scales")
    scale, zero = _result(c, 0)
    parts: list[Value | Stored] = []
    for place in range(2, count, 3):
        x, q = _meant(p, c, place), c.any(place)
        need(q.kind == zero.dtype, "a zero point of another type")
        shift = zero.astype(np.int64).reshape(())
        same = zero_point(c, place + 2, q.kind) == int(shift) and bool((factor(c, place + 1) == scale).all())
        if same:
            parts.append(q)
        elif isinstance(x, Stored):
            parts.append(folded(p, x, scale, shift, zero.dtype))
        else:
            parts.append(requantised(p, x, scale, shift, zero.dtype))
    need(any(isinstance(part, Value) for part in parts), "an operator of stored integers alone")
    return concat(p, c.continued(parts, "Concat"))


def _result(c: Call, place: int) -> tuple[Array, Array]:
    """Scale and zero point of the result."""
    need(c.operand(place + 1) is not None, "a result without a zero point is not covered by the checker")
    scale, zero = factor(c, place), c.stored(place + 1)
    need(scale.size == zero.size == 1, "several scales of computed numbers are not covered by the checker")
    need(zero.dtype in KINDS, "integers of another type")
    return scale.reshape(()), zero


def _meant(p: Builder, c: Call, place: int) -> Value | Stored:
    """What integers stand for, which their scale and zero point follow."""
    scale = factor(c, place + 1)
    need(scale.size == 1, "several scales of computed numbers are not covered by the checker")
    q = c.any(place)
    if isinstance(q, Value):
        return p.scaled(centred(p, c, place, place + 2), scale.reshape(()))
    need(q.array.dtype in KINDS, "stored integers of another type")
    p.charge(3 * q.array.size)
    product, more = multiplied(scale.reshape(()), whole_numbers(q.array) - zero_point(c, place + 2, q.kind))
    return Stored(product, REAL, more)


INTEGERS: dict[str, tuple[str, Run]] = {
    **{_PREFIX + name: ("1", _between) for name in _OPERANDS},
    f"{_PREFIX}Concat": ("1", _joined),
}
