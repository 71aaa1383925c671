"""Norms, soft maxima and softmax with a mask written out in operators whose derivatives have ranges.

Each replacement computes the same real function: every constant in it is a whole number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lipverify import ops
from lipverify.interpreter import infer_shape
from lipverify.ir.graph import Node
from lipverify.ir.op import Op, Shape

LARGEST = 1 << 20
"""Numbers in one written-out tensor: a softmax of n entries has n^2 differences."""

Emit = Callable[[Op, tuple[str, ...], Shape, str | None], str]


def spelled(node: Node, shapes: list[Shape], emit: Emit) -> bool:
    """Emits nodes that compute what a node does, the last one under its name; false where there is no other spelling."""
    op, pen = node.op, _Pen(node, dict(zip(node.inputs, shapes, strict=True)), emit)
    if isinstance(op, ops.ReduceNorm) and op.order == 2:
        total = pen.put(ops.ReduceSum(op.axes, op.keepdims), pen.put(ops.Power(2.0), node.inputs[0]))
        pen.put(ops.Sqrt(), total, last=True)
    elif isinstance(op, ops.Normalize) and op.order <= 2:
        x = node.inputs[0]
        if op.order == 1:
            size = pen.put(ops.ReduceSum(op.axes, True), pen.put(ops.Abs(), x))
        else:
            size = pen.put(ops.Sqrt(), pen.put(ops.ReduceSum(op.axes, True), pen.put(ops.Power(2.0), x)))
        pen.put(ops.Div(), x, pen.put(ops.Expand(shapes[0]), size), last=True)
    elif isinstance(op, ops.ReduceLogSumExp):
        _log_sum_exp(op, pen)
    elif isinstance(op, ops.LogSoftmax | ops.MaskedSoftmax):
        if math.prod(shapes[0]) * shapes[0][op.axis] > LARGEST:
            return False
        _softmax(op, pen)
    else:
        return False
    return True


class _Pen:
    """Writes nodes one after another and knows their shapes."""

    def __init__(self, node: Node, shapes: dict[str, Shape], emit: Emit) -> None:
        self.node, self.shapes, self._emit = node, shapes, emit

    def put(self, op: Op, *inputs: str, last: bool = False) -> str:
        shape = infer_shape(op, tuple(self.shapes[name] for name in inputs))
        name = self._emit(op, inputs, shape, self.node.name if last else None)
        self.shapes[name] = shape
        return name

    def moved(self, name: str, axis: int) -> tuple[str, tuple[int, ...]]:
        """The tensor with this axis last, and the order that undoes it."""
        rank = len(self.shapes[name])
        order = (*(a for a in range(rank) if a != axis), axis)
        back = tuple(order.index(a) for a in range(rank))
        return (name if axis == rank - 1 else self.put(ops.Transpose(order), name)), back


def _log_sum_exp(op: ops.ReduceLogSumExp, pen: _Pen) -> None:
    """x_1 + log of the sum of exp(x_j - x_1)."""
    x = pen.node.inputs[0]
    shape = pen.shapes[x]
    first = x
    for axis in op.axes:
        first = pen.put(ops.Slice(axis, 0, 1), first)
    gaps = pen.put(ops.Sub(), x, pen.put(ops.Expand(shape), first))
    total = pen.put(ops.ReduceSum(op.axes, op.keepdims), pen.put(ops.Exp(), gaps))
    base = pen.put(ops.Reshape(pen.shapes[total]), first)
    pen.put(ops.Add(), base, pen.put(ops.Log(), total), last=True)


def _softmax(op: ops.LogSoftmax | ops.MaskedSoftmax, pen: _Pen) -> None:
    """Entry i is 1 over the sum of exp(x_j - x_i) over all j; its logarithm is minus the logarithm of that sum."""
    x, back = pen.moved(pen.node.inputs[0], op.axis)
    *lead, n = pen.shapes[x]
    differences = torch.zeros(n, n, n, dtype=torch.float64)
    rows = torch.arange(n)
    differences[:, rows, rows] += 1.0
    differences[rows, :, rows] -= 1.0
    gaps = pen.put(ops.Linear(differences.reshape(n * n, n), None), x)
    terms = pen.put(ops.Exp(), pen.put(ops.Reshape((*lead, n, n)), gaps))
    kept = None
    if isinstance(op, ops.MaskedSoftmax):
        kept = op.kept.movedim(op.axis, -1).to(torch.float64)
        terms = pen.put(ops.Scale(kept.unsqueeze(-2), None), terms)
    total = pen.put(ops.ReduceSum((len(lead) + 1,), False), terms)
    if isinstance(op, ops.LogSoftmax):
        found = pen.put(ops.Scale(torch.tensor(-1.0, dtype=torch.float64), None), pen.put(ops.Log(), total))
    else:
        found = pen.put(ops.Reciprocal(), total)
    if kept is not None:
        found = pen.put(ops.Scale(kept, None), found)
    pen.put(ops.Transpose(back), found, last=True)
