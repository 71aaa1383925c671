"""Removes what computes nothing: identities, and chains of views or of clips that are one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op
from lipverify.passes.rewriting import Draft, Replacement, substitute


def drop_identities(graph: Graph) -> Graph:
    """Without operators that return their input, and with runs of Reshape, Transpose, Gather or clips made one."""
    found: dict[str, Replacement] = {}
    for node in graph.nodes:
        if not node.inputs:
            continue
        below = graph[node.inputs[0]]
        if _is_identity(node, below):
            found[node.name] = below.name
        elif (whole := _put_together(node, graph)) is not None:
            found[node.name] = whole
        elif (merged := _merged(node, below, graph)) is not None:
            draft = Draft(graph, node)
            found[node.name] = draft.finish(draft.add(*merged))
    return substitute(graph, found)


def _is_identity(node: Node, below: Node) -> bool:
    """Whether the node returns its first input, as a function of real numbers."""
    match node.op:
        case ops.Reshape() | ops.Expand() | ops.Slice():
            # A slice that keeps the shape starts at 0 with step 1: anything else is shorter.
            return node.shape == below.shape
        case ops.Transpose(order=order):
            return order == tuple(range(len(order)))
        case ops.Gather(indices=indices):
            return node.shape == below.shape and torch.equal(indices, torch.arange(len(indices)).to(indices))
        case ops.Pad() | ops.Upsample():
            return node.shape == below.shape
        case ops.Scale(scale=scale, shift=shift):
            return _every(scale, 1.0) and _every(shift, 0.0)
        case ops.DivideBy(divisor=divisor):
            return _every(divisor, 1.0)
        case ops.Power(exponent=exponent):
            return exponent == 1
        case ops.Concat() | ops.Maximum() | ops.Minimum():
            return len(node.inputs) == 1
        case ops.GroupSort(group=group):
            return group == 1
        case ops.ReLU():
            return isinstance(below.op, ops.ReLU)
    return False


def _put_together(node: Node, graph: Graph) -> str | None:
    """The tensor whose slices a concatenation puts together again, all of it in order; None: it is another concatenation."""
    parts = [graph[name] for name in node.inputs]
    if not isinstance(node.op, ops.Concat) or not all(isinstance(part.op, ops.Slice) for part in parts):
        return None
    source = graph[parts[0].inputs[0]]
    axis, places = node.op.axis, list[int]()
    for part in parts:
        op = part.op
        if not isinstance(op, ops.Slice) or op.axis != axis or part.inputs != (source.name,):
            return None
        places += range(op.start, op.stop, op.step)
    return source.name if places == list(range(source.shape[axis])) else None


def _every(values: Tensor | None, number: float) -> bool:
    return values is None or bool((values == number).all())


def _merged(node: Node, below: Node, graph: Graph) -> tuple[Op, str] | None:
    """One operator and its input in place of two views in a row, or a simpler spelling of one view."""
    match node.op, below.op:
        case ops.Reshape(), ops.Reshape():
            return node.op, below.inputs[0]
        case ops.Transpose(order=order), ops.Transpose(order=first):
            return ops.Transpose(tuple(first[axis] for axis in order)), below.inputs[0]
        case ops.Gather(axis=axis, indices=indices), ops.Gather(axis=before, indices=first) if axis == before:
            return ops.Gather(axis, first[indices]), below.inputs[0]
        case ((ops.Clip() | ops.ReLU()), (ops.Clip() | ops.ReLU())):
            return _clip(_limits(below.op), *_limits(node.op)), below.inputs[0]
        case ops.Transpose(order=order), _ if _keeps_row_major(order, below):
            return ops.Reshape(node.shape), below.name
    return None


def _limits(op: Op) -> tuple[float, float]:
    return (op.low, op.high) if isinstance(op, ops.Clip) else (0.0, math.inf)


def _clip(first: tuple[float, float], low: float, high: float) -> Op:
    """A clip of a clip has the first one's ends, clipped: the second is monotone."""
    start, stop = (min(max(end, low), high) for end in first)
    # Ends in the wrong order mean the upper one everywhere.
    return ops.ReLU() if (start, stop) == (0.0, math.inf) else ops.Clip(min(start, stop), stop)


def _keeps_row_major(order: tuple[int, ...], below: Node) -> bool:
    """Only axes of size 1 move: the entries stay in their order."""
    moved = [axis for axis in order if below.shape[axis] != 1]
    return moved == sorted(moved)
