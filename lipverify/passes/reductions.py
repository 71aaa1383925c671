"""Reductions whose results are copied back to the entries they were computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op, Shape
from lipverify.passes.scalar_algebra import number
from lipverify.rules import forward

_Views = ops.Expand | ops.Reshape
_Scalar = ops.Sqrt | ops.Power | ops.Reciprocal | ops.Scale | ops.DivideBy
_Reductions = ops.ReduceMean | ops.ReduceSum | ops.ReduceMax


@dataclass(frozen=True)
class BroadcastReduction:
    """A reduction, then the scalar functions `steps`, copied back to the shape it was computed from."""

    reduce: Node
    steps: tuple[Op, ...]


def broadcast_reduction(graph: Graph, name: str, shape: Shape) -> BroadcastReduction | None:
    """The reduction of a tensor of this shape that a node copies back to exactly the entries it was computed from."""
    views: list[Op] = []
    steps: list[Op] = []
    node = graph[name]
    while isinstance(node.op, _Views | _Scalar):
        if isinstance(node.op, _Views):
            views.append(node.op)
        elif not _uniform(node.op):
            return None  # different numbers for different entries do not commute with the views
        else:
            steps.append(node.op)
        node = graph[node.inputs[0]]
    if not isinstance(node.op, _Reductions) or graph[node.inputs[0]].shape != shape:
        return None
    return (
        BroadcastReduction(node, tuple(steps[::-1]))
        if _lands(node, views[::-1], shape, node.op.axes)
        else None
    )


def _uniform(op: Op) -> bool:
    match op:
        case ops.Scale(scale=scale, shift=shift):
            return number(scale, 1) is not None and number(shift, 0) is not None
        case ops.DivideBy(divisor=divisor):
            return number(divisor, 1) is not None
    return True


def _lands(node: Node, views: Sequence[Op], shape: Shape, axes: Shape) -> bool:
    positions = torch.arange(node.size).reshape(1, *node.shape)
    for view in views:
        positions = forward(view, positions)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return torch.equal(positions.squeeze(0), torch.arange(node.size).reshape(kept).expand(shape))
